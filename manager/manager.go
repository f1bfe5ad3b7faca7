// Package manager is the central component of the platform: it installs apps,
// runs and watches them, manages their instances and rules the webserver. It
// starts, serves its pages and says what is wrong whatever else is broken.
package manager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/hint"
	"appplatform/internal/wire"
	"appplatform/manager/internal/api"
	"appplatform/manager/internal/appstore"
	"appplatform/manager/internal/cluster"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/monitor"
	"appplatform/manager/internal/room"
	"appplatform/manager/internal/state"
	"appplatform/manager/internal/supervise"
	"appplatform/manager/internal/users"
)

// A Manager is one that runs. It is a model.Platform.
type Manager struct {
	o         Options
	platform  platform
	disk      appstore.Disk
	downloads *appstore.Cache
	users     users.Table
	store     *state.Store
	cluster   *cluster.Cluster
	super     *supervise.Supervisor
	hub       *hub
	control   *control
	jobs      *jobs
	monitor   *monitor.Monitor
	walker    *monitor.Walker
	notices   *notices
	signin    *signIn
	listen    map[string]*os.File // "http" and "https"
	web       *supervise.Service
	webFails  int // starts of the webserver from /apps in a row that did not become ready
	started   time.Time
	end       context.CancelFunc
	sessions  func() // ends all sessions of pages

	refreshing sync.Mutex // one refresh at a time
	replacing  sync.Mutex // one replacement of the webserver at a time

	mu       sync.Mutex
	services map[string]*service
	settings model.Settings
	loaded   bool // what is known is the database's
	restored bool // by the snapshot, and not looked at yet
	away     bool // it did not answer when it was asked last
	pem      string
	grants   string           // that the webserver has
	sizes    map[string]int64 // of databases
	sizesAt  time.Time
	pgNumber string
	changes  uint64 // since the manager was started, and the time of that in ns
	changed  chan struct{}
	offers   offers
	images   imageList
}

// errLocked is another manager that runs.
var errLocked = supervise.ErrLocked

// New prepares a manager and finds the apps that run. Only another manager, or a
// folder for sockets that cannot be made, keeps it from that.
func New(o Options) (*Manager, error) {
	o = o.defaults()
	m := &Manager{o: o, platform: o.platform(), disk: appstore.Disk(o.path(appsDir)), downloads: appstore.NewCache(o.path(appsDir, ".download")), users: users.Table{Root: o.Root}, started: time.Now(),
		services: map[string]*service{}, settings: state.DefaultSettings, changed: make(chan struct{}), changes: uint64(time.Now().UnixNano()), sizes: map[string]int64{},
		control: &control{socket: o.run("webserver/control.sock")}, listen: map[string]*os.File{}}
	m.jobs = &jobs{changed: m.touch}
	m.notices = &notices{changed: m.touch, list: map[string]model.Notice{}}
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{{o.Run, 0o755}, {o.run("apps"), 0o755}, {o.run("webserver"), 0o755}, {o.path(appsDir), 0o755}, {o.path(dataDir), 0o755}, {o.path(stateDir), 0o700}, {o.path(webDir), 0o700}, {o.path(workDir), 0o711}, {o.path(logDir), 0o755}} {
		if err := os.MkdirAll(dir.path, dir.mode); err != nil {
			m.notices.set("folders", model.Error, hintNoSpace(err))
		}
	}
	var err error
	m.super, err = supervise.New(supervise.Options{Run: o.run("supervise"), Cgroup: o.Cgroup, Log: func(f string, a ...any) { o.Log.Info(fmt.Sprintf(f, a...)) }})
	if err != nil {
		return nil, err
	}
	if m.store, err = state.Open(o.PostgreSQL, func() { m.touch() }); err != nil {
		return nil, err
	}
	m.store.Copy, m.store.Restored = m.copied, m.putBack
	if m.cluster, err = cluster.Open(o.PostgreSQL); err != nil {
		return nil, err
	}
	source := monitor.Source{Root: o.Root, Data: o.path(dataDir)}
	m.monitor = monitor.New(source, o.path(stateDir, "samples"), time.Now())
	m.walker = &monitor.Walker{Dirs: []string{o.path(dataDir, "pgsql"), o.path(appsDir), o.path(workDir), o.path("var/log"), o.path(dataDir, "update"), o.path("home")}}
	if m.signin, err = openSignIn(m); err != nil {
		return nil, err
	}
	m.hub = &hub{known: m.knownApp, greet: m.greet, heard: m.heard, joined: m.joined, conns: map[string]*appConn{}, joining: map[string]*appConn{}, changed: make(chan struct{}),
		logf: func(f string, a ...any) { o.Log.Warn(fmt.Sprintf(f, a...)) }}
	return m, nil
}

