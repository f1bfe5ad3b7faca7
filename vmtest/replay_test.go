package vmtest_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appplatform/bundle"
	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
	"appplatform/vmtest"
	"appplatform/vmtest/powercut"
)

// The defaults are the small sample of `make test`.
var (
	replayBoards  = flag.String("boards", "x86_64", "boards whose installation TestReplay records")
	replayPlans   = flag.String("plans", "install update", "what TestReplay records of each board: install, update")
	replaySamples = flag.Int("samples", 30, "choices of the writes between two flushes that TestReplay tries")
	replayTorn    = flag.Int("torn", 16, "prefixes of a write that TestReplay tries, and half as many other parts")
	replayRepairs = flag.Int("repairs", 100, "contents of sda1, and of sda2, that TestReplay mends")
	replayBoots   = flag.Int("boots", 0, "states that TestReplay starts; of three, one has a second cut and one a third")
	replaySeed    = flag.Uint64("seed", 0, "seed of TestReplay (0: the time)")
	replayFrom    = flag.String("recording", "", "folder of a recording that TestReplay judges instead of making one")
	replayState   = flag.String("state", "", "the one state that TestReplay judges and starts")
)

// A replayBoard is a machine that installs itself while its writes are logged.
type replayBoard struct {
	options vmtest.Options // without a disk
	begins  string         // what it says before it installs
	check   func(*testing.T, string)
}

func newReplayBoard(t *testing.T, name string) replayBoard {
	t.Helper()
	if name == "x86_64" {
		return replayBoard{vmtest.Options{NoReboot: true, Disks: []vmtest.Disk{{}}}, saysRescue, checkInstalled}
	}
	for _, g := range gatewayBoards {
		if g.name == name {
			// Not NVMe: writes with FUA are in QEMU's log as ordinary ones.
			o := vmtest.Options{Arch: g.arch, Memory: g.memory, Watchdog: true, NoReboot: true,
				Disks: []vmtest.Disk{{Controller: vmtest.AHCI}}}
			return replayBoard{o, startsKernel, checkGateway}
		}
	}
	t.Fatalf("there is no board %q", name)
	return replayBoard{}
}

// on is the machine with a disk.
func (b replayBoard) on(d vmtest.Disk) vmtest.Options {
	o := b.options
	d.Controller = o.Disks[0].Controller
	o.Disks = []vmtest.Disk{d}
	return o
}

