package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"appplatform/app"
	"appplatform/internal/hint"
	"appplatform/manager/internal/model"
)

// A fake is a platform that notes what it is asked for. What it does not have is
// not asked for here.
type fake struct {
	model.Platform
	did  []string
	full int64 // bytes of a GiB
	fail error
}

func (f *fake) note(format string, args ...any) error {
	f.did = append(f.did, fmt.Sprintf(format, args...))
	return f.fail
}

func (f *fake) Token(_ context.Context, secret string) (model.Token, error) {
	if secret != "good" {
		return model.Token{}, model.ErrPassword
	}
	return model.Token{ID: "1", Name: "ci"}, nil
}

func (f *fake) System(context.Context) (model.System, error) {
	return model.System{Manager: "160001", Image: "160000", Board: "x86_64", Arch: "x86_64"}, f.fail
}

func (f *fake) Services(context.Context) ([]model.Service, error) {
	return []model.Service{{ID: "apidemo", State: model.Running}}, f.fail
}

func (f *fake) Service(_ context.Context, id string) (model.Service, error) {
	return model.Service{ID: id, LogSize: 7, Limits: model.Limits{MemoryMiB: 64}}, f.fail
}

func (f *fake) SetService(_ context.Context, s model.Service, by model.Actor) error {
	return f.note("set %s %+v %d by %s", s.ID, s.Limits, s.LogSize, by)
}

func (f *fake) StartService(_ context.Context, id string, by model.Actor) error {
	return f.note("start %s by %s", id, by)
}

func (f *fake) Install(_ context.Context, app, build string, by model.Actor) (model.Job, error) {
	return model.Job{ID: "5"}, f.note("install %s %s by %s", app, build, by)
}

func (f *fake) Room() int64 { return 1<<30 - f.full }

func (f *fake) Upload(_ context.Context, app string, program, files io.Reader, by model.Actor) (model.Job, error) {
	p, _ := io.ReadAll(program)
	var z []byte
	if files != nil {
		z, _ = io.ReadAll(files)
	}
	return model.Job{}, f.note("upload %s %q %q", app, p, z)
}

func (f *fake) DeleteInstance(_ context.Context, id int64, by model.Actor) error {
	return f.note("delete %d by %s", id, by)
}

func (f *fake) Instance(_ context.Context, id int64) (model.Instance, error) {
	return model.Instance{ID: id, Name: "notes", Domain: "example.com"}, f.fail
}

func (f *fake) SetInstance(_ context.Context, i model.Instance, by model.Actor) error {
	return f.note("set %d %s by %s", i.ID, i.Key(), by)
}

func (f *fake) Log(_ context.Context, name string, follow bool) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("line of " + name)), f.note("log %s %t", name, follow)
}

func (f *fake) SetManagerPassword(_ context.Context, old, new string, by model.Actor) error {
	return f.note("password %s %s by %s", old, new, by)
}

func (f *fake) SignInDigest(_ context.Context, digest string, make func(string) string, by model.Actor) error {
	if digest != make("pwd") {
		return model.ErrPassword
	}
	return f.note("sign in by %s", by)
}

func (f *fake) Notices(context.Context) []model.Notice {
	return []model.Notice{{Code: "default-password"}}
}

