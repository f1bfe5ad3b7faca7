package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/agent/internal/block"
	"appplatform/partitions"
)

// installedFolder is an installed machine with 4 GiB, switched off, and a file
// in the file system of sda2. Tests work on copies of it.
func installedFolder(t *testing.T, scheme partitions.Scheme, name string) *testMachine {
	t.Helper()
	m := newMachine(t, name, 4*partitions.GiB)
	if scheme == partitions.MBR {
		m = newGateway(t, name, 4*partitions.GiB)
	}
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.start()
	writeFiles(t, m.Root, map[string]string{"kept": strings.Repeat("precious ", 10000), "boot/.empty": ""})
	part, _ := m.part(partitions.Data)
	m.debugfs("-w", "-R", "write "+m.path("kept")+" kept", part)
	return m
}

// enlargedCopy is a copy of the machine, started with a larger disk: the rescue
// system, or the installed system with sda1 and sda2 mounted.
func (m *testMachine) enlargedCopy(t *testing.T, size partitions.Size, rescue bool) *testMachine {
	t.Helper()
	c := &testMachine{t: t, disk: m.disk, mounted: map[string]string{}, raw: m.raw}
	c.Machine = m.Machine
	c.Root, c.Kernel, c.Run = t.TempDir(), c, c.runTool
	if out, err := exec.Command("cp", "-a", m.Root+"/.", c.Root).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	c.enlarge(size)
	c.restart(rescue)
	return c
}

// enlarge is what the utilities of a virtual machine do.
func (m *testMachine) enlarge(size partitions.Size) {
	m.t.Helper()
	must(m.t, os.Truncate(m.path("dev/"+m.disk), int64(size)))
	writeFiles(m.t, m.Root, map[string]string{"sys/class/block/" + m.disk + "/size": fmt.Sprint(int64(size / partitions.Sector))})
}

// restart is start for an installed disk, whose table the kernel accepts.
func (m *testMachine) restart(rescue bool) {
	m.t.Helper()
	m.start()
	m.Ramdisk = rescue
	for _, p := range m.table().Parts {
		must(m.t, m.Add(nil, p))
	}
	d, err := m.findDisk(m.t.Context())
	must(m.t, err)
	must(m.t, m.mountChecked(m.t.Context(), d, partitions.Boot, bootDir))
	if !rescue {
		must(m.t, m.mountChecked(m.t.Context(), d, partitions.Data, dataDir))
	}
	m.events = nil
}

func (m *testMachine) debugfs(args ...string) string {
	m.t.Helper()
	out, err := exec.Command(lookPath(m.t, "debugfs"), args...).Output()
	if err != nil {
		m.t.Fatalf("debugfs %q: %v", args, err)
	}
	return string(out)
}

// checkResized looks at table, file system and data of a disk.
func (m *testMachine) checkResized(context string, size partitions.Size) {
	m.t.Helper()
	fail := func(format string, args ...any) {
		m.t.Helper()
		m.t.Errorf("%s: %s\nevents: %s\nlog:\n%s", context, fmt.Sprintf(format, args...), strings.Join(m.events, ", "), m.out.String())
	}
	m.checkTable(fail)
	layout, err := partitions.Layout(m.Platform.Scheme, size)
	must(m.t, err)
	want, _ := layout.Part(partitions.Data)
	if got, _ := m.table().Part(partitions.Data); got.Start != want.Start || got.Size != want.Size {
		fail("sda2 is %+v; want the place of %+v", got, want)
	}
	part, _ := m.part(partitions.Data)
	if ext, found, err := block.ProbeExt(part, 0); err != nil || !found || !ext.Fills(want.Size) || ext.Label != dataLabel {
		fail("the file system is %+v, %v; want it to fill %v", ext, err, want.Size)
	}
	m.checkKept(fail)
}

// checkKept wants a sound file system with the file in it.
func (m *testMachine) checkKept(fail func(string, ...any)) {
	m.t.Helper()
	part, _ := m.part(partitions.Data)
	if out, err := exec.Command(lookPath(m.t, "e2fsck"), "-f", "-n", part).CombinedOutput(); err != nil {
		fail("e2fsck: %v\n%s", err, out)
	}
	kept, err := os.ReadFile(m.path("kept"))
	must(m.t, err)
	if m.debugfs("-R", "cat kept", part) != string(kept) {
		fail("the data have changed")
	}
}

