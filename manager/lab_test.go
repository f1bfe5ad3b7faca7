package manager

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"appplatform/internal/testpg"
	"appplatform/manager/internal/appstore"
	"appplatform/manager/internal/model"
)

// programs are the real parts, compiled once.
var programs string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if programs, err = os.MkdirTemp("", "ap"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(programs)
		if err := os.Chmod(programs, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		for name, pkg := range map[string]string{"webserver": "../cmd/webserver", "manager": "../cmd/manager", "apidemo": "../apps/apidemo", "badapp": "./testdata/badapp"} {
			cmd := exec.Command("go", "build", "-ldflags", "-X main.version=160001", "-o", filepath.Join(programs, name), pkg)
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if out, err := cmd.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n%s", name, err, out)
				return 1
			}
		}
		return m.Run()
	}())
}

// A lab is a machine below a folder, with a database and a store of its own.
type lab struct {
	t     *testing.T
	o     Options
	pg    *testpg.Server
	store *fakeStore
	m     *Manager
	end   func()
	http  string
	https string
}

var tester = model.Actor{Who: "test", From: "192.0.2.7"}

// newLab prepares the machine; nothing runs yet but the database.
func newLab(t *testing.T) *lab {
	t.Helper()
	t.Parallel()
	root, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		killLeft(t, root)
		_ = os.RemoveAll(root)
	})
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, pg: testpg.Start(t), store: newFakeStore(t), http: freePort(t), https: freePort(t)}
	l.o = Options{Version: "160001", Root: root, Run: filepath.Join(root, "r"), PostgreSQL: l.pg.Socket, HTTP: l.http, HTTPS: l.https,
		Agent: "/nonexistent", Ready: 20 * time.Second, Refresh: 500 * time.Millisecond, Patience: 300 * time.Millisecond}
	logs := &lines{}
	l.o.Log = slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the manager's log:\n%s", logs)
			if l.m != nil {
				for _, n := range l.m.Notices(context.Background()) {
					t.Logf("notice %s: %s", n.Code, n.Text)
				}
			}
			files, _ := filepath.Glob(root + "/var/log/apps/*/*.log")
			for _, f := range files {
				text, _ := readTail(f, 3000)
				t.Logf("%s:\n%s", filepath.Base(f), text)
			}
		}
	})
	l.file("etc/platform.json", `{"board": "x86_64", "arch": "x86_64", "label": "160001"}`)
	for _, name := range []string{"passwd", "group", "shadow"} {
		text, err := os.ReadFile("../rootfs/accounts/" + name)
		if err != nil {
			t.Fatal(err)
		}
		l.file("etc/"+name, string(text))
	}
	l.copy("webserver", imageDir+"/webserver")
	return l
}

// killLeft ends what a test that went wrong has left running: apps and the webserver
// outlive their manager on purpose. Their programs lie in the test's folder.
func killLeft(t *testing.T, root string) {
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		program, err := os.Readlink(p + "/exe")
		if err != nil || !strings.HasPrefix(program, root+"/") {
			continue
		}
		t.Errorf("%s was left running", program)
		_ = syscall.Kill(number(filepath.Base(p)), syscall.SIGKILL)
	}
}

// lines collects what is logged.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lab) file(name, text string) {
	l.t.Helper()
	path := filepath.Join(l.o.Root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) copy(program, name string) {
	l.t.Helper()
	text, err := os.ReadFile(filepath.Join(programs, program))
	if err != nil {
		l.t.Fatal(err)
	}
	l.file(name, string(text))
	if err := os.Chmod(filepath.Join(l.o.Root, name), 0o755); err != nil {
		l.t.Fatal(err)
	}
}

// freePort is one that nobody gets by chance: the kernel gives others to those that
// want any port.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		address := fmt.Sprintf("127.0.0.1:%d", 20_000+rand.IntN(12_000))
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("there is no free port")
	return ""
}

// start runs a manager in this process, until the test ends.
func (l *lab) start() *Manager {
	l.t.Helper()
	m, err := New(l.o)
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	stop := true
	go func() {
		defer close(done)
		if err := m.Run(ctx, func() bool { return stop }); err != nil {
			l.t.Error(err)
		}
	}()
	var once sync.Once
	halt := func(all bool) {
		once.Do(func() {
			stop = all
			cancel()
			<-done
		})
	}
	l.m, l.end = m, func() { halt(false) }
	l.t.Cleanup(func() { halt(true) })
	return m
}

