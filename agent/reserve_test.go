package agent

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"appplatform/partitions"
)

// runningMachine has started the system with sda2 of a size and empty.
func runningMachine(t *testing.T, size partitions.Size) *testMachine {
	t.Helper()
	m := installedMachine(t)
	must(t, Mount(t.Context(), m.Machine))
	m.size = treeSize(m.path("content/"+dataDir)) + size
	m.events = nil
	m.out.Reset()
	return m
}

// grow makes a file on sda2 that takes so much room, and says when it was
// changed.
func (m *testMachine) grow(name string, size partitions.Size, days int) {
	m.t.Helper()
	path := m.path(filepath.Join(dataDir, name))
	must(m.t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(m.t, os.WriteFile(path, nil, 0o600))
	must(m.t, os.Truncate(path, int64(size)))
	changed := time.Date(2026, 1, days, 0, 0, 0, 0, time.UTC)
	must(m.t, os.Chtimes(path, changed, changed))
}

// left lists what there is on sda2 with its size, but for what every machine has.
func (m *testMachine) left() string {
	var b strings.Builder
	top := m.path("content/" + dataDir)
	must(m.t, filepath.WalkDir(top, func(path string, e os.DirEntry, err error) error {
		if info, err := e.Info(); err == nil && e.Type().IsRegular() && e.Name() != ".empty" {
			name, _ := filepath.Rel(top, path)
			if size := partitions.Size(info.Size()); size >= partitions.MiB || strings.HasPrefix(name, "log") || strings.Contains(name, "empty_if") {
				fmt.Fprintf(&b, "%s %v\n", name, size)
			}
		}
		return err
	}))
	return b.String()
}

func stepTexts(steps []Step) (texts []string) {
	for _, s := range steps {
		texts = append(texts, s.String())
	}
	return texts
}

// OS-F3: when the reserve is made, and when it is left as it is.
func TestReserve(t *testing.T) {
	const (
		mib  = partitions.MiB
		file = "empty_if_no_space"
		part = ".empty_if_no_space.part"
	)
	tests := []struct {
		name  string
		size  partitions.Size // of the disk
		files map[string]partitions.Size
		want  string
	}{
		{"missing", 2048 * mib, nil, "empty_if_no_space 500 MiB\n"},
		{"just enough room", 756 * mib, nil, "empty_if_no_space 500 MiB\n"},
		{"too little room", 755 * mib, nil, ""},
		{"small disk", 100 * mib, nil, ""},
		{"whole", 2048 * mib, map[string]partitions.Size{file: 500 * mib}, "empty_if_no_space 500 MiB\n"},
		{"whole, full disk", 500 * mib, map[string]partitions.Size{file: 500 * mib}, "empty_if_no_space 500 MiB\n"},
		{"emptied by echo", 2048 * mib, map[string]partitions.Size{file: 1}, "empty_if_no_space 1 B\n"},
		{"emptied", 2048 * mib, map[string]partitions.Size{file: 0}, "empty_if_no_space 0 B\n"},
		{"interrupted", 2048 * mib, map[string]partitions.Size{part: 250 * mib}, "empty_if_no_space 500 MiB\n"},
		{"interrupted, its rest is the room", 756 * mib, map[string]partitions.Size{part: 250 * mib}, "empty_if_no_space 500 MiB\n"},
		{"interrupted, full disk", 250 * mib, map[string]partitions.Size{part: 250 * mib}, ""},
		{"interrupted and whole", 2048 * mib, map[string]partitions.Size{part: 0, file: 500 * mib}, "empty_if_no_space 500 MiB\n"},
		{"half", 2048 * mib, map[string]partitions.Size{file: 250 * mib}, "empty_if_no_space 500 MiB\n"},
		{"half, full disk", 250 * mib, map[string]partitions.Size{file: 250 * mib}, ""},
	}
	for _, test := range tests {
		m := runningMachine(t, test.size)
		for name, size := range test.files {
			m.grow(name, size, 1)
		}
		for range 2 { // The second run finds nothing to do.
			steps, err := PlanTidy(m.Machine)
			must(t, err)
			must(t, Apply(t.Context(), m.Machine, steps))
		}
		if got := m.left(); got != test.want {
			t.Errorf("%s: on sda2 there is\n%swant\n%s", test.name, got, test.want)
		}
		if steps, err := PlanTidy(m.Machine); err != nil || len(steps) > 0 {
			t.Errorf("%s: then PlanTidy() = %v, %v; want nothing", test.name, steps, err)
		}
	}
}

// What is in the place of the reserve is nobody's to delete.
func TestReserveIsNoFile(t *testing.T) {
	m := runningMachine(t, partitions.GiB)
	m.grow("home/admin/files", 100*partitions.MiB, 1)
	must(t, os.Mkdir(m.path(reserveFile), 0o755))
	for what, err := range map[string]error{
		"PlanTidy": second(PlanTidy(m.Machine)), "PlanDiskfree": second(PlanDiskfree(m.Machine, partitions.GiB)),
		"Diskfree": Diskfree(t.Context(), m.Machine, partitions.GiB),
	} {
		if err == nil || !strings.Contains(Explain(err), "not an ordinary file\nhint: ") {
			t.Errorf("%s() = %v; want a refusal with a hint", what, err)
		}
	}
}

func second(_ []Step, err error) error { return err }

// The room cannot be had after all: nothing is left behind.
func TestReserveWithoutRoom(t *testing.T) {
	m := runningMachine(t, 100*partitions.MiB)
	if err := (makeReserve{}).Do(t.Context(), m.Machine); err == nil || m.left() != "" {
		t.Errorf("makeReserve = %v and leaves %q; want an error and nothing", err, m.left())
	}
}

// Logs of apps are bounded together: the oldest go first, those being written last.
func TestTrimLogs(t *testing.T) {
	const mib = partitions.MiB
	tests := []struct {
		name  string
		size  partitions.Size
		files func(m *testMachine)
		want  string
	}{
		{"few", 8 * partitions.GiB, func(m *testMachine) {
			m.grow("log/apps/a/a.log", 300*mib, 1)
			m.grow("log/apps/b/b.log.1", 212*mib, 1)
		}, "log/apps/a/a.log 300 MiB\nlog/apps/b/b.log.1 212 MiB\n"},
		{"old ones", 8 * partitions.GiB, func(m *testMachine) {
			m.grow("log/apps/a/a.log", 300*mib, 1)
			m.grow("log/apps/a/a.log.1", 200*mib, 9)
			m.grow("log/apps/b/b.log.2.gz", 2*mib, 3)
			m.grow("log/apps/b/b.log.3.gz", 20*mib, 2)
		}, "log/apps/a/a.log 300 MiB\nlog/apps/a/a.log.1 200 MiB\nlog/apps/b/b.log.2.gz 2 MiB\n"},
		{"the longest", 8 * partitions.GiB, func(m *testMachine) {
			m.grow("log/apps/a/a.log", 100*mib, 1)
			m.grow("log/apps/b/b.log", 450*mib, 9)
			m.grow("log/apps/b/b.log.1", 20*mib, 9)
		}, "log/apps/a/a.log 100 MiB\nlog/apps/b/b.log 0 B\n"},
		{"small disk", 3000 * mib, func(m *testMachine) {
			m.grow("log/apps/a/a.log", 200*mib, 1)
			m.grow("log/apps/a/a.log.1", 101*mib, 1)
			m.grow("log/messages", 900*mib, 1)
		}, "log/apps/a/a.log 200 MiB\nlog/messages 900 MiB\n"},
	}
	for _, test := range tests {
		m := runningMachine(t, test.size)
		m.grow("empty_if_no_space", 0, 1)
		test.files(m)
		steps, err := PlanTidy(m.Machine)
		must(t, err)
		must(t, Apply(t.Context(), m.Machine, steps))
		if got := strings.TrimPrefix(m.left(), "empty_if_no_space 0 B\n"); got != test.want {
			t.Errorf("%s: there are\n%swant\n%s", test.name, got, test.want)
		}
	}
}

// What a full disk holds, in the order in which it goes.
func fullMachine(t *testing.T) *testMachine {
	const mib = partitions.MiB
	m := runningMachine(t, 2000*mib)
	m.grow("empty_if_no_space", 500*mib, 1)
	m.grow("log/apps/files/files.log", 40*mib, 1)
	m.grow("log/apps/files/files.log.1.gz", 10*mib, 1)
	m.grow("log/core_dumps/files/core.1700000000.12", 100*mib, 1)
	m.grow("log/messages", mib, 1)
	m.grow("log/messages.0", mib, 1)
	m.grow("log/btmp.1", mib, 1)
	m.grow("log/postgresql/postgresql.log", 10*mib, 1)
	m.grow("log/postgresql/postgresql.log.2.gz", mib, 1)
	m.grow("pgsql/base/1/16384", 1000*mib, 1)
	m.grow("home/admin/files.log.1", 336*mib, 1)
	if space, err := m.Space("/" + dataDir); err != nil || space.Free != 0 {
		t.Fatalf("Space() = %+v, %v; want a full disk", space, err)
	}
	return m
}

const untouched = "home/admin/files.log.1 336 MiB\n"

// OS-F3: no more goes than must, in the order of the manual.
func TestDiskfree(t *testing.T) {
	const mib = partitions.MiB
	all := []string{
		"empty /mnt/sda2/empty_if_no_space (500 MiB)",
		"delete logs of apps (2 files, 50 MiB)",
		"delete core dumps (1 file, 100 MiB)",
		"delete old logs of the system (2 files, 2 MiB)",
		"delete logs of the database (2 files, 11 MiB)",
	}
	tests := []struct {
		need  partitions.Size
		steps int // that are done
		want  string
	}{
		{NearlyFull, 1, "500 MiB of"},
		{500 * mib, 1, "500 MiB of"},
		{501 * mib, 2, "550 MiB of"},
		{600 * mib, 3, "650 MiB of"},
		{652 * mib, 4, "652 MiB of"},
		{663 * mib, 5, "663 MiB of"},
		{664 * mib, 5, ""},
	}
	for _, test := range tests {
		m := fullMachine(t)
		before := m.left()
		steps, err := PlanDiskfree(m.Machine, test.need)
		must(t, err)
		if diff := cmp.Diff(all, stepTexts(steps)); diff != "" {
			t.Errorf("PlanDiskfree(%v) differs (-want +got):\n%s", test.need, diff)
		}
		if m.left() != before {
			t.Errorf("PlanDiskfree(%v) changes the disk", test.need)
		}
		for run := range 2 { // Twice is no harm, and finds no more.
			m.out.Reset()
			err = Diskfree(t.Context(), m.Machine, test.need)
			if test.want == "" {
				if err == nil || !strings.Contains(Explain(err), "663 MiB of") || !strings.Contains(Explain(err), "\nhint: delete data") {
					t.Errorf("Diskfree(%v) = %v; want an error with a hint", test.need, err)
				}
			} else if err != nil || !strings.Contains(m.out.String(), test.want) {
				t.Errorf("Diskfree(%v) = %v and says\n%swant %q", test.need, err, m.out.String(), test.want)
			}
			want := test.steps
			if run > 0 {
				want = 0
			}
			if n := strings.Count(m.out.String(), "  freed "); n != want {
				t.Errorf("Diskfree(%v) says\n%swant %d steps", test.need, m.out.String(), want)
			}
		}
		if !strings.Contains(m.left(), untouched) || !strings.Contains(m.left(), "pgsql/base/1/16384 1000 MiB\n") || !strings.Contains(m.left(), "log/messages 1 MiB\n") {
			t.Errorf("Diskfree(%v) leaves\n%swant the data in it", test.need, m.left())
		}
	}
}

// What everything that may go leaves: files that programs have open stay,
// empty.
func TestDiskfreeLeaves(t *testing.T) {
	m := fullMachine(t)
	if err := Diskfree(t.Context(), m.Machine, 1*partitions.GiB); err == nil {
		t.Error("Diskfree(1 GiB) = nil; want an error")
	}
	want := untouched + "log/apps/files/files.log 0 B\nlog/messages 1 MiB\nlog/postgresql/postgresql.log 0 B\npgsql/base/1/16384 1000 MiB\n"
	if got := strings.TrimPrefix(m.left(), "empty_if_no_space 0 B\n"); got != want {
		t.Errorf("there are\n%swant\n%s", got, want)
	}
}

// Nothing changes for a wish that cannot be fulfilled or already is.
func TestDiskfreeRefuses(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(m *testMachine)
		need    partitions.Size
		want    string
	}{
		{"enough", func(m *testMachine) { m.size += NearlyFull }, NearlyFull, ""},
		{"more than there is", func(*testMachine) {}, 3 * partitions.GiB, "cannot free 3 GiB: the data partition has"},
		{"not mounted", func(m *testMachine) { must(m.t, m.Unmount("/"+dataDir)) }, NearlyFull, "not mounted\nhint: apagent status"},
		{"rescue", func(m *testMachine) { m.Ramdisk = true; must(m.t, m.Unmount("/"+dataDir)) }, NearlyFull, "not mounted\nhint: mount /dev/sda2 /mnt/sda2"},
	} {
		m := fullMachine(t)
		before := treeSize(m.path("content"))
		test.prepare(m)
		err := Diskfree(t.Context(), m.Machine, test.need)
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(Explain(err), test.want) {
			t.Errorf("%s: Diskfree() = %v; want %q", test.name, err, test.want)
		}
		if after := treeSize(m.path("content")); after != before {
			t.Errorf("%s: %v were deleted", test.name, before-after)
		}
	}
}

