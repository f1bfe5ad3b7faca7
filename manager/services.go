package manager

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"appplatform/internal/hint"
	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/monitor"
	"appplatform/manager/internal/pg"
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

// joined is called when an app has connected: it is told what to run.
func (m *Manager) joined(app *appConn) {
	m.mu.Lock()
	s := m.services[app.service]
	m.mu.Unlock()
	if s == nil {
		return
	}
	if pem := m.publicCertificate(); pem != "" {
		_ = app.say(wire.ServerCertificate{Head: wire.Head{MT: "ServerCertificate"}, PEM: pem})
	}
	ctx, cancel := context.WithTimeout(context.Background(), startInstanceTimeout)
	defer cancel()
	s.sync(ctx)
}

// syncAll tells all apps what has changed.
func (m *Manager) syncAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.services {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), startInstanceTimeout)
			defer cancel()
			s.sync(ctx)
		}()
	}
}

// retryInstances gives instances that did not start another chance.
func (m *Manager) retryInstances() {
	m.mu.Lock()
	due := false
	for _, s := range m.services {
		for _, run := range s.instances {
			due = due || run.state == model.Failed && time.Now().After(run.next)
		}
	}
	m.mu.Unlock()
	if due {
		m.syncAll()
	}
}

// message is what an app is told of an instance.
func (m *Manager) message(v model.Service, i model.Instance) wire.StartInstance {
	if i.DBHost == "" && m.o.PostgreSQL != pg.SocketFolder {
		i.DBHost = m.o.PostgreSQL // Not a device: the socket is elsewhere.
	}
	return wire.StartInstance{
		Instance: i.Key(), Name: i.Name, Domain: i.Domain, Password: i.Password,
		Webserver: m.o.run("webserver/webserver.sock"), WebserverPath: i.Path,
		DBHost: i.DBHost, DBName: i.DBName, DBUser: i.DBUser, DBPassword: i.DBPassword,
		WorkingPath: m.o.path(workDir, v.ID, strconv.FormatInt(i.ID, 10)), LogFlags: i.LogFlags,
	}
}

// sync makes the app serve the instances that it should. It returns when the app
// has answered for all of them.
func (s *service) sync(ctx context.Context) {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	app := s.m.hub.app(s.id)
	if app == nil {
		return
	}
	stops, starts := s.plan(app)
	if len(stops)+len(starts) == 0 {
		return
	}
	s.m.pushGrants(ctx)
	var work sync.WaitGroup
	for _, key := range stops {
		work.Go(func() { s.stopInstance(ctx, app, key) })
	}
	work.Wait()
	limit := make(chan struct{}, startsAtOnce)
	for _, i := range starts {
		work.Go(func() {
			limit <- struct{}{}
			s.startInstance(ctx, app, i)
			<-limit
		})
	}
	work.Wait()
	s.m.touch()
}

// plan compares what an app runs with what it should run.
func (s *service) plan(app *appConn) (stops []string, starts []model.Instance) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	runs := map[string]bool{}
	for _, key := range app.hello.Instances {
		runs[key] = true
	}
	for id, run := range s.instances {
		if run.conn == app && (run.state == model.Running || run.state == model.Failed) {
			runs[run.told.Instance] = true
		}
		if !slices.ContainsFunc(s.v.Instances, func(i model.Instance) bool { return i.ID == id }) {
			delete(s.instances, id)
		}
	}
	for _, i := range s.v.Instances {
		run := s.instances[i.ID]
		if run == nil {
			run = &running{state: model.Stopped}
			s.instances[i.ID] = run
		}
		if !i.Wanted {
			continue
		}
		want := s.m.message(s.v, i)
		key := i.Key()
		if run.conn == app && run.told == want && (run.state == model.Running || run.state == model.Failed && time.Now().Before(run.next)) {
			delete(runs, key)
			continue
		}
		// Another path or name is another registration: the old one must go first.
		if run.conn != app || run.told.Instance == key && run.told.WebserverPath == want.WebserverPath {
			delete(runs, key)
		}
		starts = append(starts, i)
	}
	app.hello.Instances = nil
	for key := range runs {
		stops = append(stops, key)
	}
	slices.Sort(stops)
	return stops, starts
}

