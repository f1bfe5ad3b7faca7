package webserver

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"appplatform/internal/wire"
)

// hidden is what must never come to an app as a request of its own.
const hidden = "GET /app/hidden HTTP/1.1\r\nHost: x\r\n\r\n"

// TestSmuggling sends what two readers may see differently, and asks an app that
// writes down each byte what has come of it.
func TestSmuggling(t *testing.T) {
	const post = "POST /app HTTP/1.1\r\nHost: x\r\n"
	tests := []struct{ name, request string }{
		{"CL.TE", post + "Content-Length: 41\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"TE.CL", post + "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n26\r\n" + hidden + "\r\n0\r\n\r\n"},
		{"TE.TE", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + hidden},
		{"TE.TE, twice the same", post + "Transfer-Encoding: chunked\r\nTransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"TE xchunked", post + "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + hidden},
		{"TE in a list", post + "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"TE with a vertical tab", post + "Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + hidden},
		{"TE in quotes", post + "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n" + hidden},
		{"TE with a space before the colon", post + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"TE folded", post + "X: y\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"TE with its value folded", post + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"TE behind a bare LF", post + "X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"TE behind a bare CR", post + "X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"TE in HTTP/1.0", "POST /app HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden},
		{"two lengths", post + "Content-Length: 0\r\nContent-Length: 38\r\n\r\n" + hidden},
		{"twice the same length", post + "Content-Length: 0\r\nContent-Length: 0\r\n\r\n" + hidden},
		{"a list of lengths", post + "Content-Length: 0, 38\r\n\r\n" + hidden},
		{"a length with a sign", post + "Content-Length: +0\r\n\r\n" + hidden},
		{"a negative length", post + "Content-Length: -1\r\n\r\n" + hidden},
		{"a hexadecimal length", post + "Content-Length: 0x26\r\n\r\n" + hidden},
		{"a length with a space", post + "Content-Length: 3 8\r\n\r\n" + hidden},
		{"an empty length", post + "Content-Length:\r\n\r\n" + hidden},
		{"a huge length", post + "Content-Length: 18446744073709551616\r\n\r\n" + hidden},
		{"the length's space before the colon", post + "Content-Length : 38\r\n\r\n" + hidden},
		{"bare LF", "POST /app HTTP/1.1\nHost: x\nContent-Length: 0\n\n" + hidden},
		{"bare LF at the end", post + "Content-Length: 0\r\n\n" + hidden},
		{"NUL in a value", post + "X: a\x00b\r\nContent-Length: 0\r\n\r\n" + hidden},
		{"NUL in a name", post + "X\x00: a\r\nContent-Length: 0\r\n\r\n" + hidden},
		{"no name", post + ": a\r\nContent-Length: 0\r\n\r\n" + hidden},
		{"a line without a colon", post + "nonsense\r\nContent-Length: 0\r\n\r\n" + hidden},
		{"a first line that begins with a space", " POST /app HTTP/1.1\r\nHost: x\r\n\r\n" + hidden},
		{"a tab in the first line", "POST\t/app HTTP/1.1\r\nHost: x\r\n\r\n" + hidden},
		{"two spaces in the first line", "POST  /app HTTP/1.1\r\nHost: x\r\n\r\n" + hidden},
		{"a space in the address", "POST /app x HTTP/1.1\r\nHost: x\r\n\r\n" + hidden},
		{"a CR in the address", "POST /app\r/x HTTP/1.1\r\nHost: x\r\n\r\n" + hidden},
		{"a fragment", "POST /app#x HTTP/1.1\r\nHost: x\r\n\r\n" + hidden},
		{"HTTP/0.9", "GET /app\r\n" + hidden},
		{"a version like 1.1", "POST /app HTTP/1.10\r\nHost: x\r\n\r\n" + hidden},
		{"no Host", "POST /app HTTP/1.1\r\n\r\n" + hidden},
		{"two Hosts", post + "Host: y\r\n\r\n" + hidden},
		{"a Host with a path", "POST /app HTTP/1.1\r\nHost: x/y\r\n\r\n" + hidden},
		{"a Host with a user", "POST /app HTTP/1.1\r\nHost: a@x\r\n\r\n" + hidden},
		{"an empty Host", "POST /app HTTP/1.1\r\nHost:\r\n\r\n" + hidden},
		{"the address of another host", "POST http://y/app HTTP/1.1\r\nHost: x\r\n\r\n" + hidden},
		{"the address of a user", "POST http://x@y/app HTTP/1.1\r\nHost: x\r\n\r\n" + hidden},
		{"another scheme", "POST ftp://x/app HTTP/1.1\r\nHost: x\r\n\r\n" + hidden},
		{"an address without a slash", "POST app HTTP/1.1\r\nHost: x\r\n\r\n" + hidden},
		{"an escape that is none", "POST /app/%zz HTTP/1.1\r\nHost: x\r\n\r\n" + hidden},
		{"a chunk that says too little", post + "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n" + hidden},
		{"a chunk's bare LF", post + "Transfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n" + hidden},
		{"a chunk's length with a sign", post + "Transfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n" + hidden},
		{"a chunk's length with 0x", post + "Transfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n" + hidden},
		{"a huge chunk", post + "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\na\r\n0\r\n\r\n" + hidden},
		{"an extension with a bare LF", post + "Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\na\r\n0\r\n\r\n" + hidden},
		{"a trailer with a bare LF", post + "Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\n\r\n" + hidden},
		{"a length in a trailer", post + "Transfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 38\r\n\r\n" + hidden},
	}
	l := open(t)
	var all sync.WaitGroup
	for i, test := range tests {
		path := fmt.Sprintf("/n%d", i)
		w := l.witness(wire.KindHTTP, path)
		all.Go(func() {
			request := strings.NewReplacer("/app", path).Replace(test.request)
			answer, closed := l.exchange(request, 15*time.Second)
			if !strings.HasPrefix(answer, "HTTP/1.1 400 ") && !strings.HasPrefix(answer, "HTTP/1.1 505 ") || strings.Count(answer, "HTTP/1.1 ") != 1 || !closed {
				t.Errorf("%s: answered %q, closed %v; want 400 and the end", test.name, answer, closed)
			}
			if got := w.all(); strings.Contains(got, "hidden") || strings.Contains(got, "\r\n0\r\n") {
				t.Errorf("%s: the app got %q", test.name, got)
			}
		})
	}
	all.Wait()
}

// TestGoodRequests are those that look odd and are right: the app gets as many
// requests as were sent.
func TestGoodRequests(t *testing.T) {
	const last = "GET /app HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	l := open(t)
	for i, test := range []struct {
		name, request string
		want          int
	}{
		{"two behind each other", "GET /app HTTP/1.1\r\nHost: x\r\n\r\n" + last, 2},
		{"a body that looks like a request", "POST /app HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 38\r\n\r\n" + hidden, 1},
		{"chunks with extensions", "POST /app HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: Chunked\r\n\r\n26;a=b;c=\"d\"\r\n" + hidden + "\r\n0\r\nX-T: y\r\n\r\n" + last, 2},
		{"an empty line before", "\r\n" + last, 1},
		{"a whole URL", "GET http://X:80/app HTTP/1.1\r\nHost: x:80\r\nConnection: close\r\n\r\n", 1},
		{"IPv6", "GET /app HTTP/1.1\r\nHost: [::1]:443\r\nConnection: close\r\n\r\n", 1},
		{"HTTP/1.0", "GET /app HTTP/1.0\r\n\r\n", 1},
		{"bytes beyond ASCII", "GET /app/\xc3\xa4?\xc3\xa4 HTTP/1.1\r\nHost: x\r\nX: \xe4\r\nConnection: keep-alive, close\r\n\r\n", 1},
	} {
		path := fmt.Sprintf("/n%d", i)
		w := l.witness(wire.KindHTTP, path)
		request := strings.ReplaceAll(strings.ReplaceAll(test.request, "/app", path), "Content-Length: 38", fmt.Sprintf("Content-Length: %d", len(hidden)-4+len(path)))
		request = strings.ReplaceAll(request, "26;", fmt.Sprintf("%x;", len(hidden)-4+len(path)))
		answer, closed := l.exchange(request, 15*time.Second)
		if n := strings.Count(answer, "HTTP/1.1 200 OK\r\n"); n != test.want || strings.Count(answer, "HTTP/1.1 ") != test.want || !closed {
			t.Errorf("%s: %d answers; want %d: %q\nthe app got %q", test.name, n, test.want, answer, w.all())
		}
	}
}

// TestLimits: what is over a limit is told so.
func TestLimits(t *testing.T) {
	l := open(t)
	l.app(wire.KindHTTP, tell, "/app")
	for _, test := range []struct{ name, request, want string }{
		{"longest address", "GET /app/" + strings.Repeat("x", maxPath-5) + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "200 OK"},
		{"longer address", "GET /app/" + strings.Repeat("x", maxPath-4) + " HTTP/1.1\r\nHost: x\r\n\r\n", "414 Request URI Too Long"},
		{"endless address", "GET /app/" + strings.Repeat("x", 200000), "414 Request URI Too Long"},
		{"long header", "GET /app HTTP/1.1\r\nHost: x\r\nX: " + strings.Repeat("x", maxHead) + "\r\n\r\n", "431 Request Header Fields Too Large"},
		{"header flood", "GET /app HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X: y\r\n", 100000), "431 Request Header Fields Too Large"},
		{"method not allowed", "TRACE /app HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "405 Method Not Allowed"},
		{"unknown method", "BREW /app HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "501 Not Implemented"},
		{"expectation", "GET /app HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n", "417 Expectation Failed"},
		{"HTTP/2 without TLS", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505 HTTP Version Not Supported"},
	} {
		answer, closed := l.exchange(test.request, 15*time.Second)
		if !strings.HasPrefix(answer, "HTTP/1.1 "+test.want) || !closed {
			t.Errorf("%s: %.100q, closed %v; want %s and the end", test.name, answer, closed, test.want)
		}
	}
}

// TestSlowHead: a head that comes byte by byte ends in 408, and those that only
// connect are closed; neither has cost anybody else anything.
func TestSlowHead(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for the webserver's patience to end")
	}
	t.Parallel()
	l := open(t)
	l.app(wire.KindHTTP, tell, "/app")
	var slow []net.Conn
	for range 200 {
		for _, address := range []string{l.http, l.https} {
			c, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			slow = append(slow, c)
		}
	}
	began := time.Now()
	for _, c := range slow[:100] {
		_, _ = io.WriteString(c, "G")
	}
	if answer, _ := get(t, client(t, true), "https://"+l.https+"/app"); answer.StatusCode != 200 {
		t.Fatalf("beside slow clients: %s", answer.Status)
	}
	for i, c := range slow {
		_ = c.SetReadDeadline(began.Add(2 * headTime))
		text, err := io.ReadAll(c)
		if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
			t.Fatalf("connection %d is still open after %v", i, time.Since(began))
		}
		if i < 100 && i%2 == 0 && !strings.HasPrefix(string(text), "HTTP/1.1 408 ") {
			t.Fatalf("a slow head was answered %q", text)
		}
	}
	eventually(t, "nobody is left", func() bool { return l.door.count() <= 1 && l.door.half() == 0 })
}

// TestTooMany: who comes when there are too many gets an answer, and a place when
// somebody has left.
func TestTooMany(t *testing.T) {
	l := open(t)
	l.app(wire.KindHTTP, tell, "/app")
	l.door.mu.Lock()
	l.door.limit = 1
	l.door.mu.Unlock()
	first, err := net.Dial("tcp", l.http)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	eventually(t, "the first is in", func() bool { return l.door.count() == 1 })
	const request = "GET /app HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
	if answer, closed := l.exchange(request, 15*time.Second); !strings.HasPrefix(answer, "HTTP/1.1 503 ") || !closed {
		t.Errorf("the second: %q, closed %v", answer, closed)
	}
	if answer, _ := get(t, client(t, false), "https://"+l.https+"/app"); answer.StatusCode != 503 {
		t.Errorf("the second over TLS: %s", answer.Status)
	}
	first.Close()
	eventually(t, "the first has left", func() bool { return l.door.count() == 0 })
	if answer, _ := l.exchange(request, 15*time.Second); !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
		t.Errorf("after the first has left: %q", answer)
	}
}