// ready is start, until the database is known.
func (l *lab) ready() *Manager {
	l.t.Helper()
	m := l.start()
	l.until("the database is read", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.loaded
	})
	return m
}

// patience is far more than anything here takes.
const patience = 60 * time.Second

// until waits for something that must come.
func (l *lab) until(what string, is func() bool) {
	l.t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("waited in vain until %s", what)
		}
	}
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// wait waits for the end of a job and returns its error.
func (l *lab) wait(j model.Job, err error) string {
	l.t.Helper()
	l.must(err)
	var ended model.Job
	l.until("job "+j.Kind+" ends", func() bool {
		for _, one := range l.m.Jobs(l.t.Context()) {
			if one.ID == j.ID {
				ended = one
			}
		}
		return !ended.Ended.IsZero()
	})
	return ended.Error
}

// setStore tells the manager its store.
func (l *lab) setStore() {
	l.t.Helper()
	s, err := l.m.Settings(l.t.Context())
	l.must(err)
	s.StoreURL = l.store.URL
	l.must(l.m.SetSettings(l.t.Context(), s, tester))
}

// install installs an app of the store, which must work.
func (l *lab) install(app, build string) {
	l.t.Helper()
	if problem := l.wait(l.m.Install(l.t.Context(), app, build, tester)); problem != "" {
		l.t.Fatalf("install %s %s: %s", app, build, problem)
	}
}

func (l *lab) instance(service, name, domain string) model.Instance {
	l.t.Helper()
	i, err := l.m.CreateInstance(l.t.Context(), model.Instance{Service: service, Name: name, Domain: domain}, tester)
	l.must(err)
	return i
}

// state is that of an instance.
func (l *lab) state(id int64) model.State {
	i, err := l.m.Instance(l.t.Context(), id)
	if err != nil {
		return model.State(err.Error())
	}
	return i.State
}

func (l *lab) serviceState(id string) model.State {
	s, err := l.m.Service(l.t.Context(), id)
	if err != nil {
		return model.State(err.Error())
	}
	return s.State
}

// get asks the webserver, and returns the status and the text.
func (l *lab) get(path string) (int, string) {
	client := http.Client{Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Get("http://" + l.http + path)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(text)
}

func (l *lab) notice(code string) *model.Notice {
	for _, n := range l.m.Notices(l.t.Context()) {
		if n.Code == code {
			return &n
		}
	}
	return nil
}

// A fakeStore offers programs of TestMain.
type fakeStore struct {
	*httptest.Server
	mu    sync.Mutex
	apps  []appstore.App
	files map[string][]byte
	// answer may do something else; it says whether it did.
	answer func(w http.ResponseWriter, r *http.Request) bool
}

func newFakeStore(t *testing.T) *fakeStore {
	s := &fakeStore{files: map[string][]byte{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		answer := s.answer
		b, ok := s.files[r.URL.Path]
		list, _ := json.Marshal(map[string]any{"apps": s.apps})
		s.mu.Unlock()
		switch {
		case answer != nil && answer(w, r):
		case r.URL.Path == "/apps.json":
			_, _ = w.Write(list)
		case ok:
			w.Header().Set("ETag", `"x"`)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// offer puts a program into the store. Extra bytes behind it make it another one.
func (s *fakeStore) offer(t *testing.T, app, build, program string, minImage int, extra string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(programs, program))
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, extra...)
	sum := sha256.Sum256(b)
	v := appstore.Version{ID: "16r1", Build: build, Label: "test", MinImage: minImage, SHA256: map[string]string{appstore.Arch(): hex.EncodeToString(sum[:])}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files["/"+build+"/"+appstore.Arch()+"/"+app+"/"+app+".bin"] = b
	for i := range s.apps {
		if s.apps[i].ID == app {
			s.apps[i].Versions = append(s.apps[i].Versions, v)
			return
		}
	}
	s.apps = append(s.apps, appstore.App{ID: app, Folder: app, Binary: app, Title: strings.ToUpper(app), Versions: []appstore.Version{v}})
}
