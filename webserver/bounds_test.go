package webserver

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"appplatform/internal/wire"
)

// hasty is a webserver that has little patience with who makes no progress.
func hasty(t *testing.T) *lab {
	return open(t, func(o *Options) { o.progress = 500 * time.Millisecond })
}

// TestSlowBody: a body that does not go on ends in 408.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	l := hasty(t)
	l.app(wire.KindHTTP, tell, "/app")
	for _, test := range []struct{ name, head, body string }{
		{"a length", "Content-Length: 100000", "only this"},
		{"chunks", "Transfer-Encoding: chunked", "9\r\nonly this\r\n"},
	} {
		answer, closed := l.exchange("POST /app HTTP/1.1\r\nHost: x\r\n"+test.head+"\r\n\r\n"+test.body, 15*time.Second)
		if !strings.HasPrefix(answer, "HTTP/1.1 408 ") || !closed {
			t.Errorf("%s: %q, closed %v", test.name, answer, closed)
		}
	}
	f := l.frames()
	block := []byte{0x83, 0x87, 0x44, 4, '/', 'a', 'p', 'p', 0x41, 1, 'x'} // POST https /app x, and no end
	if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true}); err != nil {
		t.Fatal(err)
	}
	if status, body := f.answer(1); status != "408" && status != "408reset" && status != "reset" {
		t.Errorf("HTTP/2: %s %q", status, body)
	}
	f.conn.Close()
	eventually(t, "all have left", func() bool { return l.counted() == 0 })
}

// TestSlowReader: nobody holds an answer, a file or a WebSocket by not reading.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	l := hasty(t)
	gone := make(chan string, 10)
	l.app(wire.KindHTTP, func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				gone <- r.Proto
				return
			}
		}
	}, "/app")
	www := filepath.Join(l.dir, "www")
	if err := os.Mkdir(www, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(www, "big"), make([]byte, 64<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	l.register(wire.KindFiles, www, "/f")
	for _, path := range []string{"/app", "/f/big"} {
		c, err := net.Dial("tcp", l.http)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		// With HTTP/2 the client says how much it will take: nothing.
		f := l.frames(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		if status, body := f.answer(f.ask("", ":method", "GET", ":scheme", "https", ":path", path, ":authority", "x")); status != "200reset" && status != "reset" || body != "" {
			t.Errorf("%s, HTTP/2 without a window: %s, %d bytes", path, status, len(body))
		}
	}
	// A page of the webserver's own, too.
	f := l.frames(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	f.ask("", ":method", "GET", ":scheme", "https", ":path", "/none", ":authority", "x")
	for range 2 {
		select {
		case <-gone:
		case <-time.After(20 * time.Second):
			t.Fatal("the app still writes")
		}
	}
	// The connections of HTTP/1 are closed, those of HTTP/2 are there, without
	// requests.
	eventually(t, "only connections are left", func() bool { return l.counted() == 3 })
}

// TestSlowApp: what comes slowly because the app is slow is nobody's fault.
func TestSlowApp(t *testing.T) {
	t.Parallel()
	l := hasty(t)
	l.app(wire.KindHTTP, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "20000")
		_, _ = w.Write(make([]byte, 10000))
		w.(http.Flusher).Flush()
		time.Sleep(2 * l.progress)
		_, _ = w.Write(make([]byte, 10000))
	}, "/app")
	for _, http2 := range []bool{false, true} {
		if answer, body := get(t, client(t, http2), "https://"+l.https+"/app"); answer.StatusCode != 200 || len(body) != 20000 {
			t.Errorf("h2 %v: %s, %d bytes", http2, answer.Status, len(body))
		}
	}
}

// TestDeafApp: a relay ends when one side does not take what the other sends.
func TestDeafApp(t *testing.T) {
	t.Parallel()
	l := hasty(t)
	l.says("/app", func(w io.Writer) {
		_, _ = io.WriteString(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
		for { // and reads nothing
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return
			}
		}
	})
	for _, secure := range []bool{false, true} {
		c, _, answer := l.dialSocket("/app", secure)
		if answer.StatusCode != 101 {
			t.Fatal(answer.Status)
		}
		for {
			if _, err := c.Write(make([]byte, 1<<16)); err != nil {
				if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
					t.Errorf("TLS %v: the relay is still there", secure)
				}
				break
			}
		}
	}
	eventually(t, "the relays have ended", func() bool { return l.webSockets.Load() == 0 && l.counted() == 0 })
}