func TestREST(t *testing.T) {
	for _, test := range []struct {
		name, method, path, token, body string
		fail                            error
		status                          int
		want, did                       string
	}{
		{"without token", "GET", "/services", "", "", nil, 401, "a token is missing", ""},
		{"wrong token", "GET", "/services", "bad", "", nil, 401, "password is wrong", ""},
		{"list", "GET", "/services", "good", "", nil, 200, `"id": "apidemo"`, ""},
		{"change", "POST", "/services/apidemo/start", "good", "", nil, 204, "", "start apidemo by {token ci 192.0.2.9}"},
		{"a part of the values", "PUT", "/services/apidemo", "good", `{"limits": {"processes": 20}}`, nil, 204, "", "set apidemo {MemoryMiB:64 CPUPercent:0 Processes:20} 7 by {token ci 192.0.2.9}"},
		{"a job", "POST", "/install", "good", `{"app": "a", "build": "1"}`, nil, 200, `"id": "5"`, "install a 1 by {token ci 192.0.2.9}"},
		{"misspelled", "POST", "/install", "good", `{"ap": "a"}`, nil, 400, "unknown field", ""},
		{"garbage", "POST", "/install", "good", `{`, nil, 400, "cannot be read", ""},
		{"an endless body", "POST", "/install", "good", `{"app": "` + strings.Repeat("x", maxBody), nil, 400, "cannot be read", ""},
		{"instance", "DELETE", "/instances/12", "good", "", nil, 204, "", "delete 12 by {token ci 192.0.2.9}"},
		{"no number", "DELETE", "/instances/x", "good", "", nil, 404, "not found", ""},
		{"another number in the body", "PUT", "/instances/12", "good", `{"id": 13, "name": "n"}`, nil, 204, "", "set 12 n@example.com by {token ci 192.0.2.9}"},
		{"a program", "POST", "/upload/a", "good", "ELF", nil, 200, "", `upload a "ELF" ""`},
		{"text", "GET", "/logs/apidemo?follow=1", "good", "", nil, 200, "line of apidemo", "log apidemo true"},
		{"not there", "GET", "/services/x", "good", "", fmt.Errorf("the app is %w", model.ErrNotFound), 404, "the app is not found", ""},
		{"no database", "GET", "/services", "good", "", fmt.Errorf("%w: gone", model.ErrUnavailable), 503, "does not answer", ""},
		{"with a way out", "GET", "/services", "good", "", hint.Errorf("do this", "no"), 422, `"hint": "do this"`, ""},
		{"no such request", "GET", "/nothing", "good", "", nil, 404, "no such request", ""},
		{"another method", "POST", "/services", "good", "", nil, 404, "no such request", ""},
	} {
		f := &fake{fail: test.fail}
		r := httptest.NewRequest(test.method, Base+test.path, strings.NewReader(test.body))
		r.Header.Set("X-Forwarded-For", "192.0.2.9")
		if test.token != "" {
			r.Header.Set("Authorization", "Bearer "+test.token)
		}
		w := httptest.NewRecorder()
		New(f, f, "").ServeHTTP(w, r)
		if w.Code != test.status || !strings.Contains(w.Body.String(), test.want) || strings.Join(f.did, "; ") != test.did {
			t.Errorf("%s: %d %s, did %q; want %d %q and %q", test.name, w.Code, w.Body, f.did, test.status, test.want, test.did)
		}
	}
}

// Root on the machine needs no token, and is named in the audit log.
func TestConsole(t *testing.T) {
	f := &fake{}
	w := httptest.NewRecorder()
	New(f, f, "").Console().ServeHTTP(w, httptest.NewRequest("POST", Base+"/services/a/start", nil))
	if w.Code != 204 || !slices.Equal(f.did, []string{"start a by {console console}"}) {
		t.Errorf("%d %s, did %q", w.Code, w.Body, f.did)
	}
}

func TestUploadForm(t *testing.T) {
	f := &fake{}
	const body = "--B\r\nContent-Disposition: form-data; name=\"files\"; filename=\"f\"\r\n\r\nZIP\r\n--B\r\nContent-Disposition: form-data; name=\"program\"; filename=\"p\"\r\n\r\nELF\r\n--B--\r\n"
	r := httptest.NewRequest("POST", Base+"/upload/a", strings.NewReader(body))
	r.Header.Set("Content-Type", "multipart/form-data; boundary=B")
	w := httptest.NewRecorder()
	New(f, f, "").Console().ServeHTTP(w, r)
	if w.Code != 200 || !slices.Equal(f.did, []string{`upload a "ELF" "ZIP"`}) {
		t.Errorf("%d %s, did %q", w.Code, w.Body, f.did)
	}
}

// The page that lists the requests has all of them and no others.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("../../../docs/manager-api.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed, known []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([A-Z]+ /[^`]*)` \\|").FindAllStringSubmatch(string(text), -1) {
		listed = append(listed, m[1])
	}
	for _, r := range routes {
		known = append(known, r.method+" "+r.path)
	}
	slices.Sort(listed)
	slices.Sort(known)
	if !slices.Equal(listed, known) {
		t.Errorf("docs/manager-api.md lists\n%q\nand there are\n%q", listed, known)
	}
	for mt := range requests {
		if !strings.Contains(string(text), "`"+mt+"`") {
			t.Errorf("docs/manager-api.md does not have %s", mt)
		}
	}
}

