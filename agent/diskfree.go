package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"appplatform/partitions"
)

// PlanDiskfree lists what may be deleted without asking, in the order of the
// manual: the reserve, logs of apps, core dumps, and then old logs of the
// system. Databases and what people have stored are not among it.
func PlanDiskfree(m Machine, need partitions.Size) ([]Step, error) {
	space, err := m.dataSpace()
	if err != nil {
		return nil, err
	}
	if need > space.Total {
		return nil, withHint("ask for less, or enlarge the disk of the virtual machine",
			"cannot free %s: the data partition has %s", need.Short(), space.Total.Short())
	}
	if space.Free >= need {
		return nil, nil
	}
	var steps []Step
	size, err := m.reserve()
	if err != nil {
		return nil, err
	}
	part, err := fileSize(m.path(reservePart))
	if err != nil {
		return nil, err
	}
	if size > emptied || part >= 0 {
		steps = append(steps, emptyReserve{max(0, size) + max(0, part)})
	}
	for _, kind := range []struct {
		what, dir string
		old       bool // only those that are not written any more
	}{
		{"logs of apps", "apps", false},
		{"core dumps", path.Base(coreDumps), false},
		{"old logs of the system", ".", true},
		{"logs of the database", "postgresql", false},
	} {
		files, err := m.findLogs(kind.dir)
		if err != nil {
			return nil, err
		}
		s := dropLogs{what: kind.what}
		for _, f := range files {
			if f.size > 0 && (!kind.old || path.Dir(f.name) == "." && oldLog(f.name)) {
				s.files = append(s.files, f)
			}
		}
		if len(s.files) > 0 {
			steps = append(steps, s)
		}
	}
	return steps, nil
}

// oldLog knows what syslogd and logrotate call them: x.1, x.2.gz.
func oldLog(name string) bool {
	number := strings.TrimPrefix(path.Ext(strings.TrimSuffix(name, ".gz")), ".")
	return number != "" && strings.Trim(number, "0123456789") == ""
}

// Diskfree follows the plan until need is free, and tells what is left to do
// for people. A step that fails does not keep the next ones from helping.
func Diskfree(ctx context.Context, m Machine, need partitions.Size) error {
	steps, err := PlanDiskfree(m, need)
	if err != nil {
		return err
	}
	space, err := m.dataSpace()
	for i, s := range steps {
		if err = errors.Join(err, ctx.Err()); err != nil || space.Free >= need {
			break
		}
		m.Log.Printf("step %d of %d: %v", i+1, len(steps), s)
		if err := s.Do(ctx, m); err != nil {
			m.Log.Printf("  %s", Explain(err))
		}
		before := space
		if space, err = m.dataSpace(); err == nil {
			m.Log.Printf("  freed %s", max(0, before.Used-space.Used).Short())
		}
	}
	if err != nil {
		return err
	}
	if space.Free < need {
		return withHint("delete data or a whole instance in the apps, then: sudo -u postgres vacuumdb -a -f; or enlarge the disk of the virtual machine",
			"only %s of %s are free, %s are needed, and nothing else may be deleted without asking", space.Free.Short(), space.Total.Short(), need.Short())
	}
	m.Log.Printf("%s of %s are free", space.Free.Short(), space.Total.Short())
	if len(steps) > 0 {
		m.adviseAfterFull()
	}
	return nil
}

// adviseAfterFull is the rest of the manual's way out of a full disk.
func (m Machine) adviseAfterFull() {
	if m.Ramdisk {
		m.Log.Printf("now: reboot")
	} else {
		m.Log.Printf("now start what has stopped: /etc/init.d/S50postgresql restart")
		const manager = "etc/init.d/S92manager"
		if _, err := os.Stat(m.path(manager)); err == nil {
			m.Log.Printf("                            /%s restart", manager)
		}
	}
	m.Log.Printf("then delete data that is not needed in the apps; with a backup at hand,")
	m.Log.Printf("sudo -u postgres vacuumdb -a -f  gives back what the databases do not use any more")
	if size, err := m.reserve(); err == nil && size >= 0 && size < reserveSize {
		m.Log.Printf("when %s are free: rm /%s  (it is made again within ten minutes)", (reserveSize + NearlyFull).Short(), reserveFile)
	}
}

// emptyReserve gives the room back that was kept for this.
type emptyReserve struct{ size partitions.Size }

func (s emptyReserve) String() string {
	return fmt.Sprintf("empty /%s (%s)", reserveFile, s.size.Short())
}

func (emptyReserve) Do(_ context.Context, m Machine) error {
	err := errors.Join(ignoreMissing(os.Truncate(m.path(reserveFile), 0)), ignoreMissing(os.Remove(m.path(reservePart))))
	if err != nil {
		return fmt.Errorf("cannot use the room kept for a full disk: %w", err)
	}
	return m.syncData()
}

// A logFile is a file below /var/log.
type logFile struct {
	name    string // from there
	size    partitions.Size
	changed time.Time
}

// findLogs lists the files in a folder of /var/log. Links are not followed:
// apps own the folders that their logs are in.
func (m Machine) findLogs(dir string) ([]logFile, error) {
	var files []logFile
	top := m.path(logDir)
	err := filepath.WalkDir(filepath.Join(top, dir), func(file string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if !e.Type().IsRegular() {
			return nil
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // It was rotated just now.
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(top, file)
		files = append(files, logFile{name, partitions.Size(info.Size()), info.ModTime()})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list what is in /var/log: %w", err)
	}
	return files, nil
}

// dropLogs deletes logs and core dumps.
type dropLogs struct {
	what  string
	files []logFile
}

func (s dropLogs) size() (size partitions.Size) {
	for _, f := range s.files {
		size += f.size
	}
	return size
}

func (s dropLogs) String() string {
	n := fmt.Sprintf("%d files", len(s.files))
	if len(s.files) == 1 {
		n = "1 file"
	}
	return fmt.Sprintf("delete %s (%s, %s)", s.what, n, s.size().Short())
}

func (s dropLogs) Do(_ context.Context, m Machine) error {
	// Nobody's link leads out of it.
	top, err := os.OpenRoot(m.path(logDir))
	if err != nil {
		return fmt.Errorf("cannot delete %s: %w", s.what, err)
	}
	defer top.Close()
	var problems []error
	for _, f := range s.files {
		if err := ignoreMissing(f.drop(top)); err != nil {
			problems = append(problems, fmt.Errorf("cannot delete %s: %w", s.what, err))
		}
	}
	return errors.Join(append(problems, m.syncData())...)
}

// drop empties a file first: removed alone, one that a program has open would
// keep its room.
func (f logFile) drop(top *os.Root) error {
	file, err := top.OpenFile(f.name, os.O_WRONLY|os.O_TRUNC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil || f.current() {
		return err
	}
	return top.Remove(f.name)
}