// OS-C1, OS-C3, OS-E4: whatever a power cut leaves of an installation starts a
// complete system or goes on installing, and keeps what was synced.
func TestReplay(t *testing.T) {
	if testing.Short() {
		t.Skip("starts virtual machines")
	}
	t.Parallel()
	seed := *replaySeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	plans := strings.Fields(*replayPlans)
	var table []*string // in the order of the tests, which run side by side
	t.Run("all", func(t *testing.T) {
		for _, board := range strings.Fields(*replayBoards) {
			for _, plan := range plans {
				line := new(string)
				table = append(table, line)
				t.Run(board+" "+plan, func(t *testing.T) {
					t.Parallel()
					*line = replay(t, board, plan, seed)
				})
			}
		}
	})
	if *replayState != "" {
		return
	}
	text := "plan                  writes  states  start system  looked at  repaired      forced  booted  2nd cuts  failures  seconds\n"
	for _, line := range table {
		text += *line
	}
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

// replay judges one plan and returns its line of the table.
func replay(t *testing.T, board, plan string, seed uint64) string {
	b := newReplayBoard(t, board)
	dir := *replayFrom
	if dir == "" {
		dir = filepath.Join(replayDir(t), board+"-"+plan)
		record := map[string]func(*testing.T, replayBoard, string, string){"install": recordInstall, "update": recordUpdate}[plan]
		if record == nil {
			t.Fatalf("there is no plan %q", plan)
		}
		record(t, b, board, dir)
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
	if *replayState != "" {
		replayOne(t, b, checker, rec.Log)
		return ""
	}
	began := time.Now()
	limits := powercut.Limits{Prefixes: *replayTorn, Torn: *replayTorn / 2, Exhaustive: 6, Samples: *replaySamples}
	r, err := checker.Run(t.Context(), testtools.Open(t, tooltree.Image), limits, *replayRepairs, seed)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	for _, f := range r.Failures[:min(10, len(r.Failures))] {
		t.Errorf("%v\nhint: go test ./vmtest -run TestReplay -boards %s -plans %s -recording %s -state '%v'", f, board, plan, dir, f.State)
	}
	if r.Systems == 0 || r.Systems == r.States {
		t.Errorf("%d of %d states start the installed system; want some and not all", r.Systems, r.States)
	}
	boots, again, failed := *replayBoots, 0, 0
	if plan == "update" {
		boots = 0 // What a start does that goes on with an update is not followed here.
		t.Run("wrong order", func(t *testing.T) { wantUpdateFound(t, rec.Plan) })
	} else {
		t.Run("wrong order", func(t *testing.T) { wantFound(t, rec.Plan) })
		again, failed = bootSample(t, b, checker, powercut.Sample(rec.Log, limits, boots, seed), seed)
	}
	return fmt.Sprintf("%-20s %7d %7d %13d %10d %5d of %-5d %6d %7d %9d %9d %8.0f\n", rec.Name, r.Writes, r.States, r.Systems, r.Looks,
		r.Repaired, r.Contents, r.Forced, boots, again, len(r.Failures)+failed, took.Seconds())
}

// replayOne judges and starts the state of the flag.
func replayOne(t *testing.T, b replayBoard, checker *powercut.Checker, log *powercut.Log) {
	t.Helper()
	s, err := powercut.ParseState(*replayState, log)
	if err != nil {
		t.Fatal(err)
	}
	choice, err := checker.Judge(t.Context(), testtools.Open(t, tooltree.Image), s)
	if err != nil {
		t.Errorf("state %v: %v", s, err)
	}
	t.Logf("state %v starts %v", s, choice)
	bootState(t, b, checker, s, nil)
}

// bootSample starts states, two of three with one or two more cuts.
func bootSample(t *testing.T, b replayBoard, checker *powercut.Checker, states []powercut.State, seed uint64) (again, failed int) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 1))
	for i, s := range states {
		cuts := make([]time.Duration, i%3)
		for j := range cuts {
			cuts[j] = time.Duration(random.Int64N(int64(typicalInstall)))
		}
		if len(cuts) > 0 {
			again++
		}
		if !t.Run(fmt.Sprintf("boot %d", i), func(t *testing.T) { bootState(t, b, checker, s, cuts) }) {
			failed++
		}
	}
	return again, failed
}

// openPlan is a checker of a plan, and what tells its writes to sda3.
func openPlan(t *testing.T, p powercut.Plan) (*powercut.Checker, func(powercut.Entry) bool) {
	t.Helper()
	layout, err := partitions.Layout(p.Platform.Scheme, p.Size)
	if err != nil {
		t.Fatal(err)
	}
	rootfs, _ := layout.Part(partitions.Rootfs)
	checker, err := powercut.NewChecker(p)
	if err != nil {
		t.Fatal(err)
	}
	return checker, func(e powercut.Entry) bool {
		at := partitions.Size(e.Sector) * partitions.Sector
		return e.Kind != powercut.Flush && at >= rootfs.Start && at < rootfs.End()
	}
}

// wantFound changes the recorded plan as if the agent worked in a wrong order or
// did not wait for the disk, and wants that to be found.
func wantFound(t *testing.T, right powercut.Plan) {
	t.Helper()
	right.Promises = nil
	checker, inRootfs := openPlan(t, right)
	written, flush, boots := 0, 0, 0 // sda3's last write, the flush behind it, the boot default
	for i, e := range right.Log.Entries {
		choice, err := checker.Check(powercut.State{Full: i + 1, Cut: i + 1})
		if err != nil {
			t.Fatal(err)
		}
		if inRootfs(e) {
			written, flush = i, 0
		}
		if e.Kind == powercut.Flush && flush == 0 {
			flush = i
		}
		if choice.System {
			boots = i
			break
		}
	}
	if written == 0 || flush < written || boots < flush {
		t.Fatalf("sda3's last write is entry %d, the next flush %d, the boot default %d", written, flush, boots)
	}
	unflushed := right.Log
	for i := boots; i > written; i-- {
		if right.Log.Entries[i].Kind == powercut.Flush {
			unflushed = unflushed.Without(i)
		}
	}
	for name, log := range map[string]*powercut.Log{
		"boot default before the flush": right.Log.Moved(boots, flush),
		"no flush before boot default":  unflushed,
	} {
		wrong := right
		wrong.Log = log
		checker, err := powercut.NewChecker(wrong)
		if err != nil {
			t.Fatal(err)
		}
		states, found := 0, 0
		for s := range powercut.States(log, powercut.Limits{Exhaustive: 4, Samples: 30}, 1) {
			states++
			if _, err := checker.Check(s); err != nil && strings.Contains(err.Error(), "sda3 is not that of the image") {
				found++
			}
		}
		t.Logf("%s: %d of %d states fail", name, found, states)
		if found == 0 {
			t.Errorf("%s: none of %d states fails", name, states)
		}
	}
}

