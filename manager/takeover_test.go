package manager

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	"appplatform/app"
	"appplatform/manager/internal/model"
)

// sockets can be more for make bench.
var sockets = flag.Int("sockets", 200, "open WebSockets of TestHandover")

// A socketPool is WebSockets of apidemo, on which somebody has signed in.
type socketPool struct {
	all   []*websocket.Conn
	heard []atomic.Int64 // messages in which the last note is
}

const lastNote = "written after all of it"

func (l *lab) openSockets(i model.Instance, n int) *socketPool {
	l.t.Helper()
	p := &socketPool{heard: make([]atomic.Int64, n)}
	insecure := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	login := app.Login{App: "apidemo", Domain: "example.com", SIP: "user", GUID: strings.Repeat("0", 32), DN: "User"}
	ctx, cancel := context.WithCancel(context.Background())
	var readers sync.WaitGroup
	l.t.Cleanup(func() { p.close(); cancel(); readers.Wait() })
	for k := range n {
		c, _, err := websocket.Dial(ctx, "wss://"+l.https+i.Path+"/ws", &websocket.DialOptions{HTTPClient: insecure})
		l.must(err)
		p.all = append(p.all, c)
		c.SetReadLimit(1 << 20)
		l.must(app.SignInTo(ctx, c, login, i.Password))
		readers.Go(func() {
			for {
				_, text, err := c.Read(ctx)
				if err != nil {
					return
				}
				if strings.Contains(string(text), lastNote) {
					p.heard[k].Add(1)
				}
			}
		})
	}
	return p
}

func (p *socketPool) close() {
	for _, c := range p.all {
		_ = c.CloseNow()
	}
}

// dropped asks the app over each of them, and lets it answer all because of one.
func (p *socketPool) dropped(l *lab) int {
	l.t.Helper()
	n := 0
	for _, c := range p.all {
		ctx, cancel := context.WithTimeout(l.t.Context(), patience)
		if err := c.Ping(ctx); err != nil {
			n++
			l.t.Logf("a WebSocket is gone: %v", err)
		}
		cancel()
	}
	if n > 0 {
		return n
	}
	l.must(wsjson.Write(l.t.Context(), p.all[0], map[string]string{"mt": "Add", "api": "notes", "text": lastNote}))
	for k := range p.all {
		l.until(fmt.Sprintf("WebSocket %d hears of the note", k), func() bool { return p.heard[k].Load() > 0 })
	}
	return 0
}

func (l *lab) webPID() int {
	l.t.Helper()
	l.until("the webserver runs", func() bool {
		l.m.mu.Lock()
		defer l.m.mu.Unlock()
		return l.m.web != nil && l.m.web.Status().State == model.Running
	})
	return l.m.web.Status().PID
}

// offer puts a program into the store, and lets the manager see it.
func (l *lab) offer(app, build, program, extra string) {
	l.t.Helper()
	l.store.offer(l.t, app, build, program, 0, extra)
	_, err := l.m.Store(l.t.Context(), true)
	l.must(err)
}

// lives is false of a process that has ended, even if a manager that was its parent
// has not asked how.
func lives(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(text), ") Z ")
}

// The webserver is replaced, by itself and by another version, and the manager is
// restarted, while somebody asks all the time: nobody is refused, no WebSocket ends.
// What was replaced ends with its last WebSocket.
func TestHandover(t *testing.T) {
	l, i := demo(t)
	pool := l.openSockets(i, *sockets)
	requests, pages := l.ask(i.Path+"/", 200), l.ask("/manager/signin", 303)
	first := l.webPID()
	l.must(l.m.restartWebserver(t.Context()))
	second := l.webPID()
	l.offer("webserver", "160009", "webserver", "another version")
	l.install("webserver", "160009")
	third := l.webPID()
	if program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", third)); err != nil || program != filepath.Join(l.o.Root, "apps/webserver/webserver") {
		t.Errorf("%s runs, %v; want that of /apps", program, err)
	}
	l.end()
	l.ready()
	if got := l.webPID(); got != third || first == second || second == third || !lives(first) {
		t.Errorf("the webservers are %d, %d, %d, %d, and the first lives: %t; want three of them", first, second, third, got, lives(first))
	}
	dropped := pool.dropped(l)
	t.Logf("handover: %d WebSockets, %d requests, %d refused, %d dropped", *sockets, requests.asked.Load()+pages.asked.Load(), requests.failed.Load()+pages.failed.Load(), dropped)
	requests.check(t, "the app")
	pages.check(t, "the pages")
	if dropped > 0 {
		t.Errorf("%d of %d WebSockets are gone", dropped, *sockets)
	}
	pool.close()
	l.until("what was replaced has ended", func() bool { return !lives(first) && !lives(second) })
	if exists(l.m.control.socket + beforeSuffix) {
		t.Error("a second name of the socket is left")
	}
}

// A webserver is replaced before anybody has had the time to register with it.
func TestReplaceAtOnce(t *testing.T) {
	l, i := demo(t)
	requests, pages := l.ask(i.Path+"/", 200), l.ask("/manager/signin", 303)
	for range 5 {
		l.must(l.m.restartWebserver(t.Context()))
	}
	l.answers(i)
	requests.check(t, "the app")
	pages.check(t, "the pages")
}

// A webserver that does not become ready replaces nobody, the job says why, and the
// version before is back; even if it had the sockets already.
func TestBadWebserver(t *testing.T) {
	l, i := demo(t)
	l.offer("webserver", "160009", "webserver", "")
	l.install("webserver", "160009")
	pool := l.openSockets(i, 5)
	web := l.webPID()
	same := func(what string) {
		t.Helper()
		if got := l.webPID(); got != web {
			t.Errorf("%s: pid %d serves; want %d", what, got, web)
		}
		if got := l.m.disk.Current("webserver").Build; got != "160009" {
			t.Errorf("%s: build %s is on the disk; want 160009", what, got)
		}
	}
	l.offer("webserver", "160010", "badapp", "")
	problem := l.wait(l.m.Install(t.Context(), "webserver", "160010", tester))
	if !strings.Contains(problem, "the successor did not become ready: ended with status 1") {
		t.Errorf("the job ends with %q", problem)
	}
	same("one that ends at once")

	l.file("late", fmt.Sprintf("#!/bin/sh\n%s/webserver \"$@\" &\nsleep 1\nkill -9 $!\nexit 7\n", programs))
	late := filepath.Join(l.o.Root, "late")
	l.must(os.Chmod(late, 0o755))
	program := filepath.Join(l.o.Root, "apps/webserver/webserver")
	l.must(os.Rename(program, program+".good"))
	l.must(os.Rename(late, program))
	if err := l.m.restartWebserver(t.Context()); err == nil || !strings.Contains(err.Error(), "ended with status 7") {
		t.Errorf("restartWebserver() = %v; want the exit status", err)
	}
	l.must(os.Rename(program+".good", program))
	same("one that ends late")
	l.answers(l.instance("apidemo", "new", "example.com")) // it can be registered
	if n := pool.dropped(l); n > 0 {
		t.Errorf("%d WebSockets are gone", n)
	}
}
