package web

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"appplatform/internal/browsertest"
)

// A user sits at a browser.
type user struct {
	*testing.T
	tab  context.Context
	base string
}

// serve shows a site as the webserver does; a browser takes the loopback address for
// as safe as https.
func serve(t *testing.T, site http.Handler) string {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("X-Forwarded-Proto", "https")
		r.Header.Set("X-Forwarded-For", "192.0.2.7")
		site.ServeHTTP(w, r)
	}))
	// The server waits for its streams, which the browser opens again and again.
	server.Config.BaseContext = func(net.Listener) context.Context { return t.Context() }
	server.Start()
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	return server.URL
}

func (u user) do(actions ...chromedp.Action) {
	u.Helper()
	ctx, cancel := context.WithTimeout(u.tab, 60*time.Second)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		u.picture("failed")
		u.Fatalf("in the browser: %v", err)
	}
}

// open does not use chromedp's Navigate, which waits for what a page with a stream of
// events never says.
func (u user) open(path string) {
	u.Helper()
	u.do(chromedp.Evaluate("window.before = true; location.href = "+strconv.Quote(u.base+path)+"; 0", nil))
	u.see("!window.before && document.readyState == 'complete' && document.querySelector('h1') != null", "true")
}

func (u user) eval(script string) (answer string) {
	u.Helper()
	u.do(chromedp.Evaluate("String("+script+")", &answer))
	return answer
}

// see waits until a script says what is wanted.
func (u user) see(script, want string) {
	u.Helper()
	got := ""
	for range 150 {
		if err := chromedp.Run(u.tab, chromedp.Evaluate("String("+script+")", &got)); err == nil && strings.Contains(got, want) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	u.picture("failed")
	u.Fatalf("%s = %q; want %q", script, got, want)
}

func (u user) signIn(password string) {
	u.Helper()
	u.open("/manager")
	u.do(chromedp.SendKeys("#password", password+"\r"))
	u.see("location.pathname", "/manager")
	u.see("document.querySelector('#tree') != null", "true")
}

func (u user) size(width int64) {
	u.Helper()
	u.do(chromedp.EmulateViewport(width, 900))
}

// scheme is what the system asks for. Bars would take room that pictures lack.
func (u user) scheme(name string) {
	u.Helper()
	u.do(emulation.SetScrollbarsHidden(true), emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: name}, {Name: "prefers-reduced-motion", Value: "reduce"}}))
}

func (u user) picture(name string) {
	dir, err := filepath.Abs("../../../out/manager-pictures")
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	var png []byte
	if err == nil {
		err = chromedp.Run(u.tab, chromedp.FullScreenshot(&png, 100))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)
	}
	if err != nil {
		u.Errorf("cannot take a picture: %v", err)
	}
}

// shots are the pages that people see, by the names of their pictures.
var shots = []struct{ name, path string }{
	{"overview", ""},
	{"app", "/app/notes"},
	{"app-crashing", "/app/reports"},
	{"versions", "/app/notes/versions"},
	{"app-settings", "/app/notes/settings"},
	{"new-instance", "/app/notes/new"},
	{"instance", "/instance/2"},
	{"instance-failed", "/instance/4"},
	{"instance-edit", "/instance/2/edit"},
	{"flags", "/instance/2/flags"},
	{"delete-instance", "/instance/2/delete"},
	{"rename", "/rename"},
	{"store", "/store"},
	{"upload", "/upload"},
	{"jobs", "/jobs"},
	{"settings", "/settings"},
	{"security", "/settings/security"},
	{"update", "/settings/update"},
	{"restart", "/settings/restart"},
	{"away", "/away?for=restart"},
	{"monitor", "/monitor"},
	{"log", "/logs?name=notes"},
	{"dumps", "/dumps"},
	{"audit", "/audit"},
	{"not-found", "/nowhere"},
}