// OS-F1: both systems, both kinds of table, whatever the disk is called.
func TestResize(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		scheme partitions.Scheme
		disk   string
		size   partitions.Size
		rescue bool
	}{
		{partitions.GPT, "sda", 16 * partitions.GiB, false},
		{partitions.GPT, "nvme0n1", 64 * partitions.GiB, true},
		{partitions.GPT, "vda", 4*partitions.GiB + partitions.MiB, false},
		{partitions.MBR, "sda", 16 * partitions.GiB, true},
		{partitions.MBR, "nvme0n1", 8 * partitions.GiB, false},
	} {
		name := fmt.Sprintf("%s %s %v rescue=%v", test.scheme, test.disk, test.size, test.rescue)
		m := installedFolder(t, test.scheme, test.disk).enlargedCopy(t, test.size, test.rescue)
		must(t, Resize(t.Context(), m.Machine, false))
		m.checkResized(name, test.size)
		if m.ran("mke2fs") || m.rebooted {
			t.Errorf("%s: formatted or rebooted: %v", name, m.events)
		}
		if test.rescue != m.ran("e2fsck "+filepath.Base(first(m.part(partitions.Data)))) {
			t.Errorf("%s: %v; want e2fsck only where sda2 is not mounted", name, m.events)
		}
		if test.rescue == m.Mounted("/"+dataDir) {
			t.Errorf("%s: sda2 mounted: %v; want it as before", name, m.Mounted("/"+dataDir))
		}
		log, err := os.ReadFile(m.path("content/mnt/sda2/" + InstallLog))
		must(t, err)
		if !strings.Contains(string(log), " and now has "+m.dataSize().Short()+"\nfinished\n") {
			t.Errorf("%s: the log ends with %q; want both sizes and finished", name, log[max(0, len(log)-200):])
		}

		m.restart(test.rescue)
		must(t, Resize(t.Context(), m.Machine, test.rescue))
		if !strings.HasPrefix(m.out.String(), "nothing to do: ") || len(m.events) > 0 {
			t.Errorf("%s: the second time it did %v and said %q; want nothing", name, m.events, m.out.String())
		}
	}
}

func (m *testMachine) dataSize() partitions.Size {
	data, _ := m.table().Part(partitions.Data)
	return data.Size
}

// A dry run prints what the log will say and changes nothing.
func TestPlanResizeIsTheLog(t *testing.T) {
	t.Parallel()
	m := installedFolder(t, partitions.GPT, "sda").enlargedCopy(t, 16*partitions.GiB, true)
	before := m.headOrNil()
	steps, err := PlanResize(t.Context(), m.Machine, true)
	must(t, err)
	if len(m.events) > 0 || string(before) != string(m.headOrNil()) {
		t.Errorf("planning did: %v", m.events)
	}
	must(t, Resize(t.Context(), m.Machine, true))
	for i, s := range steps {
		if line := fmt.Sprintf("step %d of %d: %v\n", i+1, len(steps), s); !strings.Contains(m.out.String(), line) {
			t.Errorf("the log lacks %q:\n%s", line, m.out.String())
		}
	}
	if !m.rebooted {
		t.Error("the machine has not rebooted")
	}
}

// OS-F1: the power fails after each event in turn, in either system. What the
// next start finds is whole, and running it again finishes it.
func TestResizeSurvivesPowerCut(t *testing.T) {
	for _, test := range []struct {
		scheme partitions.Scheme
		rescue bool
	}{{partitions.GPT, false}, {partitions.GPT, true}, {partitions.MBR, false}} {
		const size = 16 * partitions.GiB
		installed := installedFolder(t, test.scheme, "sda")
		whole := installed.enlargedCopy(t, size, test.rescue)
		must(t, Resize(t.Context(), whole.Machine, test.rescue))
		for n, event := range append(whole.events, "the end") {
			t.Run(fmt.Sprintf("%s rescue=%v %d", test.scheme, test.rescue, n+1), func(t *testing.T) {
				t.Parallel()
				m := installed.enlargedCopy(t, size, test.rescue)
				m.powerCut = n + 1
				_ = Resize(t.Context(), m.Machine, test.rescue) // Unmounting may fail without harm.
				context := "power cut at " + event
				m.checkKept(func(format string, args ...any) {
					t.Errorf("%s: %s", context, fmt.Sprintf(format, args...))
				})
				m.restart(test.rescue)
				must(t, Resize(t.Context(), m.Machine, test.rescue))
				m.checkResized(context, size)
				if m.ran("mke2fs") {
					t.Errorf("%s: sda2 was formatted", context)
				}
			})
		}
	}
}

// What an interrupted resize has left is finished: a table that is larger than
// the file system, a file system that has grown half the way, and one that
// resize2fs was at work on without mounting it, which e2fsck -p gives up on.
func TestResizeFinishes(t *testing.T) {
	t.Parallel()
	installed := installedFolder(t, partitions.GPT, "sda")
	for _, test := range []struct {
		name    string
		rescue  bool
		prepare func(m *testMachine, data string)
	}{
		{"table, in the system", false, func(*testMachine, string) {}},
		{"table, in the rescue system", true, func(*testMachine, string) {}},
		{"half the way, in the system", false, resizeTo6G},
		{"half the way, in the rescue system", true, resizeTo6G},
		{"resize2fs", true, func(m *testMachine, data string) {
			m.debugfs("-w", "-R", "ssv state 2", data) // with errors
			m.debugfs("-w", "-R", "clri <7>", data)    // the inode that holds blocks for larger tables
		}},
	} {
		m := installed.enlargedCopy(t, 16*partitions.GiB, test.rescue)
		steps, err := PlanResize(t.Context(), m.Machine, false)
		must(t, err)
		must(t, Apply(t.Context(), m.Machine, steps[:2]))
		test.prepare(m, first(m.part(partitions.Data)))
		m.restart(test.rescue)
		steps, err = PlanResize(t.Context(), m.Machine, false)
		must(t, err)
		if len(steps) != 3 {
			t.Errorf("%s: the plan is %v; want the table to be left alone", test.name, steps)
		}
		must(t, Apply(t.Context(), m.Machine, steps))
		m.checkResized(test.name, 16*partitions.GiB)
	}
}

