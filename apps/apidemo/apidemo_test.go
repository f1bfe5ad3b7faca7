package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	"appplatform/app"
	"appplatform/internal/testpg"
	"appplatform/internal/wire"
)

// newServer starts a PostgreSQL with the database of an instance.
func newServer(t *testing.T) *testpg.Server {
	t.Helper()
	s := testpg.Start(t)
	s.Run(t, nil, []string{"psql", "-q", "-c", "CREATE DATABASE notes", "-c", "CREATE USER notes WITH PASSWORD 'of the database'",
		"-c", "ALTER DATABASE notes OWNER TO notes", "-c", "REVOKE CONNECT ON DATABASE notes FROM public"})
	return s
}

// runApp runs an instance as the manager and the webserver do, and returns a client
// that reaches it.
func runApp(t *testing.T, dbHost string) *http.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	accept := func(name string) chan *wire.Conn {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		conns := make(chan *wire.Conn, 1)
		go func() {
			if c, err := l.Accept(); err == nil {
				conns <- wire.NewConn(c)
			}
		}()
		return conns
	}
	managers, webservers := accept("manager"), accept("web")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- app.Run(ctx, []string{"--service", "apidemo", "--manager", filepath.Join(dir, "manager"), "--run", dir},
			app.Service{Start: start, Health: health, Log: testLog{t}})
	}()
	t.Cleanup(func() { cancel(); <-done })
	manager := <-managers
	if _, err := manager.Receive(); err != nil {
		t.Fatal(err)
	}
	manager.Send(wire.HelloResult{Head: wire.Head{MT: "HelloResult"}})
	manager.Send(wire.StartInstance{
		Head: wire.Head{MT: "StartInstance"}, Instance: "notes@example.com", Name: "notes", Domain: "example.com", Password: "secret",
		Webserver: filepath.Join(dir, "web"), WebserverPath: "/example.com/notes", DBHost: dbHost, DBName: "notes", DBUser: "notes", DBPassword: "of the database",
		LogFlags: app.FlagApp | app.FlagDatabase | app.FlagAppWebSocket,
	})
	var web *wire.Conn
	select {
	case web = <-webservers:
	case <-time.After(time.Minute):
		t.Fatal("the app does not register")
	}
	m, err := web.Receive()
	if err != nil {
		t.Fatal(err)
	}
	var r wire.Register
	if err := m.Decode(&r); err != nil {
		t.Fatal(err)
	}
	web.Send(wire.RegisterResult{Head: wire.Head{MT: "RegisterResult", ID: r.ID}, Path: r.Path})
	var result wire.StartInstanceResult
	if m, err = manager.Receive(); err == nil {
		err = m.Decode(&result)
	}
	if err != nil || result.Error != "" {
		t.Fatalf("StartInstanceResult = %+v, %v", result, err)
	}
	jar, _ := cookiejar.New(nil)
	return &http.Client{Jar: jar, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.Socket)
	}}}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

const base = "http://device/example.com/notes/"

