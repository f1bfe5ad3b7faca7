package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"time"

	"appplatform/internal/hint"
	"appplatform/manager/internal/appstore"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/monitor"
	"appplatform/manager/internal/room"
	"appplatform/manager/internal/supervise"
	"appplatform/manager/internal/users"
)

// own programs are updated from the store like apps, but they are none.
func ownProgram(id string) bool { return id == "manager" || id == "webserver" }

// offers are what the store said last.
type offers struct {
	apps []appstore.App
	at   time.Time
	url  string
}

// offersFresh is how long that is good for.
const offersFresh = 10 * time.Minute

func (m *Manager) client() appstore.Client {
	m.mu.Lock()
	defer m.mu.Unlock()
	return appstore.Client{URL: m.settings.StoreURL, Patience: m.o.Patience}
}

// storeApps reads the store's list, or remembers it.
func (m *Manager) storeApps(ctx context.Context, refresh bool) ([]appstore.App, error) {
	c := m.client()
	m.mu.Lock()
	o := m.offers
	m.mu.Unlock()
	if !refresh && o.url == c.URL && time.Since(o.at) < offersFresh {
		return o.apps, nil
	}
	apps, err := c.Apps(ctx)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.offers = offers{apps, time.Now(), c.URL}
	m.mu.Unlock()
	return apps, nil
}

// Store is described at model.Platform.
func (m *Manager) Store(ctx context.Context, refresh bool) ([]model.StoreApp, error) {
	apps, err := m.storeApps(ctx, refresh)
	if err != nil {
		return nil, err
	}
	list := []model.StoreApp{}
	for _, a := range apps {
		offer := model.StoreApp{ID: a.ID, Title: a.Title, Manufacturer: a.Manufacturer, Description: a.Description, Versions: []model.StoreVersion{},
			Installed: m.disk.Current(a.ID).Build}
		for _, v := range a.Versions {
			offer.Versions = append(offer.Versions, model.StoreVersion{Build: v.Build, Label: v.Label, MinImage: v.MinImage, Problem: m.platform.tooNew(v.MinImage)})
		}
		list = append(list, offer)
	}
	return list, nil
}

// Install is described at model.Platform.
func (m *Manager) Install(ctx context.Context, app, build string, by model.Actor) (model.Job, error) {
	apps, err := m.storeApps(ctx, false)
	if err != nil {
		return model.Job{}, err
	}
	var a appstore.App
	for _, offer := range apps {
		if offer.ID == app {
			a = offer
		}
	}
	if a.ID == "" {
		return model.Job{}, hint.Errorf("look at the store's list again", "the store has no app %.63q", app)
	}
	v, err := a.Version(build)
	if err != nil {
		return model.Job{}, err
	}
	if why := m.platform.tooNew(v.MinImage); why != "" {
		return model.Job{}, fmt.Errorf("%s %s cannot be installed: %s", app, build, why)
	}
	r := appstore.Record{Build: v.Build, Label: v.Label, MinImage: v.MinImage, Title: a.Title, Manufacturer: a.Manufacturer, Description: a.Description}
	return m.startInstall(ctx, app, r, by, func(ctx context.Context, one *job, dir string) error {
		return m.client().Fetch(ctx, a, v, m.downloads, dir, func(file string, done, total int64) {
			one.progress(done, total, "download %s", file)
		})
	})
}

// keptDownloads is how long somebody may take to try again, and how often it is looked
// for what nobody did.
const keptDownloads = 24 * time.Hour

