package manager

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"appplatform/app"
	"appplatform/manager/internal/model"
)

// F1: settings reach the programs that they are about.
func TestSettings(t *testing.T) {
	l := newLab(t)
	l.store.offer(t, "apidemo", "160001", "apidemo", 0, "")
	m := l.ready()
	ctx := t.Context()
	l.setStore()
	l.install("apidemo", "160001")
	s, err := m.Settings(ctx)
	l.must(err)
	s.NTP1, s.NTP2, s.DNS1, s.DNS2, s.DNSName, s.Timezone = "ntp.example.com", "192.0.2.123", "192.0.2.53", "2001:db8::53", " ap.example.com ", "Europe/Berlin"
	s.DisableAppSecurity = true
	l.must(m.SetSettings(ctx, s, tester))
	for name, want := range map[string]string{
		timeSources:  "server ntp.example.com iburst\nserver 192.0.2.123 iburst\n",
		dnsServers:   "nameserver 192.0.2.53\nnameserver 2001:db8::53\n",
		"etc/passwd": ":/apps/apidemo:/bin/sh\n",
	} {
		if os.Geteuid() != 0 && name == "etc/passwd" {
			continue
		}
		if got, err := os.ReadFile(filepath.Join(l.o.Root, name)); err != nil || !strings.Contains(string(got), want) {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
	if got, _ := m.Settings(ctx); got.DNSName != "ap.example.com" || got.Timezone != "Europe/Berlin" {
		t.Errorf("the settings are %+v", got)
	}
	for name, change := range map[string]func(*model.Settings){
		"a line in a name":    func(s *model.Settings) { s.NTP1 = "a\nallow all" },
		"an option as a name": func(s *model.Settings) { s.NTP2 = "-x" },
		"a name for DNS":      func(s *model.Settings) { s.DNS1 = "dns.example.com" },
		"every address":       func(s *model.Settings) { s.DNS2 = "0.0.0.0" },
		"no zone":             func(s *model.Settings) { s.Timezone = "Mars/Olympus" },
		"hour":                func(s *model.Settings) { s.OptimizationHour = 24 },
		"a file as store":     func(s *model.Settings) { s.StoreURL = "/etc/passwd" },
	} {
		bad := s
		change(&bad)
		if err := m.SetSettings(ctx, bad, tester); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	s.DisableAppSecurity, s.NTP1, s.NTP2 = false, "", ""
	l.must(m.SetSettings(ctx, s, tester))
	if text, _ := os.ReadFile(l.o.Root + "/etc/passwd"); strings.Contains(string(text), "/apps/apidemo:/bin/sh") {
		t.Error("the app's user may still log in")
	}
	if text, err := os.ReadFile(filepath.Join(l.o.Root, timeSources)); err != nil || len(text) > 0 {
		t.Errorf("the time servers are still %q, %v", text, err)
	}
}

// What a stick or a hypervisor told a new machine is taken over once, and what it
// says wrongly is shown.
func TestFirstBoot(t *testing.T) {
	l := newLab(t)
	l.file(firstBootFile, `{"password": "of the stick", "storeURL": "http://192.0.2.1/store", "timezone": "Europe/Berlin"}`)
	m := l.ready()
	ctx := t.Context()
	l.until("the settings are there", func() bool {
		s, _ := m.Settings(ctx)
		return s.StoreURL == "http://192.0.2.1/store" && s.Timezone == "Europe/Berlin"
	})
	l.until("the password is set", func() bool { return m.SignIn(ctx, "of the stick", tester) == nil })
	l.must(m.SetManagerPassword(ctx, "of the stick", "chosen by a human", tester))
	l.end()
	m = l.ready()
	l.until("the database is read", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.loaded })
	l.must(m.SignIn(ctx, "chosen by a human", tester))
	l.end()
	l.file(firstBootFile, `{"pasword": "x"}`)
	l.ready()
	l.until("the mistake is shown", func() bool { n := l.notice("firstboot"); return n != nil && strings.Contains(n.Text, "pasword") })
	l.must(l.m.SignIn(ctx, "chosen by a human", tester))
}

// J1: logs can be read and followed, over the turn of a file; dumps can be
// downloaded and deleted, and nothing else.
func TestLogs(t *testing.T) {
	l := newLab(t)
	m := l.ready()
	l.file(logDir+"/x/x.1.log", "old\n")
	l.file(logDir+"/x/x.log", "new\n")
	l.file(logDir+"/x/x.2.log", "older\n")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := m.Log(ctx, "x", false)
	l.must(err)
	if text, err := io.ReadAll(r); err != nil || string(text) != "older\nold\nnew\n" {
		t.Errorf("the log is %q, %v", text, err)
	}
	l.must(r.Close())
	r, err = m.Log(ctx, "x", true)
	l.must(err)
	defer r.Close()
	read := func(want string) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
			t.Fatalf("followed: %q, %v; want %q", got, err, want)
		}
	}
	read("older\nold\nnew\n")
	f, err := os.OpenFile(l.o.path(logDir, "x/x.log"), os.O_APPEND|os.O_WRONLY, 0)
	l.must(err)
	fmt.Fprintln(f, "more")
	l.must(f.Close())
	read("more\n")
	l.must(os.Rename(l.o.path(logDir, "x/x.log"), l.o.path(logDir, "x/x.1.log")))
	l.file(logDir+"/x/x.log", "turned\n")
	read("turned\n")
	if _, err := m.Log(ctx, "../../../etc/passwd", false); err == nil {
		t.Error("a log leads elsewhere")
	}

	l.file(dumpDir+"/app/core.1.2", "dump")
	l.must(os.Symlink("/etc", l.o.path(dumpDir, "linked")))
	dumps, err := m.CoreDumps(ctx)
	l.must(err)
	if len(dumps) != 1 || dumps[0].Program != "app" || dumps[0].Name != "core.1.2" || dumps[0].Size != 4 {
		t.Errorf("the dumps are %+v", dumps)
	}
	for _, bad := range [][2]string{{"linked", "passwd"}, {"..", "x"}, {"app", "../core.1.2"}, {"", "x"}, {"app", ""}, {"app", "core.9"}} {
		if r, _, err := m.CoreDump(ctx, bad[0], bad[1]); err == nil {
			r.Close()
			t.Errorf("%q is a dump", bad)
		}
		if err := m.DeleteCoreDump(ctx, bad[0], bad[1], tester); err == nil {
			t.Errorf("%q is deleted", bad)
		}
	}
	d, size, err := m.CoreDump(ctx, "app", "core.1.2")
	l.must(err)
	if text, _ := io.ReadAll(d); string(text) != "dump" || size != 4 {
		t.Errorf("the dump is %q of %d bytes", text, size)
	}
	d.Close()
	l.must(m.DeleteCoreDump(ctx, "app", "core.1.2", tester))
	if exists(l.o.path(dumpDir, "app/core.1.2")) {
		t.Error("the dump is still there")
	}
}

