package vmtest_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"appplatform/internal/testtools"
	"appplatform/tooltree"
	"appplatform/vmtest"
	"appplatform/vmtest/powercut"
)

// The defaults are the small sample of `make test`.
var (
	replayBoards  = flag.String("boards", "x86_64", "boards whose writes TestReplay records")
	replayNames   = flag.String("plans", "install update resize", "what TestReplay records of each board: install, update, restore, rollback, resize")
	replaySamples = flag.Int("samples", 30, "choices of the writes between two flushes that TestReplay tries")
	replayTorn    = flag.Int("torn", 16, "prefixes of a write that TestReplay tries, and half as many other parts")
	replayRepairs = flag.Int("repairs", 100, "contents of sda1, and of sda2, that TestReplay mends")
	replayBoots   = flag.Int("boots", 0, "states of each phase that TestReplay starts; of three, one has a second cut and one a third")
	replaySeed    = flag.Uint64("seed", 0, "seed of TestReplay (0: the time)")
	replayKeep    = flag.Bool("keep", false, "keep the recordings of TestReplay, also those without failures")
	replayFrom    = flag.String("recording", "", "folder of a recording that TestReplay judges instead of making one")
	replayState   = flag.String("state", "", "the one state that TestReplay judges and starts")
)

// A replayPlan is something that a machine does while its writes are logged.
type replayPlan struct {
	name   string
	record func(t *testing.T, b replayBoard, dir string) powercut.Plan
	wrong  func(*testing.T, powercut.Plan) // wants mistakes in it to be found
	boots  bool                            // It changes what the firmware starts.
	back   bool                            // It ends with the image that it began with.
	again  string                          // what people do after a power cut
}

var replayPlans = []replayPlan{
	{name: "install", record: recordInstall, wrong: wantInstallFound, boots: true},
	{name: "update", record: recordUpdate, wrong: wantUpdateFound, boots: true},
	{name: "restore", record: recordRestore, wrong: wantUpdateFound, boots: true, back: true},
	{name: "rollback", record: recordRollback, wrong: wantUpdateFound, boots: true},
	{name: "resize", record: recordResize, wrong: wantResizeFound, again: "apagent resize"},
}

// A replayBoard is a machine whose writes are logged.
type replayBoard struct {
	name    string
	options vmtest.Options // without a disk
	check   func(*testing.T, string)
	// firmware is what it says about its choice: the word that means the ramdisk
	// and, if it tells, the set.
	firmware, ramdisk string
}

func newReplayBoard(t *testing.T, name string) replayBoard {
	t.Helper()
	if name == "x86_64" {
		return replayBoard{name, vmtest.Options{Disks: []vmtest.Disk{{}}}, checkInstalled,
			"Booting `(rescue/setup|App Platform)()'", "rescue/setup"}
	}
	for _, g := range gatewayBoards {
		if g.name == name {
			// Not NVMe: writes with FUA are in QEMU's log as ordinary ones.
			o := vmtest.Options{Arch: g.arch, Memory: g.memory, Watchdog: true,
				Disks: []vmtest.Disk{{Controller: vmtest.AHCI}}}
			return replayBoard{name, o, checkGateway, `append: root=(\S+) .*ap\.set=([ab])`, "/dev/ram0"}
		}
	}
	t.Fatalf("there is no board %q", name)
	return replayBoard{}
}

// A replayed is a plan that was recorded.
type replayed struct {
	board   replayBoard
	plan    replayPlan
	rec     powercut.Plan
	checker *powercut.Checker
}

// on is the machine with a disk.
func (b replayBoard) on(d vmtest.Disk) vmtest.Options {
	o := b.options
	d.Controller = o.Disks[0].Controller
	o.Disks = []vmtest.Disk{d}
	return o
}

