package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"appplatform/internal/wire"
)

// A peer is the manager or the webserver: it listens where the app connects to.
type peer struct {
	t     *testing.T
	l     net.Listener
	path  string
	conns chan *wire.Conn
}

func listen(t *testing.T, path string) *peer {
	t.Helper()
	os.Remove(path)
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, l: l, path: path, conns: make(chan *wire.Conn, 16)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.conns <- wire.NewConn(c)
		}
	}()
	t.Cleanup(func() { l.Close() })
	return p
}

func (p *peer) accept() *wire.Conn {
	p.t.Helper()
	select {
	case c := <-p.conns:
		p.t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(time.Minute):
		p.t.Fatalf("nobody connects to %s", p.path)
		return nil
	}
}

func get[T any](t *testing.T, c *wire.Conn, mt string) T {
	t.Helper()
	var into T
	c.SetReadDeadline(time.Now().Add(time.Minute))
	m, err := c.Receive()
	if err != nil {
		t.Fatalf("instead of %s: %v", mt, err)
	}
	if m.MT != mt {
		t.Fatalf("instead of %s: %s", mt, m.Line)
	}
	if err := m.Decode(&into); err != nil {
		t.Fatal(err)
	}
	return into
}

func put(t *testing.T, c *wire.Conn, message any) {
	t.Helper()
	if err := c.Send(message); err != nil {
		t.Fatal(err)
	}
}

// A lab is a machine with one app. Its log is what the app has logged.
type lab struct {
	t          *testing.T
	manager    *peer
	web        *peer
	webSocket  string
	cancel     context.CancelFunc
	done       chan error
	mu         sync.Mutex
	log        bytes.Buffer
	service    Service
	instances  map[string]*Instance
	stopped    []string
	broken     bool
	slow, over chan struct{}
}

func (l *lab) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(p)
}

func (l *lab) logged() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.String()
}

func (l *lab) start(ctx context.Context, i *Instance) (http.Handler, error) {
	if i.Name() == "bad" {
		return nil, errors.New("cannot reach the database")
	}
	i.OnStop(func() { l.mu.Lock(); defer l.mu.Unlock(); l.stopped = append(l.stopped, i.Key()) })
	l.mu.Lock()
	l.instances[i.Key()] = i
	l.mu.Unlock()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "home of %s", i.Key()) })
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, r *http.Request) {
		close(l.slow)
		<-l.over
		io.WriteString(w, "done")
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			_, text, err := c.Read(r.Context())
			if err != nil {
				return
			}
			c.Write(r.Context(), websocket.MessageText, text)
		}
	})
	return mux, nil
}

func newLab(t *testing.T) *lab {
	// Addresses of Unix sockets are short.
	dir, err := os.MkdirTemp("", "app")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &lab{t: t, instances: map[string]*Instance{}, done: make(chan error, 1), slow: make(chan struct{}), over: make(chan struct{})}
	l.manager = listen(t, filepath.Join(dir, "manager"))
	l.webSocket = filepath.Join(dir, "web")
	l.web = listen(t, l.webSocket)
	l.service = Service{Version: "1.2", Start: l.start, Log: l, Health: func(ctx context.Context, i *Instance) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.broken {
			return errors.New("cannot reach the database")
		}
		return nil
	}}
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o750); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	l.cancel = cancel
	go func() {
		l.done <- Run(ctx, []string{"--service", "notes", "--manager", l.manager.path, "--run", run}, l.service)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-l.done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return l
}

// hello takes the app's Hello and answers it.
func (l *lab) hello(want ...string) *wire.Conn {
	l.t.Helper()
	c := l.manager.accept()
	h := get[wire.Hello](l.t, c, "Hello")
	if h.Protocol != wire.Version || h.Service != "notes" || h.Version != "1.2" || fmt.Sprint(h.Instances) != fmt.Sprint(want) {
		l.t.Fatalf("Hello = %+v; want instances %v", h, want)
	}
	put(l.t, c, wire.HelloResult{Head: wire.Head{MT: "HelloResult", ID: h.ID}, LogFlags: wire.DefaultFlags, DNSName: "ap.example.com"})
	return c
}

func (l *lab) values(name string) wire.StartInstance {
	return wire.StartInstance{
		Head: wire.Head{MT: "StartInstance", ID: 7}, Instance: name + "@example.com", Name: name, Domain: "example.com",
		Password: "pwd", Webserver: l.webSocket, WebserverPath: "/example.com/" + name, LogFlags: wire.DefaultFlags,
	}
}

