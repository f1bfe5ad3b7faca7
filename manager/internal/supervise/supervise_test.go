package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"appplatform/manager/internal/model"
)

// badapp is the program of testdata, under whatever name.
var badapp string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if dir := os.Getenv("SUPERVISE_IN"); dir != "" {
		return superviseUntilKilled(dir, os.Getenv("SUPERVISE_CGROUP"))
	}
	// On a device there is no Go: somebody has compiled it before.
	if badapp = os.Getenv("SUPERVISE_BADAPP"); badapp != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "badapp")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Processes run as others.
	os.Chmod(dir, 0o755)
	badapp = filepath.Join(dir, "badapp")
	if out, err := exec.Command("go", "build", "-o", badapp, "./testdata/badapp").CombinedOutput(); err != nil {
		fmt.Printf("%v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// superviseUntilKilled is a manager of its own.
func superviseUntilKilled(dir, cgroup string) int {
	s, err := New(Options{Run: filepath.Join(dir, "run"), Cgroup: cgroup})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	service, err := s.Add(Spec{Name: "count", Path: filepath.Join(dir, "count"), Log: filepath.Join(dir, "log")}, Hooks{})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	service.Start()
	for service.Status().State != model.Running {
		time.Sleep(time.Millisecond)
	}
	fmt.Println(service.Status().PID)
	time.Sleep(time.Hour)
	return 0
}

// A lab is a supervisor in folders of its own, and what it told of each service.
type lab struct {
	*Supervisor
	t   *testing.T
	dir string

	mu     sync.Mutex
	ends   []End
	states []model.State
	told   []string
}

func newLab(t *testing.T, o Options) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir()}
	os.Chmod(l.dir, 0o755)
	o.Run = filepath.Join(l.dir, "run")
	o.Log = func(format string, args ...any) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.told = append(l.told, fmt.Sprintf(format, args...))
	}
	l.open(o)
	t.Cleanup(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, line := range l.told {
			if strings.Contains(line, "internal error") {
				t.Error(line)
			}
		}
	})
	return l
}

func (l *lab) open(o Options) {
	l.t.Helper()
	s, err := New(o)
	if err != nil {
		l.t.Fatal(err)
	}
	l.Supervisor = s
	l.t.Cleanup(func() {
		s.mu.Lock()
		all := make([]*Service, 0, len(s.services))
		for _, service := range s.services {
			all = append(all, service)
		}
		s.mu.Unlock()
		for _, service := range all {
			if s.ctx.Err() == nil {
				service.Stop(context.Background())
			}
		}
		s.Close()
	})
}

// spec is that of badapp, as a program of that name.
func (l *lab) spec(name string) Spec {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.Link(badapp, path); err != nil && !os.IsExist(err) {
		if err := os.Symlink(badapp, path); err != nil {
			l.t.Fatal(err)
		}
	}
	return Spec{Name: name, Path: path, Log: filepath.Join(l.dir, "log")}
}

func (l *lab) add(spec Spec, h Hooks) *Service {
	l.t.Helper()
	var service *Service
	ready := make(chan struct{})
	h.Ended = func(e End) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.ends = append(l.ends, e)
	}
	h.Changed = func() {
		<-ready
		l.mu.Lock()
		defer l.mu.Unlock()
		l.states = append(l.states, service.Status().State)
	}
	service, err := l.Add(spec, h)
	if err != nil {
		l.t.Fatal(err)
	}
	close(ready)
	return service
}

// await waits for something that is not measured.
func (l *lab) await(what string, ok func() bool) {
	l.t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			l.t.Fatalf("waited in vain until %s", what)
		}
	}
}

func (l *lab) running(s *Service) int {
	l.t.Helper()
	l.await(s.Name()+" runs", func() bool { return s.Status().State == model.Running })
	return s.Status().PID
}

func (l *lab) ended(n int) End {
	l.t.Helper()
	l.await(fmt.Sprintf("end %d", n), func() bool { l.mu.Lock(); defer l.mu.Unlock(); return len(l.ends) > n })
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ends[n]
}

func (l *lab) log(name string) string {
	text, _ := os.ReadFile(filepath.Join(l.dir, "log", name+".log"))
	return string(text)
}