// wantUpdateFound puts a write to sda3 in front of the one that makes the
// firmware start the rescue system, and the other way round at the end.
func wantUpdateFound(t *testing.T, right powercut.Plan) {
	t.Helper()
	right.Promises = nil
	checker, inRootfs := openPlan(t, right)
	first, last, rescue, system := 0, 0, 0, 0 // writes to sda3; the changes of what boots
	for i, e := range right.Log.Entries {
		choice, err := checker.Check(powercut.State{Full: i + 1, Cut: i + 1})
		if err != nil {
			t.Fatal(err)
		}
		if inRootfs(e) {
			if last = i; first == 0 {
				first = i
			}
		}
		if !choice.System && rescue == 0 {
			rescue = i
		}
		if choice.System && rescue > 0 && system == 0 {
			system = i
		}
	}
	if rescue == 0 || first < rescue || last < first || system < last {
		t.Fatalf("the rescue system is chosen by entry %d, sda3 written by %d to %d, the system chosen by %d", rescue, first, last, system)
	}
	for name, log := range map[string]*powercut.Log{
		"sda3 before the rescue system": right.Log.Moved(first, rescue),
		"the system before sda3":        right.Log.Moved(system, last),
	} {
		wrong := right
		wrong.Log = log
		checker, err := powercut.NewChecker(wrong)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for i := range log.Entries {
			if _, err := checker.Check(powercut.State{Full: i + 1, Cut: i + 1}); err != nil && strings.Contains(err.Error(), "sda3 is not that of the image") {
				found++
			}
		}
		t.Logf("%s: %d of %d states fail", name, found, len(log.Entries))
		if found == 0 {
			t.Errorf("%s: none of %d states fails", name, len(log.Entries))
		}
	}
}

// recordUpdate takes an installed machine to the next image, up to the commit,
// and promises what was on sda2 before.
func recordUpdate(t *testing.T, b replayBoard, board, dir string) {
	t.Helper()
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	const size = 4 * partitions.GiB
	base, log := filepath.Join(dir, powercut.BaseName), filepath.Join(dir, powercut.LogName)
	if err := vmtest.CopyDisk(base, builtImage(t, board), size); err != nil {
		t.Fatal(err)
	}
	o := b.on(vmtest.Disk{Path: base})
	o.NoReboot = false
	o.Dir = logDir(t)
	m := start(t, o)
	expect(t, m, `(?m)^finished(?s:.*)`+loginPrompt, installWithin+bootWithin)
	r := rootLogin(t, m, rootPassword)
	r.run("echo kept > /home/admin/kept; sync")
	label := strings.TrimSpace(r.run("cat /mnt/sda1/label"))
	powerOff(t, m)

	disk := newDisk(t, base, 0)
	o.Disks = b.on(vmtest.Disk{Path: disk, Log: log}).Disks
	m = start(t, o)
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	rootLogin(t, m, rootPassword)
	send(t, m.Serial, "apagent update "+serveFile(t, nextImage(t, board))+"\n")
	expect(t, m, `the update is committed(?s:.*)finished`, updateWithin)
	powerOff(t, m)

	rootfs, _ := readTable(t, disk).Part(partitions.Rootfs)
	platform, err := bundle.DecodePlatform([]byte(judge(t, disk, "debugfs", "-R", "cat /"+bundle.PlatformFile, on(disk, rootfs))))
	if err != nil {
		t.Fatal(err)
	}
	if platform.Label != nextLabel || label == nextLabel {
		t.Errorf("the update led from %s to %s; want %s", label, platform.Label, nextLabel)
	}
	plan := powercut.Plan{Name: board + " update", Size: size, Platform: platform,
		Promises: []powercut.Promise{{From: 1, Path: "/home/admin/kept", Text: "kept"}}}
	if err := plan.Save(dir); err != nil {
		t.Fatal(err)
	}
}

