package webserver

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"appplatform/internal/wire"
)

// says is an app that answers every request with the same bytes, and hangs up.
func (l *lab) says(path string, text func(w io.Writer)) {
	l.t.Helper()
	u := l.listen(fmt.Sprintf("says%d.sock", time.Now().UnixNano()))
	go func() {
		for {
			c, err := u.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					text(c)
				}
			}()
		}
	}()
	l.register(wire.KindHTTP, u.Addr().String(), path)
}

const switching = "HTTP/1.1 101 Switching Protocols\r\n"

// endless writes until nobody takes it any more; much more would be memory.
func endless(first, line string) func(w io.Writer) {
	return func(w io.Writer) {
		_, _ = io.WriteString(w, first)
		for range (64 << 20) / len(line) {
			if _, err := io.WriteString(w, line); err != nil {
				return
			}
		}
	}
}

// TestOddAnswers: whatever an app answers, the client sees one answer to one
// request.
func TestOddAnswers(t *testing.T) {
	const good = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nright"
	const poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
	l := open(t)
	for i, test := range []struct {
		name    string
		upgrade bool
		method  string
		answer  func(w io.Writer)
		status  int
		body    string // empty: any
	}{
		{"as it should be", false, "GET", always(good), 200, "right"},
		{"101 that nobody asked for", false, "GET", always("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n" + poison), 502, ""},
		{"a length and chunks", false, "GET", always("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nright\r\n0\r\n\r\n" + poison), 200, "right"},
		{"two lengths", false, "GET", always("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nright"), 502, ""},
		{"a length with a sign", false, "GET", always("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nright"), 502, ""},
		{"another encoding", false, "GET", always("HTTP/1.1 200 OK\r\nTransfer-Encoding: xchunked\r\n\r\n5\r\nright\r\n0\r\n\r\n"), 502, ""},
		{"no HTTP", false, "GET", always("hello\r\n\r\n"), 502, ""},
		{"nothing", false, "GET", always(""), 502, ""},
		{"too much header", false, "GET", endless(switching, "X: "+strings.Repeat("y", 1000)+"\r\n"), 502, ""},
		{"an answer before", false, "GET", always("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + good), 200, "right"},
		{"more than was promised", false, "GET", always(good + poison), 200, "right"},
		{"204 with a body", false, "GET", always("HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison"), 204, ""},
		{"304 with a body", false, "GET", always("HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\npoison"), 304, ""},
		{"HEAD with a body", false, "HEAD", always(poison), 200, ""},
		{"a CR in a value", false, "GET", always("HTTP/1.1 200 OK\r\nX: y\rX-Poison: y\r\nContent-Length: 5\r\n\r\nright"), 502, ""},
		{"names with spaces", false, "GET", always("HTTP/1.1 200 OK\r\nPoison : z\r\nX Poison: z\r\nTransfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\nright"), 200, "right"},
		{"an upgrade with a name with a space", true, "GET", always(switching + "Poison : z\r\nConnection: upgrade\r\n\r\n"), 101, ""},
		{"a trailer with a name with a space", false, "GET", always("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nright\r\n0\r\nPoison : z\r\n\r\n"), 200, "right"},
		{"an upgrade with an answer before", true, "GET", always("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"), 101, ""},
		{"an upgrade with too much header", true, "GET", endless(switching, "X: "+strings.Repeat("y", 1000)+"\r\n"), 502, ""},
		{"an upgrade with one endless line", true, "GET", endless(switching, "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"), 502, ""},
		{"an upgrade with an endless row of answers", true, "GET", endless("HTTP/1.1 103 Early Hints\r\n", "\r\nHTTP/1.1 103 Early Hints\r\n"), 502, ""},
		{"an upgrade that is refused", true, "GET", always(good), 200, "right"},
		{"an upgrade without an answer", true, "GET", always("hello\r\n\r\n"), 502, ""},
	} {
		path := fmt.Sprintf("/n%d", i)
		l.says(path, test.answer)
		extra := ""
		if test.upgrade {
			extra = "Connection: upgrade\r\nUpgrade: websocket\r\n"
		}
		request := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\n%s\r\n", test.method, path, extra)
		if test.status != 101 {
			request += "GET /none HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
		}
		answer, _ := l.exchange(request, 5*time.Second)
		if strings.Contains(answer, "oison") || strings.Contains(answer, " :") || strings.Contains(strings.ReplaceAll(answer, "\r\n", ""), "\r") {
			t.Errorf("%s: the client got %.300q", test.name, answer)
		}
		br := bufio.NewReader(strings.NewReader(answer))
		got, err := http.ReadResponse(br, &http.Request{Method: test.method})
		if err != nil || got.StatusCode != test.status {
			t.Errorf("%s: %.100q, %v; want %d", test.name, answer, err, test.status)
			continue
		}
		body, err := io.ReadAll(got.Body)
		if test.body != "" && string(body) != test.body || err != nil {
			t.Errorf("%s: body %q, %v; want %q", test.name, body, err, test.body)
		}
		if test.status == 101 || got.Close {
			continue
		}
		if next, err := http.ReadResponse(br, nil); err != nil || next.StatusCode != 404 {
			t.Errorf("%s: behind it comes %v, %v; want the answer to the next request", test.name, next, err)
		}
	}
	if answer, _ := get(t, client(t, true), "https://"+l.https+"/n1"); answer.StatusCode != 502 {
		t.Errorf("101 in HTTP/2: %s", answer.Status)
	}
	eventually(t, "all have left", func() bool { return l.webSockets.Load() == 0 })
}

func always(answer string) func(w io.Writer) {
	return func(w io.Writer) { _, _ = io.WriteString(w, answer) }
}

// TestAsSent: the app gets the address as it was sent; only what is no part of an
// address is encoded.
func TestAsSent(t *testing.T) {
	l := open(t)
	l.app(wire.KindHTTP, tell, "/app")
	for sent, want := range map[string]string{
		"/app/x%2Fy":           "/app/x%2Fy",
		"/app/x%2fy\"z":        "/app/x%2fy%22z",
		"/app/%2e%2e%2Fa|b":    "/app/%2e%2e%2Fa%7Cb",
		"/app/../a;b=c,d":      "/app/../a;b=c,d",
		"/app//a/./b%00":       "/app//a/./b%00",
		"/app/\xc3\xa4%2F":     "/app/%C3%A4%2F",
		"/%61pp/x^%2F?q=\"%2F": "/%61pp/x%5E%2F?q=\"%2F",
	} {
		answer, _ := l.exchange("GET "+sent+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 15*time.Second)
		_, body, _ := strings.Cut(answer, "\r\n\r\n")
		if !strings.Contains(body, "{") {
			t.Errorf("GET %s: %q", sent, answer)
			continue
		}
		if got := decode[seen](t, body[strings.Index(body, "{"):strings.LastIndex(body, "}")+1]); got.URI != want {
			t.Errorf("GET %s: the app got %s; want %s", sent, got.URI, want)
		}
		f := l.frames()
		_, body = f.answer(f.ask("", ":method", "GET", ":scheme", "https", ":path", sent, ":authority", "x"))
		if !strings.Contains(body, "{") {
			t.Errorf("GET %s in HTTP/2: %q", sent, body)
			continue
		}
		if got := decode[seen](t, body); got.URI != want {
			t.Errorf("GET %s in HTTP/2: the app got %s; want %s", sent, got.URI, want)
		}
	}
}

// TestForgedFields: nobody else than the webserver says where a request is from,
// in whatever spelling and place.
func TestForgedFields(t *testing.T) {
	l := open(t)
	w := l.witness(wire.KindHTTP, "/app")
	answer, _ := l.exchange("POST /app HTTP/1.1\r\nHost: x\r\nConnection: close, X-Forwarded-For\r\nX_Forwarded_For: 6.6.6.6\r\nx-forwarded_proto: 6.6.6.6\r\n"+
		"X-FORWARDED-SSL: 6.6.6.6\r\nX_Real-IP: 6.6.6.6\r\nProxy: 6.6.6.6\r\nContent_Length: 6666\r\nX_Kept: yes\r\nTransfer-Encoding: chunked\r\n\r\n"+
		"1\r\nx\r\n0\r\nX-Forwarded-For: 6.6.6.6\r\nX_Real_Ip: 6.6.6.6\r\nX-Late: yes\r\n\r\n", 15*time.Second)
	if !strings.HasPrefix(answer, "HTTP/1.1 200 ") {
		t.Fatalf("answered %q", answer)
	}
	got := w.all()
	if strings.Contains(got, "6.6.6.6") || strings.Contains(got, "6666") || strings.Count(got, "X-Forwarded-For: 127.0.0.1\r\n") != 1 {
		t.Errorf("the app got %q", got)
	}
	if !strings.Contains(got, "X_kept: yes\r\n") || !strings.Contains(got, "X-Late: yes\r\n") {
		t.Errorf("the app did not get what is harmless: %q", got)
	}
}

// TestUpgradeWithBody: a body is no frame of a WebSocket.
func TestUpgradeWithBody(t *testing.T) {
	l := open(t)
	w := l.witness(wire.KindHTTP, "/app")
	answer, _ := l.exchange("GET /app HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\nContent-Length: 37\r\n\r\n"+hidden, 15*time.Second)
	got := w.all()
	if !strings.HasPrefix(answer, "HTTP/1.1 200 ") || strings.Contains(got, "Upgrade") || !strings.Contains(got, "Content-Length: 37\r\n") {
		t.Errorf("answered %q; the app got %q", answer, got)
	}
}

// TestFault: a mistake of ours costs the request in which it shows.
func TestFault(t *testing.T) {
	l := open(t)
	l.app(wire.KindHTTP, tell, "/app")
	l.table.mu.Lock()
	l.table.paths["/fault"] = []*registration{{Register: wire.Register{Path: "/fault", Kind: wire.KindHTTP}, hangUp: func() {}}} // without a transport
	l.table.mu.Unlock()
	for _, http2 := range []bool{false, true} {
		c := client(t, http2)
		if answer, err := c.Get("https://" + l.https + "/fault"); err == nil {
			t.Errorf("h2 %v: %s", http2, answer.Status)
		}
		if answer, _ := get(t, c, "https://"+l.https+"/app"); answer.StatusCode != 200 {
			t.Errorf("h2 %v: afterwards: %s", http2, answer.Status)
		}
		c.CloseIdleConnections()
	}
	eventually(t, "all have left", func() bool { return l.counted() == 0 })
}

// TestResend: what has begun to read a body does not send the rest as if it were
// the whole.
func TestResend(t *testing.T) {
	l := open(t)
	c, err := net.Dial("tcp", l.http)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, size := range []int{1, progressBytes - 1, progressBytes, progressBytes + 1} {
		b := &body{left: int64(2 * size), v: &visit{srv: l.Server, c: &conn{TCPConn: c.(*net.TCPConn)}}}
		b.w = &response{head: &head{}}
		b.br = bufio.NewReader(strings.NewReader(strings.Repeat("x", 2*size)))
		if b.touched() {
			t.Fatal("a body that nobody has read is touched")
		}
		if _, err := io.ReadFull(b, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if !b.touched() {
			t.Errorf("after %d bytes a body is untouched", size)
		}
	}
}

// A request that an app broke off is repeated once, if that does no harm.
func TestRepeat(t *testing.T) {
	l := open(t)
	var asked atomic.Int32
	l.app(wire.KindHTTP, func(w http.ResponseWriter, r *http.Request) {
		if n := asked.Add(1); n == 1 || r.URL.Path == "/a/never" {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(w, "here")
	}, "/a")
	for _, test := range []struct {
		method, path, body string
		asked              int32
		status             int
	}{
		{"GET", "/a", "", 2, http.StatusOK},
		{"HEAD", "/a", "", 2, http.StatusOK},
		{"PROPFIND", "/a", "<propfind/>", 1, http.StatusBadGateway},
		{"GET", "/a/never", "", 2, http.StatusBadGateway},
		{"POST", "/a", "", 1, http.StatusBadGateway},
		{"DELETE", "/a", "", 1, http.StatusBadGateway},
	} {
		for _, http2 := range []bool{false, true} {
			asked.Store(0)
			r, err := http.NewRequest(test.method, "https://"+l.https+test.path, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			// A connection that was used already is Go's to repeat.
			l.table.paths["/a"][0].http.CloseIdleConnections()
			answer, _ := do(t, client(t, http2), r)
			if got := asked.Load(); got != test.asked || answer.StatusCode != test.status {
				t.Errorf("h2 %t, %s %s: the app was asked %d times, the answer is %s; want %d and %d", http2, test.method, test.path, got, answer.Status, test.asked, test.status)
			}
		}
	}
}
