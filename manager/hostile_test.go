package manager

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
)

// An app owns the folder that those of its instances are in, and may put a link
// there to what is root's.
func TestLinkInsteadOfFolder(t *testing.T) {
	dir := t.TempDir()
	victim, link := filepath.Join(dir, "etc"), filepath.Join(dir, "1")
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, link); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(victim)
	if err != nil {
		t.Fatal(err)
	}
	if err := own(link, 0o700, 10000, 10000); err == nil {
		t.Error("a link is given to the app as its folder")
	}
	after, err := os.Stat(victim)
	if err != nil {
		t.Fatal(err)
	}
	if before.Mode() != after.Mode() || fmt.Sprint(before.Sys()) != fmt.Sprint(after.Sys()) {
		t.Errorf("what the link leads to was %v %v and is %v %v", before.Mode(), before.Sys(), after.Mode(), after.Sys())
	}
}

// quietManager is one of which only a part is asked.
func quietManager(root string) *Manager {
	m := &Manager{o: Options{Root: root, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}, signin: &signIn{}}
	m.signin.m = m
	m.notices = &notices{changed: func() {}, list: map[string]model.Notice{}}
	return m
}

// An app that complains without end leaves room for what others say, and takes back
// its own alarms only.
func TestFloodOfAlarms(t *testing.T) {
	m := quietManager(t.TempDir())
	say := func(app, text string) {
		m.heard(&appConn{service: app}, wire.Message{Head: wire.Head{MT: "Alarm"}, Line: []byte(text)})
	}
	for n := range 2 * maxNotices {
		say("bad", fmt.Sprintf(`{"mt": "Alarm", "code": "%d%s", "text": "x"}`, n, strings.Repeat("x", 10000)))
	}
	say("good", `{"mt": "Alarm", "instance": "a", "code": "b", "text": "it is hot"}`)
	m.notices.set("disk", model.Error, fmt.Errorf("the disk is full"))
	m.notices.set("app-bad-a-b", model.Error, fmt.Errorf("of an app called bad-a-b"))
	say("bad", `{"mt": "Alarm", "instance": "a", "code": "b", "cleared": true}`)
	var texts []string
	size := 0
	for _, n := range m.Notices(t.Context()) {
		texts = append(texts, n.Text)
		size += len(n.Code)
	}
	all := strings.Join(texts, "\n")
	for _, want := range []string{"the disk is full", "good, a: it is hot", "of an app called bad-a-b"} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is not among the notices", want)
		}
	}
	if len(texts) > maxAlarms+3 || size > 10000 {
		t.Errorf("%d notices with codes of %d bytes are remembered", len(texts), size)
	}
}

// Connections that say nothing are bounded for each user, and those that have gone
// are not counted.
func TestSilentConnections(t *testing.T) {
	address := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"}
	l, err := net.ListenUnix("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	h := &hub{conns: map[string]*appConn{}, joining: map[string]*appConn{}, changed: make(chan struct{}), logf: t.Logf,
		known:  func(string) (uint32, bool) { return uint32(os.Geteuid()), true },
		greet:  func(*appConn) wire.HelloResult { return wire.HelloResult{} },
		joined: func(*appConn) {}, heard: func(*appConn, wire.Message) {}}
	var work sync.WaitGroup
	work.Go(func() { h.serve(l) })
	defer work.Wait()
	defer h.close()
	defer l.Close()
	dial := func() *wire.Conn {
		c, err := wire.Dial(address.Name)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		return c
	}
	var silent []*wire.Conn
	for range maxStrangers {
		silent = append(silent, dial())
	}
	more := dial()
	if _, err := more.Receive(); err == nil {
		t.Error("one more silent connection is answered")
	}
	for _, c := range silent {
		c.Close()
	}
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		c := dial()
		if c.Send(wire.Hello{Head: wire.Head{MT: "Hello", ID: 1}, Protocol: wire.Version, Service: "x"}) == nil {
			if r, err := c.Receive(); err == nil && r.MT == "HelloResult" {
				c.Close()
				return
			}
		}
		c.Close()
		if time.Now().After(end) {
			t.Fatal("an app is not let in when the silent ones have gone")
		}
	}
}

// An app that says Hello again and again while a start hangs makes nothing wait but
// the last one.
func TestHelloInALoop(t *testing.T) {
	const hellos = 40
	var begun, most atomic.Int32
	var now atomic.Int32
	release, last := make(chan struct{}), make(chan int, hellos)
	h := &hub{conns: map[string]*appConn{}, joining: map[string]*appConn{}, changed: make(chan struct{}), logf: t.Logf,
		heard: func(*appConn, wire.Message) {},
		joined: func(a *appConn) {
			begun.Add(1)
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			<-release
			now.Add(-1)
			last <- a.pid
		}}
	var work sync.WaitGroup
	for n := range hellos {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		app := &appConn{Conn: wire.NewConn(ours), service: "x", pid: n, done: make(chan struct{}), waiting: map[int64]chan wire.Message{}}
		work.Go(func() { h.listen(app) })
		for h.app("x") != app {
			time.Sleep(time.Millisecond)
		}
	}
	close(release)
	for want := hellos - 1; ; {
		select {
		case got := <-last:
			if got != want {
				continue
			}
		case <-time.After(patience):
			t.Error("the last connection is never greeted")
		}
		break
	}
	if most.Load() > 1 || begun.Load() != 2 {
		t.Errorf("of %d connections %d are greeted, %d at a time; want the first and the last", hellos, begun.Load(), most.Load())
	}
	h.close()
	work.Wait()
}

// Strangers see the page where one signs in, which tells what machine this is: that
// does not start a program for each of them.
func TestManyAskForTheMachine(t *testing.T) {
	dir := t.TempDir()
	m := quietManager(dir)
	m.o.Agent = filepath.Join(dir, "apagent")
	calls := filepath.Join(dir, "calls")
	if err := os.WriteFile(m.o.Agent, []byte("#!/bin/sh\necho >> "+calls+"\nuntil [ -e "+dir+"/go ]; do sleep 0.05; done\necho '{}'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	answered := make(chan struct{}, 50)
	for range 50 {
		work.Go(func() {
			m.agentStatusNow(t.Context())
			answered <- struct{}{}
		})
	}
	for range 49 {
		select {
		case <-answered:
		case <-time.After(patience):
			t.Fatal("not everybody is answered at once")
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	work.Wait()
	if text, err := os.ReadFile(calls); err != nil || string(text) != "\n" {
		t.Errorf("apagent was started %d times, %v; want once", len(text), err)
	}
}

// A zone of an IPv6 address may be any text, and what has a password is not logged.
func TestNamesAndAddresses(t *testing.T) {
	for name, want := range map[string]bool{"ntp.example.com": true, "192.0.2.1": true, "2001:db8::1": true, "fe80::1%eth0": true,
		"fe80::1%eth0 prefer": false, "fe80::1%e\nserver 192.0.2.66": false, "-x": false, "a b": false} {
		if got := hostName(name); got != want {
			t.Errorf("hostName(%q) = %v; want %v", name, got, want)
		}
	}
	old := model.Settings{StoreURL: "https://store.example.com/"}
	is := model.Settings{StoreURL: "https://ci:hunter2@store.example.com/"}
	if got := settingsChanges(old, is); strings.Contains(got, "hunter2") || !strings.Contains(got, "store.example.com") {
		t.Errorf("settingsChanges() = %q", got)
	}
}
