package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"appplatform/agent/internal/boot"
	"appplatform/partitions"
)

// countdown is how long a rescue system waits for somebody to need it.
const countdown = 60 * time.Second

// A Watcher notices that somebody uses the rescue system.
type Watcher interface {
	// Ready forgets the keys that were pressed so far; those that follow count.
	Ready()
	// Wait returns true as soon as a key is pressed on a console or somebody
	// has logged in, false when the time is over.
	Wait(ctx context.Context, d time.Duration) bool
}

// Start is what the ramdisk does: it installs the image or finishes an
// interrupted installation; otherwise it is a rescue system, which goes back
// to the installed system when nobody uses it. Whatever goes wrong, it returns
// to a console where people can log in.
func Start(ctx context.Context, m Machine, w Watcher) error {
	err := m.startRamdisk(ctx, w)
	if err != nil {
		m.noteProblem(err)
	}
	return err
}

// problemFile says why the ramdisk could not do its work, to whoever logs in.
const problemFile = "run/app-platform/problem"

func (m Machine) noteProblem(problem error) {
	err := m.writeFlag(problemFile)
	if err == nil {
		err = os.WriteFile(m.path(problemFile), []byte("the ramdisk could not do its work: "+Explain(problem)+"\n"), 0o644)
	}
	if err != nil {
		m.Log.Printf("%v", err)
	}
}

func (m Machine) startRamdisk(ctx context.Context, w Watcher) error {
	if err := m.writeFlag(bootingFile); err != nil {
		m.Log.Printf("%v", err)
	}
	if _, err := os.Stat(m.path(noDiskFile)); err == nil {
		m.Patience = 0
	}
	d, err := m.findDisk(ctx)
	if err != nil {
		return err
	}
	work, err := m.findWork(ctx, d)
	switch {
	case err != nil:
		return err
	case work.install:
		return m.installAndReboot(ctx, d)
	case work.transition != nil:
		err := m.resume(ctx, d, *work.transition)
		if err != nil && !errors.Is(err, errNoWayBack) { // Another start would not find more.
			err = unfinished{err}
		}
		return err
	}
	return m.rescue(ctx, d, w, work.written)
}

// unfinished is an error on the way from one image to another, which the next
// start may not meet.
type unfinished struct{ error }

func (u unfinished) Unwrap() error { return u.error }

// bootingFile tells rcS that the agent has come so far.
const bootingFile = "run/app-platform/booting"

// Retry restarts a machine whose ramdisk has failed, unless somebody comes, if
// that can help: another start follows when this one was an attempt, or when an
// update is under way.
func Retry(ctx context.Context, m Machine, w Watcher, err error) error {
	if !m.attempt() && !errors.As(err, new(unfinished)) {
		return nil
	}
	m.Log.Printf("The machine restarts in %d seconds. Press a key here or log in over SSH to stay.", int(countdown.Seconds()))
	w.Ready()
	if w.Wait(ctx, countdown) {
		return nil
	}
	return m.reboot()
}

// work is what a ramdisk finds to do.
type work struct {
	install    bool
	transition *transition
	written    string // RawSHA256 of what sda3 was written with
}

func (w work) any() bool { return w.install || w.transition != nil }

func (m Machine) installAndReboot(ctx context.Context, d disk) error {
	unlock, err := m.lockRescue()
	if err != nil {
		return err
	}
	defer unlock()
	m.Log.Printf("installing App Platform %s on %v", m.Platform.Label, d.Disk)
	steps, err := m.planInstall(d)
	if err != nil {
		return err
	}
	if err := Apply(ctx, m, steps); err != nil {
		return fmt.Errorf("the installation has stopped: %w", err)
	}
	return m.reboot()
}

// findWork looks on sda2 for what is under way, and compares what it says is
// installed with the image that the firmware starts.
func (m Machine) findWork(ctx context.Context, d disk) (w work, err error) {
	if !installedTable(d.table) {
		return work{install: true}, nil
	}
	if err := m.mountChecked(ctx, d, partitions.Boot, bootDir); err != nil {
		return w, err
	}
	err = m.withData(ctx, d, func() (err error) {
		if _, err := os.Stat(m.path(installingFile)); err == nil {
			w.install = true
			return nil
		}
		if w.transition, err = m.readTransition(); err != nil {
			// One of another version, or damaged: the image that the firmware
			// starts is put in order.
			m.Log.Printf("%v", err)
			w.install = true
			return nil
		}
		if w.transition != nil {
			return nil
		}
		have := m.installedRootfs()
		w.written = have
		if err := m.remember(); err != nil {
			return err
		}
		set, err := m.openSet("")
		if err != nil && have != "" {
			// The installed system does not need the set to run.
			m.Log.Printf("%v", err)
			return nil
		}
		w.install = err != nil || have != set.Rootfs.RawSHA256
		if _, found := m.setNamed(have); have != "" && !found {
			w.install = false // It may be whole although its image is not: nobody asked for another one.
		}
		return nil
	})
	return w, err
}

