package manager

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"appplatform/internal/hint"
	"appplatform/internal/wire"
	"appplatform/manager/internal/cluster"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/secret"
	"appplatform/manager/internal/state"
)

// find returns an instance and its service. The lock is held.
func (m *Manager) find(id int64) (*service, model.Instance, error) {
	for _, s := range m.services {
		for _, i := range s.v.Instances {
			if i.ID == id {
				return s, i, nil
			}
		}
	}
	return nil, model.Instance{}, fmt.Errorf("the instance is %w", model.ErrNotFound)
}

func (m *Manager) findInstance(id int64) (*service, model.Instance, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.find(id)
}

// edit begins a change of an instance, which is as others have left it that were
// before. What is changed is changed to its end: whoever asked may leave.
func (m *Manager) edit(ctx context.Context, id int64) (_ context.Context, s *service, i model.Instance, done func(), err error) {
	ctx = context.WithoutCancel(ctx)
	if s, _, err = m.findInstance(id); err != nil {
		return ctx, nil, i, nil, err
	}
	s.editing.Lock()
	row, err := m.store.Instance(ctx, id)
	if err == nil && row.Phase != state.Ready {
		err = fmt.Errorf("the instance is %w", model.ErrNotFound)
	}
	if err != nil {
		s.editing.Unlock()
		return ctx, nil, i, nil, err
	}
	return ctx, s, row.Instance, s.editing.Unlock, nil
}

// Instance is described at model.Platform.
func (m *Manager) Instance(ctx context.Context, id int64) (model.Instance, error) {
	m.mu.Lock()
	s, _, err := m.find(id)
	if err != nil {
		m.mu.Unlock()
		return model.Instance{}, err
	}
	var found model.Instance
	for _, i := range s.view().Instances {
		if i.ID == id {
			found = i
		}
	}
	m.mu.Unlock()
	found.Paths = m.registered(ctx, found.Path)
	return found, nil
}

// registered are the paths at and below one that somebody has registered.
func (m *Manager) registered(ctx context.Context, path string) []string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	paths := []string{}
	status, err := m.webserverStatus(ctx)
	if err != nil {
		return paths
	}
	for _, r := range status.Registrations {
		if r.Path == path || strings.HasPrefix(r.Path, path+"/") {
			paths = append(paths, r.Path)
		}
	}
	return paths
}

// Suggest is described at model.Platform.
func (m *Manager) Suggest(ctx context.Context, i model.Instance) (model.Instance, error) {
	if i.Path == "" && i.Name != "" && i.Domain != "" {
		i.Path = "/" + i.Domain + "/" + i.Name
	}
	if (i.DBName == "" || i.DBUser == "") && i.Name != "" && i.Domain != "" {
		taken, err := m.cluster.Taken(ctx)
		if err != nil {
			return i, err
		}
		name := cluster.Suggest(i.Name, i.Domain, taken)
		if i.DBName == "" {
			i.DBName = name
		}
		if i.DBUser == "" {
			i.DBUser = name
		}
	}
	if i.Password == "" {
		i.Password = secret.Random()
	}
	if i.DBPassword == "" {
		i.DBPassword = secret.Random()
	}
	if i.LogFlags == 0 {
		i.LogFlags = wire.DefaultFlags
	}
	return i, nil
}

// CreateInstance is described at model.Platform. A crash in between leaves a row
// that says so, and the next manager finishes it.
func (m *Manager) CreateInstance(ctx context.Context, i model.Instance, by model.Actor) (model.Instance, error) {
	ctx = context.WithoutCancel(ctx)
	s, err := m.service(i.Service)
	if err != nil {
		return model.Instance{}, err
	}
	if i, err = m.Suggest(ctx, i); err != nil {
		return model.Instance{}, err
	}
	s.editing.Lock()
	defer s.editing.Unlock()
	i.Wanted = true
	if err := state.CheckInstance(i); err != nil {
		return model.Instance{}, err
	}
	d := cluster.Database{Name: i.DBName, User: i.DBUser}
	found, err := m.cluster.Find(ctx, d)
	if err != nil {
		return model.Instance{}, err
	}
	if found.Database || found.User {
		return model.Instance{}, hint.Errorf("take another name", "there is a database or database user %s already", i.DBName)
	}
	if i.ID, err = m.store.AddInstance(ctx, i); err != nil {
		return model.Instance{}, err
	}
	if err := m.cluster.Create(ctx, d, i.DBPassword); err != nil {
		// What is there of it must go again, or the next manager does it.
		_ = m.store.SetPhase(ctx, i.ID, state.Deleting)
		if m.cluster.Drop(ctx, d) == nil {
			_ = m.store.DeleteInstance(ctx, i.ID)
		}
		return model.Instance{}, err
	}
	if err := m.store.SetPhase(ctx, i.ID, state.Ready); err != nil {
		return model.Instance{}, err
	}
	if err := m.refresh(ctx); err != nil {
		return model.Instance{}, err
	}
	if err := m.audit(ctx, by, "create instance", i.Key()+" of "+i.Service); err != nil {
		return model.Instance{}, err
	}
	return m.Instance(ctx, i.ID)
}

