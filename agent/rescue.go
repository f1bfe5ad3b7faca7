package agent

import (
	"context"
	"errors"
	"fmt"
	"os"

	"appplatform/agent/internal/block"
	"appplatform/agent/internal/boot"
	"appplatform/partitions"
)

// errNotHere is what the rescue system can do and the installed one cannot.
func errNotHere(what string) error {
	return withHint("run it in the rescue system: apagent boot rescue, then reboot",
		"cannot %s: this is the installed system, which is in use", what)
}

// lockRescue is for whoever changes the disk in the rescue system: there are
// several consoles, and the system itself has things to do.
func (m Machine) lockRescue() (unlock func(), err error) {
	return m.lock("run/app-platform/rescue.lock", "the disk of this machine is being worked on right now")
}

// rescueDisk finds a disk that can be rescued, and keeps others from it until
// done is called.
func (m Machine) rescueDisk(ctx context.Context) (d disk, done func(), err error) {
	if d, err = m.findDisk(ctx); err != nil {
		return d, nil, err
	}
	if !installedTable(d.table) {
		return d, nil, withHint("restart, which installs it: reboot", "the App Platform is not installed on %v yet", d.Disk)
	}
	done, err = m.lockRescue()
	return d, done, err
}

// beginInRescue is what a transition needs besides: that nothing else is under
// way, sda2, and the log.
func (m Machine) beginInRescue(ctx context.Context) (d disk, done func(), err error) {
	d, unlock, err := m.rescueDisk(ctx)
	if err != nil {
		return d, nil, err
	}
	err = m.refuseUnfinished(ctx, d)
	var giveBack func()
	if err == nil {
		giveBack, err = m.useData(ctx, d)
	}
	if err != nil {
		unlock()
		return d, nil, err
	}
	return d, func() { defer unlock(); giveBack() }, nil
}

// refuseUnfinished is for what would get in the way of something that is under
// way.
func (m Machine) refuseUnfinished(ctx context.Context, d disk) error {
	work, err := m.findWork(ctx, d)
	switch {
	case err != nil:
		return err
	case work.transition != nil:
		return withHint("restart, and it goes on: reboot", "the way from App Platform %s to %s is not finished",
			work.transition.From.Label, work.transition.To.Label)
	case work.install:
		return withHint("re-install the root file system first: apagent rescue reinstall", "the installed system is not whole")
	}
	return nil
}

// useData mounts sda2 and keeps the log there, until giveBack is called. Who
// mounted it before keeps it.
func (m Machine) useData(ctx context.Context, d disk) (giveBack func(), err error) {
	before := m.Kernel.Mounted("/" + dataDir)
	giveBack = func() {
		err := m.Log.Close()
		if !before && m.Kernel.Mounted("/"+dataDir) {
			err = errors.Join(err, m.Kernel.Unmount("/"+dataDir))
		}
		if err != nil {
			m.Log.Printf("%v", err) // Synced already.
		}
	}
	if err := (openLog{d}).Do(ctx, m); err != nil {
		return nil, err
	}
	return giveBack, nil
}

// PreviousImage is the label of the image that Rollback goes back to.
func PreviousImage(ctx context.Context, m Machine) (label string, err error) {
	d, err := m.findDisk(ctx)
	if err != nil {
		return "", err
	}
	if err := m.mountBoot(ctx, d); err != nil {
		return "", err
	}
	current, err := m.loader().CurrentSet()
	if err != nil {
		return "", err
	}
	set, err := m.openSet(otherSet(current))
	if errors.Is(err, os.ErrNotExist) {
		return "", withHint("an update brings another one: apagent update, in the installed system", "there is no previous image on this machine")
	}
	if err != nil {
		return "", fmt.Errorf("there is no previous image to go back to: %w", err)
	}
	return set.Label, nil
}

// A DamagedImage is an image on sda1 that cannot be installed. Other is the one
// that can be in its place, or "".
type DamagedImage struct {
	Set, Other, OtherLabel string
	why                    error
}

func (e *DamagedImage) Error() string { return fmt.Sprintf("image %s is damaged: %v", e.Set, e.why) }

func (e *DamagedImage) Unwrap() error { return e.why }

