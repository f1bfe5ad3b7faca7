package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"appplatform/agent/internal/block"
	"appplatform/agent/internal/boot"
	"appplatform/internal/atomicfile"
	"appplatform/partitions"
)

// announce makes the kernel see partitions; on a disk smaller or larger than
// the image it does not see all of them by itself.
type announce struct {
	disk  disk
	parts []partitions.Partition
}

func (s announce) String() string {
	if len(s.parts) == 1 {
		return fmt.Sprintf("find %s", s.disk.PartName(s.parts[0].Number))
	}
	return fmt.Sprintf("announce the partitions of %v to the kernel", s.disk.Disk)
}

func (s announce) Do(_ context.Context, m Machine) error {
	return s.disk.Announce(m.Kernel, s.parts...)
}

// mountBoot makes the image set readable. While an image is installed for the
// first time it stays read-only until the last step, so that a power cut finds
// sda1 clean.
type mountBoot struct{ disk disk }

func (s mountBoot) String() string { return "mount " + s.disk.PartName(partitions.Boot) }

func (s mountBoot) Do(ctx context.Context, m Machine) error {
	if m.Kernel.Mounted("/" + bootDir) {
		return nil
	}
	if err := m.checkFS(ctx, s.disk, partitions.Boot); err != nil {
		m.Log.Printf("%v", err) // What matters is whether the set can be read: the next step tells.
	}
	return m.mount(s.disk, partitions.Boot, bootDir, unix.MS_RDONLY|bootFlags)
}

// checkSet makes sure that what is about to be installed is whole and signed.
type checkSet struct{ set string }

func (checkSet) String() string { return "check the image set and its signature" }

func (s checkSet) Do(ctx context.Context, m Machine) error {
	set, err := m.openSet(s.set)
	if err == nil {
		m.Log.Printf("image %s for %s", set.Label, set.Board)
		err = set.Verify(ctx, func(done, total int64) { m.Log.Progress("checked", done, total) })
	}
	if err != nil {
		return hinted{err, "nothing was changed; write the image to the disk again"}
	}
	return nil
}

// writeTable divides the disk at its real size.
type writeTable struct {
	disk  disk
	table partitions.Table
}

func (s writeTable) String() string {
	data, _ := s.table.Part(partitions.Data)
	return fmt.Sprintf("write the partition table of %v (%s), sda2 gets %s", s.disk.Disk, s.table.DiskSize.Short(), data.Size.Short())
}

func (s writeTable) Do(_ context.Context, _ Machine) error { return s.disk.WriteTable(s.table) }

type makeSwap struct{ disk disk }

func (s makeSwap) String() string { return "make swap space on " + s.disk.PartName(partitions.Swap) }

func (s makeSwap) Do(_ context.Context, m Machine) error {
	var uuid [16]byte
	_, _ = rand.Read(uuid[:]) // It cannot fail.
	path := s.disk.PartPath(partitions.Swap)
	if err := block.MakeSwap(path, "ap-swap", uuid); err != nil {
		return err
	}
	// Checking or making the file system of a large disk takes memory; often
	// there is enough without.
	if err := m.Kernel.Swapon(path); err != nil {
		m.Log.Printf("%v", err)
	}
	return nil
}

// formatData makes the file system of sda2, unless it has been used since the
// plan was made.
type formatData struct {
	disk  disk
	table partitions.Table
}

func (s formatData) String() string {
	return "make the data file system on " + s.disk.PartName(partitions.Data)
}

func (s formatData) Do(ctx context.Context, m Machine) error {
	data, _ := s.table.Part(partitions.Data)
	ext, found, err := block.ProbeExt(s.disk.PartPath(partitions.Data), 0)
	if err != nil {
		return err
	}
	if found && ext.Label == dataLabel && ext.Used && ext.Size <= data.Size {
		return checkData{s.disk}.Do(ctx, m)
	}
	// No questions asked (-F): what lies there is the rest of an interrupted
	// run or of a disk that somebody overwrote with the image.
	if err := m.Run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-L", dataLabel, "-m", "1", s.disk.PartPath(partitions.Data)); err != nil {
		return fmt.Errorf("cannot make the data file system: %w", err)
	}
	return nil
}

// checkData repairs sda2 and keeps what it holds.
type checkData struct{ disk disk }

func (s checkData) String() string {
	return "check the data on " + s.disk.PartName(partitions.Data) + ", which is kept"
}

func (s checkData) Do(ctx context.Context, m Machine) error {
	if m.Kernel.Mounted("/" + dataDir) {
		return nil
	}
	return m.checkFS(ctx, s.disk, partitions.Data)
}

