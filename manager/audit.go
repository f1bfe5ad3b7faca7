package manager

import (
	"context"
	"errors"
	"time"

	"appplatform/manager/internal/model"
)

// maxPending bounds what waits for the database.
const maxPending = 1000

// audit notes a change: in the database, or until that answers in memory. The log
// of the manager has it, too.
func (m *Manager) audit(ctx context.Context, by model.Actor, what, detail string) error {
	a := model.Audit{Time: time.Now(), Who: by.Who, From: by.From, What: what, Detail: detail}
	m.o.Log.Info("changed", "who", a.Who, "from", a.From, "what", what, "detail", detail)
	err := m.store.AddAudit(context.WithoutCancel(ctx), a)
	if errors.Is(err, model.ErrUnavailable) {
		m.signin.mu.Lock()
		if len(m.signin.pending) < maxPending {
			m.signin.pending = append(m.signin.pending, a)
		}
		m.signin.mu.Unlock()
		return nil
	}
	return err
}

func (m *Manager) flushAudit(ctx context.Context) {
	m.signin.mu.Lock()
	pending := m.signin.pending
	m.signin.pending = nil
	m.signin.mu.Unlock()
	for n, a := range pending {
		err := m.store.AddAudit(ctx, a)
		if errors.Is(err, model.ErrUnavailable) {
			m.signin.mu.Lock()
			m.signin.pending = append(pending[n:], m.signin.pending...)
			m.signin.mu.Unlock()
			return
		}
		if err != nil {
			m.o.Log.Warn("cannot keep an entry of the audit log", "what", a.What, "error", err)
		}
	}
}

// Audit is described at model.Platform.
func (m *Manager) Audit(ctx context.Context, before time.Time, limit int) ([]model.Audit, error) {
	return m.store.Audit(ctx, before, limit)
}

// noteCrash remembers the end of an app, if somebody can.
func (m *Manager) noteCrash(c model.Crash) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := m.store.AddCrash(ctx, c); err != nil {
			m.o.Log.Warn("a crash is not remembered", "app", c.Service, "what", c.What, "error", err)
		}
	}()
}

// Crashes are described at model.Platform.
func (m *Manager) Crashes(ctx context.Context, limit int) ([]model.Crash, error) {
	return m.store.Crashes(ctx, limit)
}
