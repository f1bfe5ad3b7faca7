package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"appplatform/agent/internal/block"
	"appplatform/partitions"
)

// table is what the disk's primary table says.
func (m *testMachine) table() partitions.Table {
	m.t.Helper()
	f, err := os.Open(m.path("dev/" + m.disk))
	must(m.t, err)
	defer f.Close()
	head := make([]byte, partitions.HeadSize)
	_, err = f.ReadAt(head, 0)
	must(m.t, err)
	t, err := partitions.Read(head)
	must(m.t, err)
	return t
}

// checkInstalled looks at everything that has to be right before the system boots.
func (m *testMachine) checkInstalled(context string) {
	m.t.Helper()
	fail := func(format string, args ...any) {
		m.t.Helper()
		m.t.Errorf("%s: %s\nlog:\n%s", context, fmt.Sprintf(format, args...), m.out.String())
	}
	if !m.rebooted {
		fail("the machine has not rebooted")
	}
	file, want := "boot/grub/grub.cfg", "set default=1\n"
	if m.Platform.Boot == "extlinux" {
		file, want = "extlinux/extlinux.conf", "DEFAULT normal-a\n"
	}
	cfg, err := os.ReadFile(m.path("content/mnt/sda1/" + file))
	must(m.t, err)
	if !strings.HasPrefix(string(cfg), want) {
		fail("%s begins with %.20q; want the system as default", file, cfg)
	}
	if last := lastLine(m.path("content/mnt/sda2/" + InstallLog)); last != finished {
		fail("the last line of the log is %q; want %q", last, finished)
	}
	if _, err := os.Stat(m.path("content/mnt/sda2/.installing")); err == nil {
		fail("the installation is still marked as under way")
	}
	rootfs, _ := m.part(partitions.Rootfs)
	got := make([]byte, len(m.raw))
	f, err := os.Open(rootfs)
	must(m.t, err)
	defer f.Close()
	_, err = f.ReadAt(got, 0)
	must(m.t, err)
	if !bytes.Equal(got, m.raw) {
		fail("sda3 does not hold the image")
	}
	m.checkTable(fail)
}

func (m *testMachine) checkTable(fail func(string, ...any)) {
	table := m.table()
	layout, err := partitions.Layout(m.Platform.Scheme, 4*partitions.GiB)
	must(m.t, err)
	if _, foreign := table.Foreign(); foreign || !installedTable(table) || len(table.Parts) != len(layout.Parts) {
		fail("the partition table is %v", table)
	}
	if m.Platform.Scheme == partitions.MBR {
		out, err := exec.Command(lookPath(m.t, "sfdisk"), "--verify", m.path("dev/"+m.disk)).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "No errors detected") {
			fail("sfdisk --verify: %v\n%s", err, out)
		}
		return
	}
	seen := map[string]bool{partitions.FactoryBootUUID: true, partitions.FactoryDiskUUID: true, table.DiskUUID: true}
	for _, p := range table.Parts {
		if seen[p.UUID] {
			fail("partition %d has the GUID of another one or of the factory", p.Number)
		}
		seen[p.UUID] = true
	}
	out, err := exec.Command(lookPath(m.t, "sgdisk"), "-v", m.path("dev/"+m.disk)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No problems found") {
		fail("sgdisk -v: %v\n%s", err, out)
	}
}

// OS-C1, OS-C2, OS-C4: smaller, equal and larger than the image, whatever the
// disk is called.
func TestInstall(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		size partitions.Size
	}{{"sda", 4 * partitions.GiB}, {"vda", 16 * partitions.GiB}, {"nvme0n1", 64 * partitions.GiB}} {
		m := newMachine(t, test.name, test.size)
		must(t, Start(t.Context(), m.Machine, nobody{}))
		m.checkInstalled(test.name)
		data, _ := m.table().Part(partitions.Data)
		if free := test.size - data.End(); free > 2*partitions.MiB {
			t.Errorf("%s: %v behind sda2 are not used", test.name, free)
		}
		if !m.ran("mke2fs") {
			t.Errorf("%s: sda2 was not formatted", test.name)
		}
	}
}

// A dry run prints what the log will say and changes nothing.
func TestPlanIsTheLog(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "sda", 4*partitions.GiB)
	before, err := os.ReadFile(m.path("sys/class/block/sda/size"))
	must(t, err)
	steps, err := PlanInstall(t.Context(), m.Machine)
	must(t, err)
	if len(m.events) > 0 || len(before) == 0 {
		t.Errorf("planning did: %v", m.events)
	}
	var want strings.Builder
	for i, s := range steps {
		fmt.Fprintf(&want, "step %d of %d: %v\n", i+1, len(steps), s)
	}
	must(t, Start(t.Context(), m.Machine, nobody{}))
	var got strings.Builder
	for line := range strings.Lines(m.out.String()) {
		if strings.HasPrefix(line, "step ") {
			got.WriteString(line)
		}
	}
	if got.String() != want.String() {
		t.Errorf("the log has\n%swant\n%s", got.String(), want.String())
	}
}

