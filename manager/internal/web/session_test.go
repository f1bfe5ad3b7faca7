package web

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"appplatform/manager/internal/model"
)

func TestSignIn(t *testing.T) {
	c := newClient(t, newPlatform())
	answer := c.send(httptest.NewRequest("GET", "/manager/app/notes?x=1", nil))
	want := "/manager/signin?to=" + url.QueryEscape("/manager/app/notes?x=1")
	if got := answer.Header.Get("Location"); answer.StatusCode != http.StatusSeeOther || got != want {
		t.Fatalf("a stranger gets %d %s; want %s", answer.StatusCode, got, want)
	}
	if answer := c.signIn("wrong"); answer.StatusCode != http.StatusUnauthorized || c.cookie != "" {
		t.Fatalf("a wrong password gives %d and the cookie %q", answer.StatusCode, c.cookie)
	}
	for range 5 {
		answer = c.signIn("wrong")
	}
	if text, _ := io.ReadAll(answer.Body); answer.StatusCode != http.StatusTooManyRequests || !strings.Contains(words(string(text)), "try again in 30 s") {
		t.Errorf("after many wrong passwords: %d %s", answer.StatusCode, words(string(text)))
	}
	answer = c.post("/manager/signin", url.Values{"password": {"pwd"}, "to": {"/manager/app/notes?x=1"}})
	if got := answer.Header.Get("Location"); got != "/manager/app/notes?x=1" {
		t.Errorf("signing in leads to %q", got)
	}
	k := answer.Cookies()[0]
	if !k.Secure || !k.HttpOnly || k.SameSite != http.SameSiteStrictMode || k.Path != "/manager" || len(k.Value) != 43 {
		t.Errorf("the cookie is %v", k)
	}
	for to, want := range map[string]string{"https://evil.example.com/": Base, "//evil.example.com/manager": Base, `/manager\..\evil`: Base, "/managers": Base, "/manager/../x": "/manager/../x"} {
		if got := local(to); got != want {
			t.Errorf("local(%q) = %q; want %q", to, got, want)
		}
	}
}

// TestActor: the log of changes names the address that the webserver saw, whatever a
// browser says of itself.
func TestActor(t *testing.T) {
	p := newPlatform()
	c := newClient(t, p)
	c.header.Set("X-Forwarded-For", "198.51.100.1, 2001:db8::7")
	c.signIn("pwd")
	c.submit("/manager/app/notes/stop")
	want := model.Actor{Who: "admin", From: "2001:db8::7"}
	if !slices.Equal(p.by, []model.Actor{want, want}) {
		t.Errorf("%v; want %v twice", p.by, want)
	}
}

func TestSessions(t *testing.T) {
	p := newPlatform()
	c := signedIn(t, p)
	file := c.site.sessions.file
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the file of sessions: %v %v", info, err)
	}
	if text, _ := os.ReadFile(file); bytes.Contains(text, []byte(c.cookie)) {
		t.Error("the file has the secret of a session")
	}
	c.site = New(p, Options{Folder: filepath.Dir(file)})
	if status, _ := c.get("/manager"); status != http.StatusOK {
		t.Errorf("after a restart of the manager: %d", status)
	}

	now := time.Now()
	c.site.sessions.now = func() time.Time { return now }
	now = now.Add(idle - time.Minute)
	if status, _ := c.get("/manager"); status != http.StatusOK {
		t.Errorf("a minute before its end: %d", status)
	}
	now = now.Add(idle - time.Minute)
	c.header.Set("X-Live", "1")
	if status, _ := c.get("/manager"); status != http.StatusOK {
		t.Errorf("the script, a minute before its end: %d", status)
	}
	now = now.Add(2 * time.Minute)
	if status, _ := c.get("/manager"); status != http.StatusUnauthorized {
		t.Errorf("the script kept a session that nobody used: %d", status)
	}
	c.header.Del("X-Live")

	c.signIn("pwd")
	other := &client{T: t, site: c.site, header: c.header}
	other.signIn("pwd")
	if _, page := c.submit("/manager/settings/password/manager", "old", "pwd", "password", "new", "again", "new"); !strings.Contains(page, "The password was changed") {
		t.Errorf("changing the password: %s", words(page))
	}
	if status, _ := other.get("/manager"); status != http.StatusSeeOther {
		t.Errorf("another session after the change of the password: %d", status)
	}
	if status, _ := c.get("/manager"); status != http.StatusOK {
		t.Errorf("one's own session after the change of the password: %d", status)
	}
	if err := p.SignIn(t.Context(), "new", model.Actor{}); err != nil {
		t.Error(err)
	}
	secret := c.cookie
	c.submit("/manager/signout")
	c.cookie = secret
	if status, _ := c.get("/manager"); status != http.StatusSeeOther {
		t.Errorf("a session that was signed out: %d", status)
	}
	for range 3 * mostSessions {
		c.site.sessions.begin()
	}
	if n := len(c.site.sessions.open); n != mostSessions {
		t.Errorf("%d sessions are kept; want %d", n, mostSessions)
	}
}

