package webserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/wire"
)

func (l *lab) ruler() *wire.Conn {
	l.t.Helper()
	c, err := wire.Dial(l.Control)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	if got := next[wire.Ready](l.t, c); got.MT != "Ready" || got.Protocol != wire.Version || got.Version != "test" || got.PID != os.Getpid() {
		l.t.Fatalf("Ready: %+v", got)
	}
	return c
}

// receiveListeners asks for the listeners as a manager would.
func receiveListeners(t *testing.T, c *wire.Conn) (names []string, fds []int) {
	t.Helper()
	if err := c.Send(wire.GetListeners{Head: wire.Head{MT: "GetListeners", ID: 3}}); err != nil {
		t.Fatal(err)
	}
	line, oob := make([]byte, 4096), make([]byte, 1024)
	n, m, _, _, err := c.Conn.(*net.UnixConn).ReadMsgUnix(line, oob)
	if err != nil {
		t.Fatal(err)
	}
	var answer wire.Listeners
	if err := json.Unmarshal(line[:n], &answer); err != nil || answer.MT != "Listeners" || answer.ID != 3 {
		t.Fatalf("Listeners: %q, %v", line[:n], err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:m])
	if err != nil || len(messages) != 1 {
		t.Fatalf("descriptors: %v, %v", messages, err)
	}
	if fds, err = unix.ParseUnixRights(&messages[0]); err != nil || len(fds) != len(answer.Names) {
		t.Fatalf("descriptors: %v of %v, %v", fds, answer.Names, err)
	}
	return answer.Names, fds
}

// TestHandover: a successor takes over while there are 200 WebSockets and
// requests all the time. Nobody is refused, and the WebSockets stay where they are
// until the draining is over.
func TestHandover(t *testing.T) {
	old := open(t)
	u := old.listen("app.sock")
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/app/ws" {
			echoSocket(w, r)
			return
		}
		_, _ = io.WriteString(w, "ok")
	})}
	go func() { _ = app.Serve(u) }()
	defer app.Close()
	// The app registers wherever it is let to, as a real one does.
	ctx, cancel := context.WithCancel(t.Context())
	var registered atomic.Int64
	ended := make(chan bool)
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			c, err := wire.Dial(old.Socket)
			if err != nil {
				time.Sleep(time.Millisecond)
				continue
			}
			stop := context.AfterFunc(ctx, func() { c.Close() })
			if c.Send(wire.Register{Head: wire.Head{MT: "Register"}, Path: "/app", Kind: wire.KindHTTP, Socket: u.Addr().String()}) == nil {
				if m, err := c.Receive(); err == nil && !strings.Contains(string(m.Line), "error") {
					registered.Add(1)
				}
			}
			_, _ = c.Receive() // until it drains
			stop()
			c.Close()
		}
	}()
	defer func() { cancel(); <-ended }()
	eventually(t, "the app has registered", func() bool { return registered.Load() == 1 })

	type socket struct {
		net.Conn
		br *bufio.Reader
	}
	var sockets []socket
	for range 200 {
		c, br, answer := old.dialSocket("/app/ws", true)
		if answer.StatusCode != 101 {
			t.Fatal(answer.Status)
		}
		sockets = append(sockets, socket{c, br})
	}
	// Some keep their connection, others come anew with every request.
	var asked, bad atomic.Int64
	var clients sync.WaitGroup
	stop := make(chan bool)
	for i := range 4 {
		c := client(t, i == 1)
		c.Transport.(*http.Transport).DisableKeepAlives = i >= 2
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				asked.Add(1)
				answer, err := c.Get("https://" + old.https + "/app")
				if err != nil {
					bad.Add(1)
					t.Error(err)
					return
				}
				text, err := io.ReadAll(answer.Body)
				answer.Body.Close()
				if err != nil || string(text) != "ok" {
					bad.Add(1)
					t.Errorf("%s %q, %v", answer.Status, text, err)
				}
			}
		})
	}
	eventually(t, "requests are answered", func() bool { return asked.Load() > 50 })

	manager := old.ruler()
	names, fds := receiveListeners(t, manager)
	successor := open(t, func(o *Options) {
		o.HTTP, o.HTTPS = "", ""
		for i, name := range names {
			if name == "http" {
				o.HTTPFD = fds[i]
			} else {
				o.HTTPSFD = fds[i]
			}
		}
		o.Socket, o.Control, o.Takeover = old.Socket, old.Control, true
	})
	if got := ask[wire.Result](t, manager, wire.Drain{Head: wire.Head{MT: "Drain"}, Seconds: 60}); got.Error != "" {
		t.Fatal(got.Error)
	}
	eventually(t, "the app has registered anew", func() bool { return registered.Load() == 2 })
	before := asked.Load()
	eventually(t, "the successor answers", func() bool { return asked.Load() > before+100 && successor.requests.Load() > 50 })
	close(stop)
	clients.Wait()
	if bad.Load() > 0 {
		t.Errorf("%d of %d requests went wrong", bad.Load(), asked.Load())
	}
	for _, s := range sockets {
		echoes(t, s, s.br, "still here")
	}
	if n := old.webSockets.Load(); n != 200 {
		t.Errorf("the old webserver has %d WebSockets; want 200", n)
	}
	for _, s := range sockets[1:] {
		s.Close()
	}
	// The last one ends with the draining.
	eventually(t, "199 have ended", func() bool { return old.webSockets.Load() == 1 })
	old.until = time.Now()
	old.finish()
	if _, err := sockets[0].br.ReadByte(); err == nil {
		t.Error("a WebSocket outlives its webserver")
	}
}

