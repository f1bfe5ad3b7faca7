package powercut

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/bundle"
	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
)

const testSize = 3 * partitions.GiB

// A testDisk is a disk with one image set, which no machine has started yet.
type testDisk struct {
	Plan
	rootfs []byte // what the set installs
	hash   string // RawSHA256 of that
	config int64  // the place of grub.cfg
}

func newTestDisk(t *testing.T) testDisk {
	t.Helper()
	boot, d := t.TempDir(), testDisk{rootfs: noise(5 << 20)}
	d.Size, d.Platform = testSize, bundle.Platform{Board: "test", Arch: "none", Scheme: partitions.GPT, Boot: "grub"}
	d.makeSet(t, filepath.Join(boot, "a"))
	write(t, filepath.Join(boot, grubConfig), "set default=0\n"+strings.Repeat("# what follows\n", 100))
	write(t, filepath.Join(boot, grubEnv), grubEnvHeader+"set=a\n"+strings.Repeat("#", grubEnvSize-len(grubEnvHeader)-6))

	disk := filepath.Join(t.TempDir(), "disk")
	table := partitions.Factory(partitions.GPT, testSize)
	part, _ := table.Part(partitions.Boot)
	f, err := os.Create(disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	writes, err := table.Writes(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range writes {
		if _, err := f.WriteAt(w.Data, int64(w.Offset)); err != nil {
			t.Fatal(err)
		}
	}
	tool(t, []string{boot, filepath.Dir(disk)}, "mke2fs", "-q", "-t", "ext2", "-d", boot, "-E", "offset="+decimal(int64(part.Start)), disk, decimal(int64(part.Size/partitions.KiB)))
	d.Base = f

	v := &view{disk: &Disk{base: f, size: int64(testSize)}}
	vol, err := openExt2(v, int64(part.Start))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := find(v, vol, grubConfig)
	if err != nil {
		t.Fatal(err)
	}
	d.config = cfg.pieces[0].at
	return d
}

// makeSet makes an image set in a folder, and a key for it.
func (d *testDisk) makeSet(t *testing.T, dir string) {
	t.Helper()
	var packed bytes.Buffer
	plain := func(_ context.Context, raw []byte) ([]byte, error) { return raw, nil }
	rootfs, err := bundle.Packer{Compress: plain}.Pack(t.Context(), bytes.NewReader(d.rootfs), int64(len(d.rootfs)), &packed)
	if err != nil {
		t.Fatal(err)
	}
	d.hash = rootfs.RawSHA256
	m := bundle.Manifest{Format: bundle.Format, Board: "test", Arch: "none", Label: "160001", Rootfs: rootfs}
	write(t, filepath.Join(dir, bundle.RootfsName), packed.String())
	for name, to := range map[string]*bundle.File{bundle.KernelName: &m.Kernel, bundle.RamdiskName: &m.Ramdisk} {
		write(t, filepath.Join(dir, name), "the "+name)
		if *to, err = bundle.Describe(name, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, to.SumName()), string(to.Sum()))
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	key, err := bundle.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	signature, err := bundle.Sign(key.Private, "", text)
	if err != nil {
		t.Fatal(err)
	}
	public, err := bundle.PublicKey(key.Public)
	if err != nil {
		t.Fatal(err)
	}
	d.Platform.Keys = []string{public}
	write(t, filepath.Join(dir, bundle.ManifestName), string(text))
	write(t, filepath.Join(dir, bundle.SignatureName), string(signature))
}

// testTable is that of an installed disk.
func testTable(t *testing.T) partitions.Table {
	t.Helper()
	table, err := partitions.Layout(partitions.GPT, testSize)
	if err != nil {
		t.Fatal(err)
	}
	table.DiskUUID = partitions.FactoryDiskUUID
	for i := range table.Parts {
		table.Parts[i].UUID = partitions.FactoryBootUUID
	}
	return table
}

// install logs what an installation writes. The entries are: five writes of the
// table with a flush behind each (0 to 9), the system in two writes (10, 11), a
// flush, the boot default (13), a flush.
func (d *testDisk) install(t *testing.T) *Log {
	t.Helper()
	var w logWriter
	table := testTable(t)
	head := make([]byte, partitions.HeadSize)
	if _, err := d.Base.ReadAt(head, 0); err != nil {
		t.Fatal(err)
	}
	writes, err := table.Writes(head)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range writes {
		w.add(0, int64(one.Offset)/sector, int64(len(one.Data))/sector, one.Data)
		w.add(flagFlush, 0, 0, nil)
	}
	rootfs, _ := table.Part(partitions.Rootfs)
	const half = 2 << 20
	w.add(0, int64(rootfs.Start)/sector, half/sector, d.rootfs[:half])
	w.add(0, (int64(rootfs.Start)+half)/sector, (int64(len(d.rootfs))-half)/sector, d.rootfs[half:])
	w.add(flagFlush, 0, 0, nil)
	config := make([]byte, sector)
	if _, err := d.Base.ReadAt(config, d.config); err != nil {
		t.Fatal(err)
	}
	w.add(0, d.config/sector, 1, bytes.Replace(config, []byte("default=0"), []byte("default=1"), 1))
	w.add(flagFlush, 0, 0, nil)
	l, err := ReadLog(bytes.NewReader(w.finish()))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// The right order passes and each wrong one is found: a step in front of
// another, or one that does not wait for the disk.
func TestCheckFindsWrongOrders(t *testing.T) {
	d := newTestDisk(t)
	right := d.install(t)
	for _, test := range []struct {
		name string
		log  *Log
		want string // a failure; "" for none
	}{
		{"right", right, ""},
		{"boot default before the system is flushed", right.Moved(13, 12), "piece"},
		{"boot default before the system", right.Moved(13, 10), "piece"},
		{"boot default before the table", right.Moved(13, 0), "lacks partitions"},
		{"no flush behind the system", right.Without(12), "piece"},
		{"no flush between entries and header of the table", right.Without(7).Without(5), "wrong checksum of the entries"},
		{"header of the table before its entries", right.Moved(8, 4), "wrong checksum of the entries"},
		{"no flush behind the table", right.Without(9), ""}, // What follows waits as well.
	} {
		t.Run(test.name, func(t *testing.T) {
			p := d.Plan
			p.Log = test.log
			states, systems, failures := judgeAll(t, p)
			if test.want == "" && len(failures) > 0 {
				t.Errorf("%d of %d states fail, the first with %v", len(failures), states, failures[0])
			}
			if test.want == "" && (systems == 0 || systems == states) {
				t.Errorf("%d of %d states start the system; want some", systems, states)
			}
			if test.want != "" && !strings.Contains(errorText(failures), test.want) {
				t.Errorf("of %d states fail %v; want one with %q", states, failures, test.want)
			}
		})
	}
}

func judgeAll(t *testing.T, p Plan) (states, systems int, failures []error) {
	t.Helper()
	c, err := NewChecker(p)
	if err != nil {
		t.Fatal(err)
	}
	for s := range States(p.Log, Limits{Prefixes: 40, Torn: 5, Exhaustive: 6, Samples: 50}, 1) {
		states++
		choice, err := c.Check(s)
		if err != nil {
			failures = append(failures, Failure{s, err})
		} else if choice.System {
			systems++
		}
	}
	return states, systems, failures
}

func errorText(errs []error) string {
	var b strings.Builder
	for _, err := range errs {
		b.WriteString(err.Error() + "\n")
	}
	return b.String()
}

// Whatever stops a machine from starting is a failure.
func TestCheckFindsDamage(t *testing.T) {
	d := newTestDisk(t)
	layout, _ := partitions.Layout(partitions.GPT, testSize)
	place := func(number int) int64 { p, _ := layout.Part(number); return int64(p.Start) / sector }
	v := &view{disk: &Disk{base: d.Base, size: int64(testSize)}}
	vol, err := openExt2(v, place(partitions.Boot)*sector)
	if err != nil {
		t.Fatal(err)
	}
	of := func(name string) int64 {
		f, err := find(v, vol, name)
		if err != nil {
			t.Fatal(err)
		}
		return f.pieces[0].at / sector
	}
	for _, test := range []struct {
		name  string
		place int64
		want  string
	}{
		{"partition table", 1, "no partition table"},
		{"boot code", 0, "GRUB outside of sda1"},
		{"core image", place(partitions.BIOS) + 3, "GRUB outside of sda1"},
		{"EFI partition", place(partitions.EFI) + 9, "GRUB outside of sda1"},
		{"superblock of sda1", place(partitions.Boot) + 2, "no ext2 file system"},
		{"kernel", of("a/kernel"), "nothing on sda1 can be started"},
		{"hash of the kernel", of("a/kernel.sha256"), "nothing on sda1 can be started"},
		{"packed system", of("a/rootfs.ext4.xz") + 77, "not what was signed"},
		{"manifest", of("a/manifest.json"), "signature is not from a known key"},
		{"grub.cfg", of(grubConfig) + 1, "changed in more than its default"},
		{"grubenv", of(grubEnv), ""}, // GRUB goes on with set a.
	} {
		t.Run(test.name, func(t *testing.T) {
			var w logWriter
			w.add(0, test.place, 1, fill('x', 1))
			p := d.Plan
			if p.Log, err = ReadLog(bytes.NewReader(w.finish())); err != nil {
				t.Fatal(err)
			}
			c, err := NewChecker(p)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Check(State{Full: 1, Cut: 1})
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("Check(...) = %v; want %q", err, test.want)
			}
		})
	}
}

// Where something was promised, sda2 must not be formatted again, and what
// e2fsck and debugfs find there must be it.
func TestPromises(t *testing.T) {
	d := newTestDisk(t)
	plain, torn := mountedData(t, "^metadata_csum", 0, ""), mountedData(t, "metadata_csum", 0, "")
	large, small := mountedData(t, "metadata_csum", 20*partitions.MiB, ""), mountedData(t, "metadata_csum", 12*partitions.MiB, "")
	now, tabled := State{Full: 3, Cut: 3}, State{Full: 8, Cut: 8}
	for _, test := range []struct {
		name    string
		log     *Log
		state   State
		promise Promise
		want    string
	}{
		{"kept", plain, now, Promise{Path: "/log", Text: "step 2\n"}, ""},
		{"kept by force", torn, now, Promise{Path: "/log", Text: "step 2\n"}, ""},
		{"not given yet", plain, State{}, Promise{From: 1, Path: "/log"}, ""},
		{"not given any more", plain, now, Promise{Until: 3, Path: "/gone"}, ""},
		{"never mounted", plain, State{Full: 2, Cut: 3}, Promise{Path: "/log"}, "would format sda2"},
		{"lost line", plain, now, Promise{Path: "/log", Text: "step 3\n"}, `has lost "step 3`},
		{"fits", large, tabled, Promise{Path: "/log", Text: "step 2\n"}, ""},
		{"larger than its partition", small, tabled, Promise{Path: "/log"}, "sda2 cannot be repaired"},
		{"lost file", torn, now, Promise{Path: "/.installing"}, "has lost /.installing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := d.Plan
			p.Log, p.Promises = test.log, []Promise{test.promise}
			c, err := NewChecker(p)
			if err != nil {
				t.Fatal(err)
			}
			_, err = c.Judge(t.Context(), testtools.Open(t, tooltree.Image), test.state)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("Judge(%v) = %v; want %q", test.state, err, test.want)
			}
		})
	}
}

