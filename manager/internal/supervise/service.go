package supervise

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/manager/internal/model"
)

// A Service is run by a Supervisor.
type Service struct {
	name   string
	s      *Supervisor
	hooks  Hooks
	cgroup cgroup
	out    *output
	wake   chan struct{} // somebody wants something else
	cancel context.CancelFunc
	life   context.Context
	done   chan struct{} // the loop has ended

	replace   chan replacement
	others    atomic.Int32   // processes besides the one of status
	lingering sync.WaitGroup // those of them that were replaced

	mu       sync.Mutex
	spec     Spec
	wanted   bool
	idle     bool // the loop starts nothing until it is woken
	removed  bool
	fresh    bool // started on purpose: no delay
	status   Status
	running  time.Time     // since when the process is ready; zero: it is not
	changed  chan struct{} // closed at the next change of status
	adopted  *process
	replaced []*replaced // the oldest first
	stops    int         // times that it came to be stopped
	early    int         // ends one after the other of a process that had not settled
	sampled  time.Time
	usage    Usage
}

func newService(s *Supervisor, spec Spec, hooks Hooks) (*Service, error) {
	service := &Service{
		name: spec.Name, s: s, spec: spec, hooks: hooks,
		wake: make(chan struct{}, 1), done: make(chan struct{}), changed: make(chan struct{}), replace: make(chan replacement),
		status: Status{State: model.Stopped, Since: time.Now()}, idle: true,
	}
	if s.cgroup != "" {
		service.cgroup = cgroup(filepath.Join(s.cgroup, spec.Name))
	}
	service.life, service.cancel = context.WithCancel(s.ctx)
	var err error
	if service.out, err = openOutput(s.file(spec.Name, ".out"), spec, s.o.LogRate); err != nil {
		return nil, err
	}
	if p := adopt(service.cgroup, s.file(spec.Name, ".pid")); p != nil {
		p.others = &service.others
		service.adopted, service.wanted, service.idle, service.status.PID = p, true, false, p.pid
		if err := service.limit(spec.Limits); err != nil {
			s.o.Log("%s: cannot set the limits: %v", spec.Name, err)
		}
	}
	service.findReplaced()
	if service.others.Load() > 0 {
		service.wanted, service.idle = true, false // its main process has ended meanwhile, or still runs
	}
	return service, nil
}

// Name is that of the Spec.
func (s *Service) Name() string { return s.name }

// Start wants the service to run. One that waits is started now.
func (s *Service) Start() {
	s.mu.Lock()
	s.wanted, s.fresh = !s.removed, true
	s.mu.Unlock()
	s.notify()
}

// Stop wants the service not to run, and waits for that.
func (s *Service) Stop(ctx context.Context) error {
	s.mu.Lock()
	s.wanted = false
	stops := s.stops
	s.mu.Unlock()
	s.notify()
	for {
		s.mu.Lock()
		stopped, changed := s.status.State == model.Stopped && s.idle || s.stops != stops, s.changed
		s.mu.Unlock()
		if stopped {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("cannot stop %s: %w", s.name, ctx.Err())
		case <-s.done:
			return fmt.Errorf("cannot stop %s: the manager ends", s.name)
		}
	}
}

// Restart stops the service and starts it again.
func (s *Service) Restart(ctx context.Context) error {
	if err := s.Stop(ctx); err != nil {
		return err
	}
	s.Start()
	return nil
}

// Status tells what the service is doing.
func (s *Service) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Set changes the Spec: limits and log size at once, the rest from the next start.
func (s *Service) Set(spec Spec) error {
	if spec.Name != s.name {
		return fmt.Errorf("internal error: %s cannot become %s", s.name, spec.Name)
	}
	s.mu.Lock()
	s.spec = spec
	s.mu.Unlock()
	s.out.set(spec)
	return s.limit(spec.Limits)
}

func (s *Service) limit(l model.Limits) error {
	if s.cgroup == "" {
		return nil
	}
	return s.cgroup.make(l)
}

func (s *Service) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Service) wants() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.wanted
}

