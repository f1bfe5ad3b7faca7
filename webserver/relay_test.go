package webserver

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appplatform/internal/wire"
)

// seen is what the app tells about a request.
type seen struct {
	Method, URI, Host, Sum string
	Length                 int64
	Header, Trailer        http.Header
}

func tell(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	_, err := io.Copy(h, r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("X-App", "yes")
	w.Header().Set("Connection", "X-Secret")
	w.Header().Set("X-Secret", "between app and webserver")
	_ = json.NewEncoder(w).Encode(seen{r.Method, r.RequestURI, r.Host, fmt.Sprintf("%x", h.Sum(nil)), r.ContentLength, r.Header, r.Trailer})
}

// TestForward asks what an app sees of a request, over each way that there is.
func TestForward(t *testing.T) {
	l := open(t)
	l.app(wire.KindHTTP, tell, "/app")
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, way := range []struct {
		name, base, proto string
		http2             bool
	}{{"http", "http://" + l.http, "http", false}, {"https", "https://" + l.https, "https", false}, {"h2", "https://" + l.https, "https", true}} {
		c := client(t, way.http2)
		for _, method := range methods {
			for _, body := range []io.Reader{nil, bytes.NewReader(big), io.MultiReader(bytes.NewReader(big[:1000]))} {
				if method == "HEAD" && body != nil {
					continue
				}
				length := int64(0)
				content := []byte{}
				switch body.(type) {
				case nil:
				case *bytes.Reader:
					length, content = int64(len(big)), big
				default:
					length, content = -1, big[:1000]
				}
				r, err := http.NewRequest(method, way.base+"/app/x%2Fy?q=%20&r=1", body)
				if err != nil {
					t.Fatal(err)
				}
				r.Host = "platform.example"
				for name, value := range map[string]string{"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "gopher", "X-Real-IP": "6.6.6.6",
					"Forwarded": "for=6.6.6.6", "Proxy-Authorization": "secret", "X-Own": "kept", "Te": "trailers"} {
					r.Header.Set(name, value)
				}
				if !way.http2 {
					r.Header.Set("Connection", "X-Hop")
					r.Header.Set("X-Hop", "gone")
				}
				if length < 0 {
					r.Trailer = http.Header{"X-Late": {"at the end"}}
				}
				answer, text := do(t, c, r)
				if answer.StatusCode != 200 || answer.Header.Get("X-App") != "yes" || answer.Header.Get("X-Secret") != "" {
					t.Fatalf("%s %s: %s %v", way.name, method, answer.Status, answer.Header)
				}
				if method == "HEAD" {
					continue
				}
				got := decode[seen](t, text)
				if got.Method != method || got.URI != "/app/x%2Fy?q=%20&r=1" || got.Host != "platform.example" || got.Length != length || got.Sum != fmt.Sprintf("%x", sha256.Sum256(content)) {
					t.Errorf("%s %s with a body of %d: the app saw %+v", way.name, method, length, got)
				}
				for name, want := range map[string]string{"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": way.proto, "X-Forwarded-Host": "platform.example",
					"X-Real-Ip": "", "Forwarded": "", "Proxy-Authorization": "", "X-Own": "kept", "X-Hop": "", "Te": "trailers"} {
					if value := strings.Join(got.Header[name], ","); value != want {
						t.Errorf("%s %s: the app saw %s: %q; want %q", way.name, method, name, value, want)
					}
				}
				if length < 0 && got.Trailer.Get("X-Late") != "at the end" {
					t.Errorf("%s %s: the app saw the trailer %v", way.name, method, got.Trailer)
				}
			}
		}
	}
}

// TestPaths: the longest path wins, by whole segments and case.
func TestPaths(t *testing.T) {
	l := open(t)
	for _, path := range []string{"", "/manager", "/dom/app", "/dom/app/deep"} {
		l.app(wire.KindHTTP, func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "[%s]", path) }, path)
	}
	c := client(t, false)
	for path, want := range map[string]string{
		"/": "[]", "/manager": "[/manager]", "/manager/": "[/manager]", "/manager/x?y": "[/manager]", "/managers": "[]", "/Manager": "[]",
		"/dom": "[]", "/dom/app": "[/dom/app]", "/dom/app/dee": "[/dom/app]", "/dom/app/deep": "[/dom/app/deep]", "/dom/app/deep/er": "[/dom/app/deep]",
		"/dom/app/deeper": "[/dom/app]", "/dom/%61pp": "[/dom/app]", "/dom/app" + strings.Repeat("/", 3000): "[/dom/app]", "//manager": "[]",
	} {
		if _, got := get(t, c, "http://"+l.http+path); got != want {
			t.Errorf("GET %.40s = %s; want %s", path, got, want)
		}
	}
}

