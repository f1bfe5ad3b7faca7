package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/agent/internal/boot"
	"appplatform/bundle"
	"appplatform/internal/smallfile"
	"appplatform/partitions"
)

// UpdateOptions say what to update to.
type UpdateOptions struct {
	Source string // path or address of an update file
	Force  bool   // also to the same image or an older one
	Limit  int64  // bytes a second to download at most; 0 is no limit
}

// Update fetches and checks an update file, puts its image beside the running
// one and starts it. Until the last step nothing that boots has changed; a file
// that cannot be used is refused before anything has.
func Update(ctx context.Context, m Machine, o UpdateOptions) error {
	if m.Ramdisk {
		return withHint("start the installed system: reboot", "cannot do this in the rescue system")
	}
	d, t, done, err := m.beginTransition(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := m.checkWhole(ctx, t.From.Set); err != nil && !o.Force {
		return withHint("--force installs it all the same; should not everything work in it, it stays, because there is nothing to go back to",
			"the running image could not be put back: %w", err)
	} else if err != nil {
		m.Log.Printf("the running image could not be put back: %v", err)
		t.FromDamaged = true
	}
	file, err := m.fetchUpdate(ctx, d, o)
	if err != nil {
		return err
	}
	t.To.Label, t.To.Rootfs = file.Label, file.Rootfs.RawSHA256
	m.Log.Printf("updating App Platform %s to %s", t.From.Label, t.To.Label)
	steps := []Step{writeSet{file, t.To.Set}, verifySet{t.To.Set}, dropDownload{file}}
	if chosen, err := m.loader().CurrentSet(); err != nil || chosen != t.From.Set {
		// The firmware was told to start what is about to be replaced, could not, and
		// took the other image. It must not find the new one there.
		steps = append([]Step{bootEntry{boot.System, t.From.Set}}, steps...)
	}
	return m.restartInto(ctx, d, t, steps...)
}

// Rollback starts the image that ran before the last update, in the rescue
// system as well as in the installed one.
func Rollback(ctx context.Context, m Machine) error {
	d, t, done, err := m.beginTransition(ctx)
	if err != nil {
		return err
	}
	defer done()
	set, err := m.openSet(t.To.Set)
	if err == nil {
		err = m.checkWhole(ctx, t.To.Set)
	}
	if err != nil {
		return withHint("update to the image you want instead", "there is no former image to go back to: %w", err)
	}
	t.To.Label, t.To.Rootfs, t.Reason = set.Label, set.Rootfs.RawSHA256, "by hand"
	m.Log.Printf("going back from App Platform %s to %s", t.From.Label, t.To.Label)
	before := []Step{checkSet{t.To.Set}}
	if m.Ramdisk {
		// Whoever goes back from here may have a system that does not start:
		// until the former one has shown that it works, no system is started.
		before = append(before, bootEntry{boot.Rescue, t.From.Set})
	}
	return m.restartInto(ctx, d, t, before...)
}

// restartInto does what is to be done before the new image may be started, and
// starts it. The shutdown that this begins ends in its ramdisk.
func (m Machine) restartInto(ctx context.Context, d disk, t transition, before ...Step) error {
	t.Stage, t.Tries = stageApply, 1
	steps := append([]Step{openLog{d}}, before...)
	return Apply(ctx, m, append(steps, goOver{d, t}))
}

// goOver is the step behind which there is a transition. It is not interrupted:
// a shell that hangs up must not leave one that nobody goes on with.
type goOver struct {
	disk disk
	t    transition
}

func (s goOver) String() string { return "restart into the ramdisk of image " + s.t.To.Set }

func (s goOver) Do(ctx context.Context, m Machine) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if err := m.load(s.disk, boot.Rescue, s.t.To.Set); err != nil {
		return err
	}
	if err := m.keep(s.t); err != nil {
		return err
	}
	if m.Ramdisk { // No services run here, and sda2 is gone when this fails.
		if err := m.leave(m.Kernel.StartLoaded); err != nil {
			return hinted{err, "restart, and it goes on: reboot"}
		}
		return nil
	}
	err := shutDown{}.Do(ctx, m)
	if err != nil {
		err = errors.Join(err, m.forgetTransition())
	}
	return err
}