func lives(pid int) bool {
	stat, err := readStat(pid)
	return err == nil && stat.state != "Z"
}

func TestStates(t *testing.T) {
	l := newLab(t, Options{})
	goOn := make(chan struct{})
	s := l.add(l.spec("quiet"), Hooks{
		Ready: func(ctx context.Context, pid int) error { <-goOn; return nil },
		Stop:  func(context.Context) error { return syscall.Kill(l.pidOf("quiet"), syscall.SIGTERM) },
	})
	if st := s.Status(); st.State != model.Stopped {
		t.Fatalf("a new service is %s", st.State)
	}
	s.Start()
	l.await("it speaks", func() bool { return strings.Contains(l.log("quiet"), "this is") })
	l.await("it is starting", func() bool { return s.Status().State == model.Starting })
	close(goOn)
	pid := l.running(s)
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if lives(pid) {
		t.Error("it still runs")
	}
	if st := s.Status(); st.State != model.Stopped || st.PID != 0 || st.Problem != "" {
		t.Errorf("Status = %+v", st)
	}
	if e := l.ended(0); !e.Asked || e.Signal != syscall.SIGTERM || e.PID != pid {
		t.Errorf("End = %+v", e)
	}
	l.await("all states were told", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return fmt.Sprint(l.states) == "[starting running stopping stopped]"
	})
	// The supervisor's own line about the start may come before or behind.
	if !strings.Contains(l.log("quiet"), "this is quiet\n") {
		t.Errorf("the log is %q", l.log("quiet"))
	}
	if err := l.Remove(s); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(l.o.Run, "quiet*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// Who stops a service while its process is being started has stopped that, too.
func TestStopWhileStarting(t *testing.T) {
	l := newLab(t, Options{})
	s := l.add(l.spec("quiet"), Hooks{})
	s.Start()
	for begun := false; !begun; {
		s.mu.Lock()
		begun = !s.fresh
		s.mu.Unlock()
	}
	for range 2 { // the second has nothing to do, nor to wait for
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Remove(s); err != nil {
		t.Fatal(err)
	}
	_, text, found := strings.Cut(l.log("quiet"), "started, pid ")
	var pid int
	fmt.Sscan(text, &pid)
	if !found || lives(pid) {
		t.Errorf("process %d runs and nobody watches it:\n%s", pid, l.log("quiet"))
	}
}

func (l *lab) pidOf(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.services[name].Status().PID
}

func TestDelays(t *testing.T) {
	s := &Service{s: &Supervisor{o: Options{MaxDelay: time.Minute}}}
	var got []string
	for s.early = range 13 {
		got = append(got, s.delay().String())
	}
	want := "[0s 0s 100ms 200ms 400ms 800ms 1.6s 3.2s 6.4s 12.8s 25.6s 51.2s 1m0s]"
	if fmt.Sprint(got) != want {
		t.Errorf("delays %v; want %s", got, want)
	}
	s.early = 1 << 30
	if d := s.delay(); d != time.Minute {
		t.Errorf("the delay of the last start is %v", d)
	}
}

func TestEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		sig  syscall.Signal // to send
		want string
	}{
		{"crash", 0, "ended with status 3"},
		{"panic", 0, "killed by signal 6 (aborted)"},
		{"quiet", syscall.SIGKILL, "killed by signal 9 (killed)"},
		{"quiet", syscall.SIGTERM, "killed by signal 15 (terminated)"},
	} {
		t.Run(c.name+" "+c.sig.String(), func(t *testing.T) {
			l := newLab(t, Options{})
			s := l.add(l.spec(c.name), Hooks{})
			s.Start()
			if c.sig != 0 {
				if err := syscall.Kill(l.running(s), c.sig); err != nil {
					t.Fatal(err)
				}
			}
			got := strings.TrimSuffix(l.ended(0).String(), ", core dumped") // as the machine is set up
			if got != c.want || l.ended(0).Asked || l.ended(0).Service != c.name {
				t.Errorf("End = %+v: %s; want %s", l.ended(0), got, c.want)
			}
			l.await("it is started again", func() bool { return s.Status().Restarts > 0 })
			if got := s.Status().Problem; !strings.HasPrefix(got, c.want) {
				t.Errorf("Problem = %q; want %q", got, c.want)
			}
		})
	}
}