func TestAnswers(t *testing.T) {
	l := open(t)
	l.app(wire.KindHTTP, func(w http.ResponseWriter, r *http.Request) {
		switch strings.TrimPrefix(r.URL.Path, "/app/") {
		case "trailer":
			w.Header().Set("Trailer", "X-Sum")
			io.WriteString(w, "body")
			w.(http.Flusher).Flush()
			w.Header().Set("X-Sum", "42")
		case "none":
			w.WriteHeader(http.StatusNoContent)
		case "same":
			w.Header().Set("ETag", `"x"`)
			w.WriteHeader(http.StatusNotModified)
		case "broken":
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "broken-chunks":
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		case "nothing":
			panic(http.ErrAbortHandler)
		case "range":
			http.ServeContent(w, r, "x", time.Time{}, strings.NewReader("0123456789"))
		}
	}, "/app")
	// Go's server would wait for the body, this app does not.
	early := l.listen("early.sock")
	go func() {
		for {
			c, err := early.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 11\r\n\r\nwho are you")
		}
	}()
	l.register(wire.KindHTTP, early.Addr().String(), "/early")
	for _, http2 := range []bool{false, true} {
		c := client(t, http2)
		url := "https://" + l.https + "/app/"
		if answer, text := get(t, c, url+"trailer"); text != "body" || answer.Trailer.Get("X-Sum") != "42" {
			t.Errorf("h2 %v: trailer %v, body %q", http2, answer.Trailer, text)
		}
		for path, want := range map[string]int{"none": 204, "same": 304, "nothing": 502} {
			if answer, _ := get(t, c, url+path); answer.StatusCode != want {
				t.Errorf("h2 %v: %s = %s; want %d", http2, path, answer.Status, want)
			}
		}
		for _, path := range []string{"broken", "broken-chunks"} {
			answer, err := c.Get(url + path)
			if err != nil {
				continue // HTTP/2 may have nothing sent yet
			}
			if text, err := io.ReadAll(answer.Body); err == nil {
				t.Errorf("h2 %v: %s, which the app broke off, came as %q without an error", http2, path, text)
			}
			answer.Body.Close()
		}
		if answer, text := get(t, c, url+"range", "Range", "bytes=2-4"); answer.StatusCode != 206 || text != "234" {
			t.Errorf("h2 %v: range: %s %q", http2, answer.Status, text)
		}
		r, _ := http.NewRequest("HEAD", url+"range", nil)
		if answer, text := do(t, c, r); answer.ContentLength != 10 || text != "" {
			t.Errorf("h2 %v: HEAD: length %d, %q", http2, answer.ContentLength, text)
		}
		// The answer comes although the body never ends.
		pr, pw := io.Pipe()
		go func() { _, _ = pw.Write(make([]byte, 1000)) }()
		r, _ = http.NewRequest("POST", "https://"+l.https+"/early", pr)
		if answer, text := do(t, c, r); answer.StatusCode != 401 || text != "who are you" {
			t.Errorf("h2 %v: early answer: %s %q", http2, answer.Status, text)
		}
		pw.Close()
	}
}