func (m *Manager) cleanDownloads(ctx context.Context) {
	ticks := time.NewTicker(keptDownloads)
	defer ticks.Stop()
	for {
		if err := m.downloads.Clean(keptDownloads); err != nil {
			m.o.Log.Warn("the folder of downloads keeps what it has", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}

// Upload is described at model.Platform. What is uploaded is taken before this
// returns; the rest is a job.
func (m *Manager) Upload(ctx context.Context, app string, program, files io.Reader, by model.Actor) (model.Job, error) {
	m.mu.Lock()
	developer := m.settings.DeveloperMode
	m.mu.Unlock()
	if !developer {
		return model.Job{}, hint.Errorf("switch on developer mode under Settings, General", "apps are installed from the store")
	}
	if err := appstore.CheckID(app); err != nil {
		return model.Job{}, err
	}
	// Another folder than an installation's: both may be under way.
	staged, err := os.MkdirTemp(m.o.path(appsDir), ".upload-")
	if err != nil {
		return model.Job{}, hintNoSpace(err)
	}
	if err := appstore.Save(staged, app, program, files, m.Room); err != nil {
		return model.Job{}, errors.Join(hintNoSpace(err), os.RemoveAll(staged))
	}
	r := appstore.Record{Build: "d" + time.Now().UTC().Format("20060102150405"), Label: "uploaded", Title: app, Developer: true}
	current, err := m.startInstall(ctx, app, r, by, func(_ context.Context, _ *job, dir string) error {
		// The folder that Stage made is empty.
		return errors.Join(os.Remove(dir), os.Rename(staged, dir))
	})
	if err != nil {
		_ = os.RemoveAll(staged)
	}
	return current, err
}

// Room is described at model.Platform.
func (m *Manager) Room() int64 {
	_, free, err := monitor.Space(m.o.path(appsDir))
	if err != nil {
		return math.MaxInt64 // Writing will tell.
	}
	return free - room.Reserve
}

// startInstall begins the job; fill puts the version into a folder.
func (m *Manager) startInstall(ctx context.Context, app string, r appstore.Record, by model.Actor, fill func(ctx context.Context, one *job, dir string) error) (model.Job, error) {
	kind := "install"
	if exists(m.disk.Program(app)) {
		kind = "update"
	}
	if !ownProgram(app) {
		// Without the database nobody would know of the app.
		if err := m.store.Prepare(ctx); err != nil {
			return model.Job{}, err
		}
	}
	started, err := m.jobs.start(kind, app, func(ctx context.Context, one *job) error {
		dir, err := m.disk.Stage(app)
		if err != nil {
			return hintNoSpace(err)
		}
		if err := fill(ctx, one, dir); err != nil {
			return errors.Join(err, os.RemoveAll(dir))
		}
		one.step("install")
		if ownProgram(app) {
			return m.switchOwn(ctx, app, m.disk.PlanInstall(app, r))
		}
		return m.switchVersion(ctx, one, app, r)
	})
	if err != nil {
		return started, err
	}
	return started, m.audit(ctx, by, kind+" app", app+" "+r.Build)
}

func (m *Manager) applySteps(steps []appstore.Step) error {
	return hintNoSpace(appstore.Apply(steps))
}

// switchVersion makes what was staged the version that runs, or returns to the
// one before.
func (m *Manager) switchVersion(ctx context.Context, one *job, app string, r appstore.Record) error {
	v, err := m.serviceRow(ctx, app)
	if err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		if err := m.users.Ensure(ctx, users.App(app, v.UID, m.security())); err != nil {
			return hintNoSpace(err)
		}
	}
	if err := m.applySteps(m.disk.PlanInstall(app, r)); err != nil {
		return err
	}
	return m.startVersion(ctx, one, v)
}

func (m *Manager) security() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.settings.DisableAppSecurity
}

// startVersion starts what is current on the disk, and goes back to the version
// before when it does not become ready.
func (m *Manager) startVersion(ctx context.Context, one *job, v model.Service) error {
	app := v.ID
	// The job may be cancelled; what is installed is to run all the same.
	cancelled := ctx.Done()
	ctx = context.WithoutCancel(ctx)
	if err := m.remember(ctx, v); err != nil {
		return err
	}
	s, err := m.service(app)
	if err != nil {
		return err
	}
	s.op.Lock()
	defer s.op.Unlock()
	m.mu.Lock()
	run := s.run
	m.mu.Unlock()
	if run == nil || !v.Wanted {
		return nil
	}
	one.step("start it")
	problem := m.restartAndWait(ctx, run, cancelled)
	if problem == nil {
		return nil
	}
	steps, err := m.disk.PlanRevert(app)
	if err != nil {
		return hint.Errorf("look at its log", "%s was installed, but does not become ready: %w", app, problem)
	}
	one.step("return to the version before")
	build := m.disk.Current(app).Build
	if err := m.applySteps(steps); err != nil {
		return err
	}
	if err := m.remember(ctx, v); err != nil {
		return err
	}
	if err := m.restartAndWait(ctx, run, nil); err != nil {
		m.o.Log.Warn("the version before does not become ready either", "app", app, "error", err)
	}
	return hint.Errorf("look at its log; the version before runs again", "build %s of %s does not become ready: %w", build, app, problem)
}

// remember stores what the disk says of the app.
func (m *Manager) remember(ctx context.Context, v model.Service) error {
	// Limits may have been changed while this was downloaded.
	if now, err := m.store.Service(ctx, v.ID); err == nil {
		v = now
	}
	r := m.disk.Current(v.ID)
	v.Build, v.Label, v.MinImage, v.Title, v.Manufacturer, v.Description, v.Developer = r.Build, r.Label, r.MinImage, r.Title, r.Manufacturer, r.Description, r.Developer
	v.Previous = ""
	if previous, ok := m.disk.Previous(v.ID); ok {
		v.Previous = previous.Build
	}
	if err := m.store.PutService(ctx, v); err != nil {
		return err
	}
	return m.refresh(ctx)
}

// restartAndWait restarts an app and waits until it is ready.
func (m *Manager) restartAndWait(ctx context.Context, run *supervise.Service, cancelled <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, m.o.Ready+15*time.Second)
	defer cancel()
	if st := run.Status().State; st != model.Stopped {
		if err := run.Stop(ctx); err != nil {
			return err
		}
	}
	run.Start()
	ticks := time.NewTicker(50 * time.Millisecond)
	defer ticks.Stop()
	patience := time.After(m.o.Ready)
	for {
		st := run.Status()
		switch {
		case st.State == model.Stopped: // It has not begun yet: the rest is of the last run.
		case st.State == model.Running:
			return nil
		case st.Restarts >= 3 || st.State == model.Failed:
			return errors.New(st.Problem)
		}
		select {
		case <-ticks.C:
		case <-cancelled:
			return errors.New("it was cancelled before that")
		case <-patience:
			if st.Problem != "" {
				return errors.New(st.Problem)
			}
			return errors.New("it does not say that it is ready")
		}
	}
}