// Run serves until ctx ends. With stop the apps and the webserver end, too;
// otherwise the next manager takes them over.
func (m *Manager) Run(ctx context.Context, stop func() bool) error {
	ctx, m.end = context.WithCancel(ctx)
	defer m.end()
	if steps, err := m.disk.PlanRecover(); err != nil || appstore.Apply(steps) != nil {
		m.o.Log.Warn("cannot put the folder of the apps in order", "error", err)
	}
	// Uploads that a manager before was taking when it died.
	for _, dir := range []string{appsDir, stateDir} {
		left, _ := filepath.Glob(m.o.path(dir, ".upload-*"))
		for _, path := range left {
			_ = os.RemoveAll(path)
		}
	}
	apps, err := listenUnix(m.o.run("manager.sock"), 0o666, -1)
	if err != nil {
		return fmt.Errorf("cannot serve apps: %w", err)
	}
	defer apps.Close()
	pages, err := listenUnix(m.o.run("manager-http.sock"), 0o660, int(users.Webserver.UID))
	if err != nil {
		return fmt.Errorf("cannot serve pages: %w", err)
	}
	defer pages.Close()
	console, err := listenUnix(m.o.adminSocket(), 0o600, -1)
	if err != nil {
		return fmt.Errorf("cannot serve the console: %w", err)
	}
	defer console.Close()

	// The order: first what is known without anybody's help, so that what runs goes
	// on and pages are there; then what may take a while.
	m.loadSnapshot()
	m.ensureUsers(ctx)
	var work sync.WaitGroup
	work.Go(func() { m.hub.serve(apps) })
	server := &http.Server{Handler: m.handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	admin := &http.Server{Handler: api.New(m, m, m.o.path(stateDir)).Console(), ReadHeaderTimeout: 10 * time.Second, BaseContext: server.BaseContext}
	work.Go(func() { _ = server.Serve(pages) })
	work.Go(func() { _ = admin.Serve(console) })
	m.adoptAll()
	webserver := make(chan struct{})
	work.Go(func() {
		defer close(webserver)
		m.runWebserver(ctx)
	})
	gone := make(chan struct{}) // The webserver sends nothing here any more.
	work.Go(func() {
		defer close(gone)
		register(ctx, m.o.run("webserver/webserver.sock"), m.o.run("manager-http.sock"), ownPaths, func(f string, a ...any) { m.o.Log.Info(fmt.Sprintf(f, a...)) })
	})
	work.Go(func() { m.follow(ctx) })
	work.Go(func() { m.watch(ctx) })
	work.Go(func() { m.tidy(ctx) })
	work.Go(func() { m.cleanDownloads(ctx) })
	work.Go(func() { m.optimize(ctx) })

	<-ctx.Done()
	if stop() {
		m.stopAll(webserver)
	}
	m.jobs.close()
	m.super.Detach()
	// The next manager makes its sockets under these names: requests wait there. Those
	// that the webserver has sent already are accepted first.
	apps.Close()
	<-gone
	time.Sleep(lastRequests)
	quiet, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = server.Shutdown(quiet)
	_ = server.Close()
	_ = admin.Close()
	m.hub.close()
	work.Wait()
	m.super.Close()
	m.control.drop()
	m.store.Close()
	m.cluster.Close()
	return m.monitor.Save()
}

// lastRequests is when a request that the webserver is sending has surely come.
const lastRequests = 100 * time.Millisecond

// stopAll ends apps, and then the webserver, which their users see until then. It
// may run although this manager has not come to know it: that is settled when the
// channel is closed.
func (m *Manager) stopAll(settled <-chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	var work sync.WaitGroup
	m.mu.Lock()
	for _, s := range m.services {
		if s.run != nil {
			work.Go(func() { _ = s.run.Stop(ctx) })
		}
	}
	m.mu.Unlock()
	work.Wait()
	<-settled
	m.mu.Lock()
	web := m.web
	m.mu.Unlock()
	if web == nil {
		var err error
		if web, err = m.superviseWebserver(); err != nil {
			m.o.Log.Warn("cannot end the webserver", "error", err)
			return
		}
	}
	_ = web.Stop(ctx)
}

// touch tells pages that something has changed.
func (m *Manager) touch() {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(m.changed)
	m.changed = make(chan struct{})
	m.changes++
}

// Changed is described at model.Platform.
func (m *Manager) Changed() (uint64, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changes, m.changed
}

// ensureUsers makes the users that are missing: an image may be newer than the
// /etc of the disk, and the other way round.
func (m *Manager) ensureUsers(ctx context.Context) {
	m.mu.Lock()
	wanted := []users.User{users.Webserver}
	for id, s := range m.services {
		wanted = append(wanted, users.App(id, s.v.UID, m.settings.DisableAppSecurity))
	}
	m.mu.Unlock()
	if os.Geteuid() != 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if err := m.users.Ensure(ctx, wanted...); err != nil {
		m.notices.set("users", model.Error, hintNoSpace(err))
	} else {
		m.notices.clear("users")
	}
}

// own gives a folder to a user, when this is root. An app owns the folder that those
// of its instances are in: a link that it has put there instead is not followed.
func own(path string, mode os.FileMode, uid, gid uint32) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	dir, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Chmod(mode); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return nil
	}
	return dir.Chown(int(uid), int(gid))
}

