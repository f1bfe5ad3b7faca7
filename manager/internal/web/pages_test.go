package web

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"html"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"

	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
)

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
	for _, text := range saidByManager(t) {
		use(text)
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

// saidByManager are the notices with their hints and the steps of jobs that package
// manager makes.
func saidByManager(t *testing.T) (texts []string) {
	t.Helper()
	sources, err := filepath.Glob("../../*.go")
	if err != nil || len(sources) == 0 {
		t.Fatal("no sources", err)
	}
	// Where the format is among the arguments, and the hint.
	formats := map[string][]int{"say": {3, 2}, "step": {0}, "set": {0}, "progress": {2}}
	for _, name := range sources {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			on := ""
			switch x := f.X.(type) {
			case *ast.Ident:
				on = x.Name
			case *ast.SelectorExpr:
				on = x.Sel.Name
			}
			if on == "notices" && f.Sel.Name == "set" {
				if _, made := call.Args[2].(*ast.CallExpr); made && strings.Contains(fmt.Sprint(call.Args[2].(*ast.CallExpr).Fun), "Errorf") {
					t.Errorf("%s: a text that is made here is for say", name)
				}
				return true
			}
			if on != "notices" && on != "one" {
				return true
			}
			for i, at := range formats[f.Sel.Name] {
				if at >= len(call.Args) {
					t.Errorf("%s: %s has %d arguments", name, f.Sel.Name, len(call.Args))
					continue
				}
				literal, ok := call.Args[at].(*ast.BasicLit)
				if !ok {
					if id, plain := call.Args[at].(*ast.Ident); i == 0 && !(plain && id.Name == "format") {
						t.Errorf("%s: a text of %s is not written there", name, f.Sel.Name)
					}
					continue
				}
				text, err := strconv.Unquote(literal.Value)
				if err != nil {
					t.Fatal(err)
				}
				if strings.ContainsFunc(regexp.MustCompile(`%[.0-9]*[a-z]`).ReplaceAllString(text, ""), unicode.IsLetter) {
					texts = append(texts, text)
				}
			}
			return true
		})
	}
	if len(texts) < 20 {
		t.Errorf("there are only %q", texts)
	}
	return texts
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
	if m.Text != "Cannot do it: no" || m.Hint != "do that" {
		t.Errorf("%+v", m)
	}
}

// Titles have names that can be changed while the page is open: they are parts that
// are replaced.
func TestTitlesAreRenewed(t *testing.T) {
	c := signedIn(t, newPlatform())
	for path, want := range map[string]string{"/manager/app/notes": `id="app-title" data-part`, "/manager/instance/2": `id="instance-title" data-part`} {
		status, page := c.get(path)
		before, _, ok := strings.Cut(page, "<h1>")
		if open := strings.LastIndex(before, `<div class="title"`); status != 200 || !ok || open < 0 || !strings.Contains(before[open:], want) {
			t.Errorf("%s: status %d, its title is not in a part %s", path, status, want)
		}
	}
}

// What the manager says is in the language of the page; errors of the system inside
// of it stay as they are.
func TestNoticesInGerman(t *testing.T) {
	p := newPlatform()
	p.notices = []model.Notice{{Code: "database", Severity: model.Error, Text: "the instance a@b is half made: open x: permission denied", Hint: "look at its log",
		Format: "the instance %s is half made: %s", Args: []any{"a@b", "open x: permission denied"}}}
	p.jobs = []model.Job{{ID: "1", Kind: "install", About: "notes", Step: "download notes", StepFormat: "download %s", StepArgs: []any{"notes"}}}
	c := signedIn(t, p)
	for lang, want := range map[string][]string{
		"en": {"The instance a@b is half made: open x: permission denied", "look at its log", "download notes"},
		"de": {"Die Instanz a@b ist nur halb angelegt: open x: permission denied", "Sehen Sie im Protokoll nach", "notes wird geladen"},
	} {
		c.header.Set("Accept-Language", lang)
		for _, path := range []string{"/manager", "/manager/jobs"} {
			_, page := c.get(path)
			for _, text := range want {
				if !strings.Contains(words(page), text) {
					t.Errorf("%s in %s lacks %q: %s", path, lang, text, words(page))
				}
			}
		}
	}
}