// A ramdisk that starts must not be told that sda3 is whole when it is not.
func TestRamdiskLearnsOfItsWork(t *testing.T) {
	d := newTestDisk(t)
	part, _ := testTable(t).Part(partitions.Data)
	for installed, want := range map[string]string{"": "", "another one": "", `{"rootfs": "` + d.hash + `"}`: "is told by sda2 that sda3 is whole"} {
		p := d.Plan
		p.Log, p.Promises = mountedData(t, "^metadata_csum", part.Size, installed), []Promise{{Path: "/log"}}
		c, err := NewChecker(p)
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Judge(t.Context(), testtools.Open(t, tooltree.Image), State{Full: 8, Cut: 8})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("with %q installed Judge() = %v; want %q", installed, err, want)
		}
	}
}

// What a plan has led to stays.
func TestSettled(t *testing.T) {
	p := newTestDisk(t)
	p.Log = p.install(t)
	n := len(p.Log.Entries)
	for _, settled := range []int{0, 1, n} {
		p.Settled = settled
		c, err := NewChecker(p.Plan)
		if err != nil {
			t.Fatal(err)
		}
		_, early := c.Check(State{Full: 3, Cut: 3})
		if _, late := c.Check(State{Full: n, Cut: n}); late != nil || (early != nil) != (settled == 1) {
			t.Errorf("settled from entry %d: %v behind the third entry, %v behind the last", settled, early, late)
		}
	}
}