// recordInstall installs a machine and keeps the disk as it was before, all
// writes, and what the machine said it had done.
func recordInstall(t *testing.T, b replayBoard, board, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const size = 4 * partitions.GiB
	base, log := filepath.Join(dir, powercut.BaseName), filepath.Join(dir, powercut.LogName)
	if err := vmtest.CopyDisk(base, builtImage(t, board), size); err != nil {
		t.Fatal(err)
	}
	disk := newDisk(t, base, 0)
	m := start(t, b.on(vmtest.Disk{Path: disk, Log: log}))
	said := listenToSteps(t, m, log)
	if err := m.WaitFor(offWithin); err != nil {
		t.Fatal(err)
	}
	b.check(t, disk)

	rootfs, _ := readTable(t, disk).Part(partitions.Rootfs)
	platform, err := bundle.DecodePlatform([]byte(judge(t, disk, "debugfs", "-R", "cat /"+bundle.PlatformFile, on(disk, rootfs))))
	if err != nil {
		t.Fatal(err)
	}
	plan := powercut.Plan{Name: board + " install", Size: size, Platform: platform, Promises: installPromises(t, said)}
	if err := plan.Save(dir); err != nil {
		t.Fatal(err)
	}
}

// A said is a line on the console, and how many writes and flushes were
// complete when it was seen.
type said struct {
	line string
	at   int
}

func listenToSteps(t *testing.T, m *vmtest.Machine, log string) []said {
	t.Helper()
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var lines []said
	for {
		got, err := m.Serial.Expect(`(?m)^(step \d+ of \d+: .*|finished)\n`, menuWithin+installWithin)
		if err != nil {
			t.Fatal(err)
		}
		at, err := powercut.CountEntries(f)
		if err != nil {
			t.Fatal(err)
		}
		if lines = append(lines, said{got[1], at}); got[1] == "finished" {
			return lines
		}
	}
}

// installPromises are the files that are on sda2 by the time that a line is
// seen. The agent shows a line and syncs it before it goes on: it is on the disk
// when the next one is seen, and the log is kept from when sda2 is mounted.
func installPromises(t *testing.T, lines []said) []powercut.Promise {
	t.Helper()
	const log, last = "/apps/install_step1.log", "boot the system from now on"
	begin := 0
	for i, l := range lines {
		if strings.HasSuffix(l.line, ": mount sda2") {
			begin = i + 1
		}
	}
	end := len(lines) - 1
	if begin == 0 || !strings.HasSuffix(lines[end-1].line, last) {
		t.Fatalf("the installation said %v; want the steps of one", lines)
	}
	promises := []powercut.Promise{
		{From: lines[begin].at, Until: lines[end].at, Path: "/.installing"},
		{From: lines[end-1].at, Path: "/.installed", Text: `"rootfs":"`},
	}
	for i, l := range lines[:end] {
		promises = append(promises, powercut.Promise{From: lines[max(begin, i+1)].at, Path: log, Text: l.line + "\n"})
	}
	return promises
}

// bootState starts a state, with more power cuts before it gets to its end, and
// wants an installed system in the end.
func bootState(t *testing.T, b replayBoard, checker *powercut.Checker, s powercut.State, cuts []time.Duration) {
	t.Helper()
	t.Logf("state %v, then cuts after %v", s, cuts)
	disk := filepath.Join(t.TempDir(), "disk.img")
	if err := checker.WriteTo(disk, s); err != nil {
		t.Fatal(err)
	}
	o := b.on(vmtest.Disk{Path: disk})
	o.Dir = logDir(t) // one log for all starts
	for _, after := range cuts {
		m := start(t, o)
		expect(t, m, b.begins+`|`+saysSystem, menuWithin)
		select {
		case <-time.After(after):
		case <-m.Done():
		}
		m.Kill()
	}
	finish(t, start(t, o))

	m := start(t, o)
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	rootLogin(t, m, rootPassword).want("cd /tmp && sudo -u postgres PAGER=cat psql -At -c 'select 6*7'", "42")
	powerOff(t, m)
	b.check(t, disk)
}
