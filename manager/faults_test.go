package manager

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"appplatform/manager/internal/appstore"
	"appplatform/manager/internal/model"
)

// demo is a machine on which an instance of apidemo answers.
func demo(t *testing.T) (*lab, model.Instance) {
	t.Helper()
	l := newLab(t)
	l.store.offer(t, "apidemo", "160001", "apidemo", 0, "")
	l.ready()
	l.setStore()
	l.install("apidemo", "160001")
	i := l.instance("apidemo", "notes", "example.com")
	l.answers(i)
	return l, i
}

func (l *lab) answers(i model.Instance) {
	l.t.Helper()
	l.until(i.Path+" answers", func() bool { status, _ := l.get(i.Path + "/"); return status == 200 })
}

func (l *lab) pid(id string) int {
	l.t.Helper()
	s, err := l.m.Service(l.t.Context(), id)
	l.must(err)
	return s.PID
}

// A8: whatever ends and begins in whatever order, apps and pages go on, and what
// was done meanwhile is known behind it.
func TestDatabaseComesAndGoes(t *testing.T) {
	l, i := demo(t)
	m, ctx := l.m, t.Context()
	before := l.pid("apidemo")
	l.pg.Kill()
	l.until("the page says so", func() bool { n := l.notice("database"); return n != nil && n.Severity == model.Error })
	if status, _ := l.get(i.Path + "/"); status != 200 {
		t.Errorf("the app answers %d without a database", status)
	}
	if status, _ := l.get("/manager/signin"); status != 200 && status != 303 {
		t.Errorf("the pages answer %d without a database", status)
	}
	// Signing in needs no database, and is in the audit log later.
	l.must(m.SignIn(ctx, defaultPassword, tester))
	if _, err := m.CreateInstance(ctx, model.Instance{Service: "apidemo", Name: "two", Domain: "example.com"}, tester); !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("CreateInstance without a database: %v; want model.ErrUnavailable", err)
	}
	if err := m.StopService(ctx, "apidemo", tester); !errors.Is(err, model.ErrUnavailable) || l.serviceState("apidemo") != model.Stopped {
		t.Errorf("StopService without a database: %v, and it is %s; want it stopped and model.ErrUnavailable", err, l.serviceState("apidemo"))
	}
	_ = m.StartService(ctx, "apidemo", tester)
	l.until("it runs again", func() bool { return l.serviceState("apidemo") == model.Running })
	if l.pid("apidemo") == before {
		t.Error("it is the same process")
	}
	// A manager that starts without a database finds its apps.
	l.end()
	m = l.start()
	l.until("the new manager knows the app", func() bool { return l.serviceState("apidemo") == model.Running })
	l.must(m.SignIn(ctx, defaultPassword, tester))
	l.pg.Restart(t)
	l.until("the database is back", func() bool { m.mu.Lock(); defer m.mu.Unlock(); return m.loaded && l.noticeLocked("database") == nil })
	l.answers(i)
	l.until("what was done without it is in the audit log", func() bool {
		list, err := m.Audit(ctx, timeZero, 100)
		return err == nil && containsAudit(list, "sign in")
	})
	l.instance("apidemo", "two", "example.com")
}

