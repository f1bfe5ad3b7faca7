package manager

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"time"

	"appplatform/internal/atomicfile"
	"appplatform/internal/hint"
	"appplatform/manager/internal/cluster"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/state"
	"appplatform/manager/internal/users"
)

// A snapshot is what the database held when it was asked last: what is needed without
// it, and all that is needed to make it anew. Tokens, crashes and the audit log are not
// here. Older managers have written services and settings only.
type snapshot struct {
	Services []model.Service   `json:"services"`
	Settings model.Settings    `json:"settings"`
	HalfMade []state.Instance  `json:"halfMade,omitempty"`
	Config   map[string]string `json:"config,omitempty"`
}

// copied is the snapshot, if there is something in it that a new database should have.
func (m *Manager) copied() (state.Copy, bool, error) {
	text, err := os.ReadFile(m.snapshotFile())
	if errors.Is(err, fs.ErrNotExist) {
		return state.Copy{}, false, nil
	}
	var s snapshot
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	info, statErr := os.Stat(m.snapshotFile())
	if err := errors.Join(err, statErr); err != nil {
		// To go on would replace it by that of an empty database.
		return state.Copy{}, false, hint.Errorf("move "+m.snapshotFile()+" away; what an empty database lacks is then to be made anew", "cannot read the copy of the manager's database: %w", err)
	}
	c := state.Copy{Time: info.ModTime(), Services: s.Services, HalfMade: s.HalfMade, Config: s.Config}
	if c.Config == nil {
		if c.Config, err = state.WriteSettings(s.Settings); err != nil {
			return c, false, err
		}
	}
	return c, len(s.Services)+len(s.Config) > 0, nil
}

// putBack is called when a lost database has been made from the snapshot.
func (m *Manager) putBack(c state.Copy) {
	m.o.Log.Warn("the manager's database was lost and has been made from the copy", "of", c.Time)
	m.notices.say("restored", model.Warning, "look at the apps and their data; tokens are to be made anew",
		"the manager's database was lost and has been made from the copy of %s", c.Time.UTC().Format(time.DateTime+" UTC"))
	m.mu.Lock()
	m.restored = true
	m.mu.Unlock()
}

// finishRestored makes the databases of instances that were lost, too, before anybody
// takes these instances for half made and ends them.
func (m *Manager) finishRestored(ctx context.Context) error {
	m.mu.Lock()
	restored := m.restored
	m.restored = false
	m.mu.Unlock()
	if !restored {
		return nil
	}
	list, err := m.store.Instances(ctx)
	if err != nil {
		return err
	}
	m.mend(ctx, list)
	return nil
}

// loadSnapshot lets everything run that ran before, also without the database.
func (m *Manager) loadSnapshot() {
	text, err := os.ReadFile(m.snapshotFile())
	if err != nil {
		return
	}
	s := snapshot{Settings: state.DefaultSettings}
	if err := json.Unmarshal(text, &s); err != nil {
		m.o.Log.Warn("cannot read the copy of the manager's database", "error", err)
		return
	}
	m.take(s)
}

// take makes what is known be what was read.
func (m *Manager) take(read snapshot) {
	m.mu.Lock()
	m.settings = read.Settings
	for _, v := range read.Services {
		s := m.services[v.ID]
		if s == nil {
			s = newService(m, v)
			m.services[v.ID] = s
		}
		s.v = v
	}
	var gone []*service
	for id, s := range m.services {
		if !slices.ContainsFunc(read.Services, func(v model.Service) bool { return v.ID == id }) {
			delete(m.services, id)
			gone = append(gone, s)
		}
	}
	m.mu.Unlock()
	for _, s := range gone {
		s.remove()
	}
}

