package web

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"io/fs"
	"mime/multipart"
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

	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
)

// A client is a browser without a screen.
type client struct {
	*testing.T
	site   *Site
	cookie string
	lang   string
	header http.Header // of every request
}

func newClient(t *testing.T, p model.Platform) *client {
	c := &client{T: t, site: New(p, Options{Folder: t.TempDir()}), header: http.Header{"X-Forwarded-Proto": {"https"}, "X-Forwarded-For": {"192.0.2.7"}}}
	return c
}

func (c *client) send(r *http.Request) *http.Response {
	r.Host = "apps.example.com"
	for name, values := range c.header {
		r.Header[name] = values
	}
	if c.lang != "" {
		r.Header.Set("Accept-Language", c.lang)
	}
	if c.cookie != "" {
		r.AddCookie(&http.Cookie{Name: sessionCookie, Value: c.cookie})
	}
	w := httptest.NewRecorder()
	c.site.ServeHTTP(w, r)
	answer := w.Result()
	for _, k := range answer.Cookies() {
		if k.Name == sessionCookie {
			c.cookie = k.Value
		}
	}
	return answer
}

func (c *client) get(path string) (int, string) {
	c.Helper()
	answer := c.send(httptest.NewRequest("GET", path, nil))
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		c.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func (c *client) post(path string, form url.Values) *http.Response {
	r := httptest.NewRequest("POST", path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return c.send(r)
}

// submit sends a form with the token of the session, and returns the page that
// follows.
func (c *client) submit(path string, fields ...string) (int, string) {
	c.Helper()
	form := url.Values{"token": {c.token()}}
	for i := 0; i < len(fields); i += 2 {
		form.Add(fields[i], fields[i+1])
	}
	answer := c.post(path, form)
	if answer.StatusCode == http.StatusSeeOther {
		return c.get(answer.Header.Get("Location"))
	}
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		c.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func (c *client) token() string {
	_, token := c.site.sessions.find(c.cookie, false)
	return token
}

func (c *client) signIn(password string) *http.Response {
	return c.post("/manager/signin", url.Values{"password": {password}})
}

func signedIn(t *testing.T, p model.Platform) *client {
	c := newClient(t, p)
	if c.signIn("pwd"); c.cookie == "" {
		t.Fatal("cannot sign in")
	}
	return c
}

// words are what a page shows, without its marks.
func words(page string) string {
	page = regexp.MustCompile(`(?s)<[^>]*>`).ReplaceAllString(page, " ")
	return strings.Join(strings.Fields(html.UnescapeString(page)), " ")
}

var pagePaths = func() (paths []string) {
	for _, s := range shots {
		if s.name != "not-found" {
			paths = append(paths, "/manager"+s.path)
		}
	}
	return append(paths, "/manager/", "/manager/app/calendar", "/manager/app/calendar/delete", "/manager/app/notes/revert", "/manager/instance/1/passwords",
		"/manager/instance/1/cleanup", "/manager/store?q=nothing+like+this", "/manager/settings/certificate/reset", "/manager/settings/tokens/t1/delete",
		"/manager/settings/update?from=160001", "/manager/settings/update?from=150012", "/manager/settings/update/confirm?url=https://x.example.com/a",
		"/manager/settings/update/rollback", "/manager/settings/shutdown", "/manager/settings/resize", "/manager/away?for=shutdown",
		"/manager/away?for=update&job=j2", "/manager/logs", "/manager/logs?name=notes&q=request+7", "/manager/logs?name=notes&follow=1",
		"/manager/dumps/delete", "/manager/dumps/reports/core.reports.4711/delete", "/manager/audit?before=2026-03-14T15:00:00Z", "/manager/live")
}()

// TestPages renders every page in both languages. In a German one, no text may be an
// English one of the catalogue.
func TestPages(t *testing.T) {
	c := signedIn(t, newPlatform())
	for _, lang := range languages {
		c.lang = lang
		for _, path := range pagePaths {
			t.Run(lang+path, func(t *testing.T) {
				status, page := c.get(path)
				if status != http.StatusOK {
					t.Fatalf("status %d: %s", status, words(page))
				}
				if !strings.Contains(page, `<html lang="`+lang+`"`) {
					t.Errorf("the page does not say that it is in %q", lang)
				}
				for _, problem := range malformed(page) {
					t.Error(problem)
				}
				if lang == "en" {
					return
				}
				for _, m := range regexp.MustCompile(`>([^<>]+)<`).FindAllStringSubmatch(page, -1) {
					text := html.UnescapeString(strings.TrimSpace(m[1]))
					if g, ok := german[text]; ok && g != text && !slices.ContainsFunc(wire.FlagNames, func(n wire.FlagName) bool { return n.Name == text }) {
						t.Errorf("%q is not in German", text)
					}
				}
			})
		}
	}
}

// void elements have no end.
var void = []string{"meta", "link", "input", "br", "circle", "path", "rect", "line"}

// malformed finds marks that do not match, ids that are there twice, labels of nothing,
// and what our policy forbids.
func malformed(page string) (problems []string) {
	page = regexp.MustCompile(`<!DOCTYPE html>`).ReplaceAllString(page, "")
	tag := regexp.MustCompile(`<(/?)([a-zA-Z][a-zA-Z0-9]*)((?:\s+[a-zA-Z][a-zA-Z0-9-]*(?:="[^"<]*")?)*)\s*(/?)>`)
	if rest := tag.ReplaceAllString(page, ""); strings.ContainsAny(rest, "<>") {
		i := strings.IndexAny(rest, "<>")
		problems = append(problems, fmt.Sprintf("this is no mark: %q", rest[max(0, i-20):min(len(rest), i+60)]))
	}
	var open []string
	ids, refs := map[string]bool{}, []string{}
	for _, m := range tag.FindAllStringSubmatch(page, -1) {
		name := m[2]
		switch {
		case m[1] == "/" && (len(open) == 0 || open[len(open)-1] != name):
			problems = append(problems, fmt.Sprintf("</%s> ends nothing: open are %v", name, open))
			return problems
		case m[1] == "/":
			open = open[:len(open)-1]
		case m[4] == "" && !slices.Contains(void, name):
			open = append(open, name)
		}
		for _, a := range regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9-]*)="([^"]*)"`).FindAllStringSubmatch(m[3], -1) {
			switch a[1] {
			case "id":
				if ids[a[2]] {
					problems = append(problems, fmt.Sprintf("the id %q is there twice", a[2]))
				}
				ids[a[2]] = true
			case "for", "aria-labelledby", "aria-describedby":
				refs = append(refs, a[2])
			case "style", "onclick", "onsubmit", "onload", "onchange":
				problems = append(problems, "the policy forbids "+a[0])
			}
		}
		if m[1] == "" && (name == "script" && !strings.Contains(m[3], "src=") || name == "style") {
			problems = append(problems, "the policy forbids what is in <"+name+">")
		}
	}
	if len(open) > 0 {
		problems = append(problems, fmt.Sprintf("never ended: %v", open))
	}
	for _, r := range refs {
		if !ids[r] {
			problems = append(problems, fmt.Sprintf("there is no %q to refer to", r))
		}
	}
	return problems
}