func TestSockets(t *testing.T) {
	l := open(t)
	for path, want := range map[string]os.FileMode{l.Socket: 0o666, l.Control: 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	if _, err := listenUnix(l.Socket, 0o666, false); err == nil || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("a second webserver took the socket: %v", err)
	}
	stale := filepath.Join(l.dir, "stale.sock")
	u, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	u.SetUnlinkOnClose(false)
	u.Close()
	if _, err := net.Dial("unix", stale); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatal(err)
	}
	if u, err = listenUnix(stale, 0o600, false); err != nil {
		t.Fatalf("a stale socket is in the way: %v", err)
	}
	u.Close()

	// A link is replaced, not followed.
	link := filepath.Join(l.dir, "link.sock")
	if err := os.Symlink(filepath.Join(l.dir, "target.sock"), link); err != nil {
		t.Fatal(err)
	}
	if u, err = listenUnix(link, 0o600, true); err != nil {
		t.Fatal(err)
	}
	u.Close()
	if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSocket {
		t.Errorf("in place of a link: %v, %v", info, err)
	}
	if _, err := os.Lstat(filepath.Join(l.dir, "target.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("where the link led: %v", err)
	}
}

// TestDrainAgain: a signal ends a long draining sooner.
func TestDrainAgain(t *testing.T) {
	l := open(t)
	l.app(wire.KindHTTP, echoSocket, "/app")
	c, br, _ := l.dialSocket("/app", true)
	echoes(t, c, br, "here")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan bool)
	go func() {
		l.run(ctx)
		close(ended)
	}()
	l.Drain(time.Hour)
	echoes(t, c, br, "still here")
	cancel()
	eventually(t, "the signal counts", func() bool { return time.Until(l.end()) <= stopDrain*time.Second })
	l.Drain(time.Hour)
	if time.Until(l.end()) > stopDrain*time.Second {
		t.Error("a draining was made longer")
	}
	l.Drain(0)
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("it goes on")
	}
	if _, err := br.ReadByte(); err == nil {
		t.Error("a WebSocket outlives its webserver")
	}
}

// TestBlockingListener: whoever hands a listener to a new process makes it
// blocking for a moment, for all who have it. Draining must not wait for somebody
// to connect.
func TestBlockingListener(t *testing.T) {
	l := open(t)
	for _, x := range l.listeners {
		raw, err := x.SyscallConn()
		if err == nil {
			err = errors.Join(raw.Control(func(fd uintptr) { err = unix.SetNonblock(int(fd), false) }), err)
		}
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", x.Addr().String()) // behind it, the next accept blocks
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	eventually(t, "both are in", func() bool { return l.door.count() == 2 })
	ended := make(chan bool)
	go func() {
		l.Drain(0)
		l.finish()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("it waits for somebody to connect")
	}
}
