package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"appplatform/agent/internal/block"
	"appplatform/agent/internal/boot"
	"appplatform/agent/internal/firstboot"
	"appplatform/internal/atomicfile"
	"appplatform/internal/run"
	"appplatform/internal/smallfile"
	"appplatform/partitions"
)

// noDataFile tells start scripts that sda2 is not there and why; what they
// write would be gone after a reboot.
const noDataFile = "run/app-platform/no-data"

// noDiskFile tells Start that Mount has waited for the disk in vain.
const noDiskFile = "run/app-platform/no-disk"

// passwordsFile tells start scripts that the passwords in /etc/shadow are those
// that count. Without it no SSH server starts: when changed passwords cannot be
// read, those of the image would let in everybody who has the manual.
const passwordsFile = "run/app-platform/passwords"

// etcUpper is what was changed in /etc, seen from the data partition.
const etcUpper = "etc-overlay/upper"

// Mount makes boot and data partition available. In the installed system it
// also puts the writable folders in their place, and it always leaves a system
// that somebody can log in to on a console: without sda2 these folders live in
// memory. In the ramdisk it takes over the settings from sda2 and leaves that
// unmounted, because people repair it there.
func Mount(ctx context.Context, m Machine) error {
	if m.Ramdisk {
		return m.mountRescue(ctx)
	}
	d, err := m.findDisk(ctx)
	if err != nil {
		return errors.Join(err, m.mountWritable(m.mountNoData(err)))
	}
	var problems []error
	problem := func(err error) {
		if err != nil {
			problems = append(problems, err)
		}
	}
	problem(m.useSwap(d)) // Checking a large file system takes memory.
	problem(m.mountBoot(ctx, d))
	data := dataDir
	if err := m.mountChecked(ctx, d, partitions.Data, dataDir); err != nil {
		problem(err)
		data = m.mountNoData(err)
	} else if e, err := m.loader().Default(); err == nil && e == boot.System {
		// The power failed between the switch and the end of the installation.
		problem(m.endInstall())
	}
	problem(m.mountWritable(data))
	if _, err := os.Stat(m.path(noDataFile)); errors.Is(err, os.ErrNotExist) && m.Kernel.Mounted("/etc") {
		problem(m.trustPasswords())
	}
	if m.Kernel.Mounted("/" + dataDir) {
		problem(m.Log.Append(m.path(filepath.Join(dataDir, InstallLog))))
	}
	return errors.Join(problems...)
}

// mountRescue mounts sda1 and brings the passwords, the host name and the
// network settings of the installed system into the ramdisk. What is wrong with
// sda1 is no reason to do without them.
func (m Machine) mountRescue(ctx context.Context) error {
	d, err := m.findDisk(ctx)
	if errors.Is(err, errNoDisk) && m.firstMiss(err) {
		return nil // Start comes next, on all consoles.
	}
	if err != nil {
		return err
	}
	if !installedTable(d.table) {
		// The installation comes first, and begins by checking the disk.
		if holdsData(d) {
			return nil // With passwords of its own, which cannot be read yet.
		}
		return m.trustPasswords()
	}
	swapErr := m.useSwap(d) // Before the checks, which take memory.
	return errors.Join(swapErr, m.mountBoot(ctx, d), m.withData(ctx, d, m.takeOverAll))
}

// firstMiss notes that there was time enough for the disk to appear, so that
// Start need not wait again. It reports whether that was news.
func (m Machine) firstMiss(why error) bool {
	path := m.path(noDiskFile)
	if _, err := os.Stat(path); err == nil {
		return false
	}
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(Explain(why)+"\n"), 0o644)
	}
	return err == nil
}

// takeOverAll brings as much as it can; the passwords decide over SSH.
func (m Machine) takeOverAll() error {
	err := m.takeOver("shadow")
	if err == nil {
		err = m.trustPasswords()
	}
	problems := []error{err}
	for _, name := range []string{"hostname", "network.json", "vconsole.keymap", firstboot.RecordFile} {
		problems = append(problems, m.takeOver(name))
	}
	problems = append(problems, m.Log.Append(m.path(filepath.Join(dataDir, InstallLog))))
	return errors.Join(problems...)
}

// takeOver copies a changed file of the system's /etc into the ramdisk's.
func (m Machine) takeOver(name string) error {
	from := m.path(filepath.Join(dataDir, etcUpper, name))
	info, err := os.Lstat(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil // Never changed: the ramdisk's own counts.
	}
	if err != nil {
		return fmt.Errorf("cannot take over /etc/%s: %w", name, err)
	}
	if !info.Mode().IsRegular() && name != "shadow" {
		return nil // Deleted: the ramdisk's own counts, which passwords must not.
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("cannot take over /etc/%s: it was deleted or is not an ordinary file", name)
	}
	text, err := smallfile.Read(from, smallfile.Most)
	if err != nil {
		return fmt.Errorf("cannot take over /etc/%s: %w", name, err)
	}
	return atomicfile.Write(m.path(filepath.Join("etc", name)), text, info.Mode().Perm())
}