// TestStreams: parts of an answer come when the app sends them.
func TestStreams(t *testing.T) {
	l := open(t)
	step := make(chan bool)
	gone := make(chan bool, 2)
	l.app(wire.KindHTTP, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/app/wait" {
			<-r.Context().Done()
			gone <- true
			return
		}
		w.(http.Flusher).Flush()
		for range 3 {
			<-step
			io.WriteString(w, "data: x\n\n")
			w.(http.Flusher).Flush()
		}
	}, "/app")
	for _, http2 := range []bool{false, true} {
		answer, err := client(t, http2).Get("https://" + l.https + "/app/events")
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			step <- true
			part := make([]byte, 9)
			if _, err := io.ReadFull(answer.Body, part); err != nil || string(part) != "data: x\n\n" {
				t.Fatalf("h2 %v: %q, %v", http2, part, err)
			}
		}
		answer.Body.Close()
		// The app learns that nobody waits any more.
		c := client(t, http2)
		c.Timeout = 1500 * time.Millisecond
		if _, err := c.Get("https://" + l.https + "/app/wait"); err == nil {
			t.Fatal("an answer came that was never sent")
		}
		select {
		case <-gone:
		case <-time.After(20 * time.Second):
			t.Errorf("h2 %v: the app was not told that the client has gone", http2)
		}
	}
}

// TestContinue: a client that waits to be asked for its body is asked when the
// app reads it, and not when the app does not want it.
func TestContinue(t *testing.T) {
	l := open(t)
	l.app(wire.KindHTTP, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/app/no" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		text, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "got %s", text)
	}, "/app")
	for _, test := range []struct{ path, first, last string }{
		{"/app/yes", "HTTP/1.1 100 Continue\r\n\r\n", "got body"},
		{"/app/no", "HTTP/1.1 403 Forbidden\r\n", "no\n"},
	} {
		c, err := net.Dial("tcp", l.http)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n", test.path)
		first := make([]byte, len(test.first))
		if _, err := io.ReadFull(c, first); err != nil || string(first) != test.first {
			t.Fatalf("%s: %q, %v; want %q", test.path, first, err, test.first)
		}
		_, _ = io.WriteString(c, "body")
		rest, _ := io.ReadAll(c)
		if !strings.HasSuffix(string(rest), test.last) {
			t.Errorf("%s: %q; want %q at its end", test.path, rest, test.last)
		}
	}
}

func TestWebSocket(t *testing.T) {
	l := open(t)
	l.app(wire.KindHTTP, echoSocket, "/app")
	l.app(wire.KindWebSocket, echoSocket, "/only")
	for _, secure := range []bool{false, true} {
		for _, path := range []string{"/app/ws", "/only"} {
			c, br, answer := l.dialSocket(path, secure)
			if answer.StatusCode != 101 || answer.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || answer.Header.Get("X-Path") != path {
				t.Fatalf("%s: %s %v", path, answer.Status, answer.Header)
			}
			for _, size := range []int{1, 100, 4096, 4097, 70000, 1 << 20, 3} {
				echoes(t, c, br, strings.Repeat("x", size))
			}
			c.Close()
		}
	}
	eventually(t, "the relays have ended", func() bool { return l.webSockets.Load() == 0 && l.door.count() == 0 })
	if answer, _ := get(t, client(t, false), "https://"+l.https+"/only"); answer.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("GET of a WebSocket's path: %s", answer.Status)
	}
	if answer, text := get(t, client(t, false), "https://"+l.https+"/app"); answer.StatusCode != http.StatusTeapot || text != "no WebSocket\n" {
		t.Errorf("GET of a path that has both: %s %q", answer.Status, text)
	}
	// What is sent behind the request at once belongs to the app as well.
	c, err := net.Dial("tcp", l.http)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, "GET /app HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: WebSocket\r\n\r\nearly bird")
	br := bufio.NewReader(c)
	answer, err := http.ReadResponse(br, nil)
	if err != nil || answer.StatusCode != 101 {
		t.Fatalf("%v, %v", answer, err)
	}
	early := make([]byte, len("early bird"))
	if _, err := io.ReadFull(br, early); err != nil || string(early) != "early bird" {
		t.Errorf("early bytes: %q, %v", early, err)
	}
}

