package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"appplatform/internal/wire"
)

// How long an app waits for others.
const (
	drainTime  = 5 * time.Second // for requests, when an instance is stopped
	healthTime = 5 * time.Second // for Health of an instance
)

// Platform is what an app knows about the machine it is on.
type Platform struct {
	Image       string // number of the platform's image
	DNSName     string // as the administrator has set it; may be empty
	Timezone    string // of jobs, as in the tz database; empty is UTC
	Certificate string // the webserver's, PEM, without its key
	NoHexdumps  bool   // nobody wants to see the contents of messages in logs
}

// A host serves the instances of a service.
type host struct {
	Service
	id, dir string
	log     *logger
	flags   atomic.Uint64 // of the service itself

	mu        sync.Mutex
	platform  Platform
	conn      *wire.Conn
	instances map[string]*Instance
	active    map[string]wire.Alarm // that are not cleared
	work      sync.WaitGroup        // starts and stops
	locks     sync.Map              // of string, *sync.Mutex: one start or stop of an instance at a time
}

func (h *host) trace(flag Flags, format string, args ...any) {
	if Flags(h.flags.Load())&flag != 0 {
		h.log.line(h.id, flag, format, args...)
	}
}

// serve talks to one manager after the other, until it is to end.
func (h *host) serve(ctx context.Context, socket string) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for try := 0; ; try++ {
		conn, err := wire.Dial(socket)
		if err == nil {
			end, welcome := h.talk(ctx, conn)
			if end {
				break
			}
			if welcome {
				try = 0
				h.trace(FlagApp, "the manager is away")
			}
		} else if try == 0 {
			h.trace(FlagApp, "waiting for the manager: %v", err)
		}
		if !backOff(ctx, try) {
			break
		}
	}
	cancel()
	h.mu.Lock()
	running := slices.Collect(maps.Keys(h.instances))
	h.mu.Unlock()
	for _, key := range running {
		h.work.Go(func() { h.stopInstance(key) })
	}
	h.work.Wait()
}

// talk serves one connection. It tells whether the app is to end, and whether the
// manager has accepted it.
func (h *host) talk(ctx context.Context, conn *wire.Conn) (end, welcome bool) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	h.mu.Lock()
	hello := wire.Hello{Head: wire.Head{MT: "Hello"}, Protocol: wire.Version, Service: h.id, Version: h.Version, Instances: slices.Sorted(maps.Keys(h.instances))}
	h.mu.Unlock()
	if hello.Instances == nil {
		hello.Instances = []string{}
	}
	if conn.Send(hello) != nil {
		return ctx.Err() != nil, false
	}
	defer func() {
		h.mu.Lock()
		welcome, h.conn = h.conn != nil, nil
		h.mu.Unlock()
	}()
	for {
		m, err := conn.Receive()
		if err != nil {
			return ctx.Err() != nil, false
		}
		if m.MT == "Stop" {
			return true, true
		}
		if err := h.handle(ctx, conn, m); err != nil {
			h.trace(FlagApp, "%v", err)
			return ctx.Err() != nil, false
		}
	}
}

