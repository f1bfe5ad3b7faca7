package supervise

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"appplatform/manager/internal/model"
)

// replaces replaces the process that runs, which must work, and returns both pids.
func (l *lab) replaces(s *Service, spec Spec, linger time.Duration) (before, after int) {
	l.t.Helper()
	before = l.running(s)
	if err := s.Replace(l.t.Context(), spec, linger); err != nil {
		l.t.Fatal(err)
	}
	if after = l.running(s); after == before || !lives(before) {
		l.t.Fatalf("pid %d is replaced by %d, and lives: %t; want another one, and true", before, after, lives(before))
	}
	return before, after
}

func (l *lab) gone(pid int) {
	l.t.Helper()
	l.await("a process has ended", func() bool { return !lives(pid) })
}

// What was replaced goes on beside its successors, over an end of the supervisor and
// a crash of the one that counts, and ends with the service.
func TestReplace(t *testing.T) {
	l := newLab(t, Options{Cgroup: testCgroup(t), TermTimeout: 10 * time.Second})
	spec := l.spec("quiet")
	s := l.add(spec, Hooks{})
	if err := s.Replace(t.Context(), spec, time.Hour); !errors.Is(err, ErrNotRunning) {
		t.Errorf("Replace of what does not run: %v", err)
	}
	s.Start()
	first, second := l.replaces(s, spec, time.Hour)
	_, third := l.replaces(s, spec, time.Hour)

	l.Close()
	l.open(l.o)
	s = l.add(spec, Hooks{})
	if got := l.running(s); got != third || !s.Status().Adopted {
		t.Errorf("the next supervisor takes %d for the service; want %d", got, third)
	}
	if err := syscall.Kill(third, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.await("there is another one", func() bool { st := s.Status(); return st.State == model.Running && st.PID != third })
	if !lives(first) || !lives(second) {
		t.Errorf("with the process that crashed those that it had replaced ended: %t, %t", lives(first), lives(second))
	}
	fourth := l.running(s)
	if err := syscall.Kill(first, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	l.gone(first)
	if e := l.ended(1); !e.Replaced || e.Asked || e.PID != first {
		t.Errorf("End = %+v", e)
	}
	if !lives(second) || l.running(s) != fourth {
		t.Error("one that was replaced has taken others with it")
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if lives(second) || lives(fourth) {
		t.Errorf("the service is stopped, and its processes live: %t, %t", lives(second), lives(fourth))
	}
	if left, _ := filepath.Glob(filepath.Join(l.o.Run, "*.replaced-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A process that was replaced ends when its time is over, or when there are too many.
func TestReplacedEnd(t *testing.T) {
	l := newLab(t, Options{})
	spec := l.spec("quiet")
	s := l.add(spec, Hooks{})
	s.Start()
	before := l.running(s)
	if err := s.Replace(t.Context(), spec, 0); err != nil {
		t.Fatal(err)
	}
	l.gone(before)
	var pids []int
	for range maxReplaced + 1 {
		before, _ := l.replaces(s, spec, time.Hour)
		pids = append(pids, before)
	}
	l.gone(pids[0])
	for _, pid := range pids[1:] {
		if !lives(pid) {
			t.Errorf("pid %d of %v has ended, too", pid, pids)
		}
	}
}

// A successor that does not become ready changes nothing, nor does one that a
// supervisor has left half started.
func TestNotReplaced(t *testing.T) {
	l := newLab(t, Options{AbortTimeout: time.Millisecond})
	spec := l.spec("quiet")
	var refuse atomic.Bool
	s := l.add(spec, Hooks{Ready: func(ctx context.Context, pid int) error {
		if refuse.Load() {
			return errors.New("it lisps")
		}
		return nil
	}})
	s.Start()
	pid := l.running(s)
	missing := spec
	missing.Path += "-missing"
	for _, c := range []struct {
		name, want string
		spec       Spec
		refuse     bool
	}{
		{"missing", "cannot be started", missing, false},
		{"not ready", "the successor did not become ready: it lisps", spec, true},
	} {
		refuse.Store(c.refuse)
		if err := s.Replace(t.Context(), c.spec, time.Hour); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
		if got := l.running(s); got != pid || !lives(pid) {
			t.Errorf("%s: pid %d runs, alive: %t; want %d", c.name, got, lives(pid), pid)
		}
	}
	// What the supervisor wrote before it died: a successor, of which nothing but its
	// pid file is known, and the place of the current process among the replaced.
	refuse.Store(false)
	other := l.add(l.spec("count"), Hooks{})
	other.Start()
	successor := l.running(other)
	l.Close()
	for from, to := range map[string]string{"count.pid": "quiet.next", "quiet.pid": "quiet.replaced-" + strconv.Itoa(pid)} {
		if err := os.Link(filepath.Join(l.o.Run, from), filepath.Join(l.o.Run, to)); err != nil {
			t.Fatal(err)
		}
	}
	l.open(l.o)
	s = l.add(spec, Hooks{})
	if got := l.running(s); got != pid {
		t.Errorf("pid %d is taken for the service; want %d", got, pid)
	}
	l.gone(successor)
	if n := s.others.Load(); n != 0 {
		t.Errorf("%d others; want none", n)
	}
}