// SetInstance is described at model.Platform. What it changes is carried to the
// database's names and passwords and to the app; an empty password stays as it is.
func (m *Manager) SetInstance(ctx context.Context, change model.Instance, by model.Actor) error {
	ctx, _, old, done, err := m.edit(ctx, change.ID)
	if err != nil {
		return err
	}
	defer done()
	i := old
	i.Name, i.Domain, i.Path, i.DBName, i.DBUser = change.Name, change.Domain, change.Path, change.DBName, change.DBUser
	i.DBHost, i.ExcludeFromBackup = change.DBHost, change.ExcludeFromBackup
	if change.Password != "" {
		i.Password = change.Password
	}
	if change.DBPassword != "" {
		i.DBPassword = change.DBPassword
	}
	if err := state.CheckInstance(i); err != nil {
		return err
	}
	before, after := cluster.Database{Name: old.DBName, User: old.DBUser}, cluster.Database{Name: i.DBName, User: i.DBUser}
	// The row first: its rules refuse names of others. The app is told last.
	if err := m.store.SetInstances(ctx, i); err != nil {
		return err
	}
	if before != after {
		if err := m.cluster.Rename(ctx, before, after); err != nil {
			// It may be half done: the database has its new name and the user not.
			if m.cluster.Rename(ctx, after, before) != nil {
				m.o.Log.Warn("cannot take back the renaming of a database", "from", before.Name, "to", after.Name)
			}
			return errors.Join(err, m.store.SetInstances(ctx, old))
		}
	}
	if i.DBPassword != old.DBPassword || before.User != after.User {
		if err := m.cluster.SetPassword(ctx, i.DBUser, i.DBPassword); err != nil {
			return err
		}
	}
	if err := m.refresh(ctx); err != nil {
		return err
	}
	return m.audit(ctx, by, "change instance", changes(old, i))
}

// changes says what is different, without passwords.
func changes(old, i model.Instance) string {
	parts := []string{old.Key()}
	for _, c := range []struct{ what, before, after string }{
		{"name", old.Name, i.Name}, {"domain", old.Domain, i.Domain}, {"path", old.Path, i.Path}, {"database", old.DBName, i.DBName},
		{"database user", old.DBUser, i.DBUser}, {"database host", old.DBHost, i.DBHost},
		{"exclude from backup", strconv.FormatBool(old.ExcludeFromBackup), strconv.FormatBool(i.ExcludeFromBackup)},
	} {
		if c.before != c.after {
			parts = append(parts, fmt.Sprintf("%s %q to %q", c.what, c.before, c.after))
		}
	}
	if old.Password != i.Password {
		parts = append(parts, "password")
	}
	if old.DBPassword != i.DBPassword {
		parts = append(parts, "database password")
	}
	return strings.Join(parts, ", ")
}

// Rename is described at model.Platform (F11). Databases keep their names: nobody
// sees them, and renaming them would end all connections.
func (m *Manager) Rename(ctx context.Context, ids []int64, oldDomain, newDomain string, dry bool, by model.Actor) ([]model.Instance, error) {
	if oldDomain == "" || newDomain == "" {
		return nil, errors.New("the old or the new domain is empty")
	}
	unlock, err := m.lockInstances(ids)
	if err != nil {
		return nil, err
	}
	defer unlock()
	ctx = context.WithoutCancel(ctx)
	var list []model.Instance
	for _, id := range ids {
		_, i, err := m.findInstance(id)
		if err != nil {
			return nil, err
		}
		i.Domain, i.Path = replaceDomain(i.Domain, oldDomain, newDomain), renamePath(i.Path, oldDomain, newDomain)
		if err := state.CheckInstance(i); err != nil {
			return nil, fmt.Errorf("%s: %w", i.Key(), err)
		}
		list = append(list, i)
	}
	if !dry && len(list) > 0 {
		if err := m.store.SetInstances(ctx, list...); err != nil {
			return nil, err
		}
		if err := m.refresh(ctx); err != nil {
			return nil, err
		}
		if err := m.audit(ctx, by, "rename instances", fmt.Sprintf("%d of %s to %s", len(list), oldDomain, newDomain)); err != nil {
			return nil, err
		}
	}
	hidePasswords(list)
	return list, nil
}

// lockInstances begins a change of many instances. Their apps are locked in the same
// order by everybody.
func (m *Manager) lockInstances(ids []int64) (unlock func(), err error) {
	apps := map[string]*service{}
	for _, id := range ids {
		s, _, err := m.findInstance(id)
		if err != nil {
			return nil, err
		}
		apps[s.id] = s
	}
	var locked []*service
	for _, id := range slices.Sorted(maps.Keys(apps)) {
		apps[id].editing.Lock()
		locked = append(locked, apps[id])
	}
	return func() {
		for _, s := range locked {
			s.editing.Unlock()
		}
	}, nil
}

// replaceDomain changes a domain itself and those below it.
func replaceDomain(domain, old, new string) string {
	if domain == old {
		return new
	}
	if head, ok := strings.CutSuffix(domain, "."+old); ok {
		return head + "." + new
	}
	return domain
}

// renamePath changes the parts of a path that are the domain.
func renamePath(path, old, new string) string {
	parts := strings.Split(path, "/")
	for i := range parts {
		parts[i] = replaceDomain(parts[i], old, new)
	}
	return strings.Join(parts, "/")
}

func (m *Manager) wantInstance(ctx context.Context, id int64, wanted bool, what string, by model.Actor) error {
	ctx, _, i, done, err := m.edit(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	i.Wanted = wanted
	if err := m.store.SetInstances(ctx, i); err != nil {
		return err
	}
	if err := m.refresh(ctx); err != nil {
		return err
	}
	return m.audit(ctx, by, what, i.Key())
}

// StartInstance is described at model.Platform.
func (m *Manager) StartInstance(ctx context.Context, id int64, by model.Actor) error {
	return m.wantInstance(ctx, id, true, "start instance", by)
}

// StopInstance is described at model.Platform.
func (m *Manager) StopInstance(ctx context.Context, id int64, by model.Actor) error {
	return m.wantInstance(ctx, id, false, "stop instance", by)
}

// SetLogFlags is described at model.Platform. The app is told without being
// told to start the instance anew.
func (m *Manager) SetLogFlags(ctx context.Context, id int64, flags wire.Flags, by model.Actor) error {
	ctx, s, i, done, err := m.edit(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	i.LogFlags = flags
	if err := m.store.SetInstances(ctx, i); err != nil {
		return err
	}
	if app := m.hub.app(s.id); app != nil && app.say(wire.SetLogFlags{Head: wire.Head{MT: "SetLogFlags"}, Instance: i.Key(), LogFlags: flags}) == nil {
		m.mu.Lock()
		if run := s.instances[id]; run != nil && run.conn == app {
			run.told.LogFlags = flags
		}
		m.mu.Unlock()
	}
	if err := m.refresh(ctx); err != nil {
		return err
	}
	return m.audit(ctx, by, "change log flags", i.Key()+": "+flags.String())
}

// DeleteInstance is described at model.Platform.
func (m *Manager) DeleteInstance(ctx context.Context, id int64, by model.Actor) error {
	ctx, s, i, done, err := m.edit(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	if err := m.store.SetPhase(ctx, id, state.Deleting); err != nil {
		return err
	}
	// The app is told to stop it before its database goes.
	if err := m.refresh(ctx); err != nil {
		return err
	}
	told, cancel := context.WithTimeout(ctx, startInstanceTimeout)
	s.sync(told)
	cancel()
	if err := m.cluster.Drop(ctx, cluster.Database{Name: i.DBName, User: i.DBUser}); err != nil {
		return err
	}
	if err := m.store.DeleteInstance(ctx, id); err != nil {
		return err
	}
	err = os.RemoveAll(m.o.path(workDir, s.id, strconv.FormatInt(id, 10)))
	return errors.Join(err, m.audit(ctx, by, "delete instance", i.Key()), m.refresh(ctx))
}