// Wherever the power fails, the next start completes the installation alone.
func TestInstallSurvivesPowerCut(t *testing.T) {
	whole := newMachine(t, "sda", 4*partitions.GiB)
	must(t, Start(t.Context(), whole.Machine, nobody{}))
	for n, event := range whole.events {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d late=%v", n+1, late), func(t *testing.T) {
				t.Parallel()
				m := newMachine(t, "sda", 4*partitions.GiB)
				m.powerCut, m.late = n+1, late
				if err := Start(t.Context(), m.Machine, nobody{}); !errors.Is(err, errPower) {
					t.Fatalf("Start() = %v; want %v", err, errPower)
				}
				m.start()
				must(t, Start(t.Context(), m.Machine, nobody{}))
				m.checkInstalled("power cut at " + event)
			})
		}
	}
}

// The same between any two steps, twice in a row.
func TestInstallSurvivesTwoPowerCuts(t *testing.T) {
	m := newMachine(t, "sda", 4*partitions.GiB)
	steps, err := PlanInstall(t.Context(), m.Machine)
	must(t, err)
	for i := range steps {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, "sda", 4*partitions.GiB)
			for _, n := range []int{i, len(steps) - i} {
				m.start()
				d, err := m.findDisk(t.Context())
				must(t, err)
				if work, err := m.findWork(t.Context(), d); err != nil || !work.install {
					t.Fatalf("after %d steps: findWork() = %v, %v; want an installation", i, work, err)
				}
				steps, err := m.planInstall(d)
				must(t, err)
				// Without the last step: with it, the installation is complete.
				must(t, Apply(t.Context(), m.Machine, steps[:min(n, len(steps)-1)]))
			}
			m.start()
			must(t, Start(t.Context(), m.Machine, nobody{}))
			m.checkInstalled(fmt.Sprintf("power cuts after steps %d and %d", i, len(steps)-i))
		})
	}
}

// A half-written sda3 is completed, whatever is missing.
func TestInstallCompletesRootfs(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "sda", 4*partitions.GiB)
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.start()
	rootfs, _ := m.part(partitions.Rootfs)
	f, err := os.OpenFile(rootfs, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("garbage"), 100000)
	must(t, err)
	_, err = f.WriteAt([]byte("garbage"), 6<<20) // Where the image has zeros.
	must(t, err)
	must(t, f.Close())
	writeFiles(t, m.path("content/mnt/sda2"), map[string]string{".installing": "", "pgsql/PG_VERSION": "17"})
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.checkInstalled("half-written")
	if m.ran("mke2fs") {
		t.Error("sda2 was formatted again")
	}
}

// Data survive when the set on sda1 changes, when sda2's superblock is lost,
// and when the image is written over the disk again.
func TestInstallKeepsData(t *testing.T) {
	tests := []struct {
		name   string
		damage func(m *testMachine)
	}{
		{"another set", func(m *testMachine) { m.addSet("a", "160002", 2) }},
		{"marker lost", func(m *testMachine) { must(m.t, os.Remove(m.path("content/mnt/sda2/.installed"))) }},
		{"superblock damaged", func(m *testMachine) {
			path, _ := m.part(partitions.Data)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			must(m.t, err)
			defer f.Close()
			_, err = f.WriteAt(make([]byte, 1024), 1024)
			must(m.t, err)
			m.mirror()
			must(m.t, os.Remove(m.path("content/mnt/sda2/.installed")))
		}},
		{"image written again", func(m *testMachine) {
			writes, err := partitions.Factory(partitions.GPT, 16*partitions.GiB).GPTWrites(nil)
			must(m.t, err)
			for _, w := range writes {
				if w.Offset < partitions.HeadSize {
					m.writeDisk(int64(w.Offset), w.Data)
				}
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, "sda", 4*partitions.GiB)
			must(t, Start(t.Context(), m.Machine, nobody{}))
			m.start()
			test.damage(m)
			m.start()
			must(t, Start(t.Context(), m.Machine, nobody{}))
			m.checkInstalled(test.name)
			if m.ran("mke2fs") {
				t.Errorf("sda2 was formatted:\n%s", strings.Join(m.events, "\n"))
			}
		})
	}
}