// remove makes the last Stop last. It fails if the service is not stopped, or about
// to be started.
func (s *Service) remove() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.State != model.Stopped || !s.idle || s.wanted {
		return fmt.Errorf("internal error: %s is removed while it is %s", s.name, s.status.State)
	}
	s.removed = true
	return nil
}

// turn decides whether a process is to be started. Stop must not take a service
// for stopped between this and the start.
func (s *Service) turn() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.idle = !s.wanted; s.idle {
		close(s.changed) // for Stop, which waits for this when the state stays
		s.changed = make(chan struct{})
	}
	return s.wanted
}

// loop runs the service until the supervisor is closed.
func (s *Service) loop() {
	defer close(s.done)
	defer s.lingering.Wait()
	s.mu.Lock()
	adopted := s.adopted != nil
	s.mu.Unlock()
	if !adopted && s.others.Load() == 0 && s.cgroup != "" {
		s.cgroup.clear(s.life, true) // of an app whose main process is gone
	}
	if adopted { // Also if it was stopped by now: run ends it.
		if p := s.begin(); p != nil {
			s.run(p)
		}
	}
	for s.life.Err() == nil {
		if !s.turn() {
			s.endReplaced()
			s.to(model.Stopped, func(st *Status) { st.PID = 0 })
			select {
			case <-s.wake:
			case <-s.life.Done():
			}
			continue
		}
		if p := s.begin(); p != nil {
			s.run(p)
		}
	}
}

// begin takes the process that was found, or starts one. Nil: there is none, and
// it has waited.
func (s *Service) begin() *process {
	s.mu.Lock()
	p, spec := s.adopted, s.spec
	s.adopted = nil
	if s.fresh {
		s.fresh, s.early, s.status.Restarts, s.status.Problem = false, 0, 0, ""
	}
	s.mu.Unlock()
	if p != nil {
		s.out.say("goes on under a new manager, pid %d", p.pid)
		s.to(model.Starting, func(st *Status) { st.PID, st.Adopted = p.pid, true })
		return p
	}
	p, err := start(spec, s.cgroup, s.s.file(s.name, ".pid"), s.out.path)
	if err != nil {
		s.mu.Lock()
		s.early++
		delay := s.delay()
		s.mu.Unlock()
		s.out.say("cannot be started: %v", err)
		s.to(model.Failed, func(st *Status) {
			st.PID, st.Problem, st.Next = 0, fmt.Sprintf("cannot be started: %v", err), time.Now().Add(delay)
		})
		s.wait(delay)
		return nil
	}
	p.others = &s.others
	s.out.say("started, pid %d", p.pid)
	s.to(model.Starting, func(st *Status) { st.PID, st.Adopted = p.pid, false })
	return p
}

// run watches a process until it has ended, or until the supervisor is closed.
func (s *Service) run(p *process) {
	ctx, cancel := context.WithCancel(s.life)
	defer cancel()
	o := s.s.o
	ready := make(chan error, 1)
	go func() {
		ready <- ask(ctx, o.ReadyTimeout, func(ctx context.Context) error { return s.ready(ctx, p.pid) })
	}()
	ticks := time.NewTicker(o.StatusEvery)
	defer ticks.Stop()
	var tick <-chan time.Time
	alive := make(chan error, 1)
	reason, asked := "", false
	for {
		select {
		case <-p.ended:
			s.end(p, reason, asked)
			return
		case <-s.life.Done():
			p.release()
			return
		case err := <-ready:
			if asked {
				continue
			}
			if err == nil {
				s.mu.Lock()
				s.running = time.Now()
				s.mu.Unlock()
				s.to(model.Running, nil)
				tick = ticks.C
			} else if s.life.Err() == nil && !closed(p.ended) {
				reason = fmt.Sprintf("it did not become ready: %v", err)
				s.abort(p, reason)
			}
		case r := <-s.replace:
			p = s.succeed(p, r)
		case <-tick:
			tick = nil // until it has answered
			if s.hooks.Alive == nil {
				continue
			}
			go func() { alive <- ask(ctx, o.StatusTimeout, s.hooks.Alive) }()
		case err := <-alive:
			tick = ticks.C
			if err != nil && !asked && s.life.Err() == nil && !closed(p.ended) {
				reason = fmt.Sprintf("it hung: %v", err)
				s.abort(p, reason)
			}
		case <-s.wake:
			if !s.wants() && !asked {
				asked = true
				s.stop(p)
			}
			s.mu.Lock()
			s.fresh = s.fresh && asked // it was running already
			s.mu.Unlock()
		}
	}
}