// rescue waits for somebody; the boot default changes only when nobody came.
// Meanwhile it looks at the installed system: one that was altered may be why
// this one was started, and is written again then.
func (m Machine) rescue(ctx context.Context, d disk, w Watcher, written string) error {
	m.Log.Printf("")
	m.Log.Printf("App Platform %s rescue system on %v", m.Platform.Label, d.Disk)
	m.Log.Printf("It starts the installed system in %d seconds.", int(countdown.Seconds()))
	w.Ready()
	m.Log.Printf("Press a key here or log in over SSH to stay.")
	watching, stop := context.WithCancel(ctx)
	defer stop()
	checked := make(chan error, 1)
	go func() { checked <- m.checkSystem(watching, d, written) }()
	if w.Wait(ctx, countdown) {
		stop()
		<-checked // It keeps sda3 open.
		m.Log.Printf("The rescue system stays. Log in as root here and choose from its menu, or over")
		m.Log.Printf("SSH as admin, then: su - root, apagent rescue. Data: mount %s /%s", "/dev/"+d.PartName(partitions.Data), dataDir)
		m.Log.Printf("To start the installed system by hand, %s, then: reboot", m.loader().ByHand())
		return nil
	}
	if altered := <-checked; altered != nil {
		err := m.heal(ctx, d, altered)
		if !errors.Is(err, errNothingWhole) {
			return err
		}
		m.Log.Printf("%v", err) // It may run all the same.
	}
	m.Log.Printf("nobody came: starting the installed system")
	if err := m.returnToSystem(ctx, d); err != nil {
		m.Log.Printf("%v", err)
	}
	if err := m.setDefault(boot.System); err != nil {
		return err
	}
	return m.reboot()
}

// returnToSystem says on sda2 that the rescue system was started in vain.
func (m Machine) returnToSystem(ctx context.Context, d disk) error {
	if e, err := m.loader().Default(); err != nil || e == boot.System {
		return err // It was chosen in the boot menu.
	}
	m.repaired("the rescue system was what the firmware starts, with nothing to do: it is the installed system again")
	return m.withData(ctx, d, func() error {
		return m.Log.Append(m.path(filepath.Join(dataDir, InstallLog)))
	})
}

// reboot leaves both partitions clean.
func (m Machine) reboot() error { return m.leave(m.Kernel.Reboot) }

// leave unmounts everything and ends this system.
func (m Machine) leave(how func() error) error {
	err := m.Log.Close()
	for _, dir := range []string{dataDir, "boot", bootDir} {
		if m.Kernel.Mounted("/" + dir) {
			if e := m.Kernel.Unmount("/" + dir); e != nil {
				m.Log.Printf("%v", e) // Synced already: not a reason to stay.
			}
		}
	}
	return errors.Join(err, how())
}

// Install runs the plan by hand and reboots.
func Install(ctx context.Context, m Machine) error {
	if !m.Ramdisk {
		return withHint("boot the entry rescue/setup and run it there", "cannot install: this is the installed system")
	}
	d, err := m.findDisk(ctx)
	if err != nil {
		return err
	}
	return m.installAndReboot(ctx, d)
}

// lastLogLine is the last line of the install log, or "".
func (m Machine) lastLogLine() string {
	return lastLine(m.path(filepath.Join(dataDir, InstallLog)))
}

// memoryLog keeps the log when the disk cannot.
const memoryLog = "run/install_step1.log"

// KeepLog saves the log of a start that has failed before the disk could keep
// it: in memory, and on the data partition if there is one.
func KeepLog(ctx context.Context, m Machine) {
	saved, err := m.Log.Save(m.path(memoryLog))
	if err != nil {
		m.Log.Printf("%v", err)
	}
	if !saved {
		return
	}
	m.Log.Printf("This log is in /%s.", memoryLog)
	m.Patience = 0
	d, err := m.findDisk(ctx)
	if err != nil || !installedTable(d.table) {
		return
	}
	err = m.withData(ctx, d, func() error {
		return errors.Join(m.Log.Open(m.path(filepath.Join(dataDir, InstallLog))), m.Log.Close())
	})
	if err != nil {
		m.Log.Printf("%v", err)
	}
}