// Programs come in through the webserver, by REST and as the vendor's Go client
// does; and by the command line on the machine.
func TestPrograms(t *testing.T) {
	l := newLab(t)
	m := l.ready()
	ctx := t.Context()
	_, token, err := m.CreateToken(ctx, "ci", tester)
	l.must(err)
	insecure := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	rest := func(method, path string, body io.Reader, into any) int {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, "https://"+l.https+"/manager/api/v1"+path, body)
		l.must(err)
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := insecure.Do(req)
		l.must(err)
		defer res.Body.Close()
		if into != nil {
			l.must(json.NewDecoder(res.Body).Decode(into))
		}
		return res.StatusCode
	}
	l.until("the API answers", func() bool { return rest("GET", "/notices", nil, nil) == 200 })
	var problem struct{ Error, Hint string }
	if status := rest("POST", "/upload/badapp", bytes.NewReader([]byte("x")), &problem); status != 422 || !strings.Contains(problem.Hint, "developer mode") {
		t.Errorf("an upload without developer mode: %d %+v", status, problem)
	}
	if status := rest("PUT", "/settings", strings.NewReader(`{"developerMode": true}`), nil); status != 204 {
		t.Errorf("the settings are answered by %d", status)
	}
	program, err := os.ReadFile(filepath.Join(programs, "badapp"))
	l.must(err)
	var job model.Job
	if status := rest("POST", "/upload/badapp", bytes.NewReader(program), &job); status != 200 {
		t.Fatalf("the upload is answered by %d", status)
	}
	if problem := l.wait(job, nil); problem != "" {
		t.Fatal(problem)
	}
	if s, err := m.Service(ctx, "badapp"); err != nil || !s.Developer || s.State != model.Running {
		t.Errorf("the app is %+v, %v", s, err)
	}
	var i model.Instance
	if status := rest("POST", "/instances", strings.NewReader(`{"service": "badapp", "name": "n", "domain": "d"}`), &i); status != 200 || i.Path != "/d/n" || i.Password == "" {
		t.Errorf("the instance is answered by %d %+v", status, i)
	}
	l.answers(i)

	c, _, err := websocket.Dial(ctx, "wss://"+l.https+"/manager", &websocket.DialOptions{HTTPClient: insecure})
	l.must(err)
	defer func() { _ = c.CloseNow() }()
	login := app.Login{App: "manager", SIP: "manager", GUID: strings.Repeat("0", 32), DN: "Admin"}
	l.must(app.SignInTo(ctx, c, login, defaultPassword))
	l.must(c.Write(ctx, websocket.MessageText, []byte(`{"mt":"AppPlatformInfoRequest"}`)))
	_, text, err := c.Read(ctx)
	if err != nil || !strings.Contains(string(text), `"mt":"AppPlatformInfoResult"`) || !strings.Contains(string(text), `"version":"160001"`) {
		t.Errorf("the answer is %s, %v", text, err)
	}

	cli := func(in string, args ...string) string {
		t.Helper()
		cmd := exec.Command(filepath.Join(programs, "manager"), append([]string{"--run", l.o.Run}, args...)...)
		cmd.Stdin = strings.NewReader(in)
		out, err := cmd.CombinedOutput()
		return fmt.Sprintf("%s%d", out, exitCode(err))
	}
	for _, test := range []struct {
		in   string
		args []string
		want string
	}{
		{"", []string{"status"}, "warning: the manager has the password that everybody knows"},
		{"", []string{"apps"}, "badapp  d"},
		{"", []string{"instances"}, "n@d"},
		{"", []string{"logs"}, "badapp\n"},
		{"", []string{"logs", "badapp"}, "SUPERVISOR started"},
		{"", []string{"stop", "badapp"}, "0"},
		{"", []string{"start", "badapp"}, "0"},
		{"", []string{"start", "nobody"}, "manager: the app \"nobody\" is not found\n1"},
		{"", []string{"install", "x"}, "2"},
		{"", []string{"nonsense"}, "2"},
		{"", []string{"--help"}, "EXIT STATUS"},
		{"", []string{"--version"}, "manager 160001\n0"},
		{"short\n", []string{"password"}, "hint: at least 8 characters\n1"},
		{"from the console\n", []string{"password"}, "0"},
		{`{"service": "badapp", "name": "m", "domain": "d"}`, []string{"request", "POST", "/instances"}, `"path": "/d/m"`},
		{"", []string{"jobs"}, "finished"},
	} {
		if got := cli(test.in, test.args...); !strings.Contains(got, test.want) {
			t.Errorf("manager %q prints %q; want %q", test.args, got, test.want)
		}
	}
	l.must(m.SignIn(ctx, "from the console", tester))
	l.end()
	if got := cli("", "status"); !strings.Contains(got, "hint: /etc/init.d/S92manager start") || !strings.HasSuffix(got, "1") {
		t.Errorf("manager status without a manager prints %q", got)
	}
	l.start() // and it ends what the one before has left running
}

