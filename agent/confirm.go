package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"appplatform/agent/internal/boot"
	"appplatform/internal/smallfile"
)

// Confirm is what the installed system does beside everything that it starts: a
// new image shows that it works and becomes the one that the firmware starts, or
// is given up, also when its start does not come to an end. What a power failure
// has interrupted goes on.
func Confirm(ctx context.Context, m Machine) error {
	if m.Ramdisk {
		return errors.New("cannot do this in the rescue system")
	}
	if err := m.writeFlag(confirmingFile); err != nil {
		m.Log.Printf("%v", err) // rcS resets the machine if this is an attempt.
	}
	err := m.confirm(ctx)
	if t, unknown := m.readTransition(); err == nil && t == nil && unknown == nil {
		return m.writeFlag(settledFile)
	}
	if err == nil || !m.attempt() || ctx.Err() != nil {
		return err
	}
	m.Log.Printf("%s", Explain(err))
	return shutDown{}.Do(ctx, m)
}

func (m Machine) confirm(ctx context.Context) error {
	t, err := m.readTransition()
	if err != nil {
		return m.confirmUnknown(ctx, err)
	}
	if t == nil {
		return m.lookAfter(ctx)
	}
	d, err := m.findDisk(ctx)
	if err != nil {
		return err
	}
	set, err := m.runningSet()
	if err != nil {
		return err
	}
	if t.Stage != stageTrial {
		_ = m.until(ctx, m.health, m.started) // What has not started by now never will.
	}
	switch {
	case t.Stage == stageApply:
		return m.applyAgain(ctx, d, *t)
	case t.Stage == stageTrial && set == t.To.Set:
		return m.trial(ctx, d, *t)
	case t.Stage == stageCommit:
		return Apply(ctx, m, m.planCommit(d, *t))
	case t.Stage == stageRestore && m.installedRootfs() == t.From.Rootfs:
		return m.conclude(ctx, d, *t, rolledBack, fmt.Sprintf("App Platform %s runs again: %s", t.From.Label, t.Reason))
	}
	// Somebody has chosen this entry in the boot menu. The rescue system knows
	// how to go on.
	return Apply(ctx, m, []Step{bootEntry{boot.Rescue, t.rescue()}, shutDown{}})
}

// confirmUnknown deals with a transition that this agent cannot read. If the
// firmware starts what runs, nothing else matters. Otherwise what it starts
// decides.
func (m Machine) confirmUnknown(ctx context.Context, why error) error {
	m.Log.Printf("%v", why)
	set, err := m.runningSet()
	e, err2 := m.loader().Default()
	current, err3 := m.loader().CurrentSet()
	if err := errors.Join(err, err2, err3); err != nil {
		return err
	}
	if e == boot.System && current == set {
		return m.forgetTransition()
	}
	return Apply(ctx, m, []Step{shutDown{}})
}

// confirmingFile tells rcS that somebody watches over an attempt.
const confirmingFile = "run/app-platform/confirming"

// writeFlag makes a file that start scripts look for.
func (m Machine) writeFlag(name string) error {
	path := m.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, nil, 0o644)
}

// applyAgain starts the new ramdisk once more: it did not come up, or the power
// failed before it did.
func (m Machine) applyAgain(ctx context.Context, d disk, t transition) error {
	if t.Tries >= maxTries {
		return m.giveUp(ctx, d, t, fmt.Sprintf("its ramdisk did not come up in %d attempts", maxTries))
	}
	t.Tries++
	err := Apply(ctx, m, []Step{openLog{d}, checkSet{t.To.Set}, loadKernel{d, boot.Rescue, t.To.Set}, keepStage{t}, shutDown{}})
	if err == nil || ctx.Err() != nil {
		return err
	}
	return m.giveUp(ctx, d, t, err.Error())
}

// giveUp ends a transition that has not touched the system that runs.
func (m Machine) giveUp(ctx context.Context, d disk, t transition, reason string) error {
	t.Reason = reason
	return m.conclude(ctx, d, t, abandoned, fmt.Sprintf("image %s is given up: %s", t.To.Label, reason))
}

// conclude ends a transition in the system that runs, and the log.
func (m Machine) conclude(ctx context.Context, d disk, t transition, result, text string) error {
	if err := (openLog{d}).Do(ctx, m); err != nil {
		m.Log.Printf("%v", err)
	}
	m.Log.Printf("%s", text)
	if err := m.Log.Finished(); err != nil {
		m.Log.Printf("%v", err)
	}
	return m.end(t, result)
}

// maxInterruptions is how often a trial may be interrupted by an orderly restart
// without being an attempt.
const maxInterruptions = 5

