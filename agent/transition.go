package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/agent/internal/boot"
	"appplatform/bundle"
	"appplatform/internal/atomicfile"
	"appplatform/internal/smallfile"
	"appplatform/partitions"
)

// A transition is the way from one image to another, an update or a rollback.
// It lies on sda2 and is changed as a whole, so that whatever is started next,
// by kexec or by the firmware, goes on where the power failed.
//
// Until the commit, the firmware starts the image From: its system while sda3
// is untouched, then its ramdisk. The image To is started by kexec only, so that
// a kernel that does not come up costs one reset.
type transition struct {
	Format  int     `json:"format"`
	From    imageID `json:"from"`
	To      imageID `json:"to"`
	Stage   stage   `json:"stage"`
	Tries   int     `json:"tries"`   // how often To was started in this stage
	Network bool    `json:"network"` // there was one before
	Reason  string  `json:"reason,omitempty"`
	// FromDamaged is set when From was not whole at the beginning (--force).
	FromDamaged bool `json:"from_damaged,omitempty"`
	// CameUp is set when the system To has started, but not everything works.
	CameUp bool `json:"came_up,omitempty"`
	// Interrupted is how often it was restarted in an orderly way while on trial.
	Interrupted int `json:"interrupted,omitempty"`
}

// rescue is the image whose ramdisk the firmware starts while sda3 is between
// two systems: that of From, which it has started before. A damaged one may not
// come up; that of To is running when this is asked.
func (t transition) rescue() string {
	if t.FromDamaged {
		return t.To.Set
	}
	return t.From.Set
}

// transitionFormat is the version of transition that this agent writes and
// reads. One that it cannot read ends in the image that the firmware starts.
const transitionFormat = 1

// An imageID names an image on sda1.
type imageID struct {
	Set    string `json:"set"` // its folder, a or b
	Label  string `json:"label"`
	Rootfs string `json:"rootfs"` // RawSHA256
}

// A stage is how far a transition is.
type stage string

const (
	stageApply   stage = "apply"   // the ramdisk of To is to write sda3
	stageTrial   stage = "trial"   // the system To is to show that it works
	stageCommit  stage = "commit"  // it has, and is to be what the firmware starts
	stageRestore stage = "restore" // From is to be written to sda3 again
)

// maxTries is how often an image is started that does not say it works.
const maxTries = 3

const (
	updateDir      = dataDir + "/update"
	transitionFile = updateDir + "/transition.json"
	outcomeFile    = updateDir + "/last.json"
)

// An Outcome is how the last transition ended.
type Outcome struct {
	Time   time.Time `json:"time"`
	From   string    `json:"from"` // labels
	To     string    `json:"to"`
	Result string    `json:"result"`
	Reason string    `json:"reason,omitempty"`
}

// What can become of a transition.
const (
	committed  = "committed"
	rolledBack = "rolled back"
	abandoned  = "not started"
)

// readTransition returns nil when there is none. sda2 must be mounted.
func (m Machine) readTransition() (*transition, error) {
	text, err := smallfile.Read(m.path(transitionFile), smallfile.Most)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var t transition
	if err == nil {
		err = json.Unmarshal(text, &t)
	}
	if err == nil {
		err = t.check()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read which update is under way: %w", err)
	}
	return &t, nil
}

func (t transition) check() error {
	if t.Format != transitionFormat {
		return fmt.Errorf("its format is %d and this system knows %d", t.Format, transitionFormat)
	}
	for _, id := range []imageID{t.From, t.To} {
		if id.Set != "a" && id.Set != "b" {
			return fmt.Errorf("%q is not an image of sda1", id.Set)
		}
	}
	switch t.Stage {
	case stageApply, stageTrial, stageCommit, stageRestore:
	default:
		return fmt.Errorf("it is at the unknown stage %q", t.Stage)
	}
	if t.From.Set == t.To.Set || t.Tries < 0 {
		return errors.New("it leads nowhere")
	}
	return nil
}

// keep has the transition on the disk when it returns.
func (m Machine) keep(t transition) error {
	t.Format = transitionFormat
	if err := m.writeState(transitionFile, t); err != nil {
		return fmt.Errorf("cannot record how far the update is: %w", err)
	}
	return m.syncData()
}

func (m Machine) writeState(file string, v any) error {
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return fmt.Errorf("internal error: %w", err)
	}
	path := m.path(file)
	return m.evenFull(func() error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return atomicfile.Write(path, append(text, '\n'), 0o644)
	})
}

// evenFull does something on sda2 that has to be done even if there is no room
// for it: that is worth what is kept for a full disk, and half a download.
func (m Machine) evenFull(do func() error) error {
	err := do()
	if errors.Is(err, unix.ENOSPC) {
		for _, name := range []string{reserveFile, incomingFile} {
			_ = os.Remove(m.path(name)) // The next attempt tells.
		}
		err = do()
	}
	return err
}

// end forgets the transition and keeps what became of it.
func (m Machine) end(t transition, result string) error {
	o := Outcome{Time: time.Now().UTC().Truncate(time.Second), From: t.From.Label, To: t.To.Label, Result: result, Reason: t.Reason}
	if err := m.writeState(outcomeFile, o); err != nil {
		return fmt.Errorf("cannot record how the update ended: %w", err)
	}
	return m.forgetTransition()
}

