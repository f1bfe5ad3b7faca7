package vmtest_test

import (
	"strings"
	"testing"

	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
	"appplatform/vmtest/powercut"
)

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

// wantInstallFound changes the recorded plan as if the agent worked in a wrong
// order or did not wait for the disk, and wants that to be found.
func wantInstallFound(t *testing.T, right powercut.Plan) {
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

// wantUpdateFound puts what makes the firmware start the rescue system behind
// the writes to sda3, and what makes it start the system in front of them.
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
		"sda3 before the rescue system": right.Log.Moved(rescue, last),
		"the system before sda3":        right.Log.Moved(system, rescue+1),
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

// wantResizeFound puts the partition table behind the growth of the file system.
func wantResizeFound(t *testing.T, right powercut.Plan) {
	t.Helper()
	table := 0 // its last write
	for i, e := range right.Log.Entries {
		if e.Kind != powercut.Flush && partitions.Size(e.Sector)*partitions.Sector < partitions.HeadSize {
			table = i
		}
	}
	if table == 0 {
		t.Fatal("the partition table was not written")
	}
	last := len(right.Log.Entries) - 1
	right.Log = right.Log.Moved(table, last)
	checker, err := powercut.NewChecker(right)
	if err != nil {
		t.Fatal(err)
	}
	tools := testtools.Open(t, tooltree.Image)
	if _, err := checker.Judge(t.Context(), tools, powercut.State{Full: last, Cut: last}); err == nil || !strings.Contains(err.Error(), "sda2 cannot be repaired") {
		t.Errorf("the table behind the file system: %v; want sda2 beyond repair", err)
	}
}
