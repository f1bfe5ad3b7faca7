package app

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"appplatform/internal/wire"
)

// A registrar keeps the paths of an instance registered, at one webserver after
// the other.
type registrar struct {
	i      *Instance
	socket string
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	wanted  []wire.Register
	sent    int           // of wanted, over conn
	granted int           // answers without an error
	tries   map[int64]int // refusals
	conn    *wire.Conn
	refused error
	changed chan struct{}
}

func newRegistrar(i *Instance, socket string) *registrar {
	r := &registrar{i: i, socket: socket, done: make(chan struct{}), changed: make(chan struct{})}
	// Not that of the instance: its end must not take the paths away from requests
	// that are under way.
	r.ctx, r.cancel = context.WithCancel(context.Background())
	go r.run()
	return r
}

// add registers a path as soon as there is a webserver.
func (r *registrar) add(reg wire.Register) {
	reg.MT = "Register"
	r.mu.Lock()
	defer r.mu.Unlock()
	reg.ID = int64(len(r.wanted) + 1)
	r.wanted = append(r.wanted, reg)
	r.send()
}

// send sends what was not sent over this connection. The lock is held.
func (r *registrar) send() {
	for r.conn != nil && r.sent < len(r.wanted) {
		if r.conn.Send(r.wanted[r.sent]) != nil {
			r.conn.Close()
			return
		}
		r.sent++
	}
}

// wait waits until all paths are registered, or one is refused.
func (r *registrar) wait(ctx context.Context) error {
	for {
		r.mu.Lock()
		ok, err, changed := r.granted == len(r.wanted), r.refused, r.changed
		r.mu.Unlock()
		if ok || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.New("it was stopped before the webserver knew it")
		}
	}
}

func (r *registrar) run() {
	defer close(r.done)
	for try := 0; r.ctx.Err() == nil; try++ {
		conn, err := wire.Dial(r.socket)
		if err == nil {
			if r.talk(conn) {
				try = 0
			}
		} else if try == 0 {
			r.i.Log(FlagWebserver, "waiting for the webserver: %v", err)
		}
		backOff(r.ctx, try)
	}
}

// talk registers everything over a connection, for as long as it lasts. True: the
// webserver has answered.
func (r *registrar) talk(conn *wire.Conn) (answered bool) {
	defer conn.Close()
	defer context.AfterFunc(r.ctx, func() { conn.Close() })()
	r.mu.Lock()
	r.conn, r.sent, r.granted, r.refused, r.tries = conn, 0, 0, nil, map[int64]int{}
	r.send()
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.conn = nil
		r.mu.Unlock()
	}()
	for {
		m, err := conn.Receive()
		if err != nil {
			return answered
		}
		var result wire.RegisterResult
		if m.MT != "RegisterResult" || m.Decode(&result) != nil {
			continue
		}
		answered = true
		r.mu.Lock()
		if slices.ContainsFunc(r.wanted, func(w wire.Register) bool { return w.ID == result.ID }) {
			if result.Error == "" {
				r.granted++
			} else {
				r.again(conn, result)
			}
			close(r.changed)
			r.changed = make(chan struct{})
		}
		r.mu.Unlock()
	}
}

// patience is how many refusals of a path are taken for those of a webserver that
// was just started and has not been told yet who may register what.
const patience = 5

// again asks for a path that was refused once more, after a while, and for ever:
// somebody may change the reason. The lock is held.
func (r *registrar) again(conn *wire.Conn, result wire.RegisterResult) {
	r.tries[result.ID]++
	try := r.tries[result.ID]
	if try == patience {
		r.refused = fmt.Errorf("the webserver refuses the path %s: %s", result.Path, result.Error)
		r.i.Log(FlagApp, "%v", r.refused)
	}
	time.AfterFunc(pause(try-1), func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.conn == conn {
			conn.Send(r.wanted[result.ID-1])
		}
	})
}

// close gives the paths up: the end of the connection is enough for that.
func (r *registrar) close() {
	r.cancel()
	<-r.done
}