// TestPictures shows every page to Chromium, wide and narrow, light and dark. Nothing
// may be wider than the window, nothing be refused by our own policy, and axe find
// nothing serious.
func TestPictures(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	axe := axeSource(t)
	u := user{t, browsertest.Tab(t, nil, nil), serve(t, New(newPlatform(), Options{Folder: t.TempDir()}))}
	var mu sync.Mutex
	var complaints []string
	chromedp.ListenTarget(u.tab, func(event any) {
		if text := complaint(event); text != "" {
			mu.Lock()
			complaints = append(complaints, text)
			mu.Unlock()
		}
	})
	u.do(network.SetExtraHTTPHeaders(network.Headers{"Accept-Language": "en"}),
		log.Enable())
	look := func(name string) {
		t.Helper()
		if got := u.eval("document.documentElement.scrollWidth > document.documentElement.clientWidth"); got == "true" {
			t.Errorf("%s is wider than the window", name)
		}
		u.picture(name)
		u.judge(axe, name)
	}
	for _, s := range []struct {
		name   string
		width  int64
		scheme string
	}{{"wide-light", 1280, "light"}, {"narrow-dark", 390, "dark"}, {"wide-dark", 1280, "dark"}, {"narrow-light", 390, "light"}} {
		u.scheme(s.scheme)
		u.size(s.width)
		if s.name == "wide-light" {
			u.open("/manager")
			look("signin-" + s.name)
			u.signIn("pwd")
		}
		for _, shot := range shots {
			u.open("/manager" + shot.path)
			look(shot.name + "-" + s.name)
		}
		if s.width < 500 {
			u.open("/manager")
			u.do(chromedp.Evaluate("document.getElementById('menu').click()", nil))
			look("menu-" + s.name)
		}
	}
	u.do(network.SetExtraHTTPHeaders(network.Headers{"Accept-Language": "de"}))
	for _, shot := range shots {
		u.open("/manager" + shot.path)
		look(shot.name + "-german")
	}
	mu.Lock()
	defer mu.Unlock()
	for _, c := range complaints {
		t.Errorf("the browser complains: %s", c)
	}
}

// judge asks axe what is wrong with a page.
func (u user) judge(axe, name string) {
	u.Helper()
	if axe == "" {
		return
	}
	var found []struct {
		ID, Impact, Help string
		Nodes            []struct{ HTML, FailureSummary string }
	}
	var text string
	u.do(chromedp.Evaluate(axe+";0", nil),
		chromedp.Evaluate(`axe.run(document, {resultTypes: ["violations"]}).then(r => JSON.stringify(r.violations))`, &text, awaitPromise))
	if err := json.Unmarshal([]byte(text), &found); err != nil {
		u.Fatal(err)
	}
	for _, f := range found {
		report := u.Logf
		if f.Impact == "serious" || f.Impact == "critical" {
			report = u.Errorf
		}
		for _, n := range f.Nodes {
			report("%s: axe: %s: %s (%s): %s: %s", name, f.Impact, f.ID, f.Help, n.HTML, n.FailureSummary)
		}
	}
}

// axeVersion is pinned: a newer one may find more.
const axeVersion = "4.10.3"

// axeSource is axe-core from npm's registry, kept in the user's cache.
func axeSource(t *testing.T) string {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("no place for axe: %v", err)
	}
	dir := filepath.Join(cache, "app-platform", "axe", axeVersion)
	name := filepath.Join(dir, "package", "axe.min.js")
	if text, err := os.ReadFile(name); err == nil {
		return string(text)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	pack := exec.Command("npm", "pack", "--silent", "axe-core@"+axeVersion)
	pack.Dir = dir
	if out, err := pack.CombinedOutput(); err != nil {
		t.Skipf("axe cannot be had from npm, which judges the pages: %v %s", err, out)
	}
	if out, err := exec.Command("tar", "-xzf", filepath.Join(dir, "axe-core-"+axeVersion+".tgz"), "-C", dir, "package/axe.min.js").CombinedOutput(); err != nil {
		t.Fatalf("cannot unpack axe: %v %s", err, out)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// complaint is what a browser says about a page: a broken policy, a script that threw.
// That a page is not there is an answer we give on purpose.
func complaint(event any) string {
	switch e := event.(type) {
	case *log.EventEntryAdded:
		if e.Entry.Level == log.LevelError && !strings.Contains(e.Entry.Text, "404") {
			return e.Entry.Text + " " + e.Entry.URL
		}
	case *runtime.EventExceptionThrown:
		return e.ExceptionDetails.Error()
	}
	return ""
}

func awaitPromise(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }
