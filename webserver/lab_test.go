package webserver

import (
	"bufio"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"appplatform/internal/wire"
)

// A lab is a webserver with its own folder, and what is needed to play apps.
type lab struct {
	*Server
	t           *testing.T
	dir         string
	http, https string // addresses
}

func open(t *testing.T, change ...func(*Options)) *lab {
	t.Helper()
	dir, err := os.MkdirTemp("", "ws") // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o := Options{HTTPFD: -1, HTTPSFD: -1, HTTP: "127.0.0.1:0", HTTPS: "127.0.0.1:0", State: filepath.Join(dir, "state"),
		Socket: filepath.Join(dir, "w.sock"), Control: filepath.Join(dir, "c.sock"), Version: "test", Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, f := range change {
		f(&o)
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{Server: s, t: t, dir: dir}
	for _, x := range s.listeners {
		if x.name == "http" {
			l.http = x.Addr().String()
		} else {
			l.https = x.Addr().String()
		}
	}
	t.Cleanup(func() {
		s.Drain(0)
		s.finish()
	})
	// The tests may run as an ordinary user, who needs a grant.
	s.table.grant([]wire.Grant{{UID: uint32(os.Getuid()), Path: "", Dir: dir}})
	if !o.Takeover { // apps have had their time to register
		s.table.mu.Lock()
		s.table.began = s.table.began.Add(-startTime)
		s.table.mu.Unlock()
	}
	return l
}

// listen makes an app's socket.
func (l *lab) listen(name string) *net.UnixListener {
	l.t.Helper()
	u, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(l.dir, name), Net: "unix"})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { u.Close() })
	return u
}

// register makes a connection of an app's that registers the paths of a kind.
func (l *lab) register(kind, to string, paths ...string) *wire.Conn {
	l.t.Helper()
	c, err := wire.Dial(l.Socket)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	for _, p := range paths {
		m := wire.Register{Head: wire.Head{MT: "Register", ID: 7}, Path: p, Kind: kind}
		if kind == wire.KindFiles {
			m.Dir = to
		} else {
			m.Socket = to
		}
		if got := ask[wire.RegisterResult](l.t, c, m); got.Error != "" || got.Path != p || got.ID != 7 || got.MT != "RegisterResult" {
			l.t.Fatalf("Register %q: %+v", p, got)
		}
	}
	return c
}

// ask sends a message and waits for its answer.
func ask[R any](t *testing.T, c *wire.Conn, m any) (answer R) {
	t.Helper()
	if err := c.Send(m); err != nil {
		t.Fatal(err)
	}
	return next[R](t, c)
}

func next[R any](t *testing.T, c *wire.Conn) (answer R) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	got, err := c.Receive()
	if err == nil {
		err = got.Decode(&answer)
	}
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// app serves h at a socket and registers it.
func (l *lab) app(kind string, h http.HandlerFunc, paths ...string) *wire.Conn {
	l.t.Helper()
	u := l.listen(fmt.Sprintf("app%d.sock", time.Now().UnixNano()))
	server := &http.Server{Handler: h, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	go func() { _ = server.Serve(u) }()
	l.t.Cleanup(func() { server.Close() })
	return l.register(kind, u.Addr().String(), paths...)
}

// client speaks to the webserver over TLS, HTTP/2 if asked to.
func client(t *testing.T, http2 bool) *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: http2, DisableCompression: true}
	tr.Protocols = new(http.Protocols)
	tr.Protocols.SetHTTP1(!http2)
	tr.Protocols.SetHTTP2(http2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func get(t *testing.T, c *http.Client, url string, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return do(t, c, r)
}

func do(t *testing.T, c *http.Client, r *http.Request) (*http.Response, string) {
	t.Helper()
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(text)
}

// exchange sends bytes over a plain connection and returns all that comes until
// the webserver closes it, or nothing comes for quiet.
func (l *lab) exchange(request string, quiet time.Duration) (answer string, closed bool) {
	l.t.Helper()
	c, err := net.Dial("tcp", l.http)
	if err != nil {
		l.t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, request); err != nil {
		l.t.Fatal(err)
	}
	var all []byte
	buf := make([]byte, 4096)
	for {
		_ = c.SetReadDeadline(time.Now().Add(quiet))
		n, err := c.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			timeout, ok := err.(net.Error)
			return string(all), !ok || !timeout.Timeout()
		}
	}
}

// A witness is an app that writes down every byte which it gets, and answers
// each request that it sees with as little as it can.
type witness struct {
	mu  sync.Mutex
	got []string // a connection each
}

func (l *lab) witness(kind string, paths ...string) *witness {
	l.t.Helper()
	u := l.listen(fmt.Sprintf("w%d.sock", time.Now().UnixNano()))
	w := &witness{}
	go func() {
		for {
			c, err := u.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			w.got = append(w.got, "")
			mine := len(w.got) - 1
			w.mu.Unlock()
			go w.hear(c, mine)
		}
	}()
	l.register(kind, u.Addr().String(), paths...)
	return w
}

func (w *witness) hear(c net.Conn, mine int) {
	defer c.Close()
	br := bufio.NewReader(io.TeeReader(c, w.writer(mine)))
	for {
		r, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (w *witness) writer(mine int) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.got[mine] += string(p)
		return len(p), nil
	})
}

func (w *witness) all() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(w.got, "|")
}

// echoSocket is an app's WebSocket that sends back what it gets, byte by byte:
// to the webserver, frames are bytes.
func echoSocket(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		http.Error(w, "no WebSocket", http.StatusTeapot)
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\nX-Path: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]), r.URL.Path)
	_ = rw.Flush()
	_, _ = io.Copy(c, rw)
}

// dialSocket opens a WebSocket to the echo.
func (l *lab) dialSocket(path string, secure bool) (net.Conn, *bufio.Reader, *http.Response) {
	l.t.Helper()
	var c net.Conn
	var err error
	if secure {
		c, err = tls.Dial("tcp", l.https, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	} else {
		c, err = net.Dial("tcp", l.http)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", path)
	br := bufio.NewReader(c)
	answer, err := http.ReadResponse(br, nil)
	if err != nil {
		l.t.Fatal(err)
	}
	return c, br, answer
}

func echoes(t *testing.T, c net.Conn, br *bufio.Reader, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(br, got); err != nil || string(got) != text {
		t.Fatalf("echo of %d bytes: %d bytes, %v", len(text), len(got), err)
	}
}

// eventually waits for what another goroutine does.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after 20 s", what)
		}
	}
}

func decode[R any](t *testing.T, text string) (v R) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return v
}

// half is how many connections count as half open.
func (d *door) half() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.halfOpen
}