// beginTransition finds out where a transition would lead from and to, and keeps
// others from beginning one until done is called.
func (m Machine) beginTransition(ctx context.Context) (d disk, t transition, done func(), err error) {
	if m.Ramdisk {
		if d, done, err = m.beginInRescue(ctx); err != nil {
			return d, t, nil, err
		}
		if t, err = m.findTransition(); err != nil {
			done()
		}
		return d, t, done, err
	}
	if d, err = m.findDisk(ctx); err != nil {
		return d, t, nil, err
	}
	if t, err = m.findTransition(); err != nil {
		return d, t, nil, err
	}
	done, err = m.lockUpdates()
	return d, t, done, err
}

// lockUpdates is for two people who update at the same time.
func (m Machine) lockUpdates() (unlock func(), err error) {
	return m.lock("run/app-platform/update.lock", "somebody else is updating this machine right now")
}

// lock keeps others out until unlock is called, or this process ends. Only root
// can open the file.
func (m Machine) lock(file, taken string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(m.path(file)), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(m.path(file), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, withHint("wait until it is over", "%s", taken)
	}
	return func() {
		_ = unix.Flock(int(f.Fd()), unix.LOCK_UN) // A program that is being started may have it open as well.
		f.Close()
	}, nil
}

func (m Machine) findTransition() (t transition, err error) {
	for _, dir := range []string{bootDir, dataDir} {
		if !m.Kernel.Mounted("/" + dir) {
			return t, withHint("see what apagent status says about it", "cannot update: /%s is not mounted", dir)
		}
		if m.Ramdisk && dir == bootDir {
			continue // Who writes to it there makes it writable.
		}
		if err := unix.Access(m.path(dir), unix.W_OK); err != nil {
			return t, withHint("its file system could not be repaired: start the rescue system and look at it with e2fsck", "cannot update: /%s cannot be written: %w", dir, err)
		}
	}
	old, err := m.readTransition()
	if err != nil {
		return t, err
	}
	if old != nil {
		return t, withHint("wait until it is over: apagent status", "an update to %s is under way", old.To.Label)
	}
	set, err := m.runningSet()
	if m.Ramdisk {
		set, err = m.loader().CurrentSet() // Any ramdisk may be the one that came up.
	}
	if err != nil {
		return t, err
	}
	t.From = imageID{set, m.Platform.Label, m.installedRootfs()}
	now, err := m.openSet(set)
	if err == nil { // It may be another, whose kernel runs.
		t.From.Label, t.From.Rootfs = now.Label, now.Rootfs.RawSHA256
	} else if m.Ramdisk {
		return t, withHint("apagent rescue reinstall "+otherSet(set)+" installs the other image, if that is whole",
			"the present image could not be put back: %w", err)
	}
	t.To.Set = otherSet(set)
	t.Network = m.Kernel.HasAddress()
	return t, nil
}

// accept decides whether an image may be installed here.
func (m Machine) accept(d disk, man bundle.Manifest, force bool) error {
	if man.Board != m.Platform.Board || man.Arch != m.Platform.Arch {
		return withHint("nothing was changed; take app-platform-"+m.Platform.Board+"-LABEL.update", "the update is for board %s (%s), and this is %s (%s)", man.Board, man.Arch, m.Platform.Board, m.Platform.Arch)
	}
	installed := m.installedLabel()
	switch newer, err := isNewer(man.Label, installed); {
	case err != nil:
		return err
	case !newer && !force:
		return withHint("--force installs it all the same", "image %s is installed and the update is %s, which is not newer", installed, man.Label)
	}
	rootfs, _ := d.table.Part(partitions.Rootfs)
	if man.Rootfs.RawSize > int64(rootfs.Size) {
		return withHint("nothing was changed; install this image anew, which makes the partitions that it needs", "the system of the update has %v, and %s has %v", partitions.Size(man.Rootfs.RawSize), d.PartName(partitions.Rootfs), rootfs.Size)
	}
	set, err := m.runningSet()
	if err != nil {
		return err
	}
	space, err := m.Kernel.Space("/" + bootDir)
	if err != nil {
		return err
	}
	free := space.Free + folderSize(m.path(filepath.Join(bootDir, otherSet(set))))
	if need := partitions.Size(man.Size()) + partitions.MiB; free < need {
		return withHint("nothing was changed; remove from /"+bootDir+" what does not belong to the image", "the update needs %s on the boot partition, and there are %s", need.Short(), free.Short())
	}
	return nil
}

// installedLabel is the image number that people may lower by hand to be
// allowed an update again (OS-E2).
func (m Machine) installedLabel() string {
	text, err := smallfile.Read(m.path(labelFile), smallfile.Most)
	if label := strings.TrimSpace(string(text)); err == nil && label != "" {
		return label
	}
	return m.Platform.Label
}