// settledFile tells the scripts of a shutdown that this system is no attempt any
// more: nothing resets it when it takes long.
const settledFile = "run/app-platform/settled"

// trial decides about the new image.
func (m Machine) trial(ctx context.Context, d disk, t transition) error {
	m.Log.Printf("App Platform %s is on trial", t.To.Label)
	t.CameUp = true
	if err := m.keep(t); err != nil {
		m.Log.Printf("%v", err) // It matters only if there is nothing to go back to.
	}
	err := m.healthy(ctx, t.Network)
	if ctx.Err() != nil {
		// The machine is being switched off: that is no attempt, unless the image
		// itself does it again and again.
		if t.Interrupted++; t.Interrupted <= maxInterruptions {
			t.Tries = max(0, t.Tries-1)
		}
		return errors.Join(ctx.Err(), m.keep(t))
	}
	if err == nil {
		return Apply(ctx, m, m.planCommit(d, t))
	}
	t = t.failed(err.Error())
	m.Log.Printf("App Platform %s does not work: %s", t.To.Label, t.Reason)
	if err := Apply(ctx, m, []Step{openLog{d}, keepStage{t}}); err != nil {
		m.Log.Printf("%v", err) // The attempts are counted.
	}
	return shutDown{}.Do(ctx, m)
}

// installedRootfs is the hash of what sda3 was written with, or "".
func (m Machine) installedRootfs() string {
	var have installed
	text, err := smallfile.Read(m.path(installedFile), smallfile.Most)
	if err != nil || json.Unmarshal(text, &have) != nil {
		return ""
	}
	return have.Rootfs
}

// healthWithin is how long a new image may take until everything works.
// PostgreSQL may have to recover.
const healthWithin = 4 * time.Minute

// healthChecks are programs of the image, and of apps on sda2, that fail when
// something does not work.
var healthChecks = []string{"etc/app-platform/health.d", dataDir + "/update/health.d"}

// settleWithin is how long what init scripts have started may take until it
// runs. PostgreSQL's script waits for it.
const settleWithin = time.Minute

// healthy waits until everything runs, the network is there if there was one,
// and every check agrees.
func (m Machine) healthy(ctx context.Context, network bool) error {
	if err := m.everythingRuns(ctx); err != nil {
		return err
	}
	return m.until(ctx, m.health, func(ctx context.Context) error { return m.checksAgree(ctx, network) })
}

// everythingRuns waits until everything has been started, the database answers,
// and every init script says that what it has started runs.
func (m Machine) everythingRuns(ctx context.Context) error {
	if err := m.until(ctx, m.health, m.started); err != nil {
		return err
	}
	return m.until(ctx, min(m.health, settleWithin), m.servicesRun)
}

// until repeats a check until it finds nothing wrong, or the time is over.
func (m Machine) until(ctx context.Context, within time.Duration, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		problem := check(ctx)
		if problem == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return problem
		case <-time.After(m.pause):
		}
	}
}

// startedFile is made by rcS as the last thing.
const startedFile = "run/app-platform/started"

func (m Machine) started(context.Context) error {
	if _, err := os.Stat(m.path(startedFile)); err != nil {
		return errors.New("not everything in /etc/init.d has started")
	}
	return nil
}

func (m Machine) servicesRun(ctx context.Context) error {
	if err := m.Run(ctx, "su", "postgres", "-c", "psql -d postgres -Atqc 'select 1'"); err != nil {
		return fmt.Errorf("PostgreSQL does not answer: %w", err)
	}
	scripts, err := programs(m.path("etc/init.d/S??*"))
	if err != nil {
		return err
	}
	for _, s := range scripts {
		if err := m.Run(ctx, s, "status"); err != nil {
			return fmt.Errorf("%s does not run: %w", filepath.Base(s), err)
		}
	}
	return nil
}

func (m Machine) checksAgree(ctx context.Context, network bool) error {
	if network && !m.Kernel.HasAddress() {
		return errors.New("the network has no address")
	}
	for _, dir := range healthChecks {
		checks, err := programs(m.path(dir + "/*"))
		if err != nil {
			return err
		}
		for _, c := range checks {
			if err := m.Run(ctx, c); err != nil {
				return fmt.Errorf("the check %s fails: %w", filepath.Base(c), err)
			}
		}
	}
	return nil
}

// programs are the files of a pattern that can be run, as rcS chooses them.
func programs(pattern string) (paths []string, err error) {
	found, err := filepath.Glob(pattern)
	for _, path := range found {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			paths = append(paths, path)
		}
	}
	return paths, err
}