// TestKeyUpdate: a client may change its keys on a WebSocket that has been quiet
// for longer than a write may take.
func TestKeyUpdate(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip(err)
	}
	t.Parallel()
	l := hasty(t)
	l.app(wire.KindHTTP, echoSocket, "/app")
	cmd := exec.CommandContext(t.Context(), openssl, "s_client", "-connect", l.https, "-tls1_3", "-alpn", "http/1.1") // takes a line K for a command
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, both := io.Pipe()
	cmd.Stdout, cmd.Stderr = both, both
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = cmd.Process.Kill()
		out.Close()
		_ = cmd.Wait()
	}()
	said := make(chan string, 100)
	go func() {
		defer close(said)
		buf := make([]byte, 4096)
		for {
			n, err := out.Read(buf)
			if err != nil {
				return
			}
			said <- string(buf[:n])
		}
	}()
	all := ""
	until := func(want string) {
		t.Helper()
		for end := time.After(20 * time.Second); !strings.Contains(all, want); {
			select {
			case part, ok := <-said:
				if !ok {
					t.Fatalf("openssl has ended: %q", all)
				}
				all += part
			case <-end:
				t.Fatalf("no %q in %q", want, all)
			}
		}
	}
	_, _ = io.WriteString(in, "GET /app HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
	until("101 Switching Protocols")
	_, _ = io.WriteString(in, "first echo\n")
	until("first echo")
	for _, word := range []string{"second echo", "third echo"} {
		time.Sleep(2 * l.progress)
		all = ""
		_, _ = io.WriteString(in, "K\n")
		until("KEYUPDATE") // openssl takes what it reads at once for one line
		_, _ = io.WriteString(in, word+"\n")
		until(word)
	}
}

// TestPerAddress: one address cannot have all the places.
func TestPerAddress(t *testing.T) {
	l := open(t)
	l.app(wire.KindHTTP, tell, "/app")
	l.door.mu.Lock()
	l.door.ofAddress, l.door.halfOfAddress = 3, 2
	l.door.mu.Unlock()
	dial := func(from, to string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		return c
	}
	const request = "GET /app HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	answer := func(c net.Conn) string {
		t.Helper()
		defer c.Close()
		_, _ = io.WriteString(c, request)
		text, _ := io.ReadAll(c)
		return fmt.Sprintf("%.12s", text)
	}
	var first []net.Conn
	for range 3 {
		first = append(first, dial("127.0.0.1", l.http))
	}
	eventually(t, "three are in", func() bool { return l.counted() == 3 })
	if got := answer(dial("127.0.0.1", l.http)); got != "HTTP/1.1 429" {
		t.Errorf("the fourth of an address: %s", got)
	}
	if got := answer(dial("127.0.0.2", l.http)); got != "HTTP/1.1 200" {
		t.Errorf("one of another address: %s", got)
	}
	for _, c := range first {
		c.Close()
	}
	eventually(t, "they have left", func() bool { return l.counted() == 0 })

	for range 2 {
		dial("127.0.0.1", l.https)
	}
	eventually(t, "two are half open", func() bool { return l.door.half() == 2 })
	if _, err := dial("127.0.0.1", l.https).Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the third half open one of an address: %v", err)
	}
	other := dial("127.0.0.2", l.https)
	if got := answer(tls.Client(other, &tls.Config{InsecureSkipVerify: true})); got != "HTTP/1.1 200" {
		t.Errorf("one of another address: %s", got)
	}
	// What is said is no handshake.
	for _, word := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", ""} {
		c := dial("127.0.0.3", l.https)
		_, _ = io.WriteString(c, word)
		if word == "" {
			c.Close()
		}
		_, _ = io.ReadAll(c)
	}
	eventually(t, "only the two are left", func() bool { return l.counted() == 2 && l.door.half() == 2 })
}

func TestNetwork(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1/32", "::ffff:192.0.2.1": "192.0.2.1/32", "2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := network(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("network(%s) = %s; want %s", in, got, want)
		}
	}
}