// dial opens the WebSocket as the vendor's Go client does.
func dial(t *testing.T, f *fake) *websocket.Conn {
	t.Helper()
	return dialTo(t, New(f, f, ""))
}

func dialTo(t *testing.T, a *API) *websocket.Conn {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !IsWebSocket(r) {
			t.Error("it is not taken for a WebSocket")
		}
		a.WebSocket(w, r)
	}))
	t.Cleanup(s.Close)
	c, _, err := websocket.Dial(t.Context(), s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	return c
}

var admin = app.Login{App: "manager", SIP: "manager", GUID: strings.Repeat("0", 32), DN: "Admin"}

func ask(t *testing.T, c *websocket.Conn, message string) map[string]any {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
		t.Fatal(err)
	}
	_, text, err := c.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var answer map[string]any
	if err := json.Unmarshal(text, &answer); err != nil {
		t.Fatal(err)
	}
	return answer
}

// P5: the login of AppWebsocket and what can be asked behind it.
func TestWebSocket(t *testing.T) {
	f := &fake{}
	c := dial(t, f)
	login := admin
	login.Info = json.RawMessage(`{"a":1}`)
	if err := app.SignInTo(t.Context(), c, login, "pwd"); err != nil {
		t.Fatal(err)
	}
	got := ask(t, c, `{"mt": "AppPlatformInfoRequest", "src": {"n": 7}}`)
	if got["mt"] != "AppPlatformInfoResult" || got["version"] != "160001" || fmt.Sprint(got["src"]) != "map[n:7]" {
		t.Errorf("the answer is %v", got)
	}
	got = ask(t, c, `{"mt": "StartServiceRequest", "service": "apidemo", "api": "x"}`)
	if got["mt"] != "StartServiceResult" || got["error"] != nil || got["api"] != "x" || !slices.Contains(f.did, "start apidemo by {program }") {
		t.Errorf("the answer is %v, done is %q", got, f.did)
	}
	f.fail = hint.Errorf("try again", "it is on fire")
	got = ask(t, c, `{"mt": "StartServiceRequest", "service": "apidemo"}`)
	if got["error"] != "it is on fire" || got["hint"] != "try again" {
		t.Errorf("the answer is %v", got)
	}
	if got = ask(t, c, `{"mt": "Nonsense"}`); got["error"] == nil {
		t.Errorf("the answer is %v", got)
	}
}

// Whoever has signed in with the password before the present one is not served.
func TestWebSocketAfterNewPassword(t *testing.T) {
	f := &fake{}
	a := New(f, f, "")
	c := dialTo(t, a)
	if err := app.SignInTo(t.Context(), c, admin, "pwd"); err != nil {
		t.Fatal(err)
	}
	a.EndSessions()
	if err := c.Write(t.Context(), websocket.MessageText, []byte(`{"mt": "StopServiceRequest", "service": "apidemo"}`)); err != nil {
		t.Fatal(err)
	}
	if _, text, err := c.Read(t.Context()); err == nil {
		t.Errorf("it is answered: %s", text)
	}
	if slices.ContainsFunc(f.did, func(what string) bool { return strings.HasPrefix(what, "stop") }) {
		t.Errorf("done is %q; want no stop", f.did)
	}
}

