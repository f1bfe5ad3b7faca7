package manager

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"appplatform/internal/hint"
	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/supervise"
	"appplatform/manager/internal/users"
)

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
