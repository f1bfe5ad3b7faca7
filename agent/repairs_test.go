package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/internal/run"
	"appplatform/partitions"
)

// OS-F2: what is repaired without anybody is kept, with its time, and told.
func TestRepairsAreKept(t *testing.T) {
	m := installedMachine(t)
	m.Run = fsckThat(map[string]int{"sda1": 1, "sda2": 4})
	must(t, Mount(t.Context(), m.Machine))
	s := GetStatus(t.Context(), m.Machine)
	if len(s.Repairs) != 2 || !strings.Contains(s.Repairs[0], "repaired sda1: ") || !strings.Contains(s.LastRepair, "repaired sda2 with every repair allowed") {
		t.Fatalf("repairs at this start: %q; last: %q", s.Repairs, s.LastRepair)
	}
	text, err := os.ReadFile(m.path("content/mnt/sda2/log/repairs.log"))
	if err != nil || strings.Count(string(text), "\n") != 2 {
		t.Errorf("repairs.log has %q, %v; want two lines", text, err)
	}
	must(t, os.RemoveAll(m.path("run/app-platform"))) // the next start
	m.start()
	m.Run = m.runTool
	must(t, Mount(t.Context(), m.Machine))
	var b strings.Builder
	GetStatus(t.Context(), m.Machine).Print(&b)
	if !strings.Contains(b.String(), "\nlast repair   "+s.LastRepair+"\n") || strings.Contains(b.String(), "at this start") {
		t.Errorf("the status is\n%s", b.String())
	}
	for i := range 2 * maxRepairs {
		m.noteRepair("repaired sda%d", i)
	}
	if lines := m.readLines(repairsLog); len(lines) != maxRepairs || !strings.HasSuffix(lines[maxRepairs-1], fmt.Sprintf("sda%d", 2*maxRepairs-1)) {
		t.Errorf("repairs.log has %d lines; want the last %d", len(lines), maxRepairs)
	}
}

// Why the ramdisk has stopped is told to whoever logs in.
func TestStatusOfProblem(t *testing.T) {
	m := newMachine(t, "sda", 4*partitions.GiB)
	must(t, os.RemoveAll(m.path("sys/class/block/sda")))
	if err := Start(t.Context(), m.Machine, nobody{}); err == nil {
		t.Fatal("Start() needs no disk")
	}
	s := GetStatus(t.Context(), m.Machine)
	if text := strings.Join(s.Problems, "\n"); !strings.Contains(text, "the ramdisk could not do its work: cannot find the disk") {
		t.Errorf("the problems are %q", s.Problems)
	}
}

// fsckThat exits as it is told the first time, with 1 by all means, and with 0
// then; 8 stays.
func fsckThat(exit map[string]int) func(context.Context, string, ...string) error {
	seen := map[string]int{}
	return func(_ context.Context, name string, args ...string) error {
		dev := filepath.Base(args[len(args)-1])
		code := exit[dev]
		seen[dev]++
		switch {
		case code != 8 && seen[dev] == 2 && code == 4 && dev != "sda3":
			code = 1
		case code != 8 && seen[dev] > 1:
			code = 0
		}
		if code == 0 {
			return nil
		}
		return fmt.Errorf("%w: inode 12", &run.ExitError{Name: name, Code: code})
	}
}