// lastUID is the row of the number that was given last: none is used again.
const lastUID = "lastUID"

// serviceRow is what is remembered of an app, or is to be of a new one.
func (m *Manager) serviceRow(ctx context.Context, app string) (model.Service, error) {
	v, err := m.store.Service(ctx, app)
	if !errors.Is(err, model.ErrNotFound) {
		return v, err
	}
	text, err := m.store.Config(ctx, lastUID)
	if err != nil {
		return v, err
	}
	last, _ := strconv.ParseUint(text, 10, 32)
	v = model.Service{ID: app, Wanted: true, UID: max(uint32(last)+1, users.FirstUID)}
	all, err := m.store.Services(ctx)
	if err != nil {
		return v, err
	}
	for _, other := range all {
		v.UID = max(v.UID, other.UID+1)
	}
	return v, m.store.SetConfig(ctx, lastUID, strconv.FormatUint(uint64(v.UID), 10))
}

// RevertService is described at model.Platform.
func (m *Manager) RevertService(ctx context.Context, id string, by model.Actor) (model.Job, error) {
	steps, err := m.disk.PlanRevert(id)
	if err != nil {
		return model.Job{}, err
	}
	if previous, ok := m.disk.Previous(id); ok {
		if why := m.platform.tooNew(previous.MinImage); why != "" {
			return model.Job{}, fmt.Errorf("build %s of %s cannot run: %s", previous.Build, id, why)
		}
	}
	started, err := m.jobs.start("revert", id, func(ctx context.Context, one *job) error {
		if ownProgram(id) {
			return m.switchOwn(ctx, id, steps)
		}
		v, err := m.serviceRow(ctx, id)
		if err != nil {
			return err
		}
		if err := m.applySteps(steps); err != nil {
			return err
		}
		return m.startVersion(ctx, one, v)
	})
	if err != nil {
		return started, err
	}
	return started, m.audit(ctx, by, "return to previous version", id)
}

// switchOwn changes the manager's or the webserver's program. The manager ends,
// and is started again by its guardian, which takes the image's own program if
// this one does not work.
func (m *Manager) switchOwn(ctx context.Context, id string, steps []appstore.Step) error {
	if err := m.applySteps(steps); err != nil {
		return err
	}
	if id == "manager" {
		m.end()
		return nil
	}
	return m.switchWebserver(ctx)
}

// Jobs are described at model.Platform.
func (m *Manager) Jobs(context.Context) []model.Job { return m.jobs.all() }

// CancelJob is described at model.Platform.
func (m *Manager) CancelJob(ctx context.Context, id string, by model.Actor) error {
	if err := m.jobs.stop(id); err != nil {
		return err
	}
	return m.audit(ctx, by, "cancel job", id)
}
