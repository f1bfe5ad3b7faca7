package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"appplatform/internal/atomicfile"
	"appplatform/partitions"
)

// The reserve is a file without content that takes room on sda2: people empty
// it when the disk is full, and an update may do so too. It gets its name when
// it is whole, so that what a power cut leaves is never taken for it.
const (
	reserveFile = dataDir + "/empty_if_no_space"
	reservePart = dataDir + "/.empty_if_no_space.part"
	reserveSize = 500 * partitions.MiB
)

// NearlyFull is when sda2 has less room than this: PostgreSQL's log of changes
// alone may grow by as much between two checkpoints (max_wal_size).
const NearlyFull = 256 * partitions.MiB

// emptied is what a file may hold that was emptied by: echo "" > FILE.
const emptied = 4 * partitions.KiB

// appLogs caps what the logs of apps take together; on a small disk it is a
// tenth of it.
const appLogs = 512 * partitions.MiB

// PlanTidy lists what is to be done so that the data partition does not fill
// up, and can be emptied if it does. Most of the time that is nothing.
func PlanTidy(m Machine) ([]Step, error) {
	space, err := m.dataSpace()
	if err != nil {
		return nil, err
	}
	logs, err := m.findLogs("apps")
	if err != nil {
		return nil, err
	}
	var steps []Step
	if s := trimLogs(logs, min(appLogs, space.Total/10)); len(s.files) > 0 {
		steps = append(steps, s)
	}
	reserve, err := m.planReserve(space.Free)
	return append(steps, reserve...), err
}

// trimLogs chooses what goes when logs take more than they may: old ones first,
// then the longest of those that are being written.
func trimLogs(logs []logFile, limit partitions.Size) dropLogs {
	total := dropLogs{files: logs}.size()
	slices.SortFunc(logs, func(a, b logFile) int {
		switch {
		case a.current() && b.current():
			return cmp.Compare(b.size, a.size)
		case a.current():
			return 1
		case b.current():
			return -1
		}
		return a.changed.Compare(b.changed)
	})
	s := dropLogs{what: "logs of apps beyond " + limit.Short()}
	for _, f := range logs {
		if total <= limit {
			break
		}
		s.files = append(s.files, f)
		total -= f.size
	}
	return s
}

// planReserve makes the reserve when it is missing and the disk is not nearly
// full with it. One that was emptied is left to whoever did that: he says that
// the room is not needed any more by removing it.
func (m Machine) planReserve(free partitions.Size) ([]Step, error) {
	size, err := m.reserve()
	if err != nil {
		return nil, err
	}
	part, err := fileSize(m.path(reservePart))
	if err != nil {
		return nil, err
	}
	var steps []Step
	if part >= 0 {
		steps = append(steps, removeRest{reservePart})
		free += part
	}
	if size > emptied && size < reserveSize {
		steps = append(steps, removeRest{reserveFile})
		free, size = free+size, -1
	}
	if size < 0 && free >= reserveSize+NearlyFull {
		steps = append(steps, makeReserve{})
	}
	return steps, nil
}

// reserve is the size of the reserve, or -1 when there is none.
func (m Machine) reserve() (partitions.Size, error) {
	size, err := fileSize(m.path(reserveFile))
	if err != nil {
		return 0, hinted{err, "move it away; apagent tidy makes the file that belongs there"}
	}
	return size, nil
}

// fileSize is the size of a file, or -1 when there is none.
func fileSize(path string) (partitions.Size, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not an ordinary file", path)
	}
	return partitions.Size(info.Size()), nil
}

// makeReserve takes the room at once, without writing to it.
type makeReserve struct{}

func (makeReserve) String() string {
	return fmt.Sprintf("keep %v for a full disk in /%s", reserveSize, reserveFile)
}

func (makeReserve) Do(_ context.Context, m Machine) error {
	if err := m.allocate(reservePart, reserveSize); err != nil {
		return errors.Join(fmt.Errorf("cannot keep room for a full disk: %w", err), ignoreMissing(os.Remove(m.path(reservePart))))
	}
	// Missing is what another run, started at the same time, has renamed.
	if err := ignoreMissing(os.Rename(m.path(reservePart), m.path(reserveFile))); err != nil {
		return fmt.Errorf("cannot keep room for a full disk: %w", err)
	}
	return atomicfile.SyncDir(m.path(dataDir))
}

func (m Machine) allocate(name string, size partitions.Size) error {
	f, err := os.OpenFile(m.path(name), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = m.Kernel.Allocate(f, size)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// removeRest removes what is neither whole nor empty.
type removeRest struct{ name string }

func (s removeRest) String() string { return "remove /" + s.name + ", which is not whole" }

func (s removeRest) Do(_ context.Context, m Machine) error {
	if err := ignoreMissing(os.Remove(m.path(s.name))); err != nil {
		return fmt.Errorf("cannot keep room for a full disk: %w", err)
	}
	return nil
}

// dataSpace is how full sda2 is.
func (m Machine) dataSpace() (Space, error) {
	if !m.Kernel.Mounted("/" + dataDir) {
		hint := "apagent status tells why"
		if m.Ramdisk {
			hint = "mount /dev/sda2 /" + dataDir + " (apagent status shows its name on this machine)"
		}
		return Space{}, withHint(hint, "the data partition is not mounted")
	}
	return m.Kernel.Space("/" + dataDir)
}

// checkSpace is what status has to say about it.
func (m Machine) checkSpace() error {
	space, err := m.dataSpace()
	if err != nil {
		return err
	}
	if space.Free < NearlyFull {
		return withHint("apagent diskfree", "the data partition is nearly full: %s of %s are free", space.Free.Short(), space.Total.Short())
	}
	size, err := m.reserve()
	if err != nil {
		return err
	}
	if size >= 0 && size <= emptied && space.Free >= reserveSize+NearlyFull {
		return withHint("rm /"+reserveFile+" && apagent tidy", "no room is kept for a full disk: /%s was emptied", reserveFile)
	}
	return nil
}

// logDir is /var/log, also where nothing is mounted there.
const logDir = dataDir + "/log"

// current reports whether a log is the one that its program has open. It is
// emptied and stays, or the program would go on writing to a file without a name.
func (f logFile) current() bool { return strings.HasSuffix(f.name, ".log") }