func TestMalformedFindsMistakes(t *testing.T) {
	for _, page := range []string{"<p><b></p></b>", "<p>", "<p>a < b</p>", `<p id="a"></p><p id="a"></p>`, `<label for="x">a</label>`, `<p style="a">b</p>`, "<script>a()</script>"} {
		if len(malformed(page)) == 0 {
			t.Errorf("%s was found well-formed", page)
		}
	}
	if problems := malformed(`<!DOCTYPE html><p id="a">a &lt; b<br></p><label for="a">c</label>`); problems != nil {
		t.Error(problems)
	}
}

// TestCatalogue compares the catalogue with what templates and code ask it for.
func TestCatalogue(t *testing.T) {
	used := map[string]bool{}
	use := func(text string) {
		used[text] = true
		if _, ok := german[text]; !ok {
			t.Errorf("the catalogue lacks %q", text)
		}
	}
	quoted := `"((?:[^"\\]|\\.)*)"`
	unquote := func(text string) string {
		var s string
		if err := json.Unmarshal([]byte(`"`+text+`"`), &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	files, err := fs.Glob(templateFiles, "templates/*.html")
	if err != nil || len(files) == 0 {
		t.Fatal("no templates", err)
	}
	for _, name := range files {
		text, err := templateFiles.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`[{( ]t `+quoted).FindAllStringSubmatch(string(text), -1) {
			use(unquote(m[1]))
		}
	}
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range sources {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		for _, m := range regexp.MustCompile(`\b(?:v\.t\(|translate\(lang, )`+quoted).FindAllStringSubmatch(string(text), -1) {
			use(unquote(m[1]))
		}
		for _, m := range regexp.MustCompile(`field\("[a-z]+", `+quoted).FindAllStringSubmatch(string(text), -1) {
			use(unquote(m[1]))
		}
	}
	for _, text := range stateTexts {
		use(text)
	}
	for _, text := range jobTexts {
		use(text)
	}
	for _, way := range ways {
		use(way.text)
	}
	use("Show the instance")
	for _, s := range settingFields(model.Settings{}) {
		use(s.Label)
		if s.Help != "" {
			use(s.Help)
		}
	}
	for _, f := range figures {
		use(f.title)
	}
	verbs := regexp.MustCompile(`%[a-z]`)
	for english, g := range german {
		if !used[english] {
			t.Errorf("nobody asks for %q", english)
		}
		if a, b := verbs.FindAllString(english, -1), verbs.FindAllString(g, -1); !slices.Equal(a, b) {
			t.Errorf("%q has %v, and in German %v", english, a, b)
		}
	}
}

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

// TestStatic: what browsers load is small, packed and kept for ever.
func TestStatic(t *testing.T) {
	c := newClient(t, newPlatform())
	total := 0
	for file, path := range c.site.names {
		c.header.Set("Accept-Encoding", "gzip, br")
		answer := c.send(httptest.NewRequest("GET", path, nil))
		text, _ := io.ReadAll(answer.Body)
		total += len(text)
		unpacked, err := gzip.NewReader(bytes.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		want, _ := staticFiles.ReadFile("static/" + file)
		if got, _ := io.ReadAll(unpacked); !bytes.Equal(got, want) || len(want) == 0 {
			t.Errorf("%s differs from %s", path, file)
		}
		if h := answer.Header; !strings.Contains(h.Get("Cache-Control"), "immutable") || h.Get("Content-Type") == "" || h.Get("ETag") == "" {
			t.Errorf("%s: %v", path, h)
		}
		c.header.Del("Accept-Encoding")
		if _, got := c.get(path); got != string(want) {
			t.Errorf("%s without gzip differs", path)
		}
		c.header.Set("If-None-Match", answer.Header.Get("ETag"))
		if status, _ := c.get(path); status != http.StatusNotModified {
			t.Errorf("%s again: status %d", path, status)
		}
		c.header.Del("If-None-Match")
	}
	if total == 0 || total > 60<<10 {
		t.Errorf("script and style are %d bytes; at most 60 KiB", total)
	}
	t.Logf("script and style: %d bytes", total)
	if info, err := staticFiles.ReadFile("static/live.js"); err != nil || len(info) > 8<<10 {
		t.Errorf("the script is %d bytes (%v); at most 8 KiB", len(info), err)
	}
	if status, _ := c.get("/manager/static/style.css"); status != http.StatusNotFound {
		t.Errorf("a name without its hash: %d", status)
	}
}

// TestActions presses the buttons and asks the platform what has come of it.
func TestActions(t *testing.T) {
	const ok = http.StatusOK
	for _, test := range []struct {
		path   string
		fields []string
		status int
		says   string
		want   func(*platform) bool
	}{
		{"/app/notes/stop", nil, ok, "is being stopped", func(p *platform) bool { return !p.services[0].Wanted }},
		{"/app/calendar/start", nil, ok, "is being started", func(p *platform) bool { return p.services[2].Wanted }},
		{"/app/notes/restart", nil, ok, "is being restarted", func(p *platform) bool { return p.services[0].State == model.Starting }},
		{"/app/nothing/start", nil, http.StatusNotFound, "not found", func(p *platform) bool { return true }},
		{"/app/notes/settings", []string{"memory", "128", "cpu", "50", "processes", "9", "log", "64", "flag", "1", "flag", "4096"}, ok, "Saved.",
			func(p *platform) bool {
				s := p.services[0]
				return s.Limits == model.Limits{MemoryMiB: 128, CPUPercent: 50, Processes: 9} && s.LogSize == 65536 && s.LogFlags == wire.FlagApp|wire.FlagLDS
			}},
		{"/app/notes/settings", []string{"memory", "much"}, ok, `Memory cannot be "much"`, func(p *platform) bool { return p.services[0].Limits.MemoryMiB == 256 }},
		{"/app/notes/revert", nil, ok, "returns to its previous version", func(p *platform) bool { return p.services[0].Build == "130001" }},
		{"/app/calendar/delete", []string{"typed", "calendar"}, ok, "calendar was deleted.", func(p *platform) bool { return len(p.services) == 2 }},
		{"/app/calendar/delete", []string{"typed", "calender"}, ok, "nothing was deleted", func(p *platform) bool { return len(p.services) == 3 }},
		{"/store", []string{"app", "projects", "build", "150003"}, ok, "projects 150003 is being installed", func(p *platform) bool { return len(p.jobs) == 4 }},
		{"/jobs/j2/cancel", nil, ok, "is being cancelled", func(p *platform) bool { return p.jobs[0].Error == "cancelled" }},

		{"/app/notes/new", []string{"name", "third", "domain", "example.com"}, ok, "The instance third was created.",
			func(p *platform) bool {
				i := p.services[0].Instances[3]
				return i.Path == "/example.com/third" && i.DBName == "example.com_third" && i.Password == "random-password" && i.Wanted && i.LogFlags == wire.DefaultFlags
			}},
		{"/app/notes/new", []string{"name", "third", "domain", "example.com", "dbpassword", " keeps spaces "}, ok, "was created",
			func(p *platform) bool { return p.services[0].Instances[3].DBPassword == " keeps spaces " }},
		{"/app/notes/new", []string{"name", "third", "domain", "example.com", "suggest", "yes"}, ok, "example.com_third", func(p *platform) bool { return len(p.services[0].Instances) == 3 }},
		{"/app/notes/new", []string{"name", "third", "domain", "example.com", "fresh", "password"}, ok, "random-password", func(p *platform) bool { return len(p.services[0].Instances) == 3 }},
		{"/app/notes/new", []string{"name", "notes", "domain", "example.com", "path", "/kept"}, http.StatusUnprocessableEntity, "exists already", func(p *platform) bool { return len(p.services[0].Instances) == 3 }},
		{"/instance/1/edit", []string{"name", "notes", "domain", "new.example.com", "path", "/new", "dbhost", "[2001:db8::5]:5433", "exclude", "on"}, ok, "Saved.",
			func(p *platform) bool {
				i := p.services[0].Instances[0]
				return i.Domain == "new.example.com" && i.Path == "/new" && i.DBHost == "[2001:db8::5]:5433" && i.ExcludeFromBackup && i.ID == 1 && i.LogFlags == wire.DefaultFlags
			}},
		{"/instance/1/edit", []string{"name", "notes", "domain", "bad domain"}, http.StatusUnprocessableEntity, "use letters, digits, dots and hyphens",
			func(p *platform) bool { return p.services[0].Instances[0].Domain == "example.com" }},
		{"/instance/1/flags", []string{"flag", "8589934592"}, ok, "Webserver", func(p *platform) bool { return p.services[0].Instances[0].LogFlags == wire.FlagWebserver }},
		{"/instance/3/start", nil, ok, "is being started", func(p *platform) bool { return p.services[0].Instances[2].Wanted }},
		{"/instance/1/stop", []string{"from", "/manager/app/notes"}, ok, "New instance", func(p *platform) bool { return !p.services[0].Instances[0].Wanted }},
		{"/instance/1/stop", []string{"from", "https://evil.example.com/"}, ok, "Overview", func(p *platform) bool { return true }},
		{"/instance/1/cleanup", nil, ok, "is being cleaned up", func(p *platform) bool { return true }},
		{"/instance/1/delete", []string{"typed", "notes"}, ok, "notes@example.com was deleted.", func(p *platform) bool { return len(p.services[0].Instances) == 2 }},
		{"/instance/1/delete", nil, ok, "nothing was deleted", func(p *platform) bool { return len(p.services[0].Instances) == 3 }},
		{"/instance/99/start", nil, http.StatusNotFound, "not found", func(p *platform) bool { return true }},
		{"/instance/x/start", nil, http.StatusNotFound, "not found", func(p *platform) bool { return true }},
		{"/rename", []string{"old", "branch.example.com", "new", "b.example.org", "instance", "1", "instance", "2", "do", "preview"}, ok, "/b.example.org/notes",
			func(p *platform) bool { return p.services[0].Instances[1].Domain == "branch.example.com" }},
		{"/rename", []string{"old", "branch.example.com", "new", "b.example.org", "instance", "1", "instance", "2", "do", "apply"}, ok, "1 instances were changed.",
			func(p *platform) bool {
				return p.services[0].Instances[1].Domain == "b.example.org" && p.services[0].Instances[0].Domain == "example.com"
			}},
		{"/rename", []string{"old", "nobody", "new", "x", "instance", "1"}, ok, "Nothing would change", func(p *platform) bool { return true }},

		{"/settings", []string{"store", "https://other.example.com/", "timezone", "UTC", "hour", "3", "insecure", "on"}, ok, "Saved.",
			func(p *platform) bool {
				return p.settings == model.Settings{StoreURL: "https://other.example.com/", Timezone: "UTC", OptimizationHour: 3, DisableAppSecurity: true}
			}},
		{"/settings", []string{"timezone", "Mars/Olympus", "hour", "3"}, http.StatusUnprocessableEntity, "Mars/Olympus", func(p *platform) bool { return p.settings.Timezone == "Europe/Berlin" }},
		{"/settings/password/root", []string{"password", "x", "again", "x"}, ok, "The password of root was changed.", func(p *platform) bool { return p.linux["root"] == "x" }},
		{"/settings/password/admin", []string{"password", "x", "again", "y"}, ok, "differ", func(p *platform) bool { return p.linux["admin"] == "" }},
		{"/settings/password/daemon", []string{"password", "x", "again", "x"}, http.StatusNotFound, "not found", func(p *platform) bool { return len(p.linux) == 0 }},
		{"/settings/password/manager", []string{"old", "x", "password", "y", "again", "y"}, ok, "the password is wrong", func(p *platform) bool { return p.password == "pwd" }},
		{"/settings/tokens", []string{"name", "script"}, ok, "secret-of-script", func(p *platform) bool { return len(p.tokens) == 2 }},
		{"/settings/tokens/t1/delete", nil, ok, "The token was deleted.", func(p *platform) bool { return len(p.tokens) == 0 }},
		{"/settings/update/confirm", []string{"url", "https://x.example.com/a"}, ok, "up to 10 minutes", func(p *platform) bool { return p.jobs[3].Kind == "image" }},
		{"/settings/update/confirm", []string{"url", "ftp://x"}, ok, "it begins with https://", func(p *platform) bool { return len(p.jobs) == 3 }},
		{"/settings/update/rollback", nil, ok, "Update of the platform", func(p *platform) bool { return true }},
		{"/settings/restart", nil, ok, "answers again in about a minute", func(p *platform) bool { return true }},
		{"/settings/shutdown", nil, ok, "being switched off", func(p *platform) bool { return true }},
		{"/settings/resize", nil, ok, "answers again", func(p *platform) bool { return true }},
		{"/dumps/reports/core.reports.4711/delete", nil, ok, "The core dump was deleted.", func(p *platform) bool { return len(p.dumps) == 0 }},
		{"/dumps/delete", nil, ok, "All core dumps were deleted.", func(p *platform) bool { return len(p.dumps) == 0 }},
	} {
		t.Run(test.path, func(t *testing.T) {
			p := newPlatform()
			c := signedIn(t, p)
			status, page := c.submit(Base+test.path, test.fields...)
			if status != test.status || !strings.Contains(html.UnescapeString(page), test.says) {
				t.Errorf("status %d; want %d with %q:\n%s", status, test.status, test.says, words(page))
			}
			if !test.want(p) {
				t.Errorf("the platform is not what was asked for after %v: %+v", test.fields, p.services[0])
			}
		})
	}
}

// TestPasswordsAreAsked: no page shows passwords that nobody has asked for.
func TestPasswordsAreAsked(t *testing.T) {
	c := signedIn(t, newPlatform())
	for _, path := range pagePaths {
		_, page := c.get(path)
		shown := strings.Contains(page, "s3cr3t-notes") || strings.Contains(page, "db-notes")
		asked := strings.HasSuffix(path, "/passwords") || strings.HasSuffix(path, "/edit")
		if shown != asked {
			t.Errorf("%s shows passwords: %v; want %v", path, shown, asked)
		}
	}
	_, page := c.get("/manager/instance/1/edit")
	if !strings.Contains(page, `type="password" value="s3cr3t-notes"`) {
		t.Error("the form shows the password in clear")
	}
	if _, page = c.submit("/manager/instance/1/edit", "name", "notes", "domain", "example.com", "password", "s3cr3t-notes", "show", "password"); !strings.Contains(page, `type="text" value="s3cr3t-notes"`) {
		t.Error("Show does not show the password")
	}
}

// TestDatabaseDown: pages appear and say what is wrong (I5).
func TestDatabaseDown(t *testing.T) {
	p := newPlatform()
	c := signedIn(t, p)
	p.down = true
	for path, want := range map[string]int{"/manager": 200, "/manager/store": 200, "/manager/monitor": 200, "/manager/logs?name=postgresql": 200, "/manager/settings/restart": 200,
		"/manager/dumps": 200, "/manager/settings/security": 200, "/manager/app/notes": 503, "/manager/settings": 503, "/manager/audit": 503} {
		status, page := c.get(path)
		if status != want || !strings.Contains(words(page), "The database does not answer.") || !strings.Contains(words(page), "S50postgresql restart") {
			t.Errorf("%s: status %d; want %d:\n%s", path, status, want, words(page))
		}
	}
}

func TestUpload(t *testing.T) {
	p := newPlatform()
	c := signedIn(t, p)
	send := func(fields ...string) (int, string) {
		var b bytes.Buffer
		m := multipart.NewWriter(&b)
		for i := 0; i < len(fields); i += 2 {
			if fields[i] == "program" || fields[i] == "files" {
				w, _ := m.CreateFormFile(fields[i], map[bool]string{true: "file"}[fields[i+1] != ""])
				io.WriteString(w, fields[i+1])
			} else {
				m.WriteField(fields[i], fields[i+1])
			}
		}
		m.Close()
		r := httptest.NewRequest("POST", "/manager/upload", &b)
		r.Header.Set("Content-Type", m.FormDataContentType())
		answer := c.send(r)
		text, _ := io.ReadAll(answer.Body)
		return answer.StatusCode, string(text)
	}
	if status, page := send("token", c.token(), "app", "demo", "program", "ELF", "files", "tar"); status != http.StatusSeeOther || p.uploaded != "demo ELF tar" {
		t.Errorf("status %d, uploaded %q: %s", status, p.uploaded, words(page))
	}
	if status, _ := send("token", c.token(), "app", "demo", "program", "ELF2", "files", ""); status != http.StatusSeeOther || p.uploaded != "demo ELF2" {
		t.Errorf("without files: status %d, uploaded %q", status, p.uploaded)
	}
	if status, page := send("token", c.token(), "app", "demo"); status != http.StatusUnprocessableEntity || !strings.Contains(page, "there is no program") {
		t.Errorf("without a program: status %d: %s", status, words(page))
	}
	p.uploaded = ""
	for _, fields := range [][]string{{"app", "demo", "program", "ELF"}, {"token", "x", "program", "ELF"}, {"program", "ELF", "token", c.token()}, {}} {
		if status, _ := send(fields...); status != http.StatusForbidden || p.uploaded != "" {
			t.Errorf("%v: status %d; want 403", fields, status)
		}
	}
	p.settings.DeveloperMode = false
	if status, _ := send("token", c.token(), "app", "demo", "program", "ELF"); status != http.StatusUnprocessableEntity || p.uploaded != "" {
		t.Errorf("without developer mode: status %d", status)
	}
	if left, _ := filepath.Glob(filepath.Join(c.site.opts.Folder, ".upload-*")); left != nil {
		t.Errorf("files were left: %v", left)
	}
}

func TestRamdiskLog(t *testing.T) {
	p := newPlatform()
	c := newClient(t, p)
	stranger := c.send(httptest.NewRequest("GET", LogPath, nil))
	if stranger.StatusCode != http.StatusUnauthorized || stranger.Header.Get("X-Started") != fmt.Sprint(p.system.Started.Unix()) {
		t.Errorf("a stranger gets %d %v", stranger.StatusCode, stranger.Header)
	}
	c.signIn("pwd")
	if status, text := c.get(LogPath); status != http.StatusOK || !strings.HasSuffix(text, "finished\n") {
		t.Errorf("the log: %d %s", status, text)
	}
}

func TestWays(t *testing.T) {
	p := newPlatform()
	for code, want := range map[string]string{"default-password": "/manager/settings/security#password", "crash-reports": "/manager/app/reports", "app-gone": "",
		"image-notes": "/manager/app/notes", "image-trial": "/manager/settings/update", "image": "/manager/settings/update", "instance-notes@branch.example.com": "/manager/instance/2",
		"instance-x@y": "", "crash": "/manager/dumps", "disk": "/manager/monitor#disk", "of an app": ""} {
		if got := lead(model.Notice{Code: code}, p.services).Href; got != want {
			t.Errorf("the notice %s leads to %q; want %q", code, got, want)
		}
	}
	// They lead somewhere.
	c := signedIn(t, p)
	for _, way := range ways {
		if way.href == "/app/" || strings.HasPrefix(way.href, "/logs") {
			continue
		}
		if status, _ := c.get(Base + strings.SplitN(way.href, "#", 2)[0]); status != http.StatusOK {
			t.Errorf("%s: status %d", way.href, status)
		}
	}
}

func TestAuditPages(t *testing.T) {
	p := newPlatform()
	p.audit = nil
	for i := range 120 {
		p.audit = append(p.audit, model.Audit{Time: born.Add(-time.Duration(i) * time.Nanosecond), Who: "admin", What: fmt.Sprintf("change-%d-", i)})
	}
	c := signedIn(t, p)
	path := "/manager/audit"
	for at := 0; at < 120; at += perPage {
		_, page := c.get(path)
		for i := range 120 {
			if got, want := strings.Contains(page, fmt.Sprintf("change-%d-", i)), i >= at && i < at+perPage; got != want {
				t.Errorf("page of %d: entry %d is shown: %v", at, i, got)
			}
		}
		m := regexp.MustCompile(`href="(/manager/audit\?before=[^"]+)"`).FindStringSubmatch(page)
		if (m != nil) != (at+perPage < 120) {
			t.Fatalf("page of %d: the older ones are at %v", at, m)
		}
		if m != nil {
			path = html.UnescapeString(m[1])
		}
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{-1: "unknown", 0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 10 << 10: "10 KiB", 1023 << 10: "1023 KiB", 1023<<10 + 400: "1023 KiB", 1023<<10 + 600: "1.0 MiB", 1536 << 20: "1.5 GiB", 5 << 40: "5.0 TiB", 1 << 60: "1048576 TiB"} {
		if got := size("en", n); got != want {
			t.Errorf("size(%d) = %s; want %s", n, got, want)
		}
	}
	if got := size("de", 1536<<20); got != "1,5 GiB" {
		t.Errorf("in German: %s", got)
	}
}

func TestLanguage(t *testing.T) {
	for header, want := range map[string]string{"": "en", "de": "de", "de-AT,en;q=0.5": "de", "fr,de;q=0.8,en;q=0.5": "de", "en-GB,de": "en", "fr": "en", ";;,": "en"} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept-Language", header)
		if got := language(r); got != want {
			t.Errorf("%q gives %s; want %s", header, got, want)
		}
	}
	c := signedIn(t, newPlatform())
	answer := c.send(httptest.NewRequest("GET", "/manager/prefer?lang=de&theme=dark&back=/manager/store", nil))
	r := httptest.NewRequest("GET", "/manager/store", nil)
	for _, k := range answer.Cookies() {
		r.AddCookie(k)
	}
	page, _ := io.ReadAll(c.send(r).Body)
	if answer.Header.Get("Location") != "/manager/store" || !strings.Contains(string(page), `<html lang="de" data-theme="dark">`) {
		t.Errorf("a choice leads to %s and\n%.300s", answer.Header.Get("Location"), page)
	}
}

// TestEscaping: what apps and stores say is text.
func TestEscaping(t *testing.T) {
	p := newPlatform()
	const bad = `"><script>alert(1)</script>`
	p.services[0].Title, p.services[0].Problem, p.services[0].Instances[0].Name = bad, bad, bad
	p.services[0].Instances[0].Path = "javascript:alert(1)"
	p.notices[0].Text, p.jobs[0].Step, p.settings.Timezone = bad, bad, bad
	c := signedIn(t, p)
	for _, path := range pagePaths {
		_, page := c.get(path)
		if strings.Contains(page, "<script>") || strings.Contains(page, `href="javascript:`) {
			t.Errorf("%s holds script of others", path)
		}
	}
}

func TestErrors(t *testing.T) {
	c := signedIn(t, newPlatform())
	for path, want := range map[string]int{"/manager/nowhere": 404, "/manager/app/nothing": 404, "/manager/instance/77": 404, "/manager/logs?name=../../etc/passwd": 404,
		"/manager/dumps/x/y": 404, "/manager/audit?before=x": 404, "/manager/away?for=x": 404, "/manager/settings/tokens/x/delete": 404} {
		status, page := c.get(path)
		if status != want {
			t.Errorf("%s: status %d; want %d", path, status, want)
		}
		for _, problem := range malformed(page) {
			t.Errorf("%s: %s", path, problem)
		}
	}
	m := newMessage(errors.New("cannot do it: no\nhint: do that"))
	if m.Text != "cannot do it: no" || m.Hint != "do that" {
		t.Errorf("%+v", m)
	}
}

func TestFreeName(t *testing.T) {
	s := model.Service{ID: "notes", Instances: []model.Instance{{Name: "notes", Domain: "a"}, {Name: "notes2", Domain: "a"}, {Name: "notes", Domain: "b"}}}
	for domain, want := range map[string]string{"a": "notes3", "b": "notes2", "c": "notes"} {
		if got := freeName(s, domain); got != want {
			t.Errorf("in the domain %s: %s; want %s", domain, got, want)
		}
	}
}