// Apps own the folders of their logs; root deletes nothing elsewhere for them.
func TestDiskfreeFollowsNoLinks(t *testing.T) {
	m := fullMachine(t)
	must(t, os.Symlink(m.path(dataDir+"/home/admin"), m.path(logDir+"/apps/files/home")))
	must(t, os.Symlink(m.path(dataDir+"/home/admin"), m.path(logDir+"/apps/linked")))
	must(t, os.Symlink(m.path(dataDir+"/pgsql/base/1/16384"), m.path(logDir+"/apps/files/base")))
	steps, err := PlanDiskfree(m.Machine, NearlyFull)
	must(t, err)
	// A folder that becomes a link between plan and deed.
	dir := m.path(logDir + "/apps/files")
	must(t, os.Rename(dir, dir+".away"))
	must(t, os.Symlink(m.path(dataDir+"/home/admin"), dir))
	m.grow("home/admin/files.log", 5*partitions.MiB, 1)
	for _, s := range steps {
		_ = s.Do(t.Context(), m.Machine) // That of the logs fails.
	}
	for _, want := range []string{untouched, "home/admin/files.log 5 MiB\n", "pgsql/base/1/16384 1000 MiB\n"} {
		if !strings.Contains(m.left(), want) {
			t.Errorf("on sda2 there is\n%swant %s", m.left(), want)
		}
	}
}

