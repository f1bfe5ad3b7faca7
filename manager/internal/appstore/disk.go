package appstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"appplatform/internal/atomicfile"
	"appplatform/internal/hint"
)

// A Disk is the folder of the apps. Each app has a folder with its current
// version; beside it, while it is changed, there are hidden ones:
//
//	apidemo/             the current version
//	apidemo/.previous/   the one before
//	.apidemo.new/        being filled
//	.apidemo.ready/      whole, and on its way to be current or previous
//	.apidemo.gone/       being deleted
type Disk string

// recordName is a file in the folder of a version.
const recordName = ".version.json"

// A Record is what a version's folder says of itself. Serial grows with every
// change, so that of two whole versions it is known which one is to be current.
type Record struct {
	Serial       int64  `json:"serial"`
	Build        string `json:"build"`
	Label        string `json:"label,omitempty"`
	MinImage     int    `json:"minImage,omitempty"`
	Title        string `json:"title,omitempty"`
	Manufacturer string `json:"manufacturer,omitempty"`
	Description  string `json:"description,omitempty"`
	Developer    bool   `json:"developer,omitempty"`
}

// A Step changes the disk. A power cut between or within steps leaves what
// [Disk.Recover] finishes.
type Step struct {
	text string
	do   func() error
}

func (s Step) String() string { return s.text }

// Do does the step.
func (s Step) Do() error { return s.do() }

// Apply does steps in their order.
func Apply(steps []Step) error {
	for _, s := range steps {
		if err := s.Do(); err != nil {
			return fmt.Errorf("cannot %s: %w", s, err)
		}
	}
	return nil
}

func (d Disk) path(parts ...string) string {
	return filepath.Join(append([]string{string(d)}, parts...)...)
}
func (d Disk) hidden(app, what string) string { return d.path("." + app + "." + what) }

// Program is the path of an app's current program.
func (d Disk) Program(app string) string { return d.path(app, app) }

// Current is the record of the version in use; one that somebody has copied there
// by hand has none, and is empty here.
func (d Disk) Current(app string) Record { return readRecord(d.path(app)) }

// Previous is the record of the version before, if there is one.
func (d Disk) Previous(app string) (Record, bool) {
	_, err := os.Stat(d.path(app, ".previous", app))
	return readRecord(d.path(app, ".previous")), err == nil
}

// Apps are those that have a program.
func (d Disk) Apps() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, fmt.Errorf("cannot list the installed apps: %w", err)
	}
	var apps []string
	for _, e := range entries {
		if info, err := os.Stat(d.Program(e.Name())); err == nil && info.Mode().IsRegular() && CheckID(e.Name()) == nil {
			apps = append(apps, e.Name())
		}
	}
	return apps, nil
}

func readRecord(dir string) Record {
	var r Record
	if text, err := os.ReadFile(filepath.Join(dir, recordName)); err == nil {
		_ = json.Unmarshal(text, &r)
	}
	return r
}

// Write stores the record in the folder of a version.
func (r Record) Write(dir string) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, recordName), append(text, '\n'), 0o644)
}

// Stage makes an empty folder for a version that is to be installed.
func (d Disk) Stage(app string) (string, error) {
	if err := CheckID(app); err != nil {
		return "", err
	}
	dir := d.hidden(app, "new")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return "", fmt.Errorf("cannot make room for %s: %w", app, err)
	}
	return dir, nil
}

// PlanInstall makes what was staged the current version.
func (d Disk) PlanInstall(app string, r Record) []Step {
	staged, ready := d.hidden(app, "new"), d.hidden(app, "ready")
	steps := []Step{
		{"note what version it is", func() error {
			r.Serial = d.Current(app).Serial + 1
			return r.Write(staged)
		}},
		{"write everything to the disk", func() error { return settle(staged, app) }},
		{"mark it as whole", func() error { return d.rename(staged, ready) }},
	}
	return append(steps, d.planSwitch(app)...)
}

