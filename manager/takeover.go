package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"appplatform/internal/hint"
	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/supervise"
)

// lingerTime is how long the WebSockets of a webserver that was replaced may last.
const lingerTime = time.Hour

// beforeSuffix is of second names of the webserver's sockets. While there are any, a
// webserver is being replaced: its successor takes the names themselves.
const beforeSuffix = ".before"

// restartWebserver replaces the webserver by its program as it is now. Nobody is
// refused, and WebSockets stay with the one that they are connected to. One that does
// not run is started.
func (m *Manager) restartWebserver(ctx context.Context) error {
	m.mu.Lock()
	web := m.web
	m.mu.Unlock()
	if web == nil {
		return nil
	}
	err := m.replaceWebserver(ctx, web)
	if err != nil && !errors.Is(err, supervise.ErrNotRunning) {
		return err
	}
	if problem := web.Set(m.webSpec()); problem != nil {
		return problem
	}
	if err != nil {
		return web.Restart(ctx)
	}
	return nil
}

func (m *Manager) replaceWebserver(ctx context.Context, web *supervise.Service) error {
	m.replacing.Lock()
	defer m.replacing.Unlock()
	m.awaitRegistrations(ctx)
	for _, name := range m.webSockets() {
		_ = os.Remove(name + beforeSuffix)
		if err := os.Link(name, name+beforeSuffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot keep its sockets: %w", err)
		}
	}
	spec := m.webSpec()
	spec.Args = append(spec.Args, "--takeover")
	err := web.Replace(ctx, spec, lingerTime+time.Minute)
	ctx = context.WithoutCancel(ctx)
	if err == nil {
		m.settleTakeover(ctx, web.Status().PID)
		return nil
	}
	m.control.drop()
	m.settleTakeover(ctx, web.Status().PID)
	m.greetWebserver(ctx) // what has changed may have been told to the successor
	return err
}

// registrationTime is how long those who serve paths may take to say so to a webserver
// that has just been started.
const registrationTime = 5 * time.Second

// awaitRegistrations lets the webserver know all that it is to know before it is
// replaced: from then on nobody registers with it, and what waits in it for a path
// would be refused.
func (m *Manager) awaitRegistrations(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, registrationTime)
	defer cancel()
	for {
		status, err := m.webserverStatus(ctx)
		if err != nil {
			return // It does not run.
		}
		wanted := slices.Clone(ownPaths)
		m.mu.Lock()
		for _, s := range m.services {
			for _, i := range s.v.Instances {
				if run := s.instances[i.ID]; run != nil && run.state == model.Running {
					wanted = append(wanted, i.Path)
				}
			}
		}
		m.mu.Unlock()
		there := func(path string) bool {
			return slices.ContainsFunc(status.Registrations, func(r wire.RegisterOf) bool {
				return r.Path == path || path != "" && strings.HasPrefix(r.Path, path+"/")
			})
		}
		if !slices.ContainsFunc(wanted, func(path string) bool { return !there(path) }) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (m *Manager) webSockets() []string {
	return []string{m.control.socket, m.o.run("webserver/webserver.sock")}
}

// settleTakeover brings a replacement to its end, or undoes it, whoever began it.
// Current is the process that is to serve, 0 if it is not known.
func (m *Manager) settleTakeover(ctx context.Context, current int) {
	before, ready, err := dialControl(ctx, m.control.socket+beforeSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return
	}
	alive := err == nil
	if alive {
		defer before.Close()
	}
	switch {
	case alive && (ready.PID == current || current == 0 && !answers(ctx, m.control.socket)):
		// The successor is not there: the names lead to the old one again.
		for _, name := range m.webSockets() {
			if err := os.Rename(name+beforeSuffix, name); err != nil {
				m.o.Log.Warn("cannot give the webserver its sockets back", "error", err)
			}
		}
		return
	case alive && current == 0:
		return
	case alive:
		err = before.Send(wire.Drain{Head: wire.Head{MT: "Drain"}, Seconds: int(lingerTime / time.Second)})
		if err == nil {
			_, err = before.Receive()
		}
		if err != nil {
			m.o.Log.Warn("cannot tell the old webserver that it is replaced", "error", err)
		}
	}
	for _, name := range m.webSockets() {
		_ = os.Remove(name + beforeSuffix)
	}
}

func answers(ctx context.Context, socket string) bool {
	conn, _, err := dialControl(ctx, socket)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// switchWebserver starts the webserver that was just installed, and returns to the
// version before if it does not become ready.
func (m *Manager) switchWebserver(ctx context.Context) error {
	m.mu.Lock()
	m.webFails = 0
	m.mu.Unlock()
	// What is installed is to run, even if the job is cancelled.
	problem := m.restartWebserver(context.WithoutCancel(ctx))
	if problem == nil {
		return nil
	}
	way := "look at its log; the one that ran goes on"
	if steps, err := m.disk.PlanRevert("webserver"); err == nil {
		if err := m.applySteps(steps); err != nil {
			return errors.Join(problem, err)
		}
		way = "look at its log; the version before is back, and goes on"
	}
	return hint.Errorf(way, "the webserver is not replaced: %w", problem)
}