// handle does what a message says. What takes time is done beside it, so that
// Status is answered meanwhile. Messages of a newer manager are left alone.
func (h *host) handle(ctx context.Context, conn *wire.Conn, m wire.Message) error {
	switch m.MT {
	case "HelloResult":
		var r wire.HelloResult
		if err := m.Decode(&r); err != nil {
			return err
		}
		if r.Error != "" {
			return fmt.Errorf("the manager refuses this app: %s", r.Error)
		}
		h.flags.Store(uint64(r.LogFlags))
		h.mu.Lock()
		h.platform.DNSName, h.platform.Timezone, h.platform.NoHexdumps, h.platform.Image = r.DNSName, r.Timezone, r.NoHexdumps, r.PlatformNumber
		h.conn = conn
		alarms := slices.Collect(maps.Values(h.active))
		h.mu.Unlock()
		for _, a := range alarms {
			conn.Send(a)
		}
	case "StartInstance":
		var r wire.StartInstance
		if err := m.Decode(&r); err != nil {
			return err
		}
		h.work.Go(func() {
			result := wire.StartInstanceResult{Head: wire.Head{MT: "StartInstanceResult", ID: m.ID}, Instance: r.Instance}
			if err := h.startInstance(ctx, r); err != nil {
				result.Error = err.Error()
				h.log.line(r.Instance, FlagApp, "cannot start: %v", err)
			}
			conn.Send(result)
		})
	case "StopInstance":
		var r wire.StopInstance
		if err := m.Decode(&r); err != nil {
			return err
		}
		h.work.Go(func() {
			h.stopInstance(r.Instance)
			conn.Send(wire.StopInstanceResult{Head: wire.Head{MT: "StopInstanceResult", ID: m.ID}, Instance: r.Instance})
		})
	case "SetLogFlags":
		var r wire.SetLogFlags
		if err := m.Decode(&r); err != nil {
			return err
		}
		if r.Instance == "" {
			h.flags.Store(uint64(r.LogFlags))
		} else if i := h.instance(r.Instance); i != nil {
			i.flags.Store(uint64(r.LogFlags))
		}
	case "SetPassword":
		var r wire.SetPassword
		if err := m.Decode(&r); err != nil {
			return err
		}
		if i := h.instance(r.Instance); i != nil {
			i.mu.Lock()
			i.values.Password = r.Password
			i.mu.Unlock()
		}
	case "ServerCertificate":
		var r wire.ServerCertificate
		if err := m.Decode(&r); err != nil {
			return err
		}
		h.mu.Lock()
		h.platform.Certificate = r.PEM
		h.mu.Unlock()
	case "SetDNSName":
		var r wire.SetDNSName
		if err := m.Decode(&r); err != nil {
			return err
		}
		h.mu.Lock()
		h.platform.DNSName = r.DNSName
		h.mu.Unlock()
	case "Status":
		h.work.Go(func() {
			conn.Send(wire.StatusResult{Head: wire.Head{MT: "StatusResult", ID: m.ID}, Instances: h.health(ctx)})
		})
	}
	return nil
}

func (h *host) instance(key string) *Instance {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.instances[key]
}

// health asks all instances at the same time.
func (h *host) health(ctx context.Context) []wire.InstanceStatus {
	h.mu.Lock()
	keys := slices.Sorted(maps.Keys(h.instances))
	h.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, healthTime)
	defer cancel()
	result := make([]wire.InstanceStatus, len(keys))
	answers := make([]chan error, len(keys))
	for n, key := range keys {
		result[n].Instance = key
		answers[n] = make(chan error, 1)
		go func() {
			i := h.instance(key)
			if i == nil || h.Health == nil {
				answers[n] <- nil
				return
			}
			answers[n] <- h.Health(ctx, i)
		}()
	}
	for n := range keys {
		select {
		case err := <-answers[n]:
			if err != nil {
				result[n].Error = err.Error()
			}
		case <-ctx.Done():
			result[n].Error = "it does not answer"
		}
	}
	return result
}

// lock lets one start or stop of an instance happen at a time.
func (h *host) lock(key string) func() {
	l, _ := h.locks.LoadOrStore(key, &sync.Mutex{})
	l.(*sync.Mutex).Lock()
	return l.(*sync.Mutex).Unlock
}

// startInstance starts an instance, or gives one that runs its new values.
func (h *host) startInstance(ctx context.Context, values wire.StartInstance) error {
	defer h.lock(values.Instance)()
	if i := h.instance(values.Instance); i != nil {
		if i.update(values) {
			return nil
		}
		h.remove(i)
	}
	if ctx.Err() != nil {
		return errors.New("the app ends")
	}
	i, err := newInstance(ctx, h, values)
	if err != nil {
		return err
	}
	// Now, so that it can be stopped while it waits for the webserver.
	h.mu.Lock()
	h.instances[values.Instance] = i
	h.mu.Unlock()
	if err := i.start(); err != nil {
		h.remove(i)
		return err
	}
	i.Log(FlagApp, "started at %s", i.Path())
	return nil
}

func (h *host) stopInstance(key string) {
	if i := h.instance(key); i != nil {
		i.cancel()
	}
	defer h.lock(key)()
	if i := h.instance(key); i != nil {
		h.remove(i)
		i.Log(FlagApp, "stopped")
	}
}

func (h *host) remove(i *Instance) {
	h.mu.Lock()
	delete(h.instances, i.key)
	h.mu.Unlock()
	i.stop()
}

// alarm tells the manager now, or the next one.
func (h *host) alarm(a wire.Alarm) {
	a.MT = "Alarm"
	h.mu.Lock()
	conn := h.conn
	if key := a.Instance + " " + a.Code; a.Cleared {
		delete(h.active, key)
	} else {
		h.active[key] = a
	}
	h.mu.Unlock()
	if conn != nil {
		conn.Send(a)
	}
}