// watch samples the machine and notes what an administrator should know.
func (m *Manager) watch(ctx context.Context) {
	ticks := time.NewTicker(monitor.Interval)
	defer ticks.Stop()
	saved, asked := time.Now(), time.Time{}
	for {
		m.monitor.Take(time.Now())
		m.checkDisk()
		m.checkLimits()
		// Soon at first, while an image is on trial; it reads the disk.
		if age := time.Since(asked); age > 10*time.Minute || age > time.Minute && time.Since(m.started) < 15*time.Minute {
			asked = time.Now()
			m.checkMachine(ctx)
		}
		if time.Since(saved) > 10*time.Minute {
			saved = time.Now()
			if err := m.monitor.Save(); err != nil {
				m.o.Log.Warn("cannot keep the monitor's history", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}

func (m *Manager) checkDisk() {
	total, free, err := monitor.Space(m.o.path(dataDir))
	if err != nil || total == 0 {
		return
	}
	reserve, err := os.Stat(m.o.path(dataDir, "empty_if_no_space"))
	emptied := err == nil && reserve.Size() < 4096
	switch {
	case free < 16<<20:
		m.notices.say("disk", model.Error, "delete core dumps or data here, or run: apagent diskfree", "the disk is full: nothing can be stored any more")
	case free < room.Reserve:
		m.notices.say("disk", model.Warning, "delete core dumps or data here, or run: apagent diskfree", "the disk is nearly full: %d MB are free", free>>20)
	case emptied && free > 756<<20:
		m.notices.say("disk", model.Info, "rm /mnt/sda2/empty_if_no_space, then restart the manager", "no room is kept for a full disk: empty_if_no_space was emptied")
	default:
		m.notices.clear("disk")
	}
}

// exists reports whether there is a file.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// hintNoSpace adds the way out of a full disk.
func hintNoSpace(err error) error {
	if (errors.Is(err, unix.ENOSPC) || errors.Is(err, syscall.EDQUOT)) && !hint.In(err) {
		return hint.Errorf("the disk is full: delete core dumps or data, or run: apagent diskfree", "%w", err)
	}
	return err
}

// greet answers Hello.
func (m *Manager) greet(app *appConn) wire.HelloResult {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := wire.HelloResult{DNSName: m.settings.DNSName, Timezone: m.settings.Timezone, PlatformNumber: m.platform.Label}
	if s := m.services[app.service]; s != nil {
		r.LogFlags, r.LogFileSize, r.Segfaulted = s.v.LogFlags, s.v.LogSize, s.crashed
	}
	return r
}

func (m *Manager) knownApp(id string) (uint32, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.services[id]
	if s == nil {
		return 0, false
	}
	return s.v.UID, true
}

// maxAlarms bounds those of one app, so that there is room for what others say.
const maxAlarms = 20

// heard takes what an app says by itself.
func (m *Manager) heard(app *appConn, message wire.Message) {
	if message.MT != "Alarm" {
		return
	}
	var a wire.Alarm
	if message.Decode(&a) != nil {
		return
	}
	// No name of an app has a slash: none speaks for another one.
	from := "alarm-" + app.service + "/"
	code := from + hashText([]byte(a.Instance+"\n"+a.Code))
	if a.Cleared {
		m.notices.clear(code)
		return
	}
	if m.notices.count(from, code) >= maxAlarms {
		return
	}
	severity := model.Warning
	if a.Severity == "critical" {
		severity = model.Error
	}
	name := app.service
	if a.Instance != "" {
		name += ", " + a.Instance
	}
	m.notices.say(code, severity, "", "%.100s: %.500s", name, a.Text)
}

// snapshotFile is a copy of what the database holds, for the time when that does
// not answer.
func (m *Manager) snapshotFile() string { return filepath.Join(m.o.path(stateDir), "snapshot.json") }