// A repair that takes away what boots is found: e2fsck does so with a file that
// says it is deleted, which a boot loader does not look at.
func TestMendingKeepsWhatBoots(t *testing.T) {
	d := newTestDisk(t)
	part, _ := testTable(t).Part(partitions.Boot)
	before, sda1 := make([]byte, part.Size), filepath.Join(t.TempDir(), "sda1")
	if _, err := d.Base.ReadAt(before, int64(part.Start)); err != nil {
		t.Fatal(err)
	}
	write(t, sda1, string(before))
	for _, order := range []string{"set_inode_field /a/kernel links_count 0", "set_super_value state 0"} {
		tool(t, []string{filepath.Dir(sda1)}, "debugfs", "-w", "-R", order, sda1)
	}
	after, err := os.ReadFile(sda1)
	if err != nil {
		t.Fatal(err)
	}
	var w logWriter
	for at := int64(0); at < int64(len(after)); at += sector {
		if b := after[at : at+sector]; !bytes.Equal(b, before[at:at+sector]) {
			w.add(0, (int64(part.Start)+at)/sector, 1, b)
		}
	}
	if d.Log, err = ReadLog(bytes.NewReader(w.finish())); err != nil {
		t.Fatal(err)
	}
	c, err := NewChecker(d.Plan)
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]string{0: "", len(d.Log.Entries): "after sda1 was mended"} {
		_, err := c.Judge(t.Context(), testtools.Open(t, tooltree.Image), State{Full: n, Cut: n})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("Judge() with %d entries = %v; want %q", n, err, want)
		}
	}
}