func do(t *testing.T, c *http.Client, method, path, password, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(method, base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if password != "" {
		r.SetBasicAuth("any", password)
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func TestNotes(t *testing.T) {
	pg := newServer(t)
	c := runApp(t, pg.Socket)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	t.Run("API", func(t *testing.T) {
		for _, k := range []struct {
			name, method, path, password, body string
			status                             int
			want                               string
		}{
			{"no password", "GET", "api/notes", "", "", 401, "password"},
			{"a wrong one", "GET", "api/notes", "wrong", "", 401, "password"},
			{"none yet", "GET", "api/notes", "secret", "", 200, "[]"},
			{"add", "POST", "api/notes", "secret", `{"text":" first <b> "}`, 201, `"id":1,"text":"first \u003cb\u003e"`},
			{"empty", "POST", "api/notes", "secret", `{"text":" "}`, 400, "1 to 2000"},
			{"too long", "POST", "api/notes", "secret", `{"text":"` + strings.Repeat("ä", 2001) + `"}`, 400, "1 to 2000"},
			{"with a zero", "POST", "api/notes", "secret", `{"text":"a\u0000"}`, 400, "1 to 2000"},
			{"longest", "POST", "api/notes", "secret", `{"text":"` + strings.Repeat("ä", 2000) + `"}`, 201, `"id":2`},
			{"garbage", "POST", "api/notes", "secret", `{`, 400, "send"},
			{"remove", "DELETE", "api/notes/2", "secret", "", 204, ""},
			{"remove again", "DELETE", "api/notes/2", "secret", "", 404, "no such note"},
			{"remove nothing", "DELETE", "api/notes/x", "secret", "", 400, "number"},
			{"one is left", "GET", "api/notes", "secret", "", 200, `[{"id":1,`},
		} {
			t.Run(k.name, func(t *testing.T) {
				status, text := do(t, c, k.method, k.path, k.password, k.body)
				if status != k.status || !strings.Contains(text, k.want) {
					t.Errorf("%s %s = %d %s; want %d %s", k.method, k.path, status, text, k.status, k.want)
				}
			})
		}
	})

	// What nobody can see any more nobody could delete.
	t.Run("as many as there may be", func(t *testing.T) {
		pg.Run(t, nil, []string{"psql", "-qd", "notes", "-c", fmt.Sprintf("INSERT INTO notes (text) SELECT 'filled' FROM generate_series(2, %d)", maxNotes)})
		if status, text := doAPI(t, c, `{"text":"one more"}`); status != 409 || !strings.Contains(text, "500 notes") {
			t.Errorf("one more note than there may be: %d %s", status, text)
		}
		pg.Run(t, nil, []string{"psql", "-qd", "notes", "-c", "DELETE FROM notes WHERE text = 'filled'"})
	})

	t.Run("guesses at the same time", func(t *testing.T) {
		guess := func(from, password string) (int, string) {
			r, err := http.NewRequest("POST", base+"sign-in", strings.NewReader(url.Values{"password": {password}}.Encode()))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("X-Forwarded-For", from)
			resp, err := c.Transport.RoundTrip(r)
			if err != nil {
				t.Error(err)
				return 0, ""
			}
			defer resp.Body.Close()
			text, _ := io.ReadAll(resp.Body)
			if (resp.StatusCode == 429) != (resp.Header.Get("Retry-After") != "") {
				t.Errorf("%s with Retry-After: %q", resp.Status, resp.Header.Get("Retry-After"))
			}
			return resp.StatusCode, string(text)
		}
		var wrong, many atomic.Int32
		var work sync.WaitGroup
		for range 50 {
			work.Go(func() {
				switch status, text := guess("192.0.2.66", "wrong"); {
				case status == 403 && strings.Contains(text, english.Wrong):
					wrong.Add(1)
				case status == 429 && strings.Contains(text, english.TooMany):
					many.Add(1)
				default:
					t.Errorf("a wrong password is answered by %d %s", status, text)
				}
			})
		}
		work.Wait()
		// Three are free, and then it takes longer each time.
		if wrong.Load() > 10 || wrong.Load()+many.Load() != 50 {
			t.Errorf("of 50 wrong passwords %d were looked at and %d refused", wrong.Load(), many.Load())
		}
		if status, _ := guess("192.0.2.7", "secret"); status != 303 {
			t.Errorf("the right password from elsewhere is answered by %d", status)
		}
	})

	t.Run("form", func(t *testing.T) {
		if _, text := do(t, c, "GET", "", "", ""); !strings.Contains(text, `type="password"`) || strings.Contains(text, "notes.js") {
			t.Errorf("a stranger sees %s", text)
		}
		post := func(password string) *http.Response {
			resp, err := c.PostForm(base+"sign-in", url.Values{"password": {password}})
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			return resp
		}
		if resp := post("wrong"); resp.StatusCode != 403 {
			t.Errorf("a wrong password is answered by %s", resp.Status)
		}
		resp := post("secret")
		if resp.StatusCode != 200 || resp.Request.URL.Path != "/example.com/notes/" {
			t.Errorf("the right password leads to %s, %s", resp.Request.URL, resp.Status)
		}
		if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "script-src 'self'") {
			t.Errorf("Content-Security-Policy: %s", csp)
		}
		if _, text := do(t, c, "GET", "", "", ""); !strings.Contains(text, "notes.js") {
			t.Errorf("who is signed in sees %s", text)
		}
		if status, _ := do(t, c, "GET", "api/notes", "", ""); status != 200 {
			t.Errorf("the API answers who is signed in by %d", status)
		}
		// Another site posts in the name of who is signed in.
		r, _ := http.NewRequest("POST", base+"api/notes", strings.NewReader(`{"text":"evil"}`))
		r.Header.Set("Origin", "https://evil.example")
		if resp, err := c.Do(r); err != nil || resp.StatusCode != 403 {
			t.Errorf("another site posts: %v, %v", resp, err)
		}
	})

	dial := func(t *testing.T, c *http.Client) *websocket.Conn {
		t.Helper()
		ws, _, err := websocket.Dial(ctx, base+"ws", &websocket.DialOptions{HTTPClient: c})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ws.CloseNow() })
		return ws
	}
	next := func(t *testing.T, ws *websocket.Conn, want string) {
		t.Helper()
		var got message
		for {
			got = message{}
			if err := wsjson.Read(ctx, ws, &got); err != nil {
				t.Fatalf("waiting for notes %s: %v", want, err)
			}
			texts := []string{}
			for _, n := range got.Notes {
				texts = append(texts, n.Text)
			}
			if got.MT == "Notes" && strings.Join(texts, ",") == want {
				return
			}
		}
	}
	stranger := &http.Client{Transport: c.Transport}

	t.Run("WebSocket", func(t *testing.T) {
		ws := dial(t, stranger)
		if err := app.SignInTo(ctx, ws, app.Login{App: "notes", DN: "PBX"}, "wrong"); err == nil {
			t.Error("a wrong password is accepted")
		}
		pbx := dial(t, stranger)
		if err := app.SignInTo(ctx, pbx, app.Login{App: "notes", DN: "PBX"}, "secret"); err != nil {
			t.Fatal(err)
		}
		browser := dial(t, c) // signed in by its cookie
		next(t, pbx, "first <b>")
		next(t, browser, "first <b>")
		if err := wsjson.Write(ctx, pbx, message{MT: "Add", Text: "second"}); err != nil {
			t.Fatal(err)
		}
		next(t, browser, "second,first <b>")
		if err := wsjson.Write(ctx, browser, message{MT: "Delete", ID: 1}); err != nil {
			t.Fatal(err)
		}
		next(t, pbx, "second")
		// From elsewhere, as by another process or by hand.
		if status, _ := do(t, c, "POST", "api/notes", "secret", `{"text":"third"}`); status != 201 {
			t.Errorf("POST = %d", status)
		}
		next(t, pbx, "third,second")
		next(t, browser, "third,second")
	})

	// PostgreSQL crashes and comes back; connections of browsers live on.
	t.Run("restart of PostgreSQL", func(t *testing.T) {
		browser := dial(t, c)
		next(t, browser, "third,second")
		pg.Kill()
		if status, text := do(t, c, "GET", "api/notes", "secret", ""); status != 503 || !strings.Contains(text, "the database does not answer") {
			t.Errorf("GET without a database = %d %s", status, text)
		}
		pg.Restart(t)
		for status := 0; status != 201; {
			status, _ = do(t, c, "POST", "api/notes", "secret", `{"text":"fourth"}`)
		}
		next(t, browser, "fourth,third,second")
		if err := wsjson.Write(ctx, browser, message{MT: "Add", Text: "fifth"}); err != nil {
			t.Fatal(err)
		}
		next(t, browser, "fifth,fourth,third,second")
	})
}

// doAPI adds a note as a program does.
func doAPI(t *testing.T, c *http.Client, body string) (int, string) {
	t.Helper()
	return do(t, c, "POST", "api/notes", "secret", body)
}

func TestTexts(t *testing.T) {
	for _, c := range []struct{ languages, want string }{
		{"", "en"}, {"de-AT,de;q=0.9,en;q=0.8", "de"}, {"fr, en-GB, de", "en"}, {"fr", "en"}, {"DE", "de"},
	} {
		if got := textsFor(c.languages).Lang; got != c.want {
			t.Errorf("textsFor(%q) = %s; want %s", c.languages, got, c.want)
		}
	}
	// Both languages say everything.
	for _, texts := range []texts{english, german} {
		text, _ := json.Marshal(texts)
		var all map[string]string
		json.Unmarshal(text, &all)
		for name, value := range all {
			if value == "" {
				t.Errorf("%s has no text %s", texts.Lang, fmt.Sprint(name))
			}
		}
	}
}