// However often an app ends, it is started again; others do not notice.
func TestNeverGivesUp(t *testing.T) {
	l := newLab(t, Options{MaxDelay: time.Millisecond})
	quiet := l.add(l.spec("quiet"), Hooks{})
	quiet.Start()
	pid := l.running(quiet)
	s := l.add(l.spec("crash"), Hooks{})
	s.Start()
	l.ended(100)
	if st := s.Status(); st.Restarts < 100 {
		t.Errorf("Status = %+v", st)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := l.running(quiet); got != pid {
		t.Errorf("the other app was started again: %d, then %d", pid, got)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if slices.Contains(l.states, model.Failed) {
		t.Error("it has failed for good")
	}
}

// Who waits is started at once on purpose, and stopped at once.
func TestStartWhileWaiting(t *testing.T) {
	l := newLab(t, Options{MaxDelay: time.Hour})
	spec, quiet := l.spec("crash"), l.spec("quiet").Path
	s := l.add(spec, Hooks{})
	s.Start()
	l.ended(0)
	s.mu.Lock()
	s.early = 20 // as if it had crashed often
	s.mu.Unlock()
	l.await("it waits", func() bool { return s.Status().State == model.Waiting && time.Until(s.Status().Next) > time.Minute })
	spec.Path = quiet
	if err := s.Set(spec); err != nil {
		t.Fatal(err)
	}
	s.Start()
	l.running(s)
	if st := s.Status(); st.Restarts != 0 || st.Problem != "" {
		t.Errorf("Status = %+v", st)
	}
}

func TestCannotStart(t *testing.T) {
	l := newLab(t, Options{MaxDelay: time.Millisecond})
	spec := l.spec("quiet")
	if err := os.Rename(spec.Path, spec.Path+".away"); err != nil {
		t.Fatal(err)
	}
	s := l.add(spec, Hooks{})
	s.Start()
	l.await("it has failed", func() bool { return s.Status().State == model.Failed })
	if st := s.Status(); !strings.Contains(st.Problem, "no such file") || st.Next.IsZero() {
		t.Errorf("Status = %+v", st)
	}
	if err := os.Rename(spec.Path+".away", spec.Path); err != nil {
		t.Fatal(err)
	}
	l.running(s)
}

func TestHang(t *testing.T) {
	// "hang" hears no signal, "quiet" does.
	for _, c := range []struct {
		name string
		want syscall.Signal
	}{{"hang", syscall.SIGKILL}, {"quiet", syscall.SIGABRT}} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, Options{StatusEvery: time.Millisecond, StatusTimeout: 10 * time.Millisecond, AbortTimeout: 2 * time.Second})
			var mu sync.Mutex
			asked := 0
			spec := l.spec(c.name)
			spec.Env = []string{"GOTRACEBACK=crash"}
			s := l.add(spec, Hooks{
				Ready: func(context.Context, int) error {
					l.await("it speaks", func() bool { return strings.Contains(l.log(c.name), "this is") })
					return nil
				},
				Alive: func(ctx context.Context) error {
					mu.Lock()
					asked++
					hangs := asked == 3
					mu.Unlock()
					if hangs {
						<-ctx.Done()
						return ctx.Err()
					}
					return nil
				},
			})
			s.Start()
			e := l.ended(0)
			if e.Signal != c.want || e.Reason != "it hung: it does not answer" {
				t.Errorf("End = %+v; want signal %v", e, c.want)
			}
			l.running(s)
			if !strings.Contains(l.log(c.name), "SUPERVISOR it hung: it does not answer; it is ended") {
				t.Errorf("the log is %q", l.log(c.name))
			}
		})
	}
}