func (m Machine) forgetTransition() error {
	if err := os.Remove(m.path(transitionFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot end the update: %w", err)
	}
	return m.syncData()
}

// runningSet is the folder of sda1 that this system was started from: what
// started it says so, or else the firmware's choice was taken.
func (m Machine) runningSet() (string, error) {
	if set := m.bootArgument("ap.set"); set == "a" || set == "b" {
		return set, nil
	}
	return m.loader().CurrentSet()
}

// otherSet is the image that runningSet is not.
func otherSet(set string) string {
	if set == "a" {
		return "b"
	}
	return "a"
}

// startArguments are the kernel command line that starts an entry of an image
// by kexec. Consoles and all else stay as the firmware gave them.
func (m Machine) startArguments(d disk, e boot.Entry, set string) string {
	words := []string{"root=/dev/ram0", "ramdisk_size=100000", "rw"}
	if e == boot.System {
		words = []string{"root=PARTUUID=" + d.table.UUID(partitions.Rootfs), "ro", "rootwait=30"}
	}
	for _, w := range strings.Fields(m.Cmdline) {
		name, _, _ := strings.Cut(w, "=")
		switch name {
		case "root", "ramdisk_size", "rw", "ro", "rootwait", "ap.set", attemptArgument, "initrd", "BOOT_IMAGE":
			continue
		}
		if !strings.HasPrefix(w, "/dev/") { // People write the root like this, too.
			words = append(words, w)
		}
	}
	return strings.Join(append(words, "ap.set="+set, attemptArgument), " ")
}

// attemptArgument on the kernel command line says that kexec has started this
// system to try it: whatever goes wrong or hangs ends in a reset, and the
// firmware starts what it has started before. Start scripts look for it, too.
const attemptArgument = "ap.attempt"

// attempt reports whether this system is being tried.
func (m Machine) attempt() bool { return slices.Contains(strings.Fields(m.Cmdline), attemptArgument) }

// load makes an image of sda1 ready to be started by kexec.
func (m Machine) load(d disk, e boot.Entry, set string) error {
	dir := m.path(filepath.Join(bootDir, set))
	ramdisk := ""
	if e == boot.Rescue {
		ramdisk = filepath.Join(dir, bundle.RamdiskName)
	}
	return m.Kernel.Load(filepath.Join(dir, bundle.KernelName), ramdisk, m.startArguments(d, e, set))
}

// SetBoot chooses what the firmware starts from now on: the rescue system or the
// installed one, unless that is not whole yet.
func SetBoot(ctx context.Context, m Machine, rescue bool) error {
	d, err := m.findDisk(ctx)
	if err != nil {
		return err
	}
	work, err := m.findWork(ctx, d)
	if err != nil {
		return err
	}
	entry := boot.System
	if rescue {
		entry = boot.Rescue
	}
	if work.any() {
		return withHint("restart, and it goes on: reboot", "cannot choose what boots: an installation or update is under way")
	}
	if err := m.setDefault(entry); err != nil {
		return err
	}
	m.Log.Printf("The next start leads to the %v.", entry)
	return nil
}

// An UpdateStatus is what is under way and how the last update ended.
type UpdateStatus struct {
	UnderWay *transition `json:"under_way,omitempty"`
	Last     *Outcome    `json:"last,omitempty"`
	Problem  string      `json:"problem,omitempty"`
}

// GetUpdateStatus reads both from sda2.
func GetUpdateStatus(m Machine) UpdateStatus {
	var s UpdateStatus
	var err error
	if s.UnderWay, err = m.readTransition(); err != nil {
		s.Problem = err.Error()
	}
	var o Outcome
	text, err := smallfile.Read(m.path(outcomeFile), smallfile.Most)
	switch {
	case errors.Is(err, os.ErrNotExist):
	case err == nil && json.Unmarshal(text, &o) == nil:
		s.Last = &o
	default:
		s.Problem = strings.TrimSpace(s.Problem + "\ncannot read how the last update ended")
	}
	return s
}

// String is the trial state in a few words.
func (s UpdateStatus) String() string {
	t := s.UnderWay
	if t == nil && s.Problem != "" {
		return "unknown"
	}
	if t == nil {
		return committed
	}
	switch t.Stage {
	case stageApply:
		return fmt.Sprintf("update from %s to %s, to be written", t.From.Label, t.To.Label)
	case stageTrial:
		return fmt.Sprintf("%s on trial, attempt %d of %d (before: %s)", t.To.Label, t.Tries, maxTries, t.From.Label)
	case stageCommit:
		return fmt.Sprintf("%s works (before: %s)", t.To.Label, t.From.Label)
	}
	return fmt.Sprintf("going back from %s to %s: %s", t.To.Label, t.From.Label, t.Reason)
}

// Print writes the status for people.
func (s UpdateStatus) Print(w io.Writer) {
	now := s.String()
	if now == committed {
		now = "nothing"
	}
	fmt.Fprintf(w, "under way     %s\n", now)
	if o := s.Last; o != nil {
		fmt.Fprintf(w, "last update   %s from %s to %s, %s%s\n", o.Time.Format("2006-01-02 15:04"), o.From, o.To, o.Result, because(o.Reason))
	}
	if s.Problem != "" {
		fmt.Fprintf(w, "problem: %s\n", s.Problem)
	}
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}
