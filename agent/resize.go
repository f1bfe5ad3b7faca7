package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"appplatform/agent/internal/block"
	"appplatform/agent/internal/boot"
	"appplatform/partitions"
)

// PlanResize looks at the disk and lists what is to be done to make sda2 take
// all of it, or to finish a resize that was interrupted. It changes nothing.
// There is nothing to do if there are no steps: the log says why. With restart
// the last step makes the installed system the one that boots.
func PlanResize(ctx context.Context, m Machine, restart bool) ([]Step, error) {
	d, err := m.findDisk(ctx)
	if err != nil {
		return nil, err
	}
	if d.Disk, err = d.Rescan(); err != nil {
		m.Log.Printf("%v", err) // The size known so far may well be right.
	}
	table, changed, err := m.planGrowth(d)
	if err != nil {
		return nil, err
	}
	data, _ := table.Part(partitions.Data)
	before, err := dataFS(d)
	if err != nil {
		return nil, err
	}
	if before.Size > data.Size {
		return nil, withHint("nothing was changed; give the disk its former size back",
			"cannot resize %v: the file system of %s has %s and there is room for %s",
			d.Disk, d.PartName(partitions.Data), before.Size.Short(), data.Size.Short())
	}
	if !changed && before.Fills(data.Size) {
		m.Log.Printf("nothing to do: %s (%s) takes all that %v (%s) has for it",
			d.PartName(partitions.Data), data.Size.Short(), d.Disk, d.Size.Short())
		m.Log.Printf("hint: enlarge the disk of the virtual machine first; if that was done while the machine ran, start it again")
		return nil, nil
	}
	var steps []Step
	if changed {
		steps = append(steps, writeTable{d, table})
	}
	return append(steps,
		announceSize{d, data},
		growData{d, data},
		endResize{d, before.Size, restart},
	), nil
}

// planGrowth is the table for the disk at its present size, and whether it is
// another one than that on the disk.
func (m Machine) planGrowth(d disk) (grown partitions.Table, changed bool, err error) {
	if p, foreign := d.table.Foreign(); foreign {
		return grown, false, withHint("nothing was changed; move away what does not belong to the App Platform",
			"cannot resize %v: partition %d (%s, %s) belongs to another system", d.Disk, p.Number, p.Label(), p.Size.Short())
	}
	if !installedTable(d.table) {
		return grown, false, withHint("start the machine: the installation takes all of the disk",
			"cannot resize %v: the App Platform is not installed on it yet", d.Disk)
	}
	grown, changed, err = d.table.Grow(d.Size)
	if err != nil {
		return grown, false, withHint("nothing was changed; give the disk its former size back, a disk cannot be made smaller",
			"cannot resize %v: %w", d.Disk, err)
	}
	return grown, changed, nil
}

// dataFS is what the superblock of sda2 says, also while sda2 is mounted.
func dataFS(d disk) (block.Ext, error) {
	ext, found, err := block.ProbeExt(d.PartPath(partitions.Data), 0)
	if err != nil {
		return ext, err
	}
	if !found {
		return ext, withHint(fmt.Sprintf("nothing was changed; start the rescue system and run e2fsck -f /dev/%s, which can find a copy of it",
			d.PartName(partitions.Data)), "cannot resize: %s has no file system", d.PartName(partitions.Data))
	}
	return ext, nil
}

// announceSize makes the kernel see where sda2 ends now; it may be mounted.
type announceSize struct {
	disk disk
	data partitions.Partition
}

func (s announceSize) String() string {
	return fmt.Sprintf("tell the kernel that %s has %s", s.disk.PartName(partitions.Data), s.data.Size.Short())
}

func (s announceSize) Do(_ context.Context, m Machine) error {
	return s.disk.Announce(m.Kernel, s.data)
}

// growData makes the file system fill sda2: while it is mounted the kernel does
// it, one journalled transaction after the other; otherwise resize2fs does it
// itself and wants the file system to be checked completely before.
type growData struct {
	disk disk
	data partitions.Partition
}

func (s growData) String() string {
	return fmt.Sprintf("make the file system of %s fill it", s.disk.PartName(partitions.Data))
}

func (s growData) Do(ctx context.Context, m Machine) error {
	dev := s.disk.PartPath(partitions.Data)
	if !m.Kernel.Mounted("/" + dataDir) {
		if _, err := m.checkExt(ctx, dev, "-f", "-p"); err != nil {
			return err
		}
	}
	if err := m.Run(ctx, "resize2fs", dev); err != nil {
		return fmt.Errorf("cannot enlarge the file system of %s: %w", s.disk.PartName(partitions.Data), err)
	}
	after, err := dataFS(s.disk)
	if err != nil {
		return err
	}
	if !after.Fills(s.data.Size) {
		return fmt.Errorf("cannot enlarge the file system of %s: it has %s now and should have %s",
			s.disk.PartName(partitions.Data), after.Size.Short(), s.data.Size.Short())
	}
	return nil
}

// endResize says in the log what was reached and, to restart, changes what
// boots.
type endResize struct {
	disk    disk
	before  partitions.Size
	restart bool
}

func (s endResize) String() string {
	if s.restart {
		return "keep the log and boot the system from now on"
	}
	return "keep the log"
}

func (s endResize) Do(ctx context.Context, m Machine) error {
	after, err := dataFS(s.disk)
	if err != nil {
		return err
	}
	boots := s.restart
	if s.restart {
		work, err := m.findWork(ctx, s.disk)
		if err != nil {
			return err
		}
		if work.any() {
			m.Log.Printf("an installation or update is under way: the next start goes on with it")
			boots = false
		}
	}
	err = m.withData(ctx, s.disk, func() error {
		if err := m.syncData(); err != nil {
			return err
		}
		if err := m.Log.Open(m.path(filepath.Join(dataDir, InstallLog))); err != nil {
			return err
		}
		m.Log.Printf("the file system of %s had %s and now has %s",
			s.disk.PartName(partitions.Data), s.before.Short(), after.Size.Short())
		return errors.Join(m.Log.Finished(), m.Log.Close())
	})
	if err != nil || !boots {
		return err
	}
	return m.setDefault(boot.System)
}

// ErrResizeStopped is a resize that had begun.
var ErrResizeStopped = errors.New("the resize has stopped")

// Resize makes sda2 take all of the disk, in the installed system while it
// runs. With restart, which is for the rescue system, it goes on in the
// installed system, if there was anything to do.
func Resize(ctx context.Context, m Machine, restart bool) error {
	if restart && !m.Ramdisk {
		return withHint("leave --reboot away: the installed system uses the room at once", "cannot resize and reboot: this is the installed system")
	}
	if m.Ramdisk {
		unlock, err := m.lockRescue()
		if err != nil {
			return err
		}
		defer unlock()
	}
	steps, err := PlanResize(ctx, m, restart)
	if err != nil || len(steps) == 0 {
		return err
	}
	if err := Apply(ctx, m, steps); err != nil {
		err = fmt.Errorf("%w: %w", ErrResizeStopped, err)
		if errors.As(err, new(hinted)) {
			return err
		}
		return hinted{err, "the data are kept; run it again, it goes on where it stopped"}
	}
	if restart {
		return m.reboot()
	}
	return nil
}
