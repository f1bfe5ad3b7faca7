package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"appplatform/agent/internal/boot"
	"appplatform/internal/atomicfile"
	"appplatform/partitions"
)

// resume goes on with a transition in the ramdisk of either image.
func (m Machine) resume(ctx context.Context, d disk, t transition) error {
	unlock, err := m.lockRescue()
	if err != nil {
		return err
	}
	defer unlock()
	defer m.showProgress(ctx, d)()
	set, err := m.runningSet()
	if err != nil {
		return err
	}
	switch {
	case t.Stage == stageApply && set == t.To.Set:
		m.Log.Printf("writing App Platform %s (before: %s)", t.To.Label, t.From.Label)
		err = Apply(ctx, m, m.planApply(d, t))
		if err == nil {
			return m.startTo(ctx, d, t.next(stageTrial))
		}
	case t.Stage == stageApply, t.Stage == stageTrial:
		return m.startTo(ctx, d, t)
	case t.Stage == stageCommit:
		m.Log.Printf("App Platform %s works: the firmware starts it from now on", t.To.Label)
		if err = Apply(ctx, m, m.planCommit(d, t)); err == nil {
			return m.reboot()
		}
	}
	if err != nil { // Whatever it was, the former image is at hand.
		m.Log.Printf("%s", Explain(err))
		t = t.failed(err.Error())
	}
	return m.restore(ctx, d, t)
}

// next is the transition at the beginning of another stage.
func (t transition) next(s stage) transition {
	t.Stage, t.Tries = s, 0
	return t
}

// failed is the transition whose new image is given up.
func (t transition) failed(reason string) transition {
	t.Reason = reason
	return t.next(stageRestore)
}

// planApply writes the new system over the old one. The ramdisk of the old
// image, which the firmware has started before, is what it starts meanwhile.
func (m Machine) planApply(d disk, t transition) []Step {
	return []Step{
		openLog{d},
		checkSet{t.To.Set},
		bootEntry{boot.Rescue, t.rescue()},
		forgetInstalled{},
		writeRootfs{d, t.To.Set, true},
		verifyRootfs{d, t.To.Set},
		makeFolders{},
		markInstalled{t.To.Set},
		keepStage{t.next(stageTrial)},
	}
}

// errNoWayBack is when the former image is damaged and the new one no choice.
var errNoWayBack = errors.New("cannot go back to")

// restore puts the former system back; the firmware starts its ramdisk until it
// is there. That is who does it: a new ramdisk may be what does not work.
func (m Machine) restore(ctx context.Context, d disk, t transition) error {
	m.Log.Printf("going back to App Platform %s: %s", t.From.Label, t.Reason)
	if m.attempt() {
		if err := Apply(ctx, m, []Step{openLog{d}, keepStage{t}}); err != nil {
			m.Log.Printf("%v", err) // The attempts are counted.
		}
		return m.reboot()
	}
	if err := Apply(ctx, m, []Step{openLog{d}, keepStage{t}}); err != nil {
		return err
	}
	steps := []Step{writeLabel{t.From.Label}, endTransition{t, t.From, rolledBack}}
	if have := m.installedRootfs(); have != "" && have == t.From.Rootfs {
		return m.finishRestore(ctx, steps) // sda3 still holds it, or does again.
	}
	steps = append(m.planRestore(d, t), steps...)
	if damage := m.checkWhole(ctx, t.From.Set); damage != nil && ctx.Err() == nil {
		err := m.checkWhole(ctx, t.To.Set)
		if err != nil || !t.CameUp {
			hint := "write an image to the disk again"
			if err == nil {
				hint = fmt.Sprintf("apagent rescue reinstall %s installs the new image all the same; otherwise %s", t.To.Set, hint)
			}
			return withHint(hint, "%w App Platform %s: %w", errNoWayBack, t.From.Label, errors.Join(damage, err))
		}
		m.Log.Printf("image %s is damaged: %v", t.From.Set, damage)
		t.Reason += fmt.Sprintf("; App Platform %s is damaged and cannot take its place", t.From.Label)
		steps = m.planStay(d, t)
	}
	return m.finishRestore(ctx, steps)
}

func (m Machine) finishRestore(ctx context.Context, steps []Step) error {
	if err := Apply(ctx, m, steps); err != nil {
		return fmt.Errorf("cannot go back to the former image: %w", err)
	}
	return m.reboot()
}

// planStay makes the new system the one that the firmware starts although not
// everything works in it: there is no other one any more.
func (m Machine) planStay(d disk, t transition) []Step {
	return []Step{
		writeRootfs{d, t.To.Set, true},
		verifyRootfs{d, t.To.Set},
		markInstalled{t.To.Set},
		writeLabel{t.To.Label},
		endTransition{t, t.To, committed},
	}
}