// mountedData logs a file system on sda2 with a file, a flush, and the sector of
// its superblock that says that it was mounted. A checksum, if the file system
// has one, is in the next sector, and wrong then. With a size for sda2, five
// writes of a partition table follow. Another file says what is installed.
func mountedData(t *testing.T, feature string, size partitions.Size, installed string) *Log {
	t.Helper()
	data, sda2 := t.TempDir(), filepath.Join(t.TempDir(), "sda2")
	write(t, filepath.Join(data, "log"), "step 1\nstep 2\n")
	if installed != "" {
		write(t, filepath.Join(data, ".installed"), installed)
	}
	tool(t, []string{data, filepath.Dir(sda2)}, "mke2fs", "-q", "-t", "ext4", "-b", "1024", "-O", feature, "-L", "ap-data", "-d", data, sda2, "16M")
	text, err := os.ReadFile(sda2)
	if err != nil {
		t.Fatal(err)
	}
	table := testTable(t)
	part, _ := table.Part(partitions.Data)
	mounted := bytes.Clone(text[1024 : 1024+sector])
	mounted[44] = 1
	var w logWriter
	w.add(0, int64(part.Start)/sector, int64(len(text))/sector, text)
	w.add(flagFlush, 0, 0, nil)
	w.add(0, int64(part.Start)/sector+2, 1, mounted)
	if size > 0 {
		table.Parts[len(table.Parts)-1].Size = size
		writes, err := table.Writes(nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range writes {
			w.add(0, int64(one.Offset)/sector, int64(len(one.Data))/sector, one.Data)
		}
	}
	l, err := ReadLog(bytes.NewReader(w.finish()))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func noise(n int) []byte {
	b := make([]byte, n)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(random.Uint32())
	}
	return b
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// tool runs a program of the tool tree that sees folders.
func tool(t testing.TB, dirs []string, args ...string) {
	t.Helper()
	if err := testtools.Open(t, tooltree.Image).Run(t.Context(), tooltree.Cmd{Args: args, Writable: dirs}); err != nil {
		t.Fatal(err)
	}
}