// The manager's database is lost, then that of an instance, too: apps and instances are
// what they were, and the first loss does not even interrupt them.
func TestDatabaseIsLost(t *testing.T) {
	l, i := demo(t)
	m, ctx := l.m, t.Context()
	s, err := m.Settings(ctx)
	l.must(err)
	s.DNSName = "box.example.com"
	l.must(m.SetSettings(ctx, s, tester))
	l.must(m.SetManagerPassword(ctx, defaultPassword, "a better password", tester))
	l.must(m.refresh(ctx))
	sql := func(text string) { l.pg.Run(t, nil, []string{"psql", "-qd", "postgres", "-c", text}) }
	pid := l.pid("apidemo")
	asks := l.ask(i.Path+"/", 200)
	restored := func() {
		t.Helper()
		l.until("the notice is there", func() bool { return l.notice("restored") != nil })
		l.until("the database is back", func() bool { return l.notice("database") == nil && l.m.refresh(ctx) == nil })
		if n := l.notice("restored"); !strings.Contains(n.Text, "has been made from the copy of 20") || n.Hint == "" {
			t.Errorf("the notice says %+v", n)
		}
		if now, err := l.m.Instance(ctx, i.ID); err != nil || now.Key() != i.Key() || now.DBPassword != i.DBPassword || now.Path != i.Path {
			t.Errorf("the instance is %+v, %v; want %+v", now, err, i)
		}
		if now, err := l.m.Settings(ctx); err != nil || now != s {
			t.Errorf("the settings are %+v, %v; want %+v", now, err, s)
		}
		if list, err := l.m.Audit(ctx, timeZero, 100); err != nil || !slices.ContainsFunc(list, func(a model.Audit) bool { return a.What == "restore database" }) {
			t.Errorf("the audit log: %+v, %v", list, err)
		}
		l.must(l.m.SignIn(ctx, "a better password", tester))
		l.answers(i)
	}
	sql("DROP DATABASE manager WITH (FORCE)")
	restored()
	if now := l.pid("apidemo"); now != pid {
		t.Errorf("the app was restarted: process %d instead of %d", now, pid)
	}
	asks.check(t, "while the manager's database was lost")
	if text, err := os.ReadFile(l.o.path(logDir, "apidemo", "apidemo.log")); err != nil || strings.Count(string(text), "APP started") != 1 {
		t.Errorf("the instance was started anew, %v:\n%s", err, text)
	}

	l.end()
	sql("DROP DATABASE manager WITH (FORCE)")
	sql(`DROP DATABASE "` + i.DBName + `" WITH (FORCE)`)
	sql(`DROP USER "` + i.DBUser + `"`)
	l.start()
	restored()
	if !l.database(i.DBName) {
		t.Error("the instance has no database")
	}
	l.until("the instance runs", func() bool { return l.state(i.ID) == model.Running })
}

// noticeLocked is notice for a caller that holds the manager's lock.
func (l *lab) noticeLocked(code string) *model.Notice {
	l.m.notices.mu.Lock()
	defer l.m.notices.mu.Unlock()
	if n, ok := l.m.notices.list[code]; ok {
		return &n
	}
	return nil
}

// asker asks all the time, and counts what was not answered.
type asker struct {
	asked, failed atomic.Int64
	first         atomic.Value
	stop          func()
}

func (l *lab) ask(path string, want int) *asker {
	a := &asker{}
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			for ctx.Err() == nil {
				a.asked.Add(1)
				if status, text := l.get(path); status != want {
					a.failed.Add(1)
					a.first.CompareAndSwap(nil, fmt.Sprint(status, " ", text))
				}
			}
		})
	}
	a.stop = func() { cancel(); work.Wait() }
	l.t.Cleanup(a.stop)
	return a
}

func (a *asker) check(t *testing.T, what string) {
	t.Helper()
	a.stop()
	if a.failed.Load() > 0 || a.asked.Load() < 20 {
		t.Errorf("%s: %d of %d requests failed, the first with %v; want none of many", what, a.failed.Load(), a.asked.Load(), a.first.Load())
	}
}

// The manager is restarted while apps serve and somebody asks for its own pages:
// nobody is refused, and no app notices.
func TestManagerRestarts(t *testing.T) {
	l, i := demo(t)
	before, web := l.pid("apidemo"), l.m.web.Status().PID
	app, pages := l.ask(i.Path+"/", 200), l.ask("/manager/signin", 303) // to https
	for range 3 {
		l.end()
		l.ready()
	}
	l.until("the app has come back", func() bool { return l.state(i.ID) == model.Running })
	app.check(t, "the app")
	pages.check(t, "the pages")
	if l.pid("apidemo") != before {
		t.Error("the app was restarted")
	}
	if l.m.web.Status().PID != web {
		t.Error("the webserver was restarted")
	}
}