// What is not ours is left alone, with a message that says what to do.
func TestInstallRefuses(t *testing.T) {
	extra := func(number int) partitions.Table {
		t := partitions.Factory(partitions.GPT, 16*partitions.GiB)
		t.Parts = append(t.Parts, partitions.Partition{Number: number, Name: "windows", Type: partitions.TypeLinux,
			UUID: partitions.NewUUID([16]byte{9}), Start: 8 * partitions.GiB, Size: partitions.GiB})
		return t
	}
	tests := []struct {
		name    string
		prepare func(m *testMachine)
		want    string
	}{
		{"too small", func(m *testMachine) {
			m.addDisk("sda", 2*partitions.GiB, partitions.Factory(partitions.GPT, 16*partitions.GiB))
		},
			"cannot install on /dev/sda: the disk is too small: it has 2 GiB and needs at least 2405 MiB\nhint: nothing was changed"},
		{"foreign partition", func(m *testMachine) { m.addDisk("sda", 16*partitions.GiB, extra(5)) },
			`partition 5 ("windows", 1 GiB) belongs to another system` + "\nhint: nothing was changed"},
		{"foreign data partition", func(m *testMachine) { m.addDisk("sda", 16*partitions.GiB, extra(2)) },
			`partition 2 ("windows", 1 GiB) belongs to another system`},
		{"no disk", func(m *testMachine) { must(m.t, os.RemoveAll(m.path("sys/class/block/sda"))) },
			"there is no disk at all\nhint: check the disk"},
		{"other disk only", func(m *testMachine) { m.writeDisk(0, make([]byte, partitions.HeadSize)) },
			"none of /dev/sda (16 GiB) holds the image\nhint: write the image"},
		{"two disks", func(m *testMachine) {
			m.addDisk("sdb", 16*partitions.GiB, partitions.Factory(partitions.GPT, 16*partitions.GiB))
		}, "/dev/sda and /dev/sdb carry the same image\nhint: remove"},
		{"large sectors", func(m *testMachine) {
			writeFiles(m.t, m.Root, map[string]string{"sys/class/block/sda/queue/logical_block_size": "4096\n"})
		}, "it has sectors of 4 KiB\nhint: use a disk"},
		{"altered image", func(m *testMachine) {
			writeFiles(m.t, m.path("content/mnt/sda1/a"), map[string]string{"kernel": "kernal"})
		}, "kernel is not what was signed: its SHA-256 differs\nhint: nothing was changed"},
		{"set missing", func(m *testMachine) { must(m.t, os.RemoveAll(m.path("content/mnt/sda1/a"))) },
			"no such file or directory\nhint: nothing was changed"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t, "sda", 16*partitions.GiB)
			test.prepare(m)
			before := m.headOrNil()
			err := Start(t.Context(), m.Machine, nobody{})
			if err == nil || !strings.Contains(Explain(err), test.want) {
				t.Fatalf("Start() = %v; want %q", err, test.want)
			}
			if strings.Contains(err.Error(), "cannot: cannot") {
				t.Errorf("stutter in %q", err)
			}
			if m.rebooted || m.ran("mke2fs") || !bytes.Equal(before, m.headOrNil()) {
				t.Errorf("the disk was touched: %v", m.events)
			}
		})
	}
}

func (m *testMachine) headOrNil() []byte {
	f, err := os.Open(m.path("dev/" + m.disk))
	if err != nil {
		return nil
	}
	defer f.Close()
	head := make([]byte, partitions.HeadSize)
	_, err = f.ReadAt(head, 0)
	must(m.t, err)
	return head
}

// Two installed disks in one machine are told apart by what GRUB passes on.
func TestFindDiskAmongTwins(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "sda", 4*partitions.GiB)
	must(t, Start(t.Context(), m.Machine, nobody{}))
	other := m.table()
	m.addDisk("sdb", 4*partitions.GiB, func() partitions.Table {
		t := other
		t.DiskUUID = partitions.NewUUID([16]byte{1})
		t.Parts = append([]partitions.Partition(nil), t.Parts...)
		for i := range t.Parts {
			t.Parts[i].UUID = partitions.NewUUID([16]byte{2, byte(i)})
		}
		return t
	}())
	boot, _ := other.Part(partitions.Boot)
	m.Cmdline = "root=/dev/ram0 ap.boot=" + strings.ToLower(boot.UUID)
	d, err := m.findDisk(t.Context())
	if err != nil || d.Name != "sda" {
		t.Errorf("findDisk() = %v, %v; want sda", d.Disk, err)
	}
	m.Cmdline = "root=/dev/ram0" // Typed by hand: nobody can tell.
	if _, err := m.findDisk(t.Context()); err == nil || !strings.Contains(err.Error(), "carry the same image") {
		t.Errorf("findDisk() = %v; want a refusal to choose", err)
	}
}