func (s *service) stopInstance(ctx context.Context, app *appConn, key string) {
	ctx, cancel := context.WithTimeout(ctx, stopInstanceTimeout)
	defer cancel()
	var r wire.StopInstanceResult
	err := app.ask(ctx, func(id int64) any {
		return wire.StopInstance{Head: wire.Head{MT: "StopInstance", ID: id}, Instance: key}
	}, &r)
	problem := r.Error
	if err != nil {
		problem = err.Error()
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	for _, run := range s.instances {
		if run.told.Instance == key {
			run.state, run.problem, run.told = model.Stopped, problem, wire.StartInstance{}
		}
	}
}

func (s *service) startInstance(ctx context.Context, app *appConn, i model.Instance) {
	s.m.mu.Lock()
	want := s.m.message(s.v, i)
	uid := s.m.uid(s.v)
	run := s.instances[i.ID]
	if run == nil {
		run = &running{}
		s.instances[i.ID] = run
	}
	run.conn, run.told, run.state = app, want, model.Starting
	s.m.mu.Unlock()
	err := own(filepath.Dir(want.WorkingPath), 0o700, uid, uid)
	if err == nil {
		err = own(want.WorkingPath, 0o700, uid, uid)
	}
	var r wire.StartInstanceResult
	if err == nil {
		err = app.ask(ctx, func(id int64) any {
			message := want
			message.Head = wire.Head{MT: "StartInstance", ID: id}
			return message
		}, &r)
	}
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if run.conn != app {
		return // The app was restarted meanwhile.
	}
	if err == nil {
		run.state, run.problem, run.tries = model.Running, "", 0
		return
	}
	run.tries++
	run.state, run.problem = model.Failed, err.Error()
	run.next = time.Now().Add(min(time.Second<<min(run.tries, 10), maxRetry))
}

// view is a service as pages show it. The lock is held.
func (s *service) view() model.Service {
	v := s.v
	v.User = users.Name(s.id)
	if previous, ok := s.m.disk.Previous(s.id); ok {
		v.Previous = previous.Build
	}
	v.State = model.Stopped
	if s.run != nil {
		st := s.run.Status()
		v.State, v.Problem, v.PID, v.Since, v.Next, v.Restarts = st.State, st.Problem, st.PID, st.Since, st.Next, st.Restarts
		u := s.run.Usage()
		v.Memory, v.CPU = u.Memory, u.Percent
	} else if why := s.m.platform.tooNew(v.MinImage); why != "" {
		v.State, v.Problem = model.Failed, why
	}
	v.Instances = []model.Instance{}
	for _, i := range s.v.Instances {
		v.Instances = append(v.Instances, s.viewInstance(i, v.State))
	}
	return v
}

func (s *service) viewInstance(i model.Instance, of model.State) model.Instance {
	i.DatabaseSize = -1
	if size, ok := s.m.sizes[i.DBName]; ok {
		i.DatabaseSize = size
	}
	i.State = model.Stopped
	if run := s.instances[i.ID]; run != nil {
		i.State, i.Problem = run.state, run.problem
		if run.conn == nil || run.conn != s.m.hub.app(s.id) {
			i.State = model.Stopped
		}
	}
	if i.Wanted && i.State == model.Stopped && of != model.Running {
		i.State = of
	} else if i.Wanted && i.State == model.Stopped {
		i.State = model.Starting
	}
	i.Paths = []string{}
	return i
}

// Services are described at model.Platform.
func (m *Manager) Services(ctx context.Context) ([]model.Service, error) {
	m.mu.Lock()
	list := []model.Service{}
	for _, s := range m.services {
		list = append(list, s.view())
	}
	m.mu.Unlock()
	for i := range list {
		hidePasswords(list[i].Instances)
	}
	slices.SortFunc(list, func(a, b model.Service) int { return compare(a.ID, b.ID) })
	return list, nil
}

func compare(a, b string) int {
	if a < b {
		return -1
	} else if a > b {
		return 1
	}
	return 0
}

func hidePasswords(list []model.Instance) {
	for i := range list {
		list[i].Password, list[i].DBPassword = "", ""
	}
}

// Service is described at model.Platform.
func (m *Manager) Service(ctx context.Context, id string) (model.Service, error) {
	s, err := m.service(id)
	if err != nil {
		return model.Service{}, err
	}
	m.mu.Lock()
	v := s.view()
	m.mu.Unlock()
	hidePasswords(v.Instances)
	return v, nil
}

func (m *Manager) service(id string) (*service, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.services[id]; s != nil {
		return s, nil
	}
	return nil, fmt.Errorf("the app %.63q is %w", id, model.ErrNotFound)
}

// change begins a change of an app; others wait until done. Who has waited may find
// that the app was deleted meanwhile.
func (m *Manager) change(id string) (s *service, done func(), err error) {
	if s, err = m.service(id); err != nil {
		return nil, nil, err
	}
	s.op.Lock()
	if now, err := m.service(id); now != s {
		s.op.Unlock()
		return nil, nil, cmp.Or(err, errBusy)
	}
	return s, s.op.Unlock, nil
}

// want starts or stops an app. It is done also while the database is away, which
// learns of it later or not at all.
func (m *Manager) want(ctx context.Context, id string, wanted bool, what string, by model.Actor, act func(context.Context, *supervise.Service) error) error {
	// Whoever asked may leave; what has begun is finished.
	ctx = context.WithoutCancel(ctx)
	s, done, err := m.change(id)
	if err != nil {
		return err
	}
	defer done()
	s.adopt()
	m.mu.Lock()
	run := s.run
	s.v.Wanted = wanted
	v := s.v
	m.mu.Unlock()
	if run == nil {
		return errors.New(cmp.Or(m.platform.tooNew(v.MinImage), id+" cannot be supervised"))
	}
	if err := act(ctx, run); err != nil {
		return err
	}
	m.touch()
	if err = m.store.PutService(ctx, v); err != nil {
		err = fmt.Errorf("it is done, but will not be remembered: %w", err)
	}
	return errors.Join(err, m.audit(ctx, by, what, id))
}

// StartService is described at model.Platform.
func (m *Manager) StartService(ctx context.Context, id string, by model.Actor) error {
	return m.want(ctx, id, true, "start app", by, func(_ context.Context, run *supervise.Service) error { run.Start(); return nil })
}

// StopService is described at model.Platform.
func (m *Manager) StopService(ctx context.Context, id string, by model.Actor) error {
	return m.want(ctx, id, false, "stop app", by, func(ctx context.Context, run *supervise.Service) error { return run.Stop(ctx) })
}

// RestartService is described at model.Platform.
func (m *Manager) RestartService(ctx context.Context, id string, by model.Actor) error {
	return m.want(ctx, id, true, "restart app", by, func(ctx context.Context, run *supervise.Service) error { return run.Restart(ctx) })
}

// SetService is described at model.Platform.
func (m *Manager) SetService(ctx context.Context, change model.Service, by model.Actor) error {
	if l := change.Limits; l.MemoryMiB < 0 || l.CPUPercent < 0 || l.Processes < 0 || l.MemoryMiB > 0 && l.MemoryMiB < 8 || l.Processes > 0 && l.Processes < 8 {
		return hint.Errorf("0 is the default", "limits are at least 8 MiB of memory and 8 processes")
	}
	if change.LogSize < 0 || change.LogSize > 0 && change.LogSize < 64<<10 || change.LogSize > 256<<20 {
		return hint.Errorf("0 is 1 MiB", "a log file has 64 KiB to 256 MiB")
	}
	ctx = context.WithoutCancel(ctx)
	s, done, err := m.change(change.ID)
	if err != nil {
		return err
	}
	defer done()
	m.mu.Lock()
	v := s.v
	m.mu.Unlock()
	v.Limits, v.LogSize, v.LogFlags = change.Limits, change.LogSize, change.LogFlags
	if err := m.store.PutService(ctx, v); err != nil {
		return err
	}
	if app := m.hub.app(s.id); app != nil {
		_ = app.say(wire.SetLogFlags{Head: wire.Head{MT: "SetLogFlags"}, LogFlags: v.LogFlags})
	}
	text, _ := json.Marshal(v.Limits)
	if err := m.audit(ctx, by, "change app", s.id+" "+string(text)); err != nil {
		return err
	}
	return m.refresh(ctx)
}

// DeleteService is described at model.Platform.
func (m *Manager) DeleteService(ctx context.Context, id string, by model.Actor) error {
	ctx = context.WithoutCancel(ctx)
	_, done, err := m.change(id)
	if err != nil {
		return err
	}
	defer done()
	// An installation would put back half of what is deleted here.
	release, err := m.jobs.keepOff(id)
	if err != nil {
		return err
	}
	defer release()
	if err := m.store.DeleteService(ctx, id); err != nil {
		return err
	}
	if err := m.refresh(ctx); err != nil {
		return err
	}
	err = m.applySteps(m.disk.PlanRemove(id))
	if os.Geteuid() == 0 {
		err = errors.Join(err, m.users.Remove(ctx, users.Name(id)))
	}
	err = errors.Join(err, os.RemoveAll(m.o.path(workDir, id)), os.RemoveAll(m.o.path(logDir, id)), os.RemoveAll(m.o.run("apps", id)))
	m.notices.clearAll("alarm-" + id + "/")
	for _, code := range []string{"crash-", "app-", "image-", "limit-"} {
		m.notices.clear(code + id)
	}
	return errors.Join(err, m.audit(ctx, by, "delete app", id))
}