func exitCode(err error) int {
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode()
	}
	return 0
}

// F8, I1: the images of the store that are for this machine, and an update that
// apagent does.
func TestImages(t *testing.T) {
	l := newLab(t)
	agent := l.o.Root + "/apagent"
	l.file("apagent", "#!/bin/sh\necho \"$@\" >> "+l.o.Root+"/asked\n[ \"$1\" != update ] || { echo step 1 of 2; echo step 2 of 2; [ \"$2\" != http://bad/ ] || { echo hint: no >&2; exit 1; }; [ \"$2\" != http://slow/ ] || { sleep 3; touch "+l.o.Root+"/slow; }; }\n"+
		`[ "$1" != status ] || echo '{"trial": "update from 150000 to 160001, on trial", "problems": ["the disk is odd\\nhint: look at it"], "sets": [{"label": "150000", "current": false}, {"label": "160001", "current": true}], "disk_size": 34359738368, "partitions": [{"number": 2, "start": 1048576, "size": 17179869184}]}'`+"\n")
	l.must(os.Chmod(agent, 0o755))
	l.o.Agent = agent
	l.store.files["/linux.json"] = []byte(`{"platforms": [
		{"id": "vm", "text": "App Platform 160002", "file": "a.ova", "update": "a.update", "version": "160002"},
		{"id": "vm", "text": "App Platform 150000", "file": "b.ova", "update": "http://192.0.2.1/b.update", "version": "150000"},
		{"id": "arm64", "text": "of others", "update": "c.update", "version": "170000"}],
		"devices": [{"id": "VM", "platforms": ["vm"]}, {"id": "IPx13", "platforms": ["arm64"]}]}`)
	m := l.ready()
	ctx := t.Context()
	l.setStore()
	images, err := m.Images(ctx, true)
	l.must(err)
	want := []model.Image{{Number: "160002", Text: "App Platform 160002", URL: l.store.URL + "/a.update", Newer: true}, {Number: "150000", Text: "App Platform 150000", URL: "http://192.0.2.1/b.update"}}
	if len(images) != 2 || images[0] != want[0] || images[1] != want[1] {
		t.Errorf("Images() = %+v; want %+v", images, want)
	}
	if problem := l.wait(m.UpdateImage(ctx, images[0].URL, tester)); problem != "" {
		t.Error(problem)
	}
	if problem := l.wait(m.UpdateImage(ctx, "http://bad/", tester)); !strings.Contains(problem, "apagent") {
		t.Errorf("an update that fails ends with %q", problem)
	}
	// A manager that ends in the middle leaves the update alone.
	_, err = m.UpdateImage(ctx, "http://slow/", tester)
	l.must(err)
	l.until("it shows its step", func() bool { jobs := m.Jobs(ctx); return len(jobs) > 0 && jobs[0].Step == "step 2 of 2" })
	l.end()
	m = l.ready()
	l.until("the update has gone on", func() bool { return exists(l.o.Root + "/slow") })
	if _, err := m.UpdateImage(ctx, "--force", tester); err == nil {
		t.Error("an option is an address")
	}
	l.must(m.RollbackImage(ctx, tester))
	l.until("the rollback has been asked for", func() bool {
		asked, _ := os.ReadFile(l.o.Root + "/asked")
		return strings.Contains(string(asked), "update "+images[0].URL+"\n") && strings.Contains(string(asked), "rollback\n") && strings.Contains(string(asked), "tidy\n")
	})
	s, err := m.System(ctx)
	l.must(err)
	if s.Image != "160001" || s.Previous != "150000" || !s.CanResize || s.Manager != "160001" {
		t.Errorf("System() = %+v", s)
	}
	l.until("what apagent finds is shown", func() bool {
		trial, odd := l.notice("image-trial"), l.notice("machine")
		return trial != nil && strings.Contains(trial.Text, "150000 to 160001") && odd != nil && odd.Text == "the disk is odd" && odd.Hint == "look at it"
	})
	if err := m.Restart(ctx, tester); err == nil {
		t.Error("a test restarts the machine")
	}
	l.file("apps/install_step1.log", "step 1\nfinished\n")
	if text, err := m.InstallLog(ctx); err != nil || text != "step 1\nfinished\n" {
		t.Errorf("InstallLog() = %q, %v", text, err)
	}
}

// An instance that a manager was making or deleting when it died is finished by
// the next one.
func TestHalfMade(t *testing.T) {
	l, i := demo(t)
	ctx := t.Context()
	half := model.Instance{Service: "apidemo", Name: "half", Domain: "example.com", Password: "p", Path: "/half", DBName: "half", DBUser: "half", DBPassword: "p", Wanted: true}
	id, err := l.m.store.AddInstance(ctx, half)
	l.must(err)
	l.must(l.m.store.SetPhase(ctx, i.ID, "deleting"))
	l.end()
	m := l.ready()
	l.until("it is finished", func() bool { return l.state(id) == model.Running })
	l.until("the other is gone", func() bool { _, err := m.Instance(ctx, i.ID); return err != nil })
	if out := l.pg.Run(t, nil, []string{"psql", "-d", "postgres", "-Atc", "SELECT datname FROM pg_database WHERE datname IN ('half', 'example.com_notes')"}); strings.TrimSpace(out) != "half" {
		t.Errorf("the databases are %q; want half", out)
	}
}