func isNewer(label, than string) (bool, error) {
	a, err := strconv.ParseUint(label, 10, 32)
	if err != nil {
		return false, withHint("nothing was changed; build the image with a number", "the image number of the update, %q, is not a number", label)
	}
	b, err := strconv.ParseUint(than, 10, 32)
	return err != nil || a > b, nil // What people write there is no reason to stay behind.
}

// folderSize is what the files of a folder take; a missing one takes nothing.
func folderSize(dir string) (size partitions.Size) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			size += partitions.Size(info.Size())
		}
	}
	return size
}

// writeSet puts the files of an update into a folder of sda1, the manifest
// last: without it nobody takes them for an image.
type writeSet struct {
	file updateFile
	set  string
}

func (s writeSet) String() string { return "write image " + s.set + " to the boot partition" }

func (s writeSet) Do(ctx context.Context, m Machine) error {
	u, err := s.file.open(m.Platform.Keys)
	if err != nil {
		return err
	}
	defer u.Close()
	dir := m.path(filepath.Join(bootDir, s.set))
	if !bytes.Equal(u.Text, s.file.manifest) {
		return errors.New("cannot write the image: the update file was exchanged after it had been checked")
	}
	err = m.changeBoot(func() error {
		for _, name := range []string{bundle.ManifestName, bundle.SignatureName} {
			if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
			return err
		}
		if err := m.fillBoot(func() error {
			create := func(f bundle.File) (io.WriteCloser, error) { return createSynced(filepath.Join(dir, f.Name)) }
			return u.Extract(ctx, create, func(done, total int64) { m.Log.Progress("written", done, total) })
		}); err != nil {
			return err
		}
		for _, f := range u.Started() {
			if err := writeSynced(filepath.Join(dir, f.SumName()), f.Sum()); err != nil {
				return err
			}
		}
		if err := writeSynced(filepath.Join(dir, bundle.SignatureName), u.Signature); err != nil {
			return err
		}
		if err := writeSynced(filepath.Join(dir, bundle.ManifestName), u.Text); err != nil {
			return err
		}
		return syncFS(m.path(bootDir))
	})
	if err != nil {
		return fmt.Errorf("cannot write the image to the boot partition: %w", err)
	}
	return nil
}

// A syncedFile is on the disk, and out of memory, when it is closed: who reads
// it again reads the disk. Before that it is never far behind, so that progress
// is what the disk has.
type syncedFile struct {
	*os.File
	behind int
}

func createSynced(path string) (io.WriteCloser, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	return &syncedFile{File: f}, err
}

func (f *syncedFile) Write(b []byte) (int, error) {
	const most = int(4 * partitions.MiB)
	n, err := f.File.Write(b)
	if f.behind += n; err == nil && f.behind >= most {
		f.behind, err = 0, f.Sync()
	}
	return n, err
}

func writeSynced(path string, text []byte) error {
	w, err := createSynced(path)
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return errors.Join(err, w.Close())
}

func (f *syncedFile) Close() error {
	err := f.Sync()
	if err == nil {
		err = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	return errors.Join(err, f.File.Close())
}

// verifySet reads the image back from the disk.
type verifySet struct{ set string }

func (s verifySet) String() string { return "read image " + s.set + " back" }

func (s verifySet) Do(ctx context.Context, m Machine) error {
	set, err := m.openSet(s.set)
	if err != nil {
		return err
	}
	if err := m.checkSums(set); err != nil {
		return err
	}
	return set.Verify(ctx, func(done, total int64) { m.Log.Progress("compared", done, total) })
}

// restartFile lets `apagent boot loaded` start what is loaded: a kernel that was
// loaded in vain must not keep a machine from being switched off.
const restartFile = "run/app-platform/restart"

// shutDown stops the services and restarts; the last thing that init does is
// `apagent boot loaded`. A start that hangs keeps init from it: then the machine
// is reset.
type shutDown struct{}

func (shutDown) String() string { return "restart" }

func (shutDown) Do(ctx context.Context, m Machine) error {
	if err := m.writeFlag(restartFile); err != nil {
		return err
	}
	if err := m.Run(ctx, "reboot"); err != nil || m.grace == 0 {
		return err
	}
	select {
	case <-ctx.Done(): // It ends every process.
		return nil
	case <-time.After(m.grace):
	}
	m.Log.Printf("the shutdown hangs: restarting at once")
	return m.Kernel.Reboot() // It syncs.
}