// kill -9 of the webserver: everything is there again by itself.
func TestWebserverIsKilled(t *testing.T) {
	l, i := demo(t)
	before := l.pid("apidemo")
	for range 3 {
		old := l.m.web.Status().PID
		l.must(syscall.Kill(old, syscall.SIGKILL))
		l.until("there is another one", func() bool { pid := l.m.web.Status().PID; return pid != 0 && pid != old })
		l.answers(i)
	}
	if l.pid("apidemo") != before {
		t.Error("the app was restarted")
	}
	l.until("it is remembered", func() bool {
		crashes, err := l.m.Crashes(t.Context(), 10)
		return err == nil && len(crashes) == 3 && crashes[0].Service == "webserver" && strings.Contains(crashes[0].What, "signal 9")
	})
}

// The webserver in /apps does not run: the image's is used.
func TestBrokenWebserver(t *testing.T) {
	l := newLab(t)
	l.file("apps/webserver/webserver", "#!/bin/sh\nexit 1\n")
	l.must(os.Chmod(l.o.Root+"/apps/webserver/webserver", 0o755))
	l.ready()
	l.until("the root leads to the pages", func() bool { status, _ := l.get("/"); return status == http.StatusFound })
}

// An app that crashes, hangs, floods, eats, forks or talks nonsense harms nobody
// else, and the page says what happened.
func TestBadApps(t *testing.T) {
	for _, test := range []struct {
		how  string
		want string // of the app's problem
	}{
		{"crash", "ended with status 7"},
		{"kill", "signal 9"},
		{"garbage", "become ready"},
	} {
		t.Run(test.how, func(t *testing.T) {
			l, i := demo(t)
			l.store.offer(t, "badapp", "1", "badapp", 0, "HOW="+test.how)
			_, err := l.m.Store(t.Context(), true)
			l.must(err)
			started, err := l.m.Install(t.Context(), "badapp", "1", tester)
			l.must(err)
			if problem := l.wait(started, nil); !strings.Contains(problem, test.want) {
				t.Errorf("the installation ends with %q; want %q", problem, test.want)
			}
			l.until("it is remembered", func() bool {
				crashes, err := l.m.Crashes(t.Context(), 10)
				return err == nil && len(crashes) > 0 && crashes[0].Service == "badapp" && strings.Contains(crashes[0].What, test.want)
			})
			if n := l.notice("crash-badapp"); n == nil || !strings.Contains(n.Text, test.want) {
				t.Errorf("the notice is %+v; want %q", n, test.want)
			}
			l.answers(i)
			l.must(l.m.StopService(t.Context(), "badapp", tester))
			if l.serviceState("badapp") != model.Stopped {
				t.Errorf("the app is %s; want it stopped", l.serviceState("badapp"))
			}
		})
	}
}

// Instances of one app that flood, or refuse to start, beside one that works.
func TestBadInstances(t *testing.T) {
	l, i := demo(t)
	l.store.offer(t, "badapp", "1", "badapp", 0, "")
	_, err := l.m.Store(t.Context(), true)
	l.must(err)
	l.install("badapp", "1")
	s, err := l.m.Service(t.Context(), "badapp")
	l.must(err)
	s.LogSize = 64 << 10
	l.must(l.m.SetService(t.Context(), s, tester))
	good := l.instance("badapp", "good", "example.com")
	refuse := l.instance("badapp", "refuse", "example.com")
	flood := l.instance("badapp", "flood", "example.com")
	l.answers(good)
	l.answers(flood)
	l.until("the refusal is known", func() bool {
		v, err := l.m.Instance(t.Context(), refuse.ID)
		return err == nil && v.State == model.Failed && strings.Contains(v.Problem, "does not want to")
	})
	l.until("the log has turned", func() bool { return exists(l.o.Root + "/var/log/apps/badapp/badapp.4.log") })
	files, err := os.ReadDir(l.o.Root + "/var/log/apps/badapp")
	l.must(err)
	total := int64(0)
	for _, f := range files {
		if info, err := f.Info(); err == nil {
			total += info.Size()
		}
	}
	if len(files) > 5 || total > 6*64<<10 {
		t.Errorf("J1: the log has %d files with %d bytes; want 5 of 64 KiB", len(files), total)
	}
	l.answers(good)
	l.answers(i)
}