// OS-E3.
func TestRescue(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "sda", 4*partitions.GiB)
	must(t, Start(t.Context(), m.Machine, nobody{}))
	grub := m.path("content/mnt/sda1/boot/grub/grub.cfg")
	must(t, os.WriteFile(grub, []byte("set default=0\n"), 0o644))

	m.start()
	must(t, Start(t.Context(), m.Machine, somebody{}))
	text, err := os.ReadFile(grub)
	must(t, err)
	if m.rebooted || string(text) != "set default=0\n" {
		t.Errorf("somebody is there: rebooted=%v, grub.cfg %q; want the rescue system to stay", m.rebooted, text)
	}
	if m.Mounted("/" + dataDir) {
		t.Error("sda2 stays mounted, so that e2fsck refuses it")
	}

	m.start()
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.checkInstalled("nobody came")
}

// A damaged grub.cfg makes GRUB start the rescue system, which makes it anew.
func TestRescueMendsTheBootDefault(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "sda", 4*partitions.GiB)
	must(t, Start(t.Context(), m.Machine, nobody{}))

	must(t, os.WriteFile(m.path("content/mnt/sda1/boot/grub/grub.cfg"), make([]byte, 600), 0o644))
	m.start()
	must(t, Start(t.Context(), m.Machine, nobody{}))
	if text, err := os.ReadFile(m.path("content/mnt/sda1/boot/grub/grub.cfg")); err != nil || !strings.HasSuffix(string(text), "\nset default=1\n") {
		t.Errorf("grub.cfg is %q, %v; want the system as default", text, err)
	}
	if !m.rebooted || !strings.Contains(m.out.String(), "it is made anew") {
		t.Errorf("rebooted: %v; the log is\n%s", m.rebooted, m.out.String())
	}
}

// A disk that is refused leaves a log all the same.
func TestKeepLog(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "sda", 16*partitions.GiB)
	m.addDisk("sda", 2*partitions.GiB, partitions.Factory(partitions.GPT, 16*partitions.GiB))
	fail := func() string {
		t.Helper()
		err := Start(t.Context(), m.Machine, nobody{})
		if err == nil {
			t.Fatal("Start() = nil; want an error")
		}
		m.Log.Printf("apagent: %s", Explain(err))
		KeepLog(t.Context(), m.Machine)
		if !strings.Contains(m.out.String(), "/"+memoryLog) {
			t.Errorf("the console does not name the log:\n%s", m.out.String())
		}
		text, err := os.ReadFile(m.path(memoryLog))
		must(t, err)
		return string(text)
	}
	if text := fail(); !strings.Contains(text, "apagent: cannot install on /dev/sda: the disk is too small") {
		t.Errorf("the log is %q; want the reason", text)
	}

	m = newMachine(t, "sda", 4*partitions.GiB)
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.start()
	must(t, os.Remove(m.path("content/mnt/sda2/.installed")))
	must(t, os.WriteFile(m.path("sys/class/block/sda/queue/logical_block_size"), []byte("4096"), 0o644))
	fail()
	text, err := os.ReadFile(m.path("content/mnt/sda2/" + InstallLog))
	must(t, err)
	if !strings.Contains(string(text), "it has sectors of 4 KiB") || m.Mounted("/"+dataDir) {
		t.Errorf("the log of sda2 is %q, mounted %v; want the reason in it, and sda2 unmounted", text, m.mounted)
	}
}

// An ordinary user must not be told to write the image again.
func TestFindDiskNamesReadErrors(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "sda", 4*partitions.GiB)
	must(t, os.Remove(m.path("dev/sda")))
	if _, err := m.findDisk(t.Context()); err == nil || !strings.Contains(err.Error(), "/dev/sda (4 GiB, cannot be read: no such file or directory)") {
		t.Errorf("findDisk() = %v; want the reason", err)
	}
	all, err := block.Disks(m.Root)
	must(t, err)
	denied := fmt.Errorf("wrapped: %w", &os.PathError{Op: "open", Path: "/dev/sda", Err: syscall.EACCES})
	_, err = m.choose(all, func(block.Disk) ([]byte, error) { return nil, denied })
	if err == nil || Explain(err) != "cannot read /dev/sda: permission denied\nhint: run it as root (su root)" {
		t.Errorf("choose() = %v; want to be told to be root", err)
	}
}

// A key counts as soon as people are asked to press one.
func TestRescueReadyBeforeItAsks(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "sda", 4*partitions.GiB)
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.start()
	w := &askedWatcher{m: m}
	must(t, Start(t.Context(), m.Machine, w))
	if !w.ready || w.late {
		t.Errorf("keys count: %v, after the question: %v; want them to count before it", w.ready, w.late)
	}
}

type askedWatcher struct {
	somebody
	m           *testMachine
	ready, late bool
}

func (w *askedWatcher) Ready() {
	w.ready, w.late = true, strings.Contains(w.m.out.String(), "Press a key")
}
