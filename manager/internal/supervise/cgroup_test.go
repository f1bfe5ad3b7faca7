package supervise

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"appplatform/manager/internal/model"
)

// testCgroup makes a cgroup for a test; empty if this machine has none to give.
func testCgroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "cgroup2" {
			continue
		}
		dir, err := os.MkdirTemp(f[1], "supervise-test-")
		if err != nil {
			continue
		}
		t.Cleanup(func() {
			cgroup(dir).write("cgroup.kill", "1")
			below, _ := filepath.Glob(filepath.Join(dir, "*", "cgroup.procs"))
			for _, procs := range below {
				os.Remove(filepath.Dir(procs))
			}
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
		return dir
	}
	return ""
}

func TestLimitsOfACgroup(t *testing.T) {
	for _, c := range []struct {
		name   string
		limits model.Limits
		want   string
	}{
		{"none", model.Limits{}, "cpu.max=max 100000 memory.max=max memory.oom.group=1 memory.swap.max=max pids.max=max"},
		{"all", model.Limits{MemoryMiB: 256, CPUPercent: 150, Processes: 100},
			"cpu.max=150000 100000 memory.max=268435456 memory.oom.group=1 memory.swap.max=67108864 pids.max=100"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := cgroup(dir).limit(c.limits); err != nil {
				t.Fatal(err)
			}
			var got []string
			files, _ := os.ReadDir(dir)
			for _, f := range files {
				text, _ := os.ReadFile(filepath.Join(dir, f.Name()))
				got = append(got, f.Name()+"="+string(text))
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("limit(%+v) writes %s; want %s", c.limits, strings.Join(got, " "), c.want)
			}
		})
	}
}

// Without cgroups everything works but limits, and one line says so.
func TestNoCgroups(t *testing.T) {
	l := newLab(t, Options{Cgroup: filepath.Join(t.TempDir(), "apps")})
	n := 0
	for _, line := range l.told {
		if strings.HasPrefix(line, "no cgroups, so no limits: ") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("it says %q", l.told)
	}
	s := l.add(l.spec("quiet"), Hooks{})
	s.Start()
	l.running(s)
}

// What an app has started ends with it, however far it has gone.
func TestNothingIsLeftOfAnApp(t *testing.T) {
	dir := testCgroup(t)
	if dir == "" {
		t.Skip("no cgroup v2 that can be written to")
	}
	l := newLab(t, Options{Cgroup: dir})
	spec := l.spec("orphan")
	s := l.add(spec, Hooks{})
	s.Start()
	l.ended(0)
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	children := 0
	for line := range strings.Lines(l.log("orphan")) {
		var pid int
		if n, _ := fmt.Sscanf(line, "child %d", &pid); n == 1 {
			children++
			if lives(pid) {
				t.Errorf("child %d lives on", pid)
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	if children == 0 {
		t.Errorf("there was no child: %q", l.log("orphan"))
	}
	if pids := s.cgroup.pids(); len(pids) > 0 {
		t.Errorf("left in the cgroup: %v", pids)
	}
}

func controllers(t *testing.T, dir string, want string) {
	t.Helper()
	text, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if !slices.Contains(strings.Fields(string(text)), want) {
		t.Skipf("no %s controller in the cgroup v2 of this machine", want)
	}
}

func TestMemoryLimit(t *testing.T) {
	dir := testCgroup(t)
	if dir == "" {
		t.Skip("no cgroup v2 that can be written to")
	}
	l := newLab(t, Options{Cgroup: dir})
	controllers(t, dir, "memory")
	spec := l.spec("memory")
	spec.Limits.MemoryMiB = 32
	s := l.add(spec, Hooks{})
	s.Start()
	if e := l.ended(0); !e.OutOfMemory || !strings.Contains(e.String(), "used up its memory") {
		t.Errorf("End = %+v", e)
	}
}

func TestProcessLimit(t *testing.T) {
	dir := testCgroup(t)
	if dir == "" {
		t.Skip("no cgroup v2 that can be written to")
	}
	l := newLab(t, Options{Cgroup: dir})
	controllers(t, dir, "pids")
	spec := l.spec("fork")
	spec.Limits.Processes = 30
	s := l.add(spec, Hooks{})
	s.Start()
	l.await("it is refused processes", func() bool { n, _ := s.cgroup.number("pids.events", "max"); return n > 0 })
	if n := s.Usage().Processes; n > 30 {
		t.Errorf("it has %d processes", n)
	}
	syscall.Kill(l.running(s), syscall.SIGKILL)
	if e := l.ended(0); !e.ProcessLimit {
		t.Errorf("End = %+v", e)
	}
}