// mountData mounts sda2, says there that an installation is under way, and
// from here on the log is kept.
type mountData struct{ disk disk }

func (s mountData) String() string { return "mount " + s.disk.PartName(partitions.Data) }

func (s mountData) Do(_ context.Context, m Machine) error {
	if !m.Kernel.Mounted("/" + dataDir) {
		if err := m.mount(s.disk, partitions.Data, dataDir, unix.MS_NOATIME); err != nil {
			return err
		}
	}
	if err := m.evenFull(func() error { return atomicfile.Write(m.path(installingFile), nil, 0o644) }); err != nil {
		return err
	}
	// An image that was written over this disk ends what was under way on it.
	if err := m.forgetTransition(); err != nil {
		return err
	}
	if err := m.evenFull(func() error { return m.Log.Open(m.path(filepath.Join(dataDir, InstallLog))) }); err != nil {
		m.Log.Printf("%v", err) // A full disk is no reason to stop.
	}
	return nil
}

// commitData ends the time in which sda2 may be formatted.
type commitData struct {
	disk  disk
	table partitions.Table
}

func (s commitData) String() string {
	return "record in the partition table that " + s.disk.PartName(partitions.Data) + " holds data"
}

func (s commitData) Do(_ context.Context, m Machine) error {
	if err := m.syncData(); err != nil {
		return err
	}
	return s.disk.WriteTable(s.table)
}

// writeRootfs unpacks the system to sda3. With resume it keeps the pieces that
// an interrupted run has written.
type writeRootfs struct {
	disk   disk
	set    string
	resume bool
}

func (s writeRootfs) String() string {
	return "write the system to " + s.disk.PartName(partitions.Rootfs)
}

func (s writeRootfs) Do(ctx context.Context, m Machine) error {
	set, err := m.openSet(s.set)
	if err != nil {
		return err
	}
	d, err := block.OpenDevice(s.disk.PartPath(partitions.Rootfs))
	if err != nil {
		return fmt.Errorf("cannot write the system: %w", err)
	}
	defer d.Close()
	size, err := d.Size()
	if err != nil {
		return fmt.Errorf("cannot write the system: %w", err)
	}
	if size < set.Rootfs.RawSize {
		return fmt.Errorf("cannot write the system: %s has %v and the image needs %v",
			s.disk.PartName(partitions.Rootfs), partitions.Size(size), partitions.Size(set.Rootfs.RawSize))
	}
	err = set.Unpack(ctx, d, s.resume, func(done, total int64) { m.Log.Progress("written", done, total) })
	if err != nil {
		return fmt.Errorf("cannot write the system: %w", err)
	}
	return nil
}

// verifyRootfs reads sda3 back from the disk itself.
type verifyRootfs struct {
	disk disk
	set  string
}

func (s verifyRootfs) String() string {
	return "read " + s.disk.PartName(partitions.Rootfs) + " back and compare it with the image"
}

func (s verifyRootfs) Do(ctx context.Context, m Machine) error {
	set, err := m.openSet(s.set)
	if err != nil {
		return err
	}
	d, err := block.OpenDevice(s.disk.PartPath(partitions.Rootfs))
	if err != nil {
		return fmt.Errorf("cannot read the system back: %w", err)
	}
	defer d.Close()
	if err := d.Settle(); err != nil {
		return fmt.Errorf("cannot read the system back: %w", err)
	}
	err = set.Compare(ctx, d, func(done, total int64) { m.Log.Progress("compared", done, total) })
	if err != nil {
		return withHint("start again; if it happens again, replace the disk", "%s does not hold what was written to it: %w",
			s.disk.PartName(partitions.Rootfs), err)
	}
	return nil
}

// makeFolders makes what the first start of the system expects on sda2.
type makeFolders struct{}

func (makeFolders) String() string { return "make the folders of the data partition" }

func (makeFolders) Do(_ context.Context, m Machine) error {
	return m.evenFull(func() error { return makeSkeleton(m.path(dataDir)) })
}

// Both files lie on sda2: one says that an installation has begun and not
// ended, the other which system was written and compared completely.
const (
	installingFile = dataDir + "/.installing"
	installedFile  = dataDir + "/.installed"
)

// forgetInstalled comes before sda3 is overwritten: should everything else that
// tells of it be lost, the next ramdisk writes sda3 again.
type forgetInstalled struct{}

func (forgetInstalled) String() string { return "forget which system is installed" }