// meddling is a machine on which an app's folder of logs becomes a link that
// leads elsewhere, as soon as there is a plan.
type meddling struct {
	*testMachine
	calls int
}

func (m *meddling) Space(path string) (Space, error) {
	if m.calls++; m.calls == 2 {
		dir := m.path(logDir + "/apps/files")
		must(m.t, os.Rename(dir, m.path("aside")))
		must(m.t, os.Symlink(m.Root, dir))
	}
	return m.testMachine.Space(path)
}

// A step that fails is told, and the next ones help all the same.
func TestDiskfreeGoesOn(t *testing.T) {
	m := fullMachine(t)
	m.Kernel = &meddling{testMachine: m}
	m.size -= 50 * partitions.MiB // What was put aside is not on the disk.
	err := Diskfree(t.Context(), m.Machine, 600*partitions.MiB)
	for _, want := range []string{"cannot delete logs of apps", "delete core dumps (1 file, 100 MiB)\n  freed 100 MiB\n600 MiB of"} {
		if err != nil || !strings.Contains(m.out.String(), want) {
			t.Errorf("Diskfree() = %v and says\n%swant %q", err, m.out.String(), want)
		}
	}
}

// OS-F3: status names the way out before it is too late.
func TestStatusOfFullDisk(t *testing.T) {
	for _, test := range []struct {
		name string
		size partitions.Size
		file partitions.Size
		want string
	}{
		{"room", 1000 * partitions.MiB, 500 * partitions.MiB, ""},
		{"just enough", 756 * partitions.MiB, 500 * partitions.MiB, ""},
		{"nearly full", 755 * partitions.MiB, 500 * partitions.MiB, "nearly full: 255 MiB of 755 MiB are free\nhint: apagent diskfree"},
		{"emptied, no room yet", 755 * partitions.MiB, 0, ""},
		{"emptied, room again", 756 * partitions.MiB, 0, "was emptied\nhint: rm /mnt/sda2/empty_if_no_space"},
	} {
		m := runningMachine(t, test.size)
		m.grow("empty_if_no_space", test.file, 1)
		got := strings.Join(GetStatus(t.Context(), m.Machine).Problems, "\n")
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: problems are %q; want %q", test.name, got, test.want)
		}
	}
}

