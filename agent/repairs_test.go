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

// OS-F2: what was repaired at a start is in the log, which stays complete, and
// in the status of this start and the next ones.
func TestRepairsAreTold(t *testing.T) {
	m := installedMachine(t)
	m.Run = func(ctx context.Context, name string, args ...string) error {
		if strings.HasSuffix(args[len(args)-1], "sda2") {
			return &run.ExitError{Name: "e2fsck", Code: 1}
		}
		return m.runTool(ctx, name, args...)
	}
	must(t, Mount(t.Context(), m.Machine))
	m.Run = m.runTool
	for range 2 {
		var text strings.Builder
		s := GetStatus(t.Context(), m.Machine)
		s.Print(&text)
		if len(s.Repairs) != 1 || !strings.Contains(text.String(), " repaired sda2") {
			t.Errorf("the repairs are %+v; the status says\n%s", s.Repairs, text.String())
		}
		log, err := os.ReadFile(m.path("content/mnt/sda2/" + InstallLog))
		if err != nil || strings.Count(string(log), " repaired sda2") != 1 || !strings.HasSuffix(string(log), "\n"+finished+"\n") {
			t.Errorf("the log is %v\n%s", err, log)
		}
		must(t, os.RemoveAll(m.path("run/app-platform")))
		m.start()
		m.Ramdisk = false
		must(t, Mount(t.Context(), m.Machine))
	}
}

// A repair is kept as soon as sda2 is there, and the record does not grow.
func TestRepairsAreKept(t *testing.T) {
	m := installedMachine(t)
	m.repaired("before sda2")
	if got := m.repairs(); len(got) != 1 || got[0].What != "before sda2" {
		t.Errorf("before sda2 is mounted, the repairs are %+v", got)
	}
	must(t, Mount(t.Context(), m.Machine))
	for i := range 2 * maxRepairs {
		m.repaired("repair %d\nand more words", i)
	}
	got := m.repairs()
	if last := fmt.Sprintf("repair %d", 2*maxRepairs-1); len(got) != maxRepairs || got[maxRepairs-1].What != last {
		t.Errorf("the repairs are %+v; want %d, the last %q", got, maxRepairs, last)
	}
	must(t, os.WriteFile(m.path("content/"+repairsFile), []byte("{"), 0o644))
	m.repaired("after damage")
	if got := m.repairs(); len(got) != 1 || got[0].What != "after damage" {
		t.Errorf("after the record was damaged, the repairs are %+v", got)
	}
}

// e2fsck says nothing about a journal that it has written back.
func TestDirtyJournalIsTold(t *testing.T) {
	m := installedMachine(t)
	d, err := m.findDisk(t.Context())
	must(t, err)
	must(t, d.Announce(m, d.table.Parts...))
	must(t, run.Cmd(t.Context(), lookPath(t, "debugfs"), "-w", "-R", "feature needs_recovery", d.PartPath(partitions.Data)))
	must(t, m.checkFS(t.Context(), d, partitions.Data))
	if got := m.repairs(); len(got) != 1 || !strings.Contains(got[0].What, "completed sda2 from its journal") {
		t.Errorf("the repairs are %+v", got)
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