func TestPassThrough(t *testing.T) {
	l := open(t)
	u := l.listen("pass.sock")
	l.register(wire.KindPassThrough, u.Addr().String(), "/pass")
	const request = "POST /pass/x HTTP/1.1\r\nhost: x\r\nx-ODD-case:   spaces  \r\nX-Forwarded-For: 1.2.3.4\r\nContent-Length: 3\r\n\r\nabcand what is not HTTP\x00\xff"
	done := make(chan string, 1)
	go func() {
		c, err := u.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		got := make([]byte, len(request))
		_, _ = io.ReadFull(c, got)
		_, _ = io.WriteString(c, "any answer")
		rest, _ := io.ReadAll(c) // the client's end comes through
		done <- string(got) + string(rest)
	}()
	c, err := net.Dial("tcp", l.http)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	_, _ = io.WriteString(c, request)
	answer := make([]byte, len("any answer"))
	if _, err := io.ReadFull(c, answer); err != nil || string(answer) != "any answer" {
		t.Fatalf("answer %q, %v", answer, err)
	}
	_ = c.(*net.TCPConn).CloseWrite()
	if got := <-done; got != request {
		t.Errorf("the app got\n%q; want\n%q", got, request)
	}
	if answer, _ := get(t, client(t, true), "https://"+l.https+"/pass"); answer.StatusCode != http.StatusHTTPVersionNotSupported {
		t.Errorf("over HTTP/2: %s", answer.Status)
	}
}

// TestAppRestarts: a request waits for an app that is away for a moment.
func TestAppRestarts(t *testing.T) {
	l := open(t)
	path := filepath.Join(l.dir, "app.sock")
	serve := func() *http.Server {
		u := l.listen("app.sock")
		s := &http.Server{Handler: http.HandlerFunc(tell)}
		go func() { _ = s.Serve(u) }()
		return s
	}
	reg := l.register(wire.KindHTTP, path, "/app")
	c := client(t, false)
	url := "http://" + l.http + "/app"
	ask := func() chan int {
		status := make(chan int, 1)
		go func() {
			answer, err := c.Post(url, "text/plain", strings.NewReader("once"))
			if err != nil {
				status <- 0
				return
			}
			answer.Body.Close()
			status <- answer.StatusCode
		}()
		return status
	}
	// The socket is not there yet.
	status := ask()
	eventually(t, "the request waits", func() bool { return l.waiters.Load() == 1 })
	s := serve()
	if got := <-status; got != 200 {
		t.Fatalf("before the first start: %d", got)
	}
	// The process has died: its socket is there, and nobody listens.
	s.Close()
	status = ask()
	eventually(t, "the request waits", func() bool { return l.waiters.Load() == 1 })
	os.Remove(path)
	serve()
	if got := <-status; got != 200 {
		t.Fatalf("after its death: %d", got)
	}
	// Its registration has gone with it.
	reg.Close()
	eventually(t, "the path is free", func() bool { return len(l.table.all()) == 0 })
	status = ask()
	eventually(t, "the request waits", func() bool { return l.waiters.Load() == 1 })
	l.register(wire.KindHTTP, path, "/app")
	if got := <-status; got != 200 {
		t.Fatalf("after it has registered again: %d", got)
	}
	if answer, _ := get(t, c, "http://"+l.http+"/other"); answer.StatusCode != 404 {
		t.Errorf("a path that nobody ever had: %s", answer.Status)
	}
}
