package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/agent/internal/block"
	"appplatform/agent/internal/boot"
	"appplatform/bundle"
	"appplatform/partitions"
)

// lookAfter is what the installed system does when no update is under way: when
// not everything works, the reason may be that sda3 was altered. Then the
// ramdisk writes it again.
func (m Machine) lookAfter(ctx context.Context) error {
	if err := m.remember(); err != nil {
		m.Log.Printf("%v", err)
	}
	problem := m.everythingRuns(ctx)
	if problem == nil || ctx.Err() != nil {
		return nil
	}
	d, err := m.findDisk(ctx)
	if err != nil {
		return err
	}
	err = m.rewriteIfAltered(ctx, d, problem)
	if err != nil {
		m.Log.Printf("%s", Explain(err))
	}
	return m.Log.Append(m.path(filepath.Join(dataDir, InstallLog)))
}

func (m Machine) rewriteIfAltered(ctx context.Context, d disk, problem error) error {
	rootfs := d.PartName(partitions.Rootfs)
	altered := m.checkSystem(ctx, d, m.installedRootfs())
	if ctx.Err() != nil {
		return nil
	}
	if altered == nil {
		return fmt.Errorf("not everything works, and that %s was altered is not why: %w", rootfs, problem)
	}
	if !m.mayRewrite() {
		return withHint("the disk may be failing: replace it", "%s was altered once more: %w", rootfs, altered)
	}
	if err := m.chooseWhole(ctx, d); err != nil {
		return fmt.Errorf("%s was altered and there is nothing to write it from: %w", rootfs, err)
	}
	m.Log.Printf("%v", problem)
	m.repaired("%s "+wasAltered+", and the rescue system is to write it again: %s", rootfs, firstLine(problem.Error()))
	if err := m.setDefault(boot.Rescue); err != nil {
		return err
	}
	// The rescue system does not wait for anybody then.
	return Apply(ctx, m, []Step{forgetInstalled{}, shutDown{}})
}

// checkSystem compares sda3 with the image that it was written from: nil is what
// was not found to be altered. Where that image cannot be read any more, which
// apagent status tells, it only looks for a file system.
func (m Machine) checkSystem(ctx context.Context, d disk, written string) error {
	path := d.PartPath(partitions.Rootfs)
	set, found := m.setOf(written)
	if !found {
		if _, found, err := block.ProbeExt(path, 0); err != nil || !found {
			return errors.Join(err, errors.New("it holds no file system"))
		}
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = set.Compare(ctx, f, func(_, _ int64) {})
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // The memory is for others.
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// setOf is the image on sda1 with a root file system.
func (m Machine) setOf(rootfs string) (set bundle.Set, found bool) {
	name, found := m.setNamed(rootfs)
	if found {
		set, _ = m.openSet(name) // It could a moment ago.
	}
	return set, found
}

// setNamed is the folder of that image.
func (m Machine) setNamed(rootfs string) (name string, found bool) {
	for _, name := range []string{"a", "b"} {
		if set, err := m.openSet(name); err == nil && set.Rootfs.RawSHA256 == rootfs {
			return name, true
		}
	}
	return "", false
}

// remember makes the image that is installed the current one when the boot loader
// has forgotten which it is.
func (m Machine) remember() error {
	set, found := m.setNamed(m.installedRootfs())
	if !found || !m.loader().Forgotten() {
		return nil
	}
	e, err := m.loader().Default()
	if err != nil {
		e = boot.System
		if m.Ramdisk { // It looks at sda3 before it starts the system.
			e = boot.Rescue
		}
	}
	m.repaired("the boot loader had forgotten which image is the current one: it is %s", set)
	return m.setBoot(e, set)
}

// chooseWhole makes the other image on sda1 the current one if the current one
// is damaged and the other one is not. Then sda3 is not installed any more.
func (m Machine) chooseWhole(ctx context.Context, d disk) error {
	current, err := m.loader().CurrentSet()
	if err != nil {
		return err
	}
	damage := m.checkWhole(ctx, current)
	if damage == nil {
		return nil
	}
	other := otherSet(current)
	if err := m.checkWhole(ctx, other); err != nil {
		return errors.Join(damage, err)
	}
	set, err := m.openSet(other)
	if err != nil {
		return err
	}
	m.repaired("image %s is damaged, and image %s (%s) takes its place: %v", current, other, set.Label, damage)
	if err := m.withData(ctx, d, func() error { return forgetInstalled{}.Do(ctx, m) }); err != nil {
		return err
	}
	if err := m.setBoot(boot.Rescue, other); err != nil {
		return err
	}
	return writeLabel{set.Label}.Do(ctx, m)
}

// checkWhole reads all files of an image on sda1.
func (m Machine) checkWhole(ctx context.Context, name string) error {
	set, err := m.openSet(name)
	if err != nil {
		return err
	}
	if err := m.checkSums(set); err != nil {
		return err
	}
	return set.Verify(ctx, nil)
}

// checkSums is for a boot loader that starts nothing without them.
func (m Machine) checkSums(set bundle.Set) error {
	if m.Platform.Boot != "grub" {
		return nil
	}
	return set.CheckSums()
}

// wasAltered is what is said of sda3 before it is written again.
const wasAltered = "was altered"

// mayRewrite keeps a machine whose disk fails from doing nothing else: three
// times a day are enough. The clock may be wrong in both directions.
func (m Machine) mayRewrite() bool {
	recent := 0
	for _, r := range m.repairs() {
		if strings.Contains(r.What, wasAltered) && time.Since(r.Time).Abs() < 24*time.Hour {
			recent++
		}
	}
	return recent < 3
}

// errNothingWhole is when sda1 has no image to write sda3 from.
var errNothingWhole = errors.New("no image on the boot partition is whole")

// heal is what the rescue system does when sda3 is not what was installed.
func (m Machine) heal(ctx context.Context, d disk, altered error) error {
	if err := m.chooseWhole(ctx, d); err != nil {
		return fmt.Errorf("%s was altered: %w; %w: %w", d.PartName(partitions.Rootfs), altered, errNothingWhole, err)
	}
	m.repaired("%s "+wasAltered+" and is written again: %v", d.PartName(partitions.Rootfs), altered)
	return m.installAndReboot(ctx, d)
}