// planRestore writes the former system over the new one.
func (m Machine) planRestore(d disk, t transition) []Step {
	return []Step{
		bootEntry{boot.Rescue, t.From.Set},
		forgetInstalled{},
		writeRootfs{d, t.From.Set, true},
		verifyRootfs{d, t.From.Set},
		markInstalled{t.From.Set},
	}
}

// planCommit makes the new system the one that the firmware starts.
func (m Machine) planCommit(d disk, t transition) []Step {
	return []Step{
		openLog{d},
		keepStage{t.next(stageCommit)},
		writeLabel{t.To.Label},
		endTransition{t, t.To, committed},
	}
}

// startTo starts the new image by kexec: its ramdisk to be written, its system
// on trial. After too many attempts the former image is restored.
func (m Machine) startTo(ctx context.Context, d disk, t transition) error {
	entry := boot.Rescue
	if t.Stage == stageTrial {
		entry = boot.System
	}
	if t.Tries >= maxTries {
		return m.restore(ctx, d, t.failed(fmt.Sprintf("%v of the new image did not come up in %d attempts", entry, maxTries)))
	}
	t.Tries++
	m.Log.Printf("starting the %v of App Platform %s, attempt %d of %d", entry, t.To.Label, t.Tries, maxTries)
	if err := Apply(ctx, m, []Step{openLog{d}, keepStage{t}, checkSet{t.To.Set}, loadKernel{d, entry, t.To.Set}}); err != nil {
		return m.restore(ctx, d, t.failed(err.Error()))
	}
	return m.leave(m.Kernel.StartLoaded)
}

// openLog mounts sda2, checked, and keeps the log there.
type openLog struct{ disk disk }

func (s openLog) String() string { return "mount " + s.disk.PartName(partitions.Data) }

func (s openLog) Do(ctx context.Context, m Machine) error {
	if err := m.mountChecked(ctx, s.disk, partitions.Data, dataDir); err != nil {
		return err
	}
	if err := m.Log.Open(m.path(filepath.Join(dataDir, InstallLog))); err != nil {
		m.Log.Printf("%v", err) // A full disk is no reason to stop.
	}
	return nil
}

// bootEntry changes what the firmware starts.
type bootEntry struct {
	entry boot.Entry
	set   string
}

func (s bootEntry) String() string {
	return fmt.Sprintf("let the firmware start the %v of image %s", s.entry, s.set)
}

func (s bootEntry) Do(_ context.Context, m Machine) error {
	if err := m.syncData(); err != nil {
		return err
	}
	return m.setBoot(s.entry, s.set)
}

// keepStage records how far the transition is.
type keepStage struct{ t transition }

func (s keepStage) String() string { return fmt.Sprintf("record the stage %s", s.t.Stage) }

func (s keepStage) Do(_ context.Context, m Machine) error { return m.keep(s.t) }

// endTransition is the one step that lets the firmware start a system again.
// Everything else is on the disk before, the word finished included.
type endTransition struct {
	t      transition
	stays  imageID
	result string
}

func (s endTransition) String() string {
	return fmt.Sprintf("let the firmware start the system of image %s: the update is %s", s.stays.Set, s.result)
}

func (s endTransition) Do(_ context.Context, m Machine) error {
	if err := m.Log.Finished(); err != nil {
		m.Log.Printf("%v", err) // A full disk is no reason to stop.
	}
	if err := m.syncData(); err != nil {
		return err
	}
	if err := m.setBoot(boot.System, s.stays.Set); err != nil {
		return err
	}
	return m.end(s.t, s.result)
}

// writeLabel says in sda1's root which image is installed (OS-E2).
type writeLabel struct{ label string }

func (s writeLabel) String() string { return "write the image number " + s.label }

func (s writeLabel) Do(_ context.Context, m Machine) error {
	return m.changeBoot(func() error {
		return atomicfile.Write(m.path(labelFile), []byte(s.label+"\n"), 0o644)
	})
}

// labelFile holds the number of the installed image.
const labelFile = bootDir + "/label"

// loadKernel makes an image ready to be started without the firmware.
type loadKernel struct {
	disk  disk
	entry boot.Entry
	set   string
}

func (s loadKernel) String() string { return fmt.Sprintf("load the %v of image %s", s.entry, s.set) }

func (s loadKernel) Do(_ context.Context, m Machine) error { return m.load(s.disk, s.entry, s.set) }