// TestPatience: which paths are worth waiting for.
func TestPatience(t *testing.T) {
	tab := newTable()
	soon := func(path string) bool {
		_, soon, _ := tab.find(path, false)
		return soon
	}
	if !soon("/b") {
		t.Error("just started, nothing granted yet: no patience")
	}
	tab.grant([]wire.Grant{{UID: 1, Path: "/a"}})
	if !soon("/a/x") || soon("/b") {
		t.Errorf("just started: /a/x %v, /b %v; want true, false", soon("/a/x"), soon("/b"))
	}
	tab.began = tab.began.Add(-startTime)
	if soon("/a/x") {
		t.Error("long after the start: patience for a path that nobody had")
	}
	r, err := tab.add(wire.Register{Path: "/a", Kind: wire.KindHTTP, Socket: "/s"}, 1, 1, func() {})
	if err != nil {
		t.Fatal(err)
	}
	tab.remove(r)
	if !soon("/a/x") {
		t.Error("no patience for a path that was there a moment ago")
	}
	tab.left["/a"] = tab.left["/a"].Add(-rememberTime)
	if soon("/a/x") {
		t.Error("patience for a path that has been gone for long")
	}
	tab.left["/a"], tab.began = time.Now(), time.Now()
	if tab.drain(); soon("/a/x") {
		t.Error("patience of a webserver with which nobody registers any more")
	}
}
