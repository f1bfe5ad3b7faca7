package web

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
)

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
		{"/app/calendar/delete", []string{"typed", "calender"}, ok, "Nothing was deleted", func(p *platform) bool { return len(p.services) == 3 }},
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
		{"/instance/1/delete", nil, ok, "Nothing was deleted", func(p *platform) bool { return len(p.services[0].Instances) == 3 }},
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
		{"/settings/password/manager", []string{"old", "x", "password", "y", "again", "y"}, ok, "The password is wrong", func(p *platform) bool { return p.password == "pwd" }},
		{"/settings/tokens", []string{"name", "script"}, ok, "secret-of-script", func(p *platform) bool { return len(p.tokens) == 2 }},
		{"/settings/tokens/t1/delete", nil, ok, "The token was deleted.", func(p *platform) bool { return len(p.tokens) == 0 }},
		{"/settings/update/confirm", []string{"url", "https://x.example.com/a"}, ok, "up to 10 minutes", func(p *platform) bool { return p.jobs[3].Kind == "image" }},
		{"/settings/update/confirm", []string{"url", "ftp://x"}, ok, "It begins with https://", func(p *platform) bool { return len(p.jobs) == 3 }},
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
	if status, page := send("token", c.token(), "app", "demo"); status != http.StatusUnprocessableEntity || !strings.Contains(page, "There is no program") {
		t.Errorf("without a program: status %d: %s", status, words(page))
	}
	p.uploaded = ""
	for _, fields := range [][]string{{"app", "demo", "program", "ELF"}, {"token", "x", "program", "ELF"}, {"program", "ELF", "token", c.token()}, {}} {
		if status, _ := send(fields...); status != http.StatusForbidden || p.uploaded != "" {
			t.Errorf("%v: status %d; want 403", fields, status)
		}
	}
	for full, want := range map[int64]string{1<<30 - 1<<20 - 1<<10: "", 1<<30 - 300: "does not fit on the disk", 1<<30 + 1: "does not fit on the disk"} {
		p.full, p.uploaded = full, ""
		if _, page := send("token", c.token(), "app", "demo", "program", "ELF"); !strings.Contains(page, want) || (p.uploaded == "") != (want != "") {
			t.Errorf("on a disk that is full up to %d bytes: uploaded %q: %s", 1<<30-full, p.uploaded, words(page))
		}
	}
	// It would fit once, but is there twice until it is installed.
	p.full, p.uploaded = 1<<30-1<<20-1<<10, ""
	if _, page := send("token", c.token(), "app", "demo", "program", strings.Repeat("x", 600<<10)); !strings.Contains(page, "does not fit on the disk") || p.uploaded != "" {
		t.Errorf("an upload that fits only once: %s", words(page))
	}
	p.full = 0
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

func TestFreeName(t *testing.T) {
	s := model.Service{ID: "notes", Instances: []model.Instance{{Name: "notes", Domain: "a"}, {Name: "notes2", Domain: "a"}, {Name: "notes", Domain: "b"}}}
	for domain, want := range map[string]string{"a": "notes3", "b": "notes2", "c": "notes"} {
		if got := freeName(s, domain); got != want {
			t.Errorf("in the domain %s: %s; want %s", domain, got, want)
		}
	}
}