// planSwitch exchanges the folder that is ready for the current one.
func (d Disk) planSwitch(app string) []Step {
	ready := d.hidden(app, "ready")
	steps := []Step{{"make it the current one", func() error {
		if _, err := os.Lstat(d.path(app)); errors.Is(err, fs.ErrNotExist) {
			return d.rename(ready, d.path(app))
		}
		if err := unix.Renameat2(unix.AT_FDCWD, ready, unix.AT_FDCWD, d.path(app), unix.RENAME_EXCHANGE); err != nil {
			return &os.LinkError{Op: "exchange", Old: ready, New: d.path(app), Err: err}
		}
		return atomicfile.SyncDir(string(d))
	}}}
	return append(steps, d.planKeep(app)...)
}

// planKeep keeps the former version below the current one.
func (d Disk) planKeep(app string) []Step {
	ready := d.hidden(app, "ready")
	return []Step{
		{"remove the version before the last", func() error {
			return errors.Join(os.RemoveAll(filepath.Join(ready, ".previous")), os.RemoveAll(d.path(app, ".previous")))
		}},
		{"keep the last version", func() error {
			err := d.rename(ready, d.path(app, ".previous"))
			if errors.Is(err, fs.ErrNotExist) {
				return nil // There was none.
			}
			return errors.Join(err, atomicfile.SyncDir(d.path(app)))
		}},
	}
}

// PlanRevert makes the previous version the current one, and the current one the
// previous.
func (d Disk) PlanRevert(app string) ([]Step, error) {
	previous := d.path(app, ".previous")
	if _, ok := d.Previous(app); !ok {
		return nil, hint.Errorf("install the version that you want from the store", "there is no previous version of %s", app)
	}
	steps := []Step{
		{"note that it is the newest choice", func() error {
			r := readRecord(previous)
			r.Serial = d.Current(app).Serial + 1
			return r.Write(previous)
		}},
		{"take it out of the current version", func() error {
			return errors.Join(d.rename(previous, d.hidden(app, "ready")), atomicfile.SyncDir(d.path(app)))
		}},
	}
	return append(steps, d.planSwitch(app)...), nil
}

// PlanRemove deletes an app.
func (d Disk) PlanRemove(app string) []Step {
	gone := d.hidden(app, "gone")
	return []Step{
		{"take it away", func() error {
			err := errors.Join(os.RemoveAll(gone), d.rename(d.path(app), gone))
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}},
		{"delete it", func() error { return os.RemoveAll(gone) }},
	}
}

// PlanRecover finishes or takes back what was interrupted.
func (d Disk) PlanRecover() ([]Step, error) {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list the installed apps: %w", err)
	}
	var steps []Step
	for _, e := range entries {
		name, hidden := strings.CutPrefix(e.Name(), ".")
		app, what, ok := strings.Cut(name, ".")
		if !hidden || !ok || CheckID(app) != nil {
			continue
		}
		switch what {
		case "new", "gone":
			steps = append(steps, Step{"remove what is left of " + app, func() error { return os.RemoveAll(d.path(e.Name())) }})
		case "ready":
			if readRecord(d.path(e.Name())).Serial > d.Current(app).Serial {
				steps = append(steps, d.planSwitch(app)...)
			} else {
				steps = append(steps, d.planKeep(app)...)
			}
		}
	}
	return steps, nil
}

func (d Disk) rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return atomicfile.SyncDir(string(d))
}

// settle gives everything below dir to root and waits until it is on the disk.
// Everybody may read it; only the program may be run.
func settle(dir, app string) error {
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if e.IsDir() || path == filepath.Join(dir, app) {
			mode = 0o755
		} else if !e.Type().IsRegular() {
			return fmt.Errorf("%s is not an ordinary file", e.Name())
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if os.Geteuid() == 0 {
			if err := f.Chown(0, 0); err != nil {
				return err
			}
		}
		return errors.Join(f.Chmod(mode), f.Sync())
	})
}