// TestSessionFile: whatever is in the file, the manager starts.
func TestSessionFile(t *testing.T) {
	for _, text := range []string{"", "{", "[null]", `[{"hash":"short"}]`, `{"a":1}`} {
		folder := t.TempDir()
		if err := os.WriteFile(filepath.Join(folder, "sessions.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c := &client{T: t, site: New(newPlatform(), Options{Folder: folder}), header: http.Header{"X-Forwarded-Proto": {"https"}}}
		if n := len(c.site.sessions.open); n != 0 {
			t.Errorf("%q gives %d sessions", text, n)
		}
		c.signIn("pwd")
		if status, _ := c.get("/manager"); status != http.StatusOK {
			t.Errorf("with the file %q: %d", text, status)
		}
	}
	// A folder that cannot be written, as on a full disk.
	c := &client{T: t, site: New(newPlatform(), Options{Folder: filepath.Join(t.TempDir(), "missing")}), header: http.Header{"X-Forwarded-Proto": {"https"}}}
	c.signIn("pwd")
	if status, _ := c.get("/manager"); status != http.StatusOK {
		t.Errorf("without a place for sessions: %d", status)
	}
}

// postPaths are all addresses that change something, from the routes themselves.
func postPaths(t *testing.T) (paths []string) {
	source, err := os.ReadFile("web.go")
	if err != nil {
		t.Fatal(err)
	}
	fill := strings.NewReplacer("{app}", "notes", "{id}", "1", "{job}", "j2", "{user}", "root", "{token}", "t1", "{program}", "reports", "{name}", "core.reports.4711")
	for _, m := range regexp.MustCompile(`page\("POST ([^"]+)"`).FindAllStringSubmatch(string(source), -1) {
		paths = append(paths, Base+fill.Replace(m[1]))
	}
	if len(paths) < 20 {
		t.Fatalf("only %d addresses were found", len(paths))
	}
	return paths
}

// TestForgery: nothing is done for a form that is not of the session or comes from
// another site.
func TestForgery(t *testing.T) {
	p := newPlatform()
	c := signedIn(t, p)
	before := fmt.Sprintf("%+v %+v %+v", p.services, p.jobs, p.tokens)
	for _, path := range postPaths(t) {
		for name, send := range map[string]func() *http.Response{
			"no token":    func() *http.Response { return c.post(path, url.Values{}) },
			"wrong token": func() *http.Response { return c.post(path, url.Values{"token": {strings.Repeat("A", 43)}}) },
			"cross-site": func() *http.Response {
				c.header.Set("Sec-Fetch-Site", "cross-site")
				defer c.header.Del("Sec-Fetch-Site")
				return c.post(path, url.Values{"token": {c.token()}})
			},
			"foreign origin": func() *http.Response {
				c.header.Set("Origin", "https://evil.example.com")
				defer c.header.Del("Origin")
				return c.post(path, url.Values{"token": {c.token()}})
			},
		} {
			if path == Base+"/upload" && strings.Contains(name, "token") {
				continue // see TestUpload
			}
			if status := send().StatusCode; status != http.StatusForbidden {
				t.Errorf("%s with %s: status %d; want 403", path, name, status)
			}
		}
		stranger := &client{T: t, site: c.site, header: c.header}
		stranger.header.Set("Referer", "https://apps.example.com/manager/store?q=x")
		answer := stranger.post(path, url.Values{})
		stranger.header.Del("Referer")
		if text, _ := io.ReadAll(answer.Body); !strings.Contains(string(text), `name="to" value="/manager/store?q=x"`) {
			t.Errorf("%s without a session: %s", path, words(string(text)))
		}
		if status := answer.StatusCode; status != http.StatusUnauthorized {
			t.Errorf("%s without a session: status %d; want 401", path, status)
		}
	}
	if after := fmt.Sprintf("%+v %+v %+v", p.services, p.jobs, p.tokens); after != before {
		t.Errorf("something was changed: %s\nwas %s", after, before)
	}
}

func TestHeaders(t *testing.T) {
	c := signedIn(t, newPlatform())
	for _, path := range []string{"/manager", "/manager/signin", "/manager/nowhere", "/manager/ramdisk.log"} {
		h := c.send(httptest.NewRequest("GET", path, nil)).Header
		for name, want := range map[string]string{"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"} {
			if got := h.Get(name); got != want {
				t.Errorf("%s: %s is %q; want %q", path, name, got, want)
			}
		}
		if csp := h.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: the policy is %q", path, csp)
		}
	}
	c.header = http.Header{"X-Forwarded-Proto": {"http"}, "X-Forwarded-Host": {"[2001:db8::1]:80"}}
	if got := c.send(httptest.NewRequest("GET", "/manager/store?q=a", nil)).Header.Get("Location"); got != "https://[2001:db8::1]/manager/store?q=a" {
		t.Errorf("plain http leads to %q", got)
	}
	c.site.opts.HTTPSPort = 8443
	c.header.Set("X-Forwarded-Host", "apps.example.com:8080")
	if got := c.send(httptest.NewRequest("POST", "/manager/signin", strings.NewReader("password=pwd"))).Header.Get("Location"); got != "https://apps.example.com:8443/manager/signin" {
		t.Errorf("plain http leads to %q", got)
	}
}