func (s *Service) ready(ctx context.Context, pid int) error {
	if s.hooks.Ready == nil {
		return nil
	}
	return s.hooks.Ready(ctx, pid)
}

// errSilent replaces the error of a context, which means nothing to a reader.
var errSilent = errors.New("it does not answer")

// ask returns in time, even if the question does not.
func ask(ctx context.Context, timeout time.Duration, question func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	answer := make(chan error, 1)
	go func() { answer <- question(ctx) }()
	var err error
	select {
	case err = <-answer:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errSilent
	}
	return err
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// abort ends a process that hangs; SIGABRT first, which leaves its stacks in the
// log and a core dump.
func (s *Service) abort(p *process, reason string) {
	s.out.say("%s; it is ended", reason)
	p.signal(unix.SIGABRT)
	if !s.ends(p, s.s.o.AbortTimeout) {
		p.killAll()
	}
}

// stop ends a process that is not wanted any more: it is asked, then told, then
// killed.
func (s *Service) stop(p *process) {
	s.to(model.Stopping, nil)
	if s.hooks.Stop != nil {
		stopped := time.Now()
		asked := make(chan error, 1)
		go func() { asked <- ask(s.life, s.s.o.PoliteTimeout, s.hooks.Stop) }()
		select {
		case err := <-asked:
			if err == nil && s.ends(p, s.s.o.PoliteTimeout-time.Since(stopped)) {
				return
			}
		case <-p.ended:
			return
		}
	}
	p.signal(unix.SIGTERM)
	if s.ends(p, s.s.o.TermTimeout) {
		return
	}
	s.out.say("does not end when told; it is killed")
	p.killAll()
}

// ends waits for the end; true as well if the supervisor is closed.
func (s *Service) ends(p *process, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-p.ended:
		return true
	case <-s.life.Done():
		return true
	case <-timer.C:
		return false
	}
}

// end tells of an end, and waits until the service is to be started again.
func (s *Service) end(p *process, reason string, asked bool) {
	if asked {
		s.endReplaced()
	}
	end := p.finish(s.life)
	end.Service, end.Reason, end.Asked = s.name, reason, asked
	s.mu.Lock()
	// One that is waited for until it is given up has run long, too, but done nothing.
	if s.s.o.Settled < 0 || !s.running.IsZero() && time.Since(s.running) >= s.s.o.Settled {
		s.early = 0
	}
	s.running = time.Time{}
	s.early++
	delay := s.delay()
	s.mu.Unlock()
	s.out.say("%s", end)
	if s.hooks.Ended != nil {
		s.hooks.Ended(end)
	}
	if asked {
		s.to(model.Stopped, func(st *Status) { st.PID = 0 })
		return
	}
	s.to(model.Waiting, func(st *Status) {
		st.PID, st.Problem, st.Next = 0, end.String(), time.Now().Add(delay)
		st.Restarts++
	})
	s.wait(delay)
}

// delay is how long the next start waits: not at all behind the first end, then
// longer each time.
func (s *Service) delay() time.Duration {
	if s.early <= 1 {
		return 0
	}
	d := 100 * time.Millisecond
	for range s.early - 2 {
		if d >= s.s.o.MaxDelay {
			break
		}
		d *= 2
	}
	return min(d, s.s.o.MaxDelay)
}

// wait waits for a delay, or until somebody wants the service started or stopped.
func (s *Service) wait(delay time.Duration) {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return
		case <-s.life.Done():
			return
		case <-s.wake:
			s.mu.Lock()
			now := s.fresh || !s.wanted
			s.mu.Unlock()
			if now {
				return
			}
		}
	}
}