// An update to a version that does not become ready returns to the one before.
func TestBadUpdate(t *testing.T) {
	l := newLab(t)
	l.store.offer(t, "badapp", "1", "badapp", 0, "")
	l.store.offer(t, "badapp", "2", "badapp", 0, "HOW=crash")
	l.store.offer(t, "badapp", "3", "badapp", 0, "HOW=hang")
	l.o.Ready = 4 * time.Second
	l.ready()
	l.setStore()
	l.install("badapp", "1")
	i := l.instance("badapp", "good", "example.com")
	l.answers(i)
	for build, want := range map[string]string{"2": "ended with status 7", "3": "ready"} {
		problem := l.wait(l.m.Install(t.Context(), "badapp", build, tester))
		if !strings.Contains(problem, want) || !strings.Contains(problem, "the version before runs again") {
			t.Errorf("the update to %s ends with %q; want %q", build, problem, want)
		}
		if s, err := l.m.Service(t.Context(), "badapp"); err != nil || s.Build != "1" || s.State != model.Running {
			t.Errorf("behind it the app is %+v, %v", s, err)
		}
		l.answers(i)
	}
}

// A store that is down, cuts or lies changes nothing.
func TestBadStore(t *testing.T) {
	l, i := demo(t)
	l.store.offer(t, "apidemo", "160002", "apidemo", 0, "2")
	_, err := l.m.Store(t.Context(), true)
	l.must(err)
	for _, test := range []struct {
		name, want string
		answer     func(w http.ResponseWriter, r *http.Request) bool
	}{
		{"lies", "not the one that the store's list promises", func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, ".bin") {
				b := append([]byte{}, l.store.files["/160001/"+appstore.Arch()+"/apidemo/apidemo.bin"]...)
				_, _ = w.Write(append(b, "3"...))
				return true
			}
			return false
		}},
		{"truncates", "cannot fetch apidemo 160002", func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, ".bin") {
				w.Header().Set("Content-Length", "10000000")
				_, _ = w.Write(make([]byte, 1000))
				panic(http.ErrAbortHandler)
			}
			return false
		}},
		{"is down", "cannot fetch apidemo 160002", func(w http.ResponseWriter, r *http.Request) bool { panic(http.ErrAbortHandler) }},
	} {
		l.store.mu.Lock()
		l.store.answer = test.answer
		l.store.mu.Unlock()
		problem := l.wait(l.m.Install(t.Context(), "apidemo", "160002", tester))
		if !strings.Contains(problem, test.want) || !strings.Contains(problem, "\nhint: ") {
			t.Errorf("a store that %s: %q; want %q", test.name, problem, test.want)
		}
		if s, err := l.m.Service(t.Context(), "apidemo"); err != nil || s.Build != "160001" {
			t.Errorf("a store that %s: the app is %+v, %v", test.name, s, err)
		}
		l.answers(i)
	}
}

// 1,000 bad logins: nobody comes in, the memory stays, and somebody else, who has
// signed in before, is not kept out.
func TestBadLogins(t *testing.T) {
	l := newLab(t)
	m := l.ready()
	ctx := t.Context()
	good := model.Actor{Who: "admin", From: "192.0.2.1"}
	l.must(m.SignIn(ctx, defaultPassword, good))
	l.must(m.SetManagerPassword(ctx, defaultPassword, "a better password", good))
	if l.notice("default-password") != nil {
		t.Error("the page still asks to change the password")
	}
	var wrong, in atomic.Int64
	var work sync.WaitGroup
	for n := range 20 {
		work.Go(func() {
			for k := range 50 {
				by := model.Actor{Who: "admin", From: fmt.Sprintf("198.51.100.%d", n*50+k%4)}
				short, cancel := context.WithTimeout(ctx, 30*time.Second)
				switch err := m.SignIn(short, fmt.Sprint("guess ", k), by); {
				case err == nil:
					in.Add(1)
				case errors.Is(err, model.ErrPassword):
					wrong.Add(1)
				}
				cancel()
			}
		})
	}
	work.Wait()
	if in.Load() != 0 || wrong.Load() != 1000 {
		t.Errorf("%d came in and %d were refused; want 0 and 1000", in.Load(), wrong.Load())
	}
	l.must(m.SignIn(ctx, "a better password", good))
	// The database is made anew: the default password must not be back.
	l.must(m.store.SetConfig(ctx, "managerPassword", ""))
	l.must(m.refresh(ctx))
	l.must(m.SignIn(ctx, "a better password", good))
}