func resizeTo6G(m *testMachine, data string) {
	out, err := exec.Command(lookPath(m.t, "resize2fs"), "-f", data, "6G").CombinedOutput()
	if err != nil {
		m.t.Fatalf("resize2fs: %v\n%s", err, out)
	}
}

// The rescue system goes on in the installed one, whose boot default somebody
// may have changed to get there; not so while that is not complete.
func TestResizeRestarts(t *testing.T) {
	t.Parallel()
	installed := installedFolder(t, partitions.GPT, "sda")
	for _, complete := range []bool{true, false} {
		m := installed.enlargedCopy(t, 16*partitions.GiB, true)
		grub := m.path("content/mnt/sda1/boot/grub/grub.cfg")
		must(t, os.WriteFile(grub, []byte("set default=0\n"), 0o644))
		want := "set default=1\n"
		if !complete {
			writeFiles(t, m.path("content/mnt/sda2"), map[string]string{".installing": ""})
			want = "set default=0\n"
		}
		must(t, Resize(t.Context(), m.Machine, true))
		text, err := os.ReadFile(grub)
		must(t, err)
		if !m.rebooted || string(text) != want {
			t.Errorf("complete=%v: rebooted=%v, grub.cfg %q; want %q", complete, m.rebooted, text, want)
		}
	}
}

// What cannot be resized is left alone, with a message that says what to do.
func TestResizeRefuses(t *testing.T) {
	t.Parallel()
	installed := installedFolder(t, partitions.GPT, "sda")
	for _, test := range []struct {
		name    string
		prepare func(m *testMachine)
		restart bool
		want    string
	}{
		{"smaller", func(m *testMachine) { m.enlarge(3 * partitions.GiB) }, false,
			"cannot resize /dev/sda: the disk has 3 GiB and its partition table needs 4 GiB\nhint: nothing was changed; give the disk its former size back"},
		{"not installed", func(m *testMachine) {
			m.addDisk("sda", 16*partitions.GiB, partitions.Factory(partitions.GPT, 16*partitions.GiB))
			m.Cmdline = ""
		}, false, "cannot resize /dev/sda: the App Platform is not installed on it yet\nhint: start the machine"},
		{"foreign", func(m *testMachine) {
			table := m.table()
			table.DiskSize = 16 * partitions.GiB
			table.Parts = append(table.Parts, partitions.Partition{Number: 5, Name: "theirs", Type: partitions.TypeLinux,
				UUID: partitions.NewUUID([16]byte{9}), Start: 8 * partitions.GiB, Size: partitions.GiB})
			m.addDisk("sda", 16*partitions.GiB, table)
		}, false, `partition 5 ("theirs", 1 GiB) belongs to another system` + "\nhint: nothing was changed"},
		{"no file system", func(m *testMachine) {
			must(m.t, os.WriteFile(first(m.part(partitions.Data)), make([]byte, 4096), 0o600))
		}, false, "cannot resize: sda2 has no file system\nhint: nothing was changed; start the rescue system"},
		{"file system of a larger disk", func(m *testMachine) {
			part, _ := m.part(partitions.Data)
			must(m.t, os.Truncate(part, int64(20*partitions.GiB)))
			out, err := exec.Command(lookPath(m.t, "resize2fs"), "-f", part).CombinedOutput()
			if err != nil {
				m.t.Fatalf("resize2fs: %v\n%s", err, out)
			}
		}, false, "the file system of sda2 has 20 GiB and there is room for 14.6 GiB\nhint: nothing was changed"},
		{"reboot of the system", func(m *testMachine) {}, true, "this is the installed system"},
	} {
		m := installed.enlargedCopy(t, 16*partitions.GiB, false)
		test.prepare(m)
		before := m.headOrNil()
		err := Resize(t.Context(), m.Machine, test.restart)
		if err == nil || !strings.Contains(Explain(err), test.want) || strings.Contains(err.Error(), "cannot: cannot") {
			t.Errorf("%s: Resize() = %v; want %q", test.name, err, test.want)
		}
		if len(m.events) > 0 || string(before) != string(m.headOrNil()) {
			t.Errorf("%s: the disk was touched: %v", test.name, m.events)
		}
	}
}

// A step that fails says how to go on, and the data are as they were.
func TestResizeStops(t *testing.T) {
	t.Parallel()
	m := installedFolder(t, partitions.GPT, "sda").enlargedCopy(t, 16*partitions.GiB, true)
	m.powerCut = 2
	err := Resize(t.Context(), m.Machine, true)
	want := "the resize has stopped: cannot repair sda2: the power is off\nhint: the data are kept; run it again"
	if err == nil || !strings.Contains(Explain(err), want) {
		t.Errorf("Resize() = %v; want %q", err, want)
	}
}
