package block

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"appplatform/partitions"
)

func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDisks(t *testing.T) {
	root := t.TempDir()
	files := map[string]string{}
	for name, size := range map[string]string{"sda": "1000", "nvme0n1": "2000", "vda": "0", "sr0": "50", "fd0": "8", "ram0": "100", "loop0": "10", "sda1": "500"} {
		dir := "sys/class/block/" + name + "/"
		files[dir+"size"] = size + "\n"
		if name != "ram0" && name != "loop0" {
			files[dir+"device/x"] = ""
		}
	}
	files["sys/class/block/sda1/partition"] = "1\n"
	files["sys/class/block/nvme0n1/queue/logical_block_size"] = "4096\n"
	write(t, root, files)
	disks, err := Disks(root)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range disks {
		got = append(got, fmt.Sprintf("%v %v %v %s", d, d.Size, d.SectorSize(), d.PartName(2)))
	}
	want := []string{"/dev/nvme0n1 1000 KiB 4 KiB nvme0n1p2", "/dev/sda 500 KiB 512 B sda2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Disks differs (-want +got):\n%s", diff)
	}
}

// A fakeKernel notes what it is told.
type fakeKernel struct {
	root  string
	calls []string
}

func (k *fakeKernel) Add(_ *os.File, p partitions.Partition) error {
	k.calls = append(k.calls, fmt.Sprintf("add %d %v+%v", p.Number, p.Start, p.Size))
	return os.WriteFile(filepath.Join(k.root, fmt.Sprintf("dev/sda%d", p.Number)), nil, 0o600)
}

func (k *fakeKernel) Resize(_ *os.File, p partitions.Partition) error {
	k.calls = append(k.calls, fmt.Sprintf("resize %d %v", p.Number, p.Size))
	return nil
}

func (k *fakeKernel) Delete(_ *os.File, number int) error {
	k.calls = append(k.calls, fmt.Sprintf("delete %d", number))
	return nil
}

// Partitions that the kernel knows already may be mounted, so they stay.
func TestAnnounce(t *testing.T) {
	root := t.TempDir()
	files := map[string]string{"dev/sda": "", "dev/sda1": "", "dev/sda2": "", "dev/sda3": ""}
	for n, sectors := range map[int][2]int{1: {2048, 4096}, 2: {8192, 100}, 3: {5000, 10}} {
		dir := fmt.Sprintf("sys/class/block/sda%d/", n)
		files[dir+"start"], files[dir+"size"] = fmt.Sprintln(sectors[0]), fmt.Sprintln(sectors[1])
	}
	write(t, root, files)
	k := &fakeKernel{root: root}
	d := Disk{Name: "sda", root: root}
	err := d.Announce(k,
		partitions.Partition{Number: 1, Start: 1 * partitions.MiB, Size: 2 * partitions.MiB},
		partitions.Partition{Number: 2, Start: 4 * partitions.MiB, Size: 8 * partitions.MiB},
		partitions.Partition{Number: 3, Start: 3 * partitions.MiB, Size: 1 * partitions.MiB},
		partitions.Partition{Number: 4, Start: 12 * partitions.MiB, Size: 1 * partitions.MiB},
	)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"resize 2 8 MiB", "delete 3", "add 3 3 MiB+1 MiB", "add 4 12 MiB+1 MiB"}
	if diff := cmp.Diff(want, k.calls); diff != "" {
		t.Errorf("Announce differs (-want +got):\n%s", diff)
	}
}

