package manager

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/pg"
)

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
