package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/agent/internal/block"
	"appplatform/partitions"
)

// A disk is the one this system was started from, and the table it carries.
type disk struct {
	block.Disk
	table partitions.Table
}

// errNoDisk is what a human must solve: a missing driver, cable or disk.
var errNoDisk = errors.New("cannot find the disk that this system was started from")

// findDisk finds the disk by what it holds and never by its name. Slow disks
// get some time to appear.
func (m Machine) findDisk(ctx context.Context) (disk, error) {
	start := time.Now()
	said := start
	for {
		d, err := m.lookForDisk()
		if !errors.Is(err, errNoDisk) {
			return d, err
		}
		if time.Since(start) >= m.Patience {
			return disk{}, err
		}
		if time.Since(said) >= 5*time.Second {
			said = time.Now()
			m.Log.Printf("waiting for the disk (%d of %d s)", int(time.Since(start).Seconds()), int(m.Patience.Seconds()))
		}
		select {
		case <-ctx.Done():
			return disk{}, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (m Machine) lookForDisk() (disk, error) {
	all, err := block.Disks(m.Root)
	if err != nil {
		return disk{}, err
	}
	return m.choose(all, block.Disk.Head)
}

// choose reads the beginning of every disk and returns the one that is ours.
func (m Machine) choose(all []block.Disk, read func(block.Disk) ([]byte, error)) (disk, error) {
	var found []disk
	var seen []string
	var denied error
	root := m.rootDisk()
	for _, b := range all {
		head, err := read(b)
		switch {
		case errors.Is(err, fs.ErrPermission):
			denied = withHint("run it as root (su root)", "cannot read %v: permission denied", b)
			continue
		case err != nil: // A drive without a medium, or a broken one.
			seen = append(seen, fmt.Sprintf("%v (%s, cannot be read: %v)", b, b.Size.Short(), reason(err)))
			continue
		}
		seen = append(seen, fmt.Sprintf("%v (%s)", b, b.Size.Short()))
		table, err := partitions.Read(head)
		if err != nil {
			continue
		}
		if root != "" && root == b.Name || root == "" && m.isOurs(table) {
			found = append(found, disk{b, table})
		}
	}
	if len(found) == 0 && denied != nil {
		return disk{}, denied
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if len(seen) == 0 {
			return disk{}, hinted{fmt.Errorf("%w: there is no disk at all", errNoDisk),
				"check the disk and its controller; the virtual machine may need another controller type"}
		}
		return disk{}, hinted{fmt.Errorf("%w: none of %s holds the image", errNoDisk, strings.Join(seen, ", ")),
			"write the image to the disk again, or remove what the firmware boots by mistake"}
	}
	return disk{}, withHint("remove all of them but one, then start again",
		"cannot choose a disk: %v and %v carry the same image", found[0].Disk, found[1].Disk)
}

// reason is what the system said, without the names of file and call.
func reason(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// isOurs recognises the disk by the PARTUUID of sda1 that the boot loader
// passed on, else by what the builder wrote, else by its division.
func (m Machine) isOurs(t partitions.Table) bool {
	boot, _ := t.Part(partitions.Boot)
	if want := m.bootArgument("ap.boot"); want != "" {
		return strings.EqualFold(boot.UUID, want)
	}
	if strings.EqualFold(boot.UUID, m.Platform.BootUUID) {
		return true
	}
	_, foreign := t.Foreign()
	return installedTable(t) && !foreign
}

// rootDisk is the disk that / lies on in the installed system, or "".
func (m Machine) rootDisk() string {
	if m.Ramdisk {
		return ""
	}
	var st unix.Stat_t
	if err := unix.Stat(m.path("/"), &st); err != nil {
		return ""
	}
	dev := uint64(st.Dev)
	link, err := os.Readlink(m.path(fmt.Sprintf("sys/dev/block/%d:%d", unix.Major(dev), unix.Minor(dev))))
	if err != nil {
		return ""
	}
	return filepath.Base(filepath.Dir(link))
}
