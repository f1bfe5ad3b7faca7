package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/monitor"
	"appplatform/manager/internal/supervise"
	"appplatform/manager/internal/users"
)

// A service is an app that is installed, and what is known of its processes.
type service struct {
	m       *Manager
	id      string
	op      sync.Mutex // one change at a time: update, delete
	editing sync.Mutex // one change of its instances at a time
	syncing sync.Mutex // one at a time tells the app what to run

	// Under the manager's lock.
	v         model.Service // as remembered, with instances
	run       *supervise.Service
	spec      string // that run has
	crashed   bool   // the last end was one
	instances map[int64]*running
}

// running is what an app was told of an instance, and what it said.
type running struct {
	conn    *appConn
	told    wire.StartInstance
	state   model.State
	problem string
	next    time.Time // when a start that failed is tried again
	tries   int
}

// How patient the manager is with an app.
const (
	startInstanceTimeout = time.Minute
	stopInstanceTimeout  = 15 * time.Second
	startsAtOnce         = 8
	maxRetry             = time.Minute
)

func newService(m *Manager, v model.Service) *service {
	return &service{m: m, id: v.ID, v: v, instances: map[int64]*running{}}
}

// uid is who the app runs as.
func (m *Manager) uid(v model.Service) uint32 {
	if os.Geteuid() != 0 {
		return uint32(os.Geteuid())
	}
	return v.UID
}

// spec is how the app is started.
func (m *Manager) spec(v model.Service) supervise.Spec {
	home := m.o.path(appsDir, v.ID)
	uid := m.uid(v)
	return supervise.Spec{
		Name: v.ID, Path: m.disk.Program(v.ID), Dir: home,
		Args: []string{"--service", v.ID, "--manager", m.o.run("manager.sock"), "--run", m.o.run("apps", v.ID)},
		Env:  []string{"HOME=" + home, "USER=" + v.User, "PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"},
		UID:  uid, GID: uid, Limits: m.limits(v.Limits), Log: m.o.path(logDir, v.ID), LogSize: v.LogSize,
	}
}

// defaultProcesses is how many processes and threads an app may have by default. A
// program in Go has some dozens, one that starts programs without end takes all that
// the machine has.
const defaultProcesses = 500

// limits are those of an app, where nobody has set any so that the rest of the machine
// survives it: half of the memory and all processors.
func (m *Manager) limits(l model.Limits) model.Limits {
	if l.MemoryMiB == 0 {
		l.MemoryMiB = int(monitor.Source{Root: m.o.Root}.Memory() >> 21)
	}
	if l.Processes == 0 {
		l.Processes = defaultProcesses
	}
	return l
}

// checkLimits notes apps that cannot start more processes: unlike one that has taken
// all of its memory, nobody ends them.
func (m *Manager) checkLimits() {
	m.mu.Lock()
	apps := map[*supervise.Service]model.Service{}
	for _, s := range m.services {
		if s.run != nil {
			apps[s.run] = s.v
		}
	}
	m.mu.Unlock()
	for run, v := range apps {
		if most := m.limits(v.Limits).Processes; run.Usage().Processes > most-most/20 {
			m.notices.say("limit-"+v.ID, model.Warning, "look at its log and restart it, or set another limit", "%s has as many processes as it may have, %d", v.ID, most)
		} else {
			m.notices.clear("limit-" + v.ID)
		}
	}
}

// prepare makes the folders of an app.
func (m *Manager) prepare(v model.Service) error {
	uid := m.uid(v)
	if err := own(m.o.run("apps", v.ID), 0o750, uid, users.Webserver.UID); err != nil {
		return hintNoSpace(err)
	}
	if err := os.MkdirAll(m.o.path(logDir, v.ID), 0o755); err != nil {
		return hintNoSpace(err)
	}
	return hintNoSpace(own(m.o.path(workDir, v.ID), 0o700, uid, uid))
}