// register plays the webserver for the path of an instance.
func (l *lab) register(path string) (*wire.Conn, wire.Register) {
	l.t.Helper()
	c := l.web.accept()
	r := get[wire.Register](l.t, c, "Register")
	if r.Path != path || r.Kind != wire.KindHTTP || r.Socket == "" {
		l.t.Fatalf("Register = %+v; want %s", r, path)
	}
	put(l.t, c, wire.RegisterResult{Head: wire.Head{MT: "RegisterResult", ID: r.ID}, Path: r.Path})
	return c, r
}

func (l *lab) run(c *wire.Conn, name string) (*wire.Conn, wire.Register) {
	l.t.Helper()
	put(l.t, c, l.values(name))
	web, r := l.register("/example.com/" + name)
	if got := get[wire.StartInstanceResult](l.t, c, "StartInstanceResult"); got.Error != "" || got.ID != 7 || got.Instance != name+"@example.com" {
		l.t.Fatalf("StartInstanceResult = %+v", got)
	}
	return web, r
}

func client(socket string) *http.Client {
	return &http.Client{
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func TestPathsOfAnInstance(t *testing.T) {
	l := newLab(t)
	_, r := l.run(l.hello(), "notes")
	for _, c := range []struct {
		path, want string
		status     int
	}{
		{"/example.com/notes/", "home of notes@example.com", 200},
		{"/example.com/notes", "", 307},
		{"/example.com/notesx/", "", 404},
		{"/example.com/notes/nothing", "", 404},
		{"/", "", 404},
		{"/Example.com/notes/", "", 404},
	} {
		t.Run(c.path, func(t *testing.T) {
			resp, err := client(r.Socket).Get("http://x" + c.path)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != c.status || c.want != "" && string(text) != c.want {
				t.Errorf("GET %s = %d %s; want %d %s", c.path, resp.StatusCode, text, c.status, c.want)
			}
			if to := resp.Header.Get("Location"); c.status == 307 && to != c.path+"/" {
				t.Errorf("GET %s leads to %s; want %s/", c.path, to, c.path)
			}
		})
	}
	info, err := os.Stat(r.Socket)
	if err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("the webserver's group cannot open the socket: %v, %v", info.Mode(), err)
	}
}

// The app is told all that can change while it runs.
func TestValuesChange(t *testing.T) {
	l := newLab(t)
	c := l.hello()
	l.run(c, "notes")
	i := l.instances["notes@example.com"]
	if i.Password() != "pwd" || i.Platform().DNSName != "ap.example.com" || i.Logs(FlagDatabase) {
		t.Fatalf("the instance begins with password %q, name %q", i.Password(), i.Platform().DNSName)
	}
	put(t, c, wire.SetPassword{Head: wire.Head{MT: "SetPassword"}, Instance: i.Key(), Password: "new"})
	put(t, c, wire.SetLogFlags{Head: wire.Head{MT: "SetLogFlags"}, Instance: i.Key(), LogFlags: wire.FlagDatabase})
	put(t, c, wire.SetDNSName{Head: wire.Head{MT: "SetDNSName"}, DNSName: "b.example.com"})
	put(t, c, wire.ServerCertificate{Head: wire.Head{MT: "ServerCertificate"}, PEM: "PEM"})
	put(t, c, wire.Head{MT: "OfANewerManager"})
	put(t, c, wire.Status{Head: wire.Head{MT: "Status", ID: 3}})
	if s := get[wire.StatusResult](t, c, "StatusResult"); s.ID != 3 || len(s.Instances) != 1 || s.Instances[0] != (wire.InstanceStatus{Instance: i.Key()}) {
		t.Errorf("StatusResult = %+v", s)
	}
	if i.Password() != "new" || i.Platform().DNSName != "b.example.com" || i.Platform().Certificate != "PEM" {
		t.Errorf("the instance has password %q, %+v", i.Password(), i.Platform())
	}
	i.Log(FlagDatabase, "one\ntwo %d", 2)
	i.Log(FlagApp, "not wanted")
	if log := l.logged(); !strings.Contains(log, "Z notes@example.com DATABASE one\n\ttwo 2\n") || strings.Contains(log, "not wanted") {
		t.Errorf("the log is %q", log)
	}
	l.mu.Lock()
	l.broken = true
	l.mu.Unlock()
	put(t, c, wire.Status{Head: wire.Head{MT: "Status", ID: 4}})
	if s := get[wire.StatusResult](t, c, "StatusResult"); len(s.Instances) != 1 || s.Instances[0].Error != "cannot reach the database" {
		t.Errorf("StatusResult = %+v", s)
	}
	// Started again with a new password, it goes on; with another database it is
	// another instance.
	values := l.values("notes")
	values.Password = "third"
	put(t, c, values)
	if r := get[wire.StartInstanceResult](t, c, "StartInstanceResult"); r.Error != "" || i.Password() != "third" || i.ctx.Err() != nil {
		t.Errorf("StartInstanceResult = %+v, password %q", r, i.Password())
	}
	values.DBHost = "db.example.com"
	put(t, c, values)
	l.register("/example.com/notes")
	if r := get[wire.StartInstanceResult](t, c, "StartInstanceResult"); r.Error != "" || i.ctx.Err() == nil {
		t.Errorf("StartInstanceResult = %+v; the old instance goes on: %v", r, i.ctx.Err() == nil)
	}
	if got := l.instances["notes@example.com"].Database().Host; got != "db.example.com" {
		t.Errorf("the new instance is at %q", got)
	}
}

// An instance that cannot start says so; others are not touched by it.
func TestStartFails(t *testing.T) {
	l := newLab(t)
	c := l.hello()
	_, r := l.run(c, "notes")
	put(t, c, l.values("bad"))
	if got := get[wire.StartInstanceResult](t, c, "StartInstanceResult"); got.Error != "cannot reach the database" {
		t.Errorf("StartInstanceResult = %+v", got)
	}
	put(t, c, l.values("other"))
	// Not granted, however often it asks.
	web := l.web.accept()
	for n := 0; ; n++ {
		web.SetReadDeadline(time.Now().Add(time.Minute))
		m, err := web.Receive()
		if err != nil {
			break // it gave up
		}
		if n > patience {
			t.Fatalf("it asks for the %dth time", n)
		}
		put(t, web, wire.RegisterResult{Head: wire.Head{MT: "RegisterResult", ID: m.ID}, Path: "/example.com/other", Error: "it is not yours"})
	}
	if got := get[wire.StartInstanceResult](t, c, "StartInstanceResult"); !strings.Contains(got.Error, "it is not yours") {
		t.Errorf("StartInstanceResult = %+v", got)
	}
	if _, err := client(r.Socket).Get("http://x/example.com/notes/"); err != nil {
		t.Errorf("the first instance does not serve any more: %v", err)
	}
}

// Managers and webservers come and go; requests and WebSockets do not notice.
func TestLivesOn(t *testing.T) {
	l := newLab(t)
	c := l.hello()
	web, r := l.run(c, "notes")
	ws, _, err := websocket.Dial(t.Context(), "http://x/example.com/notes/ws", &websocket.DialOptions{HTTPClient: client(r.Socket)})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	for range 3 {
		c.Close()
		c = l.hello("notes@example.com")
		web.Close()
		var again wire.Register
		if web, again = l.register("/example.com/notes"); again.Socket != r.Socket {
			t.Errorf("the socket was %s and is %s", r.Socket, again.Socket)
		}
		if err := ws.Write(t.Context(), websocket.MessageText, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, text, err := ws.Read(t.Context()); err != nil || string(text) != "x" {
			t.Fatalf("the WebSocket says %q, %v", text, err)
		}
	}
	// A manager that talks nonsense, and one that has no use for the app.
	io.WriteString(c, "{\n")
	c = l.hello("notes@example.com")
	put(t, c, wire.HelloResult{Head: wire.Head{MT: "HelloResult"}, Error: "it is not installed"})
	l.hello("notes@example.com")
	// A webserver that does not know the grants yet.
	web.Close()
	web = l.web.accept()
	first := get[wire.Register](t, web, "Register")
	put(t, web, wire.RegisterResult{Head: wire.Head{MT: "RegisterResult", ID: first.ID}, Path: first.Path, Error: "it is not yours"})
	if second := get[wire.Register](t, web, "Register"); second.Path != first.Path {
		t.Errorf("it asks for %s then", second.Path)
	}
}

// Alarms reach the manager that is there, or the next one.
func TestAlarms(t *testing.T) {
	l := newLab(t)
	c := l.hello()
	l.run(c, "notes")
	i := l.instances["notes@example.com"]
	i.Alarm("full", "major", "The list is full.", "")
	if a := get[wire.Alarm](t, c, "Alarm"); a.Code != "full" || a.Instance != i.Key() || a.Cleared {
		t.Errorf("Alarm = %+v", a)
	}
	c.Close()
	c = l.hello(i.Key())
	if a := get[wire.Alarm](t, c, "Alarm"); a.Code != "full" {
		t.Errorf("the next manager is told %+v", a)
	}
	i.ClearAlarm("full", "There is room.")
	if a := get[wire.Alarm](t, c, "Alarm"); !a.Cleared {
		t.Errorf("Alarm = %+v", a)
	}
	c.Close()
	c = l.hello(i.Key())
	put(t, c, wire.Status{Head: wire.Head{MT: "Status"}})
	get[wire.StatusResult](t, c, "StatusResult") // and no Alarm before it
}

// What is under way when an instance is stopped comes to its end; the path is given
// up before, the database after.
func TestStopDrains(t *testing.T) {
	l := newLab(t)
	c := l.hello()
	web, r := l.run(c, "notes")
	ws, _, err := websocket.Dial(t.Context(), "http://x/example.com/notes/ws", &websocket.DialOptions{HTTPClient: client(r.Socket)})
	if err != nil {
		t.Fatal(err)
	}
	defer ws.CloseNow()
	answer := make(chan string, 1)
	go func() {
		resp, err := client(r.Socket).Get("http://x/example.com/notes/slow")
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		answer <- string(text)
	}()
	<-l.slow
	put(t, c, wire.StopInstance{Head: wire.Head{MT: "StopInstance", ID: 9}, Instance: "notes@example.com"})
	web.SetReadDeadline(time.Now().Add(time.Minute))
	if m, err := web.Receive(); err == nil {
		t.Errorf("instead of giving the path up: %s", m.Line)
	}
	l.mu.Lock()
	if len(l.stopped) != 0 {
		t.Error("the instance is cleared up while a request is under way")
	}
	l.mu.Unlock()
	close(l.over)
	if got := <-answer; got != "done" {
		t.Errorf("the request was answered by %q", got)
	}
	if got := get[wire.StopInstanceResult](t, c, "StopInstanceResult"); got.ID != 9 || got.Error != "" {
		t.Errorf("StopInstanceResult = %+v", got)
	}
	l.mu.Lock()
	if fmt.Sprint(l.stopped) != "[notes@example.com]" {
		t.Errorf("stopped %v", l.stopped)
	}
	l.mu.Unlock()
	if _, _, err := ws.Read(t.Context()); err == nil {
		t.Error("the WebSocket goes on")
	}
	if _, err := os.Stat(r.Socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// An instance that waits for the webserver can be stopped, and Status is answered
// meanwhile.
func TestStopWhileStarting(t *testing.T) {
	l := newLab(t)
	c := l.hello()
	put(t, c, l.values("notes"))
	web := l.web.accept()
	get[wire.Register](t, web, "Register") // and no answer
	put(t, c, wire.Status{Head: wire.Head{MT: "Status"}})
	get[wire.StatusResult](t, c, "StatusResult")
	put(t, c, wire.StopInstance{Head: wire.Head{MT: "StopInstance"}, Instance: "notes@example.com"})
	if got := get[wire.StartInstanceResult](t, c, "StartInstanceResult"); got.Error == "" {
		t.Error("the instance has started")
	}
	get[wire.StopInstanceResult](t, c, "StopInstanceResult")
}

// What an instance opens while it is stopped is closed as well.
func TestListenWhileStopping(t *testing.T) {
	l := newLab(t)
	c := l.hello()
	_, r := l.run(c, "notes")
	l.mu.Lock()
	i := l.instances["notes@example.com"]
	l.mu.Unlock()
	begun, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := range 500 {
			if _, err := i.Listen(KindHTTP, fmt.Sprint("/", n)); err != nil {
				return
			}
			if n == 10 {
				close(begun)
			}
		}
	}()
	<-begun
	put(t, c, wire.StopInstance{Head: wire.Head{MT: "StopInstance"}, Instance: "notes@example.com"})
	get[wire.StopInstanceResult](t, c, "StopInstanceResult")
	<-done
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(r.Socket), "*.sock")); len(left) > 0 {
		t.Errorf("%d sockets are left open", len(left))
	}
}

func TestStopOfTheApp(t *testing.T) {
	l := newLab(t)
	c := l.hello()
	_, r := l.run(c, "notes")
	put(t, c, wire.Stop{Head: wire.Head{MT: "Stop"}})
	if err := <-l.done; err != nil {
		t.Errorf("Run = %v", err)
	}
	l.done <- nil
	if _, err := os.Stat(r.Socket); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func TestRunRefuses(t *testing.T) {
	for _, args := range [][]string{{}, {"--service", "x", "more"}, {"--unknown"}} {
		if err := Run(t.Context(), args, Service{}); err == nil {
			t.Errorf("Run(%v) = nil; want an error", args)
		}
	}
}