func TestNotReady(t *testing.T) {
	l := newLab(t, Options{MaxDelay: time.Millisecond, AbortTimeout: time.Millisecond, ReadyTimeout: 20 * time.Millisecond})
	s := l.add(l.spec("deaf"), Hooks{Ready: func(ctx context.Context, pid int) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	s.Start()
	if e := l.ended(2); !strings.HasPrefix(e.String(), "it did not become ready: it does not answer, killed") {
		t.Errorf("End = %s", e)
	}
}

// One that never becomes ready has not settled, however long that is waited for.
func TestNotReadyWaitsLonger(t *testing.T) {
	l := newLab(t, Options{MaxDelay: time.Millisecond, AbortTimeout: time.Millisecond, ReadyTimeout: 20 * time.Millisecond, Settled: time.Millisecond})
	s := l.add(l.spec("deaf"), Hooks{Ready: func(ctx context.Context, pid int) error {
		<-ctx.Done()
		return ctx.Err()
	}})
	s.Start()
	l.ended(2)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.early < 3 {
		t.Errorf("after three ends it waits as after %d", s.early)
	}
}

// What cannot be killed because its disk does not answer holds up nobody else.
func TestLeftoversThatStay(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"cgroup.kill": "", "quiet/cgroup.events": "populated 1\nfrozen 0\n"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l := newLab(t, Options{Cgroup: dir})
	s := l.add(l.spec("quiet"), Hooks{})
	if st := s.Status(); st.State != model.Stopped {
		t.Errorf("it is %s", st.State)
	}
	l.Close()
}

// Who has filled the file system of the pid files keeps no other app from running.
func TestNoRoomForPidFile(t *testing.T) {
	group := testCgroup(t)
	if group == "" {
		t.Skip("this machine has no cgroup to give")
	}
	l := newLab(t, Options{Cgroup: group})
	s := l.add(l.spec("quiet"), Hooks{})
	if err := os.MkdirAll(filepath.Join(l.o.Run, "quiet.pid", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.Start()
	pid := l.running(s)
	// The next manager finds no pid, and a clean place.
	l.Close()
	l.open(l.o)
	s = l.add(l.spec("quiet"), Hooks{})
	s.Start()
	if next := l.running(s); next == pid {
		t.Errorf("process %d was taken over without a pid file", pid)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// Who does not want to end is killed, and what it has started as well.
func TestStopKills(t *testing.T) {
	l := newLab(t, Options{PoliteTimeout: 10 * time.Millisecond, TermTimeout: 10 * time.Millisecond})
	asked := make(chan struct{}, 1)
	s := l.add(l.spec("hang"), Hooks{Stop: func(context.Context) error { asked <- struct{}{}; return nil }})
	s.Start()
	l.running(s)
	l.await("it speaks", func() bool { return strings.Contains(l.log("hang"), "this is hang") })
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	<-asked
	if e := l.ended(0); e.Signal != syscall.SIGKILL || !e.Asked {
		t.Errorf("End = %+v", e)
	}
	// Again, with nobody listening.
	s.Start()
	l.running(s)
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.running(s)
}

func TestOneSupervisorAtATime(t *testing.T) {
	l := newLab(t, Options{})
	if _, err := New(l.o); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "hint: ") {
		t.Errorf("New = %v; want %v with a hint", err, ErrLocked)
	}
	l.Close()
	s, err := New(l.o)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

// The manager is killed; the app goes on, and the next manager takes it over.
func TestAdopt(t *testing.T) {
	cgroups := []string{""}
	if cgroup := testCgroup(t); cgroup != "" {
		cgroups = append(cgroups, cgroup)
	}
	for _, cgroup := range cgroups {
		name := "without a cgroup"
		if cgroup != "" {
			name = "with a cgroup"
		}
		t.Run(name, func(t *testing.T) {
			l := &lab{t: t, dir: t.TempDir()}
			spec := l.spec("count")
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			manager := exec.Command(self)
			manager.Env = append(os.Environ(), "SUPERVISE_IN="+l.dir, "SUPERVISE_CGROUP="+cgroup)
			out, err := manager.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := manager.Start(); err != nil {
				t.Fatal(err)
			}
			var pid int
			if _, err := fmt.Fscan(out, &pid); err != nil {
				t.Fatal(err)
			}
			l.await("it counts", func() bool { return strings.Contains(l.log("count"), "number 20\n") })
			manager.Process.Kill()
			manager.Wait()
			if !lives(pid) {
				t.Fatal("the app died with its manager")
			}
			l.open(Options{Run: filepath.Join(l.dir, "run"), Cgroup: cgroup, Log: func(string, ...any) {}})
			s := l.add(spec, Hooks{})
			if got := l.running(s); got != pid || !s.Status().Adopted {
				t.Fatalf("process %d is taken over as %+v", pid, s.Status())
			}
			// What it has printed meanwhile is in the log, in order, but for what the killed
			// manager had taken and not written yet.
			l.await("it counts on", func() bool { return strings.Contains(l.log("count"), "number 200\n") })
			next, gaps := 0, 0
			for line := range strings.Lines(l.log("count")) {
				if n, found := strings.CutPrefix(strings.TrimSpace(line), "number "); found {
					got, err := strconv.Atoi(n)
					if got > next {
						gaps++
					}
					if err != nil || got < next || gaps > 1 || got > next+5 {
						t.Fatalf("number %d is followed by %s", next-1, n)
					}
					next = got + 1
				}
			}
			if u := s.Usage(); u.Memory < 100_000 || u.Processes < 1 {
				t.Errorf("Usage = %+v", u)
			}
			syscall.Kill(pid, syscall.SIGKILL)
			if e := l.ended(0); e.PID != pid || e.Asked || e.Code != -1 {
				t.Errorf("End = %+v", e)
			}
			if got := l.running(s); got == pid {
				t.Error("it is not started again")
			}
		})
	}
}

// A process that has the number of one that ended is left alone.
func TestAdoptsNoStranger(t *testing.T) {
	l := newLab(t, Options{})
	stranger := exec.Command("sleep", "1000")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stranger.Process.Kill(); stranger.Wait() }()
	stat, err := readStat(stranger.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		text string
		want bool
	}{
		{"same", fmt.Sprintf(`{"pid":%d,"start":%d}`, stranger.Process.Pid, stat.start), true},
		{"started later", fmt.Sprintf(`{"pid":%d,"start":%d}`, stranger.Process.Pid, stat.start-1), false},
		{"gone", `{"pid":4194304,"start":1}`, false},
		{"init", `{"pid":1,"start":1}`, false},
		{"garbage", `{"pid":`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(l.dir, "pid")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			p := adopt("", path)
			if (p != nil) != c.want {
				t.Errorf("adopt(%s) = %v; want %v", c.text, p, c.want)
			}
			if p != nil {
				p.release()
			}
		})
	}
	// A zombie has ended.
	stranger.Process.Kill()
	l.await("it is dead", func() bool { return !lives(stranger.Process.Pid) })
	path := filepath.Join(l.dir, "pid")
	text, _ := json.Marshal(pidFile{PID: stranger.Process.Pid, Start: stat.start})
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if p := adopt("", path); p != nil {
		t.Error("adopt takes a zombie")
	}
}

func TestCredentials(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can run apps as others")
	}
	l := newLab(t, Options{})
	spec := l.spec("quiet")
	spec.Path = badapp // others may go there
	spec.UID, spec.GID, spec.Groups = 54321, 54322, []uint32{54323}
	s := l.add(spec, Hooks{})
	s.Start()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.running(s)))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t54321\t54321\t54321\t54321\n", "Gid:\t54322\t54322\t54322\t54322\n", "Groups:\t54323 \n", "CapEff:\t0000000000000000\n"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

// A supervisor that is about to end closes what hooks ask. That kills nobody.
func TestDetach(t *testing.T) {
	l := newLab(t, Options{})
	closed := make(chan struct{})
	s := l.add(l.spec("quiet"), Hooks{Ready: func(context.Context, int) error {
		<-closed
		return errors.New("the connection has ended")
	}})
	s.Start()
	l.await("it is starting", func() bool { return s.Status().State == model.Starting })
	pid := l.pidOf("quiet")
	l.Detach()
	close(closed)
	l.Close()
	if !lives(pid) {
		t.Error("it was ended")
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

// A process that was found and is stopped at once is ended, and not forgotten.
func TestStopFound(t *testing.T) {
	l := newLab(t, Options{})
	found := l.add(l.spec("quiet"), Hooks{})
	found.Start()
	pid := l.running(found)
	l.Close()
	l.open(l.o)
	s := l.add(l.spec("quiet"), Hooks{})
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if lives(pid) {
		t.Error("it still runs")
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}
