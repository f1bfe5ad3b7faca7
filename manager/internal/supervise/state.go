package supervise

import (
	"slices"
	"time"

	"appplatform/manager/internal/model"
)

// A Status is what a service is doing.
type Status struct {
	State    model.State
	Problem  string // what the last trouble was
	PID      int
	Since    time.Time // of State
	Next     time.Time // when it is started again
	Restarts int       // since it was last started on purpose
	Adopted  bool      // the process was started by an earlier supervisor
}

// transitions are all there are. Whatever is to happen again waits before, be it
// for no time at all.
var transitions = map[model.State][]model.State{
	model.Stopped:  {model.Starting, model.Failed},
	model.Starting: {model.Running, model.Stopping, model.Waiting, model.Stopped},
	model.Running:  {model.Running, model.Stopping, model.Waiting, model.Stopped}, // the first: replaced
	model.Waiting:  {model.Starting, model.Stopped, model.Failed},
	model.Stopping: {model.Stopped, model.Waiting},
	model.Failed:   {model.Starting, model.Stopped, model.Failed},
}

// to is the only place where the state changes.
func (s *Service) to(state model.State, change func(*Status)) {
	s.mu.Lock()
	if from := s.status.State; from == state && state == model.Stopped {
		s.mu.Unlock()
		return
	} else if !slices.Contains(transitions[from], state) {
		s.s.o.Log("internal error: %s goes from %s to %s", s.name, from, state)
	}
	if state == model.Stopped {
		s.stops++
		s.idle = !s.wanted
	}
	s.status.State, s.status.Since, s.status.Next = state, time.Now(), time.Time{}
	if change != nil {
		change(&s.status)
	}
	close(s.changed)
	s.changed = make(chan struct{})
	s.mu.Unlock()
	if s.hooks.Changed != nil {
		s.hooks.Changed()
	}
}