// The threshold is what the server is allowed.
func TestNearlyFullIsMaxWALSize(t *testing.T) {
	text, err := os.ReadFile("../rootfs/overlay/etc/postgresql/platform.conf")
	if want := fmt.Sprintf("\nmax_wal_size = %dMB\n", NearlyFull/partitions.MiB); err != nil || !strings.Contains(string(text), want) {
		t.Errorf("platform.conf, %v, lacks %q", err, want)
	}
}

// A real file system of 1 GiB, filled to the last block by root: the reserve
// takes room, and emptying it gives room.
func TestReserveOnExt4(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	dir := t.TempDir()
	img, data := filepath.Join(dir, "sda2.img"), filepath.Join(dir, dataDir)
	must(t, os.MkdirAll(data, 0o755))
	must(t, os.WriteFile(img, nil, 0o600))
	must(t, os.Truncate(img, int64(partitions.GiB)))
	if out, err := exec.Command(lookPath(t, "mke2fs"), "-q", "-F", "-t", "ext4", "-m", "1", img).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", img, data).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a file here: %v: %s", err, out)
	}
	t.Cleanup(func() { must(t, unix.Unmount(data, 0)) })
	var out strings.Builder
	m := Machine{Root: dir, Kernel: realSpace{dir: dir}, Log: NewLog(&out)}
	tidy := func() {
		t.Helper()
		steps, err := PlanTidy(m)
		must(t, err)
		must(t, Apply(t.Context(), m, steps))
	}
	tidy()
	var st unix.Stat_t
	must(t, unix.Stat(m.path(reserveFile), &st))
	if want := int64(reserveSize); st.Size != want || st.Blocks*512 < want {
		t.Errorf("the reserve has %d bytes and takes %d; want %d of both", st.Size, st.Blocks*512, want)
	}

	must(t, makeSkeleton(data))
	must(t, os.MkdirAll(filepath.Join(data, "log/apps/a"), 0o755))
	must(t, os.WriteFile(filepath.Join(data, "log/apps/a/a.log.1"), make([]byte, 8<<20), 0o644))
	fill(t, filepath.Join(data, "home/big"))
	if space, err := m.dataSpace(); err != nil || space.Free != 0 {
		t.Fatalf("dataSpace() = %+v, %v; want no room", space, err)
	}
	for _, need := range []partitions.Size{NearlyFull, NearlyFull, 490 * partitions.MiB} {
		if err := Diskfree(t.Context(), m, need); err != nil {
			t.Errorf("Diskfree(%v) = %v\n%s", need, err, out.String())
		}
	}
	if err := Diskfree(t.Context(), m, 600*partitions.MiB); err == nil || !strings.Contains(Explain(err), "\nhint: ") {
		t.Errorf("Diskfree(600 MiB) = %v; want an error with a hint", err)
	}
	if _, err := os.Stat(filepath.Join(data, "log/apps/a/a.log.1")); err == nil {
		t.Error("the old log of an app is still there")
	}
	must(t, os.Remove(filepath.Join(data, "home/big")))
	must(t, os.Remove(m.path(reserveFile)))
	tidy()
	must(t, unix.Stat(m.path(reserveFile), &st))
	if want := int64(reserveSize); st.Size != want || st.Blocks*512 < want {
		t.Errorf("made again, the reserve has %d bytes and takes %d; want %d of both", st.Size, st.Blocks*512, want)
	}
}

// fill takes all room there is, root's included.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer f.Close()
	for b := make([]byte, partitions.MiB); len(b) > 0; {
		if _, err := f.Write(b); err != nil {
			b = b[:len(b)/2]
		}
	}
	must(t, f.Sync())
}

// realSpace asks the running kernel about a folder that stands in for a machine.
type realSpace struct {
	system
	dir string
}

func (r realSpace) Mounted(target string) bool { return r.system.Mounted(r.dir + target) }

func (r realSpace) Space(path string) (Space, error) { return r.system.Space(r.dir + path) }