// follow keeps what is known the same as what the database holds.
func (m *Manager) follow(ctx context.Context) {
	for ctx.Err() == nil {
		pause := m.o.Refresh
		if err := m.refresh(ctx); err != nil && ctx.Err() == nil {
			m.mu.Lock()
			m.away = true
			m.mu.Unlock()
			m.notices.say("database", model.Error, "", "the database does not answer; apps and pages go on as far as they can: %s", err)
			pause = min(pause, time.Second)
		}
		m.retryInstances()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// refresh reads the database and brings about what it says.
func (m *Manager) refresh(ctx context.Context) error {
	m.refreshing.Lock()
	defer m.refreshing.Unlock()
	if err := m.store.Prepare(ctx); err != nil {
		return err
	}
	if err := m.finishRestored(ctx); err != nil {
		return err
	}
	services, err := m.store.Services(ctx)
	if err != nil {
		return err
	}
	phases, err := m.store.Instances(ctx)
	if err != nil {
		return err
	}
	config, err := m.store.Configs(ctx)
	if err != nil {
		return err
	}
	settings, pem := state.ReadSettings(config), config[state.WebserverCertificate]
	// The password has a file of its own, which is never older than this one.
	delete(config, state.ManagerPassword)
	delete(config, state.ManagerPasswordClear)
	if err := m.signin.load(ctx); err != nil {
		return err
	}
	m.measure(ctx)
	m.notices.clear("database")
	m.hurry()
	// An instance whose database is not there yet is not to run.
	for i := range services {
		services[i].User = users.Name(services[i].ID)
		services[i].Instances = slices.DeleteFunc(services[i].Instances, func(v model.Instance) bool {
			return !slices.ContainsFunc(phases, func(p state.Instance) bool { return p.ID == v.ID && p.Phase == state.Ready })
		})
	}
	half := slices.DeleteFunc(slices.Clone(phases), func(p state.Instance) bool { return p.Phase == state.Ready })
	read := snapshot{services, settings, half, config}
	m.mu.Lock()
	first, newSecurity, newPEM := !m.loaded, m.settings.DisableAppSecurity != settings.DisableAppSecurity, m.pem != pem
	m.loaded, m.pem = true, pem
	m.mu.Unlock()
	m.take(read)
	m.saveSnapshot(read)
	if first || newSecurity {
		m.ensureUsers(ctx)
	}
	if first {
		m.applyFirstBoot(ctx)
		if version, err := m.cluster.Version(ctx); err == nil {
			m.mu.Lock()
			m.pgNumber = version
			m.mu.Unlock()
		}
	}
	m.mend(ctx, phases)
	m.flushAudit(ctx)
	m.adoptAll()
	if first || newPEM {
		m.pushCertificate(ctx)
	}
	m.pushGrants(ctx)
	m.syncAll()
	m.touchIf(first)
	return nil
}

// hurry lets instances that could not start without the database try again at once.
func (m *Manager) hurry() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.away {
		return
	}
	m.away = false
	for _, s := range m.services {
		for _, run := range s.instances {
			run.next, run.tries = time.Time{}, 0
		}
	}
}

// sizesFresh is how old sizes of databases may be: the server reads folders for
// them.
const sizesFresh = 30 * time.Second

// measure asks how large the databases are, now and then and when there is one of
// which that is not known.
func (m *Manager) measure(ctx context.Context) {
	m.mu.Lock()
	fresh := time.Since(m.sizesAt) < sizesFresh
	for _, s := range m.services {
		for _, i := range s.v.Instances {
			if _, ok := m.sizes[i.DBName]; !ok {
				fresh = false
			}
		}
	}
	m.mu.Unlock()
	if fresh {
		return
	}
	sizes, err := m.cluster.Sizes(ctx)
	if err != nil {
		return
	}
	m.mu.Lock()
	changed := !maps.Equal(m.sizes, sizes)
	m.sizes, m.sizesAt = sizes, time.Now()
	m.mu.Unlock()
	m.touchIf(changed)
}

func (m *Manager) touchIf(changed bool) {
	if changed {
		m.touch()
	}
}

func (m *Manager) saveSnapshot(s snapshot) {
	text, err := json.Marshal(s)
	if err != nil {
		return
	}
	if old, err := os.ReadFile(m.snapshotFile()); err == nil && string(old) == string(text) {
		return
	}
	if err := atomicfile.Write(m.snapshotFile(), text, 0o600); err != nil {
		m.notices.set("snapshot", model.Warning, hintNoSpace(err))
		return
	}
	m.notices.clear("snapshot")
}

// mend finishes or removes instances that were left half made: by a manager before,
// or by this one when the database went away in the middle. What is just being made
// is left to whoever does it.
func (m *Manager) mend(ctx context.Context, list []state.Instance) {
	for _, i := range list {
		if i.Phase == state.Ready {
			continue
		}
		s, err := m.service(i.Service)
		if err != nil || !s.editing.TryLock() {
			continue
		}
		m.mendOne(ctx, i.ID)
		s.editing.Unlock()
	}
}

func (m *Manager) mendOne(ctx context.Context, id int64) {
	// The list may be older than the last change.
	i, err := m.store.Instance(ctx, id)
	if err != nil {
		return // It is there no more, or the next refresh tries again.
	}
	d := cluster.Database{Name: i.DBName, User: i.DBUser}
	switch i.Phase {
	case state.Creating:
		if err = m.cluster.Finish(ctx, d, i.DBPassword); err == nil {
			err = m.store.SetPhase(ctx, i.ID, state.Ready)
		}
	case state.Deleting:
		if err = m.cluster.Drop(ctx, d); err == nil {
			err = m.store.DeleteInstance(ctx, i.ID)
		}
	}
	if err != nil {
		m.notices.say("instance-"+i.Key(), model.Error, "", "the instance %s is half made: %s", i.Key(), err)
		return
	}
	m.notices.clear("instance-" + i.Key())
}