// TestLargeHeads: there are not as many large heads at a time as connections.
func TestLargeHeads(t *testing.T) {
	l := open(t)
	l.app(wire.KindHTTP, tell, "/app")
	ask := func(http2 bool, size int) int {
		t.Helper()
		answer, _ := get(t, client(t, http2), "https://"+l.https+"/app", "X-Large", strings.Repeat("x", size))
		return answer.StatusCode
	}
	for _, http2 := range []bool{false, true} {
		if got := ask(http2, maxHead-1000); got != 200 {
			t.Errorf("h2 %v: a large head: %d", http2, got)
		}
		eventually(t, "its place is free", func() bool { return l.largeHeads.Load() == 0 })
		l.largeHeads.Store(maxLargeHeads)
		if got := ask(http2, smallHead); got != 503 {
			t.Errorf("h2 %v: one too many: %d", http2, got)
		}
		if got := ask(http2, smallHead-1000); got != 200 {
			t.Errorf("h2 %v: a small one beside: %d", http2, got)
		}
		eventually(t, "the places are as before", func() bool { return l.largeHeads.Load() == maxLargeHeads })
		l.largeHeads.Store(0)
	}
	// A line without an end is one, too.
	l.largeHeads.Store(maxLargeHeads)
	if answer, _ := l.exchange("GET /app HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", smallHead), 15*time.Second); !strings.HasPrefix(answer, "HTTP/1.1 503 ") {
		t.Errorf("an endless line: %q", answer)
	}
	l.largeHeads.Store(0)
}

// as runs f as another user. The thread is not given back, so it ends with f.
func as(t *testing.T, uid int, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); errno != 0 {
			done <- errno
			return
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Skip(err)
	}
}

// TestStrangers: an app's socket that somebody else serves gets nothing, and
// nobody else than the manager rules.
func TestStrangers(t *testing.T) {
	l := open(t)
	if err := os.Chmod(l.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	var u *net.UnixListener
	as(t, 65534, func() { u = l.listen("stranger.sock") })
	got := make(chan int, 10)
	go func() {
		for {
			c, err := u.Accept()
			if err != nil {
				return
			}
			n, _ := c.Read(make([]byte, 100))
			got <- n
			c.Close()
		}
	}()
	l.register(wire.KindHTTP, u.Addr().String(), "/app")
	l.register(wire.KindPassThrough, u.Addr().String(), "/pass")
	for _, request := range []string{"GET /app HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "GET /pass HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET /app HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n"} {
		if answer, _ := l.exchange(request, 15*time.Second); !strings.HasPrefix(answer, "HTTP/1.1 502 ") {
			t.Errorf("%.9s: %q", request, answer)
		}
		if n := <-got; n != 0 {
			t.Errorf("%.9s: the stranger got %d bytes", request, n)
		}
	}

	// As it is between bind and chmod.
	if err := os.Chmod(l.Control, 0o666); err != nil {
		t.Fatal(err)
	}
	as(t, 65534, func() {
		c, err := net.Dial("unix", l.Control)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if n, err := c.Read(make([]byte, 1000)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a stranger at the control socket: %d bytes, %v", n, err)
		}
	})
}

// TestSpecialFiles: what is no file is not waited for.
func TestSpecialFiles(t *testing.T) {
	l := open(t)
	www := filepath.Join(l.dir, "www")
	for _, err := range []error{os.Mkdir(www, 0o755), unix.Mkfifo(filepath.Join(www, "pipe"), 0o644), os.WriteFile(filepath.Join(www, "a"), []byte("plain"), 0o644),
		unix.Mkfifo(filepath.Join(www, "a.gz"), 0o644), os.Mkdir(filepath.Join(www, "a.br"), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	u, err := net.Listen("unix", filepath.Join(www, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	l.register(wire.KindFiles, www, "/f")
	c := client(t, false)
	for path, want := range map[string]int{"/f/pipe": 404, "/f/socket": 404, "/f/a": 200, "/f/a.br": 301} {
		answer, body := get(t, c, "http://"+l.http+path, "Accept-Encoding", "br, gzip")
		if answer.StatusCode != want || want == 200 && (body != "plain" || answer.Header.Get("Content-Encoding") != "") {
			t.Errorf("GET %s = %s %q; want %d", path, answer.Status, body, want)
		}
	}
	// As many ranges as a head can ask for are not more than the file.
	answer, body := get(t, c, "http://"+l.http+"/f/a", "Range", "bytes=0-0"+strings.Repeat(",0-0", 10000))
	if answer.StatusCode != 200 || body != "plain" {
		t.Errorf("10,000 ranges: %s, %d bytes", answer.Status, len(body))
	}
}
