package image

import (
	"sync"
	"time"
)

// An Event is what a build says about itself. Events arrive one at a time.
type Event struct {
	State State  `json:"state"`
	Board string `json:"board,omitempty"`
	Step  string `json:"step,omitempty"` // as in the plan
	Text  string `json:"text,omitempty"` // for people
	// Done of Total are finished, in Units; Total is 0 while it is unknown.
	Done  int64  `json:"done,omitempty"`
	Total int64  `json:"total,omitempty"`
	Unit  string `json:"unit,omitempty"` // bytes, objects
	// Seconds is how long a finished step took.
	Seconds float64 `json:"seconds,omitempty"`
}

// A State says what kind of event it is.
type State string

// The states of a step, and Note for what is said besides.
const (
	Started  State = "started"
	Progress State = "progress"
	Done     State = "done"
	Note     State = "note"
)

// reporter hands events to the caller, one at a time.
type reporter struct {
	mu    sync.Mutex
	board string
	to    func(Event)
}

func (r *reporter) send(e Event) {
	if r.to == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e.Board = r.board
	r.to(e)
}

func (r *reporter) note(text string) { r.send(Event{State: Note, Text: text}) }

// step reports one step from its start to its end.
func (r *reporter) step(name, text string, do func(progress func(done, total int64, unit string)) error) error {
	began := time.Now()
	r.send(Event{State: Started, Step: name, Text: text})
	err := do(func(done, total int64, unit string) {
		r.send(Event{State: Progress, Step: name, Text: text, Done: done, Total: total, Unit: unit})
	})
	if err != nil {
		return err
	}
	r.send(Event{State: Done, Step: name, Text: text, Seconds: time.Since(began).Seconds()})
	return nil
}