// trustPasswords lets the SSH server start.
func (m Machine) trustPasswords() error {
	path := m.path(passwordsFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("cannot allow SSH: %w", err)
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		return fmt.Errorf("cannot allow SSH: %w", err)
	}
	return nil
}

// mountBoot makes sda1 and the folder /boot in it available.
func (m Machine) mountBoot(ctx context.Context, d disk) error {
	if err := m.mountChecked(ctx, d, partitions.Boot, bootDir); err != nil {
		return err
	}
	return m.showBoot()
}

// showBoot puts the folder that manuals call /boot in its place.
func (m Machine) showBoot() error {
	if m.Platform.Boot != "grub" {
		return nil // There is nothing to be found in it.
	}
	info, err := os.Lstat(m.path("boot"))
	if err != nil || !info.IsDir() || m.Kernel.Mounted("/boot") {
		return nil
	}
	return m.Kernel.Mount("/"+bootDir+"/boot", "/boot", "", unix.MS_BIND, "")
}

// withData does something while sda2 is mounted.
func (m Machine) withData(ctx context.Context, d disk, do func() error) error {
	if m.Kernel.Mounted("/" + dataDir) {
		return do()
	}
	if err := m.mountChecked(ctx, d, partitions.Data, dataDir); err != nil {
		return err
	}
	return errors.Join(do(), m.Kernel.Unmount("/"+dataDir))
}

// bootFlags are for sda1, which has no journal: what an editor has written
// there is on the disk when the editor returns.
const bootFlags = unix.MS_NOATIME | unix.MS_SYNCHRONOUS | unix.MS_DIRSYNC

// bootBrokenFile is there while sda1 has a file system that could not be repaired.
const bootBrokenFile = "run/app-platform/boot-broken"

// mountChecked never mounts a file system for writing that cannot be repaired:
// every write could destroy more. Reading sda1 is enough to go on.
func (m Machine) mountChecked(ctx context.Context, d disk, number int, dir string) error {
	if m.Kernel.Mounted("/" + dir) {
		return nil
	}
	flags := uintptr(unix.MS_NOATIME)
	if number == partitions.Boot {
		flags = bootFlags
	}
	if err := m.checkFS(ctx, d, number); err != nil {
		err = hinted{err, fmt.Sprintf("nothing was written to it any more; the disk may be failing: "+
			"start the rescue system, save what e2fsck -f /dev/%s and debugfs can reach, then replace the disk", d.PartName(number))}
		if number != partitions.Boot {
			return err
		}
		m.Log.Printf("%s", Explain(err))
		flags |= unix.MS_RDONLY
		if err := m.writeFlag(bootBrokenFile); err != nil {
			m.Log.Printf("%v", err)
		}
	} else if number == partitions.Boot {
		_ = os.Remove(m.path(bootBrokenFile)) // Mostly there is none.
	}
	if err := m.mount(d, number, dir, flags); err != nil {
		return err
	}
	if m.isFAT(number) && flags&unix.MS_RDONLY == 0 {
		m.dropChains()
	}
	return nil
}

// dropChains removes what fsck.fat -a makes of a file that a power cut has kept
// from getting its name: nobody's data, which would fill sda1.
func (m Machine) dropChains() {
	chains, _ := filepath.Glob(m.path(filepath.Join(bootDir, "FSCK[0-9][0-9][0-9][0-9].REC")))
	for _, path := range chains {
		if err := os.Remove(path); err != nil {
			m.Log.Printf("cannot remove what was written in vain: %v", err)
		}
	}
}

// mount mounts a partition; the ext4 driver serves ext2 as well.
func (m Machine) mount(d disk, number int, dir string, flags uintptr) error {
	dev := d.PartPath(number)
	if err := os.MkdirAll(m.path(dir), 0o755); err != nil {
		return fmt.Errorf("cannot mount %s: %w", dev, err)
	}
	if m.isFAT(number) {
		return m.Kernel.Mount(dev, "/"+dir, "vfat", flags, "umask=022")
	}
	err := m.Kernel.Mount(dev, "/"+dir, "ext4", flags, "")
	if err == nil && number == partitions.Data {
		m.keepRepairs()
	}
	return err
}

// isFAT reports whether a partition is one that a gateway's firmware reads.
func (m Machine) isFAT(number int) bool {
	return number == partitions.Boot && m.Platform.Scheme == partitions.MBR
}

// checkFS repairs a file system that is not mounted, first as far as it is
// safe, then by all means.
func (m Machine) checkFS(ctx context.Context, d disk, number int) error {
	_, err := m.repair(ctx, d, number)
	return err
}

// repair is checkFS that tells whether there was anything to repair. Flags make
// e2fsck look closer.
func (m Machine) repair(ctx context.Context, d disk, number int, flags ...string) (repaired bool, err error) {
	dev := d.PartPath(number)
	if m.isFAT(number) {
		return m.checkFAT(ctx, dev)
	}
	return m.checkExt(ctx, dev, append(flags, "-p")...)
}