// pair is a self-signed certificate with its key.
func pair(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
}

// B1 to B3: a certificate is used at once, without ending connections; deleting
// its row brings back the self-signed one.
func TestCertificate(t *testing.T) {
	l := newLab(t)
	m := l.ready()
	ctx := t.Context()
	served := func() string {
		c, err := tls.Dial("tcp", l.https, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].Subject.CommonName
	}
	l.until("https is served", func() bool { _, _, err := m.Certificates(ctx); return err == nil })
	first := served()
	open, err := tls.Dial("tcp", l.https, &tls.Config{InsecureSkipVerify: true})
	l.must(err)
	defer open.Close()
	l.must(m.SetCertificate(ctx, pair(t, "ap.example.com"), tester))
	l.until("the new one is served", func() bool { return served() == "ap.example.com" })
	chain, text, err := m.Certificates(ctx)
	l.must(err)
	if len(chain) != 1 || chain[0].Subject != "ap.example.com" || strings.Contains(text, "PRIVATE") {
		t.Errorf("B2: the chain is %+v, its text has a key: %t", chain, strings.Contains(text, "PRIVATE"))
	}
	if kept, err := os.ReadFile(l.o.Root + "/" + httpsFile); err != nil || !strings.Contains(string(kept), "PRIVATE") {
		t.Errorf("the ramdisk's page has no certificate: %v", err)
	}
	if _, err := fmt.Fprintf(open, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Error(err)
	}
	answer := make([]byte, 12)
	if _, err := open.Read(answer); err != nil || string(answer) != "HTTP/1.1 302" {
		t.Errorf("a connection that was open says %q, %v", answer, err)
	}
	if err := m.SetCertificate(ctx, "nonsense", tester); err == nil {
		t.Error("B1: nonsense is accepted")
	}
	l.pg.Run(t, nil, []string{"psql", "-d", "manager", "-c", "DELETE FROM config WHERE name='webserverCertificate'"})
	l.end()
	l.ready()
	l.until("B3: the self-signed one is served", func() bool { return served() == first })
	if exists(l.o.Root + "/" + httpsFile) {
		t.Error("the ramdisk's page keeps the old certificate")
	}
}

// What cannot be written is said, and what runs goes on.
func TestDiskIsFull(t *testing.T) {
	l, i := demo(t)
	l.store.offer(t, "apidemo", "160002", "apidemo", 0, "2")
	_, err := l.m.Store(t.Context(), true)
	l.must(err)
	// A folder that cannot be made stands for a disk that takes nothing: root may
	// write everywhere else.
	l.must(os.RemoveAll(l.o.Root + "/apps/.download"))
	l.file("apps/.download", "a file")
	if problem := l.wait(l.m.Install(t.Context(), "apidemo", "160002", tester)); !strings.Contains(problem, "cannot fetch apidemo 160002") {
		t.Errorf("the update ends with %q", problem)
	}
	for _, test := range []struct {
		err  error
		want string
	}{
		{&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, "apagent diskfree"},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.EDQUOT}, "apagent diskfree"},
		{errors.New("another"), ""},
	} {
		if got := hintNoSpace(test.err).Error(); strings.Contains(got, "hint:") != (test.want != "") || !strings.Contains(got, test.want) {
			t.Errorf("hintNoSpace(%v) = %q; want %q", test.err, got, test.want)
		}
	}
	l.answers(i)
}