// OS-C1, OS-C3, OS-E4, OS-F1: whatever a power cut leaves of an installation, an
// update, a rollback or a resize starts a complete system or goes on by itself,
// and keeps what was synced.
func TestReplay(t *testing.T) {
	if testing.Short() {
		t.Skip("starts virtual machines")
	}
	t.Parallel()
	seed := *replaySeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	boards := strings.Fields(*replayBoards)
	lines := make([]string, len(boards)) // The boards run side by side.
	t.Run("all", func(t *testing.T) {
		for i, board := range boards {
			t.Run(board, func(t *testing.T) {
				t.Parallel()
				for _, name := range strings.Fields(*replayNames) {
					t.Run(name, func(t *testing.T) { replay(t, board, name, seed, &lines[i]) })
				}
			})
		}
	})
	if *replayState != "" {
		return
	}
	text := "plan                  writes  states  start system  looked at  repaired      forced  seconds  booted  2nd cuts  minutes  failures\n" + strings.Join(lines, "")
	t.Logf("seed %d\n%s", seed, text)
	if err := os.WriteFile(filepath.Join(replayDir(t), "table"), []byte(text), 0o644); err != nil {
		t.Error(err)
	}
}

// replayDir is where recordings stay, so that a state can be judged again.
func replayDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../out/powercut")
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// replay judges one plan and adds its lines to the table.
func replay(t *testing.T, board, name string, seed uint64, lines *string) {
	b := newReplayBoard(t, board)
	i := slices.IndexFunc(replayPlans, func(p replayPlan) bool { return p.name == name })
	if i < 0 {
		t.Fatalf("there is no plan %q", name)
	}
	plan, dir := replayPlans[i], *replayFrom
	if dir == "" {
		dir = record(t, b, plan)
	}
	rec, err := powercut.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer rec.Close()
	checker, err := powercut.NewChecker(rec.Plan)
	if err != nil {
		t.Fatal(err)
	}
	done := replayed{b, plan, rec.Plan, checker}
	if *replayState != "" {
		replayOne(t, done)
		return
	}
	limits := powercut.Limits{Prefixes: *replayTorn, Torn: *replayTorn / 2, Exhaustive: 6, Samples: *replaySamples}
	results, err := checker.Run(t.Context(), testtools.Open(t, tooltree.Image), limits, *replayRepairs, seed)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("wrong order", func(t *testing.T) { plan.wrong(t, rec.Plan) })
	for i, r := range results {
		for _, f := range r.Failures[:min(10, len(r.Failures))] {
			t.Errorf("%v\nhint: go test ./vmtest -run TestReplay -boards %s -plans %s -recording %s -state '%v'", f, board, name, dir, f.State)
		}
		if some := r.Systems > 0 && r.Systems < r.States; some != plan.boots {
			t.Errorf("%s: %d of %d states start the installed system; want some and not all: %v", r.Name, r.Systems, r.States, plan.boots)
		}
		began := time.Now()
		again, failed := bootSample(t, done, r.Name, rec.Sample(i, limits, *replayBoots, seed), seed)
		*lines += fmt.Sprintf("%-20s %7d %7d %13d %10d %5d of %-5d %6d %8.0f %7d %9d %8.0f %9d\n", r.Name, r.Writes, r.States, r.Systems, r.Looks,
			r.Repaired, r.Contents, r.Forced, r.Took.Seconds(), *replayBoots, again, time.Since(began).Minutes(), len(r.Failures)+failed)
	}
	if *replayFrom == "" && !*replayKeep && !t.Failed() {
		if err := os.RemoveAll(dir); err != nil { // It takes up to a GB.
			t.Error(err)
		}
	}
}

// replayOne judges and starts the state of the flag.
func replayOne(t *testing.T, r replayed) {
	t.Helper()
	s, err := powercut.ParseState(*replayState, r.rec.Log)
	if err != nil {
		t.Fatal(err)
	}
	choice, err := r.checker.Judge(t.Context(), testtools.Open(t, tooltree.Image), s)
	if err != nil {
		t.Errorf("state %v: %v", s, err)
	}
	t.Logf("state %v starts %v", s, choice)
	bootState(t, r, s, nil)
}