// checkExt runs e2fsck with careful flags first.
func (m Machine) checkExt(ctx context.Context, dev string, careful ...string) (repaired bool, err error) {
	before, _, err := block.ProbeExt(dev, 0)
	dirty := err == nil && before.Dirty // e2fsck does not tell.
	err = m.Run(ctx, "e2fsck", append(careful, dev)...)
	if repaired, ok := e2fsckDone(err); ok {
		if repaired {
			m.repaired("repaired %s: %v", filepath.Base(dev), err)
		} else if dirty {
			m.repaired("completed %s from its journal, after a power cut", filepath.Base(dev))
		}
		return repaired || dirty, nil
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	m.Log.Printf("cannot repair %s carefully, now with every repair allowed: %v", filepath.Base(dev), err)
	// Twice: a copy of the superblock that the kernel wrote while it enlarged the
	// file system says that the journal is to be replayed. With a torn superblock
	// e2fsck takes the copy, replays the journal, and gives up because it still says so.
	for range 2 {
		err = m.Run(ctx, "e2fsck", "-f", "-y", dev)
		if _, ok := e2fsckDone(err); ok {
			report := ""
			if err != nil {
				report = "\n" + err.Error()
			}
			m.repaired("repaired %s, with every repair allowed%s", filepath.Base(dev), report)
			return true, nil
		}
	}
	return false, cannotRepair(ctx, dev, err)
}

// cannotRepair is the error of a file system that is broken. A check that
// somebody has interrupted knows nothing of it.
func cannotRepair(ctx context.Context, dev string, why error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("cannot repair %s: %w", filepath.Base(dev), why)
}

// checkFAT clears the mark that a power cut leaves in a FAT file system, and
// repairs what else there is.
func (m Machine) checkFAT(ctx context.Context, dev string) (repaired bool, err error) {
	err = m.Run(ctx, "fsck.fat", "-a", dev)
	var exit *run.ExitError
	if errors.As(err, &exit) && exit.Code == 1 { // Errors were found and repaired.
		m.repaired("repaired %s: %v", filepath.Base(dev), err)
		return true, nil
	}
	if err != nil {
		return false, cannotRepair(ctx, dev, err)
	}
	return false, nil
}

// e2fsckDone reads the exit status: 1 is repaired, 2 asks for a reboot, which
// a file system that is not mounted does not need, everything else is failure.
func e2fsckDone(err error) (repaired, ok bool) {
	if err == nil {
		return false, true
	}
	var exit *run.ExitError
	if errors.As(err, &exit) && exit.Code > 0 && exit.Code < 4 {
		return true, true
	}
	return false, false
}

// mountNoData puts memory where sda2 is missing, and returns that place.
func (m Machine) mountNoData(why error) string {
	const place = "run/app-platform/memory"
	_ = os.MkdirAll(m.path(place), 0o755)
	if err := os.WriteFile(m.path(noDataFile), []byte(Explain(why)+"\n"), 0o644); err != nil {
		m.Log.Printf("cannot report the missing data partition: %v", err)
	}
	m.Log.Printf("THE DATA PARTITION CANNOT BE USED; changes are lost at the next reboot")
	m.Log.Printf("SSH stays closed, because changed passwords cannot be read; log in here.")
	m.Log.Printf("hint: start the rescue entry and run e2fsck -f on the data partition")
	return place
}

// mountWritable lays the writable folders of the system over the read-only ones.
func (m Machine) mountWritable(data string) error {
	// A folder that is new in this image and cannot be made, because the disk is
	// full, is no reason to do without all the others.
	problems := []error{makeSkeleton(m.path(data)), closeCoreDumps(m.path(filepath.Join(data, coreDumps)))}
	for _, o := range []struct{ dir, folder string }{{"etc", "etc-overlay"}, {"var/lib", "var-lib-overlay"}} {
		options := fmt.Sprintf("lowerdir=/%s,upperdir=/%s/%s/upper,workdir=/%s/%s/work", o.dir, data, o.folder, data, o.folder)
		if err := m.mountOnce("overlay", o.dir, "overlay", 0, options); err != nil {
			problems = append(problems, err)
		}
	}
	for _, b := range []struct{ dir, folder string }{{"home", "home"}, {"apps", "apps"}, {"var/log", "log"}} {
		if m.Kernel.Mounted("/" + b.dir) {
			continue
		}
		if err := copyMissing(m.path(b.dir), m.path(filepath.Join(data, b.folder))); err != nil {
			problems = append(problems, err)
		}
		if err := m.Kernel.Mount("/"+data+"/"+b.folder, "/"+b.dir, "", unix.MS_BIND, ""); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}

func (m Machine) mountOnce(source, dir, fstype string, flags uintptr, data string) error {
	if m.Kernel.Mounted("/" + dir) {
		return nil
	}
	return m.Kernel.Mount(source, "/"+dir, fstype, flags, data)
}

// useSwap makes swap space anew when somebody has overwritten it.
func (m Machine) useSwap(d disk) error {
	dev := d.PartPath(partitions.Swap)
	if err := block.MakeSwap(dev, "ap-swap", [16]byte{}); err != nil {
		return err
	}
	return m.Kernel.Swapon(dev)
}
