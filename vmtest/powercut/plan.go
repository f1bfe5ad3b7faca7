package powercut

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"appplatform/bundle"
	"appplatform/partitions"
)

// A Plan is what was carried out on a disk, and what must be true of it.
type Plan struct {
	Phases []Phase         `json:"phases"` // one or more, in their order
	Size   partitions.Size `json:"size"`   // of the disk
	// Platform is what the image says about itself: whose sets it takes.
	Platform bundle.Platform `json:"platform"`
	Promises []Promise       `json:"promises"`
	// Settled is how many entries the log had when the plan was known to have come
	// to its end: from then on the disk starts what it starts at last. 0: never.
	Settled int `json:"settled,omitempty"`

	Base *os.File `json:"-"` // the disk before; zeros follow its end
	Log  *Log     `json:"-"`
}

// A Phase is a part of a plan that is counted by itself.
type Phase struct {
	Name string `json:"name"`
	From int    `json:"from"` // how many entries the log had when it began
}

// phase is the one in which the power failed.
func (p Plan) phase(s State) int {
	i := 0
	for i+1 < len(p.Phases) && s.Cut > p.Phases[i+1].From {
		i++
	}
	return i
}

// A Promise is a file of sda2 that somebody relied on: from a moment on it is
// there after every power cut.
type Promise struct {
	From  int    `json:"from"`            // how many entries the log had
	Until int    `json:"until,omitempty"` // 0: for ever
	Path  string `json:"path"`
	Text  string `json:"text,omitempty"` // a part of it
}

// HoldsAt tells whether the promise was given before a power cut.
func (p Promise) HoldsAt(s State) bool {
	return s.Cut >= p.From && (p.Until == 0 || s.Cut < p.Until)
}

// The files of a recording.
const (
	BaseName = "before.img" // the disk before the plan
	LogName  = "writes.log" // what vmtest.Disk.Log makes
	planName = "plan.json"
)

// Save writes what the plan promises beside base and log.
func (p Plan) Save(dir string) error {
	text, err := json.MarshalIndent(p, "", " ")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, planName), append(text, '\n'), 0o644)
	}
	if err != nil {
		return fmt.Errorf("cannot keep the recording: %w", err)
	}
	return nil
}

// A Recording is a plan in the files of a folder.
type Recording struct {
	Plan
	files []*os.File
}

// Open reads a recording.
func Open(dir string) (_ *Recording, err error) {
	r := &Recording{}
	defer func() {
		if err != nil {
			r.Close()
			err = fmt.Errorf("cannot read the recording: %w", err)
		}
	}()
	text, err := os.ReadFile(filepath.Join(dir, planName))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &r.Plan); err != nil {
		return nil, fmt.Errorf("%s: %w", planName, err)
	}
	for _, name := range []string{BaseName, LogName} {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		r.files = append(r.files, f)
	}
	r.Base = r.files[0]
	r.Log, err = ReadLog(r.files[1])
	return r, err
}

// Close ends the use of the files.
func (r *Recording) Close() error {
	var errs []error
	for _, f := range r.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