func (forgetInstalled) Do(_ context.Context, m Machine) error {
	if err := ignoreMissing(os.Remove(m.path(installedFile))); err != nil {
		return fmt.Errorf("cannot forget which system is installed: %w", err)
	}
	return m.syncData()
}

// installed is the content of installedFile.
type installed struct {
	Label  string `json:"label"`
	Rootfs string `json:"rootfs"` // RawSHA256 of the set
}

// labelSystem says in sda1's root which image is about to be installed, when
// that is not the one which was (OS-E2). It comes before markInstalled, so that
// who goes on with an interrupted run does it, too.
type labelSystem struct{ set string }

func (labelSystem) String() string { return "write the image number, if it is another one now" }

func (s labelSystem) Do(ctx context.Context, m Machine) error {
	set, err := m.openSet(s.set)
	if err != nil || m.installedLabel() == set.Label {
		return err
	}
	return writeLabel{set.Label}.Do(ctx, m)
}

type markInstalled struct{ set string }

func (markInstalled) String() string { return "record which system is installed" }

func (s markInstalled) Do(_ context.Context, m Machine) error {
	set, err := m.openSet(s.set)
	if err != nil {
		return err
	}
	if err := m.writeState(installedFile, installed{set.Label, set.Rootfs.RawSHA256}); err != nil {
		return err
	}
	return m.syncData()
}

// bootSystem is the one step that changes what boots. Everything else is on
// the disk before, the word finished included. Without a set it is that of the
// image that the firmware starts.
type bootSystem struct{ set string }

func (bootSystem) String() string { return "boot the system from now on" }

func (s bootSystem) Do(_ context.Context, m Machine) error {
	_ = m.Log.Finished() // Flush tells.
	if err := m.evenFull(m.Log.Flush); err != nil {
		m.Log.Printf("%v", err) // A full disk is no reason to stop.
	}
	if err := m.syncData(); err != nil {
		return err
	}
	var err error
	if s.set == "" {
		err = m.setDefault(boot.System)
	} else {
		err = m.setBoot(boot.System, s.set)
	}
	if err != nil {
		return err
	}
	return m.endInstall()
}

// endInstall forgets that an installation is under way, once the machine boots
// the system. Should the power fail just before, the system does it.
func (m Machine) endInstall() error {
	err := os.Remove(m.path(installingFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot end the installation: %w", err)
	}
	return m.syncData()
}

// setDefault changes what boots of the image that the firmware starts.
func (m Machine) setDefault(e boot.Entry) error {
	set, err := m.loader().CurrentSet()
	if err != nil {
		return err
	}
	return m.setBoot(e, set)
}

// setBoot changes what the firmware starts.
func (m Machine) setBoot(e boot.Entry, set string) error {
	if _, err := m.loader().Default(); err != nil {
		m.repaired("%v: it is made anew", err)
	}
	return m.changeBoot(func() error { return m.loader().SetBoot(e, set) })
}

// changeBoot does something while sda1 can be written. In the ramdisk it cannot
// be afterwards: the machine restarts next, or somebody repairs it. Nor can it be
// if its file system is broken: what boots has to be chosen all the same.
func (m Machine) changeBoot(do func() error) error {
	if err := m.Kernel.Mount("", "/"+bootDir, "", unix.MS_REMOUNT|bootFlags, ""); err != nil {
		return err
	}
	err := do()
	if _, missing := os.Stat(m.path(bootBrokenFile)); missing != nil && !m.Ramdisk {
		return err
	}
	return errors.Join(err, m.Kernel.Mount("", "/"+bootDir, "", unix.MS_REMOUNT|unix.MS_RDONLY|bootFlags, ""))
}

// fillBoot lets do write large files to sda1, and returns when they are on the
// disk. While a FAT file system is mounted with sync it writes both copies of its
// table for each 2 KiB.
func (m Machine) fillBoot(do func() error) error {
	if !m.isFAT(partitions.Boot) {
		return do()
	}
	remount := func(flags uintptr) error {
		return m.Kernel.Mount("", "/"+bootDir, "", unix.MS_REMOUNT|flags, "")
	}
	if err := remount(bootFlags &^ unix.MS_SYNCHRONOUS); err != nil {
		return err
	}
	return errors.Join(do(), syncFS(m.path(bootDir)), remount(bootFlags))
}

// syncData brings everything on sda2 onto the disk.
func (m Machine) syncData() error {
	if err := syncFS(m.path(dataDir)); err != nil {
		return fmt.Errorf("cannot sync the data partition: %w", err)
	}
	return nil
}

// syncFS brings everything of a file system onto the disk.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}
