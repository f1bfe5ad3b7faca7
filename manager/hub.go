package manager

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/wire"
)

// A hub talks to the apps: each has one connection, which says Hello first.
type hub struct {
	// known says who may be an app: the Unix user of a service.
	known func(service string) (uid uint32, ok bool)
	// greet is called for a new connection, before it is used for anything else.
	greet func(*appConn) wire.HelloResult
	// heard is called for what an app says without having been asked.
	heard func(*appConn, wire.Message)
	// joined is called when an app can be talked to; for one service after the other
	// call has returned.
	joined func(*appConn)
	logf   func(format string, args ...any)

	mu      sync.Mutex
	conns   map[string]*appConn
	joining map[string]*appConn // services for which joined is being called, and who is next
	changed chan struct{}
	closed  bool
}

// helloTimeout bounds how long a connection may say nothing at first.
const helloTimeout = 10 * time.Second

// maxStrangers is how many connections of one user may be in that state: everybody
// on the machine can make them, and shall not keep others out.
const maxStrangers = 8

// An appConn is the connection of one app.
type appConn struct {
	*wire.Conn
	service string
	hello   wire.Hello
	pid     int
	at      time.Time
	done    chan struct{}

	mu      sync.Mutex
	last    int64
	waiting map[int64]chan wire.Message
}

// serve accepts connections until the listener is closed.
func (h *hub) serve(l *net.UnixListener) {
	var mu sync.Mutex
	strangers := map[uint32]int{}
	enter := func(uid uint32, by int) bool {
		mu.Lock()
		defer mu.Unlock()
		if by > 0 && strangers[uid] >= maxStrangers {
			return false
		}
		if strangers[uid] += by; strangers[uid] == 0 {
			delete(strangers, uid)
		}
		return true
	}
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			h.logf("cannot accept an app: %v", err)
			time.Sleep(100 * time.Millisecond)
			continue
		}
		peer, err := peerOf(c)
		if err != nil || !enter(peer.Uid, 1) {
			c.Close()
			continue
		}
		go func() {
			app, err := h.hello(c, peer)
			enter(peer.Uid, -1)
			if err != nil {
				h.logf("a connection of an app is refused: %v", err)
				c.Close()
				return
			}
			h.listen(app)
		}()
	}
}

// hello reads the first message and checks who sends it.
func (h *hub) hello(c *net.UnixConn, peer *unix.Ucred) (*appConn, error) {
	app := &appConn{Conn: wire.NewConn(c), pid: int(peer.Pid), at: time.Now(), done: make(chan struct{}), waiting: map[int64]chan wire.Message{}}
	_ = c.SetDeadline(time.Now().Add(helloTimeout))
	m, err := app.Receive()
	if err == nil && m.MT != "Hello" {
		err = fmt.Errorf("it says %.40q before Hello", m.MT)
	}
	if err == nil {
		err = m.Decode(&app.hello)
	}
	if err != nil {
		return nil, err
	}
	app.service = app.hello.Service
	refuse := func(text string) (*appConn, error) {
		_ = app.Send(wire.HelloResult{Head: wire.Head{MT: "HelloResult", ID: m.ID}, Error: text})
		return nil, errors.New(text)
	}
	uid, ok := h.known(app.service)
	if !ok || peer.Uid != uid && peer.Uid != uint32(os.Geteuid()) {
		return refuse(fmt.Sprintf("user %d is not that of an app %.63q", peer.Uid, app.service))
	}
	if app.hello.Protocol != wire.Version {
		return refuse(fmt.Sprintf("the app speaks version %d of the protocol and the manager version %d", app.hello.Protocol, wire.Version))
	}
	result := h.greet(app)
	result.Head = wire.Head{MT: "HelloResult", ID: m.ID}
	if err := app.Send(result); err != nil {
		return nil, err
	}
	return app, c.SetDeadline(time.Time{})
}

// listen reads what an app says until the connection ends.
func (h *hub) listen(app *appConn) {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		app.Close()
		return
	}
	if old := h.conns[app.service]; old != nil {
		old.Close()
	}
	h.conns[app.service] = app
	h.signal()
	h.join(app)
	h.mu.Unlock()
	for {
		m, err := app.Receive()
		if err != nil {
			break
		}
		app.mu.Lock()
		answer := app.waiting[m.ID]
		delete(app.waiting, m.ID)
		app.mu.Unlock()
		if answer != nil {
			answer <- m
		} else {
			h.heard(app, m)
		}
	}
	app.Close()
	close(app.done)
	h.mu.Lock()
	if h.conns[app.service] == app {
		delete(h.conns, app.service)
	}
	h.signal()
	h.mu.Unlock()
}

// join lets joined be called. Whoever says Hello in a loop makes others give way that
// wait, and nobody wait besides. The lock is held.
func (h *hub) join(app *appConn) {
	if _, busy := h.joining[app.service]; busy {
		h.joining[app.service] = app
		return
	}
	h.joining[app.service] = nil
	go func() {
		for app := app; app != nil; app = h.nextJoin(app.service) {
			h.joined(app)
		}
	}()
}

func (h *hub) nextJoin(service string) *appConn {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := h.joining[service]
	if next == nil {
		delete(h.joining, service)
	} else {
		h.joining[service] = nil
	}
	return next
}

// signal tells those who wait for an app. The lock is held.
func (h *hub) signal() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// app is the connection of a service, or nil.
func (h *hub) app(service string) *appConn {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.conns[service]
}

// wait waits for the connection of a process, or of one that it has started.
func (h *hub) wait(ctx context.Context, service string, pid int, since time.Time) (*appConn, error) {
	for {
		h.mu.Lock()
		app, changed := h.conns[service], h.changed
		h.mu.Unlock()
		if app != nil && (app.pid == pid || app.at.After(since)) {
			return app, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, errors.New("the app has not said Hello")
		}
	}
}

// close ends all connections; the apps look for the next manager.
func (h *hub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, app := range h.conns {
		app.Close()
	}
}

// all are the apps that are connected.
func (h *hub) all() (apps []*appConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, app := range h.conns {
		apps = append(apps, app)
	}
	return apps
}

// sendTimeout bounds how long an app that does not read holds up anybody.
const sendTimeout = 5 * time.Second

// say sends what needs no answer. An app that does not read is cut off: it is
// asked for its status anyway, and ended when it does not answer.
func (a *appConn) say(message any) error {
	_ = a.SetWriteDeadline(time.Now().Add(sendTimeout))
	err := a.Send(message)
	if err != nil {
		a.Close()
	}
	return err
}

// ask sends a message that is made with the number of its answer, and decodes
// that.
func (a *appConn) ask(ctx context.Context, message func(id int64) any, into any) error {
	answer := make(chan wire.Message, 1)
	a.mu.Lock()
	a.last++
	id := a.last
	a.waiting[id] = answer
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		delete(a.waiting, id)
		a.mu.Unlock()
	}()
	if err := a.say(message(id)); err != nil {
		return fmt.Errorf("cannot talk to %s: %w", a.service, err)
	}
	select {
	case m := <-answer:
		return m.Decode(into)
	case <-a.done:
		return fmt.Errorf("%s has ended the connection", a.service)
	case <-ctx.Done():
		return fmt.Errorf("%s does not answer: %w", a.service, ctx.Err())
	}
}

// peerOf is who is at the other end of a connection.
func peerOf(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *unix.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return peer, errors.Join(err, peerErr)
}