// Reinstall writes sda3 again from an image of sda1, "" being the one that the
// firmware starts, and restarts into it. What is on sda2 stays. It may be
// interrupted: the ramdisk sees that the system is not whole, and goes on.
func Reinstall(ctx context.Context, m Machine, set string) error {
	if !m.Ramdisk {
		return errNotHere("re-install the root file system")
	}
	d, done, err := m.rescueDisk(ctx)
	if err != nil {
		return err
	}
	defer done()
	steps, err := m.planReinstall(ctx, d, set)
	if err != nil {
		return err
	}
	giveBack, err := m.useData(ctx, d)
	if err != nil {
		return err
	}
	if err := Apply(ctx, m, steps); err != nil {
		err = fmt.Errorf("the root file system was not re-installed: %w", err)
		m.Log.Keep("%s", Explain(err)) // The caller shows it.
		if m.installedRootfs() == "" {
			err = hinted{err, "it is not whole now; do it again, or restart, which goes on by itself: reboot"}
		}
		giveBack()
		return err
	}
	return m.reboot()
}

// PlanReinstall lists the steps of Reinstall.
func PlanReinstall(ctx context.Context, m Machine, set string) ([]Step, error) {
	if !m.Ramdisk {
		return nil, errNotHere("re-install the root file system")
	}
	d, done, err := m.rescueDisk(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return m.planReinstall(ctx, d, set)
}

// planReinstall refuses to get in the way of an update. From the second step on
// the firmware starts the ramdisk of the image, which finds out that sda3 does
// not hold it and writes it.
func (m Machine) planReinstall(ctx context.Context, d disk, set string) ([]Step, error) {
	work, err := m.findWork(ctx, d)
	if err != nil {
		return nil, err
	}
	if work.transition != nil && work.transition.Stage != stageRestore {
		return nil, m.refuseUnfinished(ctx, d)
	}
	if set == "" {
		if set, err = m.loader().CurrentSet(); err != nil {
			return nil, err
		}
	}
	begin := []Step{checkImage{set}, bootEntry{boot.Rescue, set}, forgetInstalled{}}
	if work.transition != nil { // It could not go back, and somebody decides.
		begin = append(begin, forgetUpdate{})
	}
	return append(begin,
		writeRootfs{disk: d, set: set, resume: true},
		verifyRootfs{disk: d, set: set},
		makeFolders{},
		labelSystem{set},
		markInstalled{set},
		bootSystem{set},
	), nil
}

// forgetUpdate ends the way from one image to another where it is.
type forgetUpdate struct{}

func (forgetUpdate) String() string { return "forget what an update has left" }

func (forgetUpdate) Do(_ context.Context, m Machine) error { return m.forgetTransition() }

// checkImage is checkSet that looks for a way out.
type checkImage struct{ set string }

func (s checkImage) String() string { return "check image " + s.set + " and its signature" }

func (s checkImage) Do(ctx context.Context, m Machine) error {
	set, err := m.openSet(s.set)
	if err == nil {
		m.Log.Printf("image %s for %s", set.Label, set.Board)
		err = set.Verify(ctx, func(done, total int64) { m.Log.Progress("checked", done, total) })
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	return m.damaged(ctx, s.set, err)
}

// damaged looks whether the other image of sda1 is whole.
func (m Machine) damaged(ctx context.Context, set string, why error) error {
	e := &DamagedImage{Set: set, why: why}
	other, err := m.openSet(otherSet(set))
	if err == nil {
		err = other.Verify(ctx, func(done, total int64) { m.Log.Progress("checked the other one", done, total) })
	}
	if err != nil {
		return hinted{e, "nothing was changed, and there is no other image; write the image to the disk again"}
	}
	e.Other, e.OtherLabel = otherSet(set), other.Label
	return hinted{e, fmt.Sprintf("nothing was changed; image %s (%s) is whole and can be used instead: apagent rescue reinstall %s",
		e.Other, e.OtherLabel, e.Other)}
}

// CheckDisk checks the three file systems of the disk from end to end, repairs
// what it can, and reports on the console and in the install log.
func CheckDisk(ctx context.Context, m Machine) error {
	if !m.Ramdisk {
		return errNotHere("check the file systems")
	}
	d, done, err := m.rescueDisk(ctx)
	if err != nil {
		return err
	}
	defer done()
	whole := true
	report := func(err error) error {
		if err != nil {
			m.Log.Printf("%s", Explain(err))
			whole = false
		}
		return err
	}
	_ = report(m.checkPart(ctx, d, partitions.Boot))
	dataErr := report(m.checkPart(ctx, d, partitions.Data))
	_ = report(m.reportSystem(ctx, d))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if dataErr == nil {
		if err := m.keepReport(ctx, d, whole); err != nil {
			return err
		}
	}
	if !whole {
		return errors.New("not everything is whole; the lines above say what to do")
	}
	return nil
}

// keepReport brings the report to the install log.
func (m Machine) keepReport(ctx context.Context, d disk, whole bool) (err error) {
	giveBack, err := m.useData(ctx, d)
	if err != nil {
		return err
	}
	defer giveBack()
	if whole {
		err = m.Log.Finished()
	}
	return err
}

// places are where the partitions may be mounted, the last one first.
var places = map[int][]string{
	partitions.Boot:   {"/boot", "/" + bootDir},
	partitions.Data:   {"/" + dataDir},
	partitions.Rootfs: {"/mnt/sda3"},
}

// release unmounts a partition.
func (m Machine) release(d disk, number int) error {
	for _, place := range places[number] {
		if !m.Kernel.Mounted(place) {
			continue
		}
		if err := m.Kernel.Unmount(place); err != nil {
			return withHint("leave that folder in every shell (cd /) and end what uses it, then do it again",
				"cannot check %s: %w", d.PartName(number), err)
		}
	}
	return nil
}

// checkPart checks sda1 or sda2, and mounts again what was mounted.
func (m Machine) checkPart(ctx context.Context, d disk, number int) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	name := d.PartName(number)
	m.Log.Printf("checking %s (%s)", name, partitions.Title(number))
	mounted := m.Kernel.Mounted(places[number][len(places[number])-1])
	err := m.release(d, number)
	if err == nil {
		err = m.repairAll(ctx, d, number)
	}
	if !mounted {
		return err
	}
	if number == partitions.Boot {
		return errors.Join(err, m.mountBoot(context.WithoutCancel(ctx), d))
	}
	if err != nil { // It is not written to any more.
		return err
	}
	return m.mountChecked(context.WithoutCancel(ctx), d, number, dataDir)
}

// repairAll looks at all of a file system, which takes minutes on a large disk.
func (m Machine) repairAll(ctx context.Context, d disk, number int) error {
	defer m.Log.Alive("still checking " + d.PartName(number))()
	repaired, err := m.repair(ctx, d, number, "-f")
	if err == nil && !repaired {
		m.Log.Printf("%s: clean", d.PartName(number))
	}
	return err
}

// reportSystem compares sda3 with the image. Only when that cannot be read is it
// e2fsck's: sda3 can be written again, which is better than to repair it.
func (m Machine) reportSystem(ctx context.Context, d disk) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	name := d.PartName(partitions.Rootfs)
	m.Log.Printf("checking %s (%s)", name, partitions.Title(partitions.Rootfs))
	if err := m.release(d, partitions.Rootfs); err != nil {
		return err
	}
	set, err := m.openSet("")
	if err != nil {
		m.Log.Printf("%v", err)
		return m.repairAll(ctx, d, partitions.Rootfs)
	}
	dev, err := block.OpenDevice(d.PartPath(partitions.Rootfs))
	if err != nil {
		return fmt.Errorf("cannot check %s: %w", name, err)
	}
	defer dev.Close()
	if err := dev.Settle(); err != nil {
		return fmt.Errorf("cannot check %s: %w", name, err)
	}
	differs := set.Compare(ctx, dev, func(done, total int64) { m.Log.Progress("compared", done, total) })
	if differs == nil {
		m.Log.Printf("%s: clean, byte for byte the system of image %s", name, set.Label)
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := m.Run(ctx, "e2fsck", "-f", "-n", d.PartPath(partitions.Rootfs)); err != nil {
		return withHint("re-install the root file system: apagent rescue reinstall", "%s is damaged: %w", name, err)
	}
	// Manuals have people run e2fsck on it, which leaves the time there.
	m.Log.Printf("%s: its file system is clean, but it is not as image %s has it: %v", name, set.Label, differs)
	m.Log.Printf("hint: if the system misbehaves, re-install the root file system: apagent rescue reinstall")
	return nil
}

// StartSystem makes the installed system the one that starts, and restarts.
// What is under way goes on instead.
func StartSystem(ctx context.Context, m Machine) error {
	d, err := m.findDisk(ctx)
	if err != nil {
		return err
	}
	work, err := m.findWork(ctx, d)
	if err != nil {
		return err
	}
	if work.any() {
		m.Log.Printf("an installation or update is under way: the next start goes on with it")
	} else if err := m.setDefault(boot.System); err != nil {
		return err
	}
	return m.reboot()
}

// StartRescue makes the rescue system the one that starts, if it can, and
// restarts.
func StartRescue(ctx context.Context, m Machine) error {
	if err := SetBoot(ctx, m, true); err != nil {
		m.Log.Printf("%s", Explain(err))
	}
	return m.reboot()
}

// SwitchOff ends the rescue system.
func SwitchOff(ctx context.Context, m Machine) error {
	return m.leave(func() error { return m.Run(ctx, "poweroff") })
}