func TestWebSocketRefuses(t *testing.T) {
	if err := app.SignInTo(t.Context(), dial(t, &fake{}), admin, "wrong"); !errors.Is(err, app.ErrSignIn) {
		t.Errorf("a wrong password: %v; want %v", err, app.ErrSignIn)
	}
	// The same digest again, for which another challenge is waiting by then.
	c := dial(t, &fake{})
	challenge, _ := ask(t, c, `{"mt": "AppChallenge"}`)["challenge"].(string)
	if challenge == "" || len(challenge) > 16 {
		t.Errorf("the challenge is %q; want at most 16 characters", challenge)
	}
	for name, messages := range map[string][]string{
		"without login": {`{"mt": "AppPlatformInfoRequest"}`},
		"no JSON":       {`hello`},
		"no mt":         {`{}`},
		"digest of another challenge": {`{"mt": "AppChallenge"}`, fmt.Sprintf(`{"mt": "AppLogin", "app": "manager", "sip": "manager", "guid": %q, "dn": "Admin", "digest": %q}`,
			admin.GUID, admin.Digest(challenge, "pwd"))},
	} {
		f := &fake{}
		c := dial(t, f)
		for _, m := range messages {
			if err := c.Write(t.Context(), websocket.MessageText, []byte(m)); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		for range 10 {
			if _, _, err = c.Read(ctx); err != nil {
				break
			}
		}
		cancel()
		if websocket.CloseStatus(err) != websocket.StatusPolicyViolation || len(f.did) > 0 {
			t.Errorf("%s: the connection ends with %v, and did %q", name, err, f.did)
		}
	}
}

// A token that comes without encryption is refused, whatever it may do.
func TestNoPlainHTTP(t *testing.T) {
	f := &fake{}
	for proto, want := range map[string]int{"http": http.StatusForbidden, "https": http.StatusNoContent} {
		r := httptest.NewRequest("POST", Base+"/services/apidemo/start", nil)
		r.Header.Set("Authorization", "Bearer good")
		r.Header.Set("X-Forwarded-Proto", proto)
		w := httptest.NewRecorder()
		New(f, f, "").ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("%s is answered by %d; want %d", proto, w.Code, want)
		}
	}
	if len(f.did) != 1 {
		t.Errorf("done is %q; want one thing", f.did)
	}
}

// A form has two fields, once each: others would only fill the memory.
func TestUploadHasTwoFields(t *testing.T) {
	f := &fake{}
	for _, fields := range [][]string{{"program", "program"}, {"program", "else"}} {
		var body bytes.Buffer
		form := multipart.NewWriter(&body)
		for _, name := range fields {
			part, err := form.CreateFormFile(name, "x")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = part.Write([]byte("x"))
		}
		if err := form.Close(); err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("POST", Base+"/upload/x", &body)
		r.Header.Set("Authorization", "Bearer good")
		r.Header.Set("Content-Type", form.FormDataContentType())
		w := httptest.NewRecorder()
		New(f, f, "").ServeHTTP(w, r)
		if w.Code != http.StatusBadRequest {
			t.Errorf("a form with the fields %q is answered by %d: %s", fields, w.Code, w.Body)
		}
	}
}

// An upload that will not fit is refused before it takes any room, and one of which
// nobody knows the length when there is none left.
func TestUploadWithoutRoom(t *testing.T) {
	folder := t.TempDir()
	var form bytes.Buffer
	m := multipart.NewWriter(&form)
	part, err := m.CreateFormFile("program", "p")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := part.Write(make([]byte, 3<<20)); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, kind string
		length     bool
		room       int64
		want       int
	}{
		{"a program that fits", "application/octet-stream", true, 4 << 20, 200},
		{"a program that does not", "application/octet-stream", true, 2 << 20, 422},
		{"a form that fits", m.FormDataContentType(), true, 8 << 20, 200},
		{"a form that does not fit twice", m.FormDataContentType(), true, 5 << 20, 422},
		{"a form without a length", m.FormDataContentType(), false, 1 << 10, 422},
	} {
		f := &fake{full: 1<<30 - test.room}
		r := httptest.NewRequest("POST", Base+"/upload/x", bytes.NewReader(form.Bytes()))
		if !test.length {
			r.ContentLength = -1
		}
		r.Header.Set("Authorization", "Bearer good")
		r.Header.Set("Content-Type", test.kind)
		w := httptest.NewRecorder()
		New(f, f, folder).ServeHTTP(w, r)
		refused := strings.Contains(w.Body.String(), "does not fit on the disk") && strings.Contains(w.Body.String(), "diskfree")
		if w.Code != test.want || refused != (test.want == 422) || (len(f.did) == 0) != refused {
			t.Errorf("%s is answered by %d %.200s; want %d", test.name, w.Code, w.Body, test.want)
		}
	}
	if left, _ := os.ReadDir(folder); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}
