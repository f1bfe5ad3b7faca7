package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/manager/internal/model"
)

// maxReplaced bounds the processes of a service that were replaced and go on: one
// more ends the oldest.
const maxReplaced = 4

// ErrNotRunning is what Replace returns when there is nothing to replace.
var ErrNotRunning = errors.New("it does not run")

// A replacement is what Replace asks the loop for.
type replacement struct {
	ctx    context.Context
	spec   Spec
	linger time.Duration
	result chan error
}

// A replaced process goes on until it ends by itself, or its time is over.
type replaced struct {
	*process
	ctx  context.Context
	quit context.CancelFunc // its time is over now
}

// Replace starts a successor by spec beside the process that runs. When the
// successor is ready it is the process of the service; the one before is watched
// until it ends, for no longer than linger. It must be told that it is not needed
// any more. A successor that does not become ready is ended, and nothing has
// changed. The service's own spec stays: Set is for that.
func (s *Service) Replace(ctx context.Context, spec Spec, linger time.Duration) error {
	r := replacement{ctx, spec, linger, make(chan error, 1)}
	for {
		s.mu.Lock()
		state, changed := s.status.State, s.changed
		s.mu.Unlock()
		if state != model.Running {
			return ErrNotRunning
		}
		select {
		case s.replace <- r:
			return <-r.result
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("cannot replace %s: %w", s.name, ctx.Err())
		case <-s.done:
			return fmt.Errorf("cannot replace %s: the manager ends", s.name)
		}
	}
}

// succeed does what Replace is for. It returns the process of the service, which is
// p if there is no successor.
func (s *Service) succeed(p *process, r replacement) *process {
	if s.Status().State != model.Running {
		r.result <- ErrNotRunning
		return p
	}
	s.others.Add(1)
	next, err := s.successor(p, r)
	if err != nil {
		s.others.Add(-1)
		s.out.say("pid %d is not replaced: %v", p.pid, err)
		r.result <- err
		return p
	}
	s.out.say("pid %d has replaced pid %d, which finishes what it has", next.pid, p.pid)
	s.keep(p)
	s.to(model.Running, func(st *Status) { st.PID, st.Adopted = next.pid, false })
	r.result <- nil
	return next
}

// successor starts a process and waits until it is ready, and as long as it is of
// use. The names of the pid files change last: a supervisor that finds them as they
// were ends the successor.
func (s *Service) successor(p *process, r replacement) (*process, error) {
	path := s.s.file(s.name, ".next")
	next, err := start(r.spec, s.cgroup, path, s.out.path)
	if err != nil {
		return nil, fmt.Errorf("cannot be started: %w", err)
	}
	next.others = &s.others
	s.out.say("started as successor, pid %d", next.pid)
	defer s.notify() // what was wanted meanwhile is looked at behind this
	ctx, cancel := context.WithCancel(s.life)
	defer cancel()
	defer context.AfterFunc(r.ctx, cancel)()
	ready := make(chan error, 1)
	go func() {
		ready <- ask(ctx, s.s.o.ReadyTimeout, func(ctx context.Context) error { return s.ready(ctx, next.pid) })
	}()
	for waiting := true; waiting; {
		waiting = false
		select {
		case err = <-ready:
		case <-next.ended:
			err = errSilent
		case <-p.ended:
			err = errors.New("the one before it has ended")
		case <-s.wake:
			if waiting = s.wants(); !waiting {
				err = errors.New("the service is to stop")
			}
		case <-s.life.Done():
			next.release()
			return nil, errors.New("the manager ends")
		}
	}
	if err == nil {
		p.until = sinceBoot() + r.linger
		if err = p.save(s.replacedFile(p)); err == nil {
			err = os.Rename(path, s.s.file(s.name, ".pid"))
		}
		if err == nil {
			return next, nil
		}
	}
	alive := !closed(next.ended)
	next.killAll()
	<-next.ended
	end := next.finish(s.life)
	os.Remove(s.replacedFile(p))
	os.Remove(path)
	if !alive {
		return nil, fmt.Errorf("the successor did not become ready: %s", end)
	}
	return nil, fmt.Errorf("the successor did not become ready: %w", err)
}

func (s *Service) replacedFile(p *process) string {
	return s.s.file(s.name, fmt.Sprintf(".replaced-%d", p.pid))
}

// findReplaced takes over the processes that an earlier supervisor has replaced, and
// ends a successor that was not ready yet when it died.
func (s *Service) findReplaced() {
	next := s.s.file(s.name, ".next")
	if p := adopt(s.cgroup, next); p != nil {
		p.signal(unix.SIGKILL)
		<-p.ended
		p.release()
	}
	os.Remove(next)
	files, _ := filepath.Glob(s.s.file(s.name, ".replaced-*"))
	for _, file := range files {
		p := adopt(s.cgroup, file)
		// The same process is the current one if the file's name was all that had been
		// written.
		if p == nil || s.adopted != nil && p.pid == s.adopted.pid {
			if p != nil {
				p.release()
			}
			os.Remove(file)
			continue
		}
		p.others = &s.others
		s.others.Add(1)
		s.keep(p)
	}
}

// keep watches a process that was replaced.
func (s *Service) keep(p *process) {
	one := &replaced{process: p}
	one.ctx, one.quit = context.WithDeadline(s.life, time.Now().Add(p.until-sinceBoot()))
	s.mu.Lock()
	s.replaced = append(s.replaced, one)
	for _, old := range s.replaced[:max(0, len(s.replaced)-maxReplaced)] {
		old.quit()
	}
	s.mu.Unlock()
	s.lingering.Go(func() { s.linger(one) })
}

func (s *Service) linger(one *replaced) {
	asked := false
	select {
	case <-one.ended:
	case <-one.ctx.Done():
		if s.life.Err() == nil {
			asked = true
			one.signal(unix.SIGTERM)
			if !s.ends(one.process, s.s.o.TermTimeout) {
				one.killAll()
			}
		}
		select {
		case <-one.ended:
		case <-s.life.Done():
			one.release()
			return
		}
	}
	one.quit()
	end := one.finish(s.life)
	end.Service, end.Asked, end.Replaced = s.name, asked, true
	s.out.say("pid %d, which was replaced: %s", one.pid, end)
	os.Remove(s.replacedFile(one.process))
	s.mu.Lock()
	s.replaced = slices.DeleteFunc(s.replaced, func(r *replaced) bool { return r == one })
	s.mu.Unlock()
	s.others.Add(-1)
	if s.hooks.Ended != nil {
		s.hooks.Ended(end)
	}
}

// endReplaced ends the processes that were replaced: the service is to stop.
func (s *Service) endReplaced() {
	s.mu.Lock()
	for _, one := range s.replaced {
		one.quit()
	}
	s.mu.Unlock()
	s.lingering.Wait()
}

// sinceBoot is a clock that nobody sets: a device may learn the time late.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