// adoptAll supervises all apps; those that are wanted are started, unless they
// run already.
func (m *Manager) adoptAll() {
	m.mu.Lock()
	var list []*service
	for _, s := range m.services {
		list = append(list, s)
	}
	m.mu.Unlock()
	for _, s := range list {
		s.adopt()
	}
}

// adopt begins to supervise, or takes over changed limits.
func (s *service) adopt() {
	m := s.m
	m.mu.Lock()
	run, v := s.run, s.v
	m.mu.Unlock()
	spec := m.spec(v)
	text := fmt.Sprint(spec)
	m.mu.Lock()
	same := text == s.spec
	s.spec = text
	m.mu.Unlock()
	if run != nil && same {
		return
	}
	if run != nil {
		if err := run.Set(spec); err != nil {
			m.o.Log.Warn("cannot set the limits", "app", s.id, "error", err)
		}
		return
	}
	if err := m.prepare(v); err != nil {
		m.notices.set("app-"+s.id, model.Error, err)
	} else {
		m.notices.clear("app-" + s.id)
	}
	if why := m.platform.tooNew(v.MinImage); why != "" {
		m.notices.say("image-"+s.id, model.Error, "", "%s is not started: %s", s.id, why)
		return
	}
	m.notices.clear("image-" + s.id)
	run, err := m.super.Add(spec, supervise.Hooks{
		Ready: s.ready, Alive: s.alive, Stop: s.stop, Ended: s.ended, Changed: m.touch,
	})
	if err != nil {
		m.notices.set("app-"+s.id, model.Error, err)
		return
	}
	m.mu.Lock()
	s.run = run
	m.mu.Unlock()
	if v.Wanted {
		run.Start()
	}
}

// remove ends what is not installed any more.
func (s *service) remove() {
	s.m.mu.Lock()
	run := s.run
	s.run = nil
	s.m.mu.Unlock()
	if run == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run.Stop(ctx); err != nil {
		s.m.o.Log.Warn("cannot stop", "app", s.id, "error", err)
		return
	}
	if err := s.m.super.Remove(run); err != nil {
		s.m.o.Log.Warn("cannot forget", "app", s.id, "error", err)
	}
}

// ready waits for Hello and for the instances.
func (s *service) ready(ctx context.Context, pid int) error {
	if _, err := s.m.hub.wait(ctx, s.id, pid, time.Now()); err != nil {
		return err
	}
	s.sync(ctx)
	// One that has said Hello may still talk nonsense.
	if err := s.alive(ctx); err != nil {
		return err
	}
	s.m.notices.clear("crash-" + s.id)
	return nil
}

// alive asks how the instances are.
func (s *service) alive(ctx context.Context) error {
	app := s.m.hub.app(s.id)
	if app == nil {
		return errors.New("it is not connected to the manager")
	}
	var r wire.StatusResult
	if err := app.ask(ctx, func(id int64) any { return wire.Status{Head: wire.Head{MT: "Status", ID: id}} }, &r); err != nil {
		return err
	}
	s.m.mu.Lock()
	changed := false
	for _, i := range s.v.Instances {
		for _, said := range r.Instances {
			if run := s.instances[i.ID]; run != nil && said.Instance == i.Key() && run.state == model.Running && run.problem != said.Error {
				run.problem, changed = said.Error, true
			}
		}
	}
	s.m.mu.Unlock()
	s.m.touchIf(changed)
	return nil
}

// stop asks the app to end by itself.
func (s *service) stop(context.Context) error {
	if app := s.m.hub.app(s.id); app != nil {
		return app.say(wire.Stop{Head: wire.Head{MT: "Stop"}})
	}
	return errors.New("it is not connected to the manager")
}

// ended notes a crash.
func (s *service) ended(e supervise.End) {
	s.m.mu.Lock()
	s.crashed = !e.Asked
	s.m.mu.Unlock()
	if e.Asked {
		s.m.notices.clear("crash-" + s.id)
		return
	}
	s.m.noteCrash(model.Crash{Service: s.id, Time: e.Time, What: e.String()})
	s.m.notices.say("crash-"+s.id, model.Warning, "look at its log", "%s does not run: %s", s.id, e.String())
}
