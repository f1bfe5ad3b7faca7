package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"appplatform/internal/atomicfile"
)

// What was repaired since this system was started is in memory, because most of
// it happens before sda2 can keep anything; there it is for good, and people
// find it at /var/log/repairs.log.
const (
	repairsFile = "run/app-platform/repairs"
	repairsLog  = dataDir + "/log/repairs.log"
)

// maxRepairs is how many lines of the log are kept: a failing disk adds one to
// it at every start.
const maxRepairs = 200

// noteRepair says what a check of a file system has done, and keeps it.
func (m Machine) noteRepair(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	m.Log.Printf("%s", text)
	err := m.appendRepair(time.Now().UTC().Format("2006-01-02 15:04:05 ") + strings.ReplaceAll(text, "\n", "; "))
	if err == nil {
		err = m.keepRepairs()
	}
	if err != nil {
		m.Log.Printf("cannot keep the report of a repair: %v", err)
	}
}

func (m Machine) appendRepair(line string) error {
	path := m.path(repairsFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	return errors.Join(err, f.Close())
}

// keepRepairs brings the lines of this start to sda2, if that is mounted.
func (m Machine) keepRepairs() error {
	now := m.readLines(repairsFile)
	if len(now) == 0 || !m.Kernel.Mounted("/"+dataDir) {
		return nil
	}
	kept := m.readLines(repairsLog)
	all := slices.Clone(kept)
	for _, line := range now {
		if !slices.Contains(kept, line) {
			all = append(all, line)
		}
	}
	if len(all) == len(kept) {
		return nil
	}
	all = all[max(0, len(all)-maxRepairs):]
	path := m.path(repairsLog)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.Write(path, []byte(strings.Join(all, "\n")+"\n"), 0o644)
}

// readLines is a file of lines; one that is missing has none.
func (m Machine) readLines(name string) (lines []string) {
	text, _ := os.ReadFile(m.path(name))
	for line := range bytes.Lines(text) {
		lines = append(lines, strings.TrimSpace(string(line)))
	}
	return lines
}

// lastRepair is the last line that sda2 keeps, or "".
func (m Machine) lastRepair() string {
	lines := m.readLines(repairsLog)
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1]
}