// sparse makes an empty file.
func sparse(t testing.TB, size partitions.Size) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "partition")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	return path
}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("cannot judge what we wrote: the program %q is missing (Debian packages e2fsprogs and util-linux)", name)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestMakeSwap(t *testing.T) {
	path := sparse(t, 512*partitions.MiB)
	if err := MakeSwap(path, "ap-swap", [16]byte{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	out := tool(t, "blkid", "-p", "-o", "export", path)
	for _, want := range []string{"LABEL=ap-swap", "TYPE=swap", "VERSION=1", "UUID=01020300-"} {
		if !strings.Contains(out, want) {
			t.Errorf("blkid does not find %s:\n%s", want, out)
		}
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := MakeSwap(path, "other", [16]byte{9}); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("swap space that fits was written again")
	}
}

func TestProbeExt(t *testing.T) {
	path := sparse(t, 64*partitions.MiB)
	if _, found, err := ProbeExt(path, 0); err != nil || found {
		t.Errorf("ProbeExt() of zeros = %v, %v; want nothing", found, err)
	}
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", "ap-data", path)
	want := Ext{Label: "ap-data", Size: 64 * partitions.MiB, group: 128 * partitions.MiB}
	if got, found, err := ProbeExt(path, 0); err != nil || !found || got != want {
		t.Errorf("ProbeExt() = %+v, %v, %v; want %+v", got, found, err, want)
	}
	tool(t, "debugfs", "-w", "-R", "ssv mtime 20260101", path)
	want.Used = true
	if got, _, _ := ProbeExt(path, 0); got != want {
		t.Errorf("ProbeExt() after a mount = %+v; want %+v", got, want)
	}
	if _, _, err := ProbeExt(path, 65*partitions.MiB); err == nil {
		t.Error("ProbeExt() behind the end = nil; want an error")
	}
}

// A superblock that was torn while the file system was mounted for the first time
// comes back from a copy that knows of no mount.
func TestProbeExtAfterRepair(t *testing.T) {
	t.Parallel()
	path := sparse(t, 300*partitions.MiB)
	tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", "ap-data", path)
	time.Sleep(3 * time.Second) // No machine starts faster.
	if got, _, _ := ProbeExt(path, 0); got.Used {
		t.Errorf("ProbeExt() of a new file system = %+v", got)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("torn"), 1024+1020) // its checksum
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("e2fsck", "-f", "-y", path).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	if got, found, err := ProbeExt(path, 0); !got.Used || !found || err != nil {
		t.Errorf("ProbeExt() after a repair = %+v, %v, %v", got, found, err)
	}
}

func TestZero(t *testing.T) {
	path := sparse(t, 4*partitions.MiB)
	d, err := OpenDevice(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.WriteAt(bytes.Repeat([]byte("x"), 3<<20), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Zero(1<<20, 1<<20+100); err != nil {
		t.Fatal(err)
	}
	if err := d.Settle(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b, []byte("x")); n != 2<<20-100 || b[1<<20-1] != 'x' || b[2<<20+100] != 'x' {
		t.Errorf("%d bytes are left; want %d around the zeros", n, 2<<20-100)
	}
}

func TestHeadNamesTheDisk(t *testing.T) {
	root := t.TempDir()
	write(t, root, map[string]string{"dev/vdb": "short"})
	for _, name := range []string{"vdb", "vdc"} {
		_, err := Disk{Name: name, root: root}.Head()
		if err == nil || !strings.Contains(err.Error(), "cannot read /dev/"+name) {
			t.Errorf("Head() = %v; want the name %s in it", err, name)
		}
		if name == "vdc" && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Head() = %v; want %v", err, os.ErrNotExist)
		}
	}
}

// A file system that mke2fs or resize2fs has made as large as it can be fills
// its partition, also where that is not quite all of it.
func TestFills(t *testing.T) {
	for _, mib := range []partitions.Size{1024, 1025, 1026, 1027, 1028, 1030, 1032, 1040, 1100, 1152, 15003} {
		size := mib * partitions.MiB
		path := sparse(t, size)
		tool(t, "mke2fs", "-q", "-F", "-t", "ext4", path)
		ext, _, err := ProbeExt(path, 0)
		if err != nil || !ext.Fills(size) {
			t.Errorf("%v: Fills() of %v = false, %v; want true", size, ext.Size, err)
		}
		if ext.Fills(size + 64*partitions.MiB) {
			t.Errorf("%v: Fills(%v) = true; want false", ext.Size, size+64*partitions.MiB)
		}
		larger := size + 3*partitions.GiB + partitions.MiB
		if err := os.Truncate(path, int64(larger)); err != nil {
			t.Fatal(err)
		}
		tool(t, "resize2fs", "-f", path)
		if ext, _, err = ProbeExt(path, 0); err != nil || !ext.Fills(larger) {
			t.Errorf("%v: Fills() of %v = false, %v after resize2fs; want true", larger, ext.Size, err)
		}
	}
}

// Only the file that a driver has is written, and the size is read afterwards.
func TestRescan(t *testing.T) {
	for name, file := range map[string]string{"sda": "rescan", "nvme0n1": "rescan_controller", "vda": ""} {
		root := t.TempDir()
		write(t, root, map[string]string{"sys/class/block/" + name + "/size": "4096\n", "sys/class/block/" + name + "/device/model": ""})
		if file != "" {
			write(t, root, map[string]string{"sys/class/block/" + name + "/device/" + file: ""})
		}
		d, err := Disk{Name: name, Size: partitions.MiB, root: root}.Rescan()
		if err != nil || d.Size != 2*partitions.MiB {
			t.Errorf("%s: Rescan() = %v, %v; want 2 MiB", name, d.Size, err)
		}
		entries, err := filepath.Glob(filepath.Join(root, "sys/class/block", name, "device/rescan*"))
		if err != nil || len(entries) > 1 || (file == "") != (len(entries) == 0) {
			t.Errorf("%s: there is %v, %v", name, entries, err)
		}
		for _, path := range entries {
			if text, err := os.ReadFile(path); err != nil || string(text) != "1\n" {
				t.Errorf("%s holds %q, %v; want 1", path, text, err)
			}
		}
	}
}
