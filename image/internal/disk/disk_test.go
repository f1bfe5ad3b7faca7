package disk

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"appplatform/image/internal/grub"
	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
)

var table = partitions.Factory(partitions.GPT, 16*partitions.GiB)

// sample is a disk with files about as large as real ones.
func sample(t *testing.T) Options {
	t.Helper()
	rootfs := filepath.Join(t.TempDir(), "rootfs")
	f, err := os.Create(rootfs)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{1}), 40<<20); err != nil {
		t.Fatal(err)
	}
	return Options{
		Table: table,
		Boot: map[string]Source{
			"label":             {Data: []byte("160001\n")},
			"a/kernel":          {Data: []byte("kernel")},
			"a/rootfs.ext4.xz":  {Path: rootfs},
			"a/ramdisk.ext2.xz": {Data: bytes.Repeat([]byte("ramdisk"), 1000)},
		},
		Time: time.Unix(1767225600, 0),
	}
}

func made(t *testing.T, o Options) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "disk.img")
	start := time.Now()
	if err := Write(t.Context(), testtools.Open(t, tooltree.Image), o, out); err != nil {
		t.Fatal(err)
	}
	t.Logf("the disk took %v", time.Since(start).Round(time.Millisecond))
	return out
}

// judge runs a tool on the image and returns what it says.
func judge(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := testtools.Open(t, tooltree.Image).Output(t.Context(), tooltree.Cmd{Args: args, ReadOnly: []string{dir}})
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// OS-B2, OS-B4.
func TestWriteSatisfiesTheJudges(t *testing.T) {
	o := sample(t)
	out := made(t, o)
	dir := filepath.Dir(out)
	boot, _ := table.Part(partitions.Boot)
	efi, _ := table.Part(partitions.EFI)
	fat := cut(t, out, efi)
	sda1 := fmt.Sprintf("%s?offset=%d", out, boot.Start)

	if got := judge(t, dir, "sfdisk", "--verify", out); !strings.Contains(got, "No errors detected") {
		t.Errorf("sfdisk --verify says\n%s", got)
	}
	if got := judge(t, dir, "sgdisk", "-v", out); !strings.Contains(got, "No problems found") {
		t.Errorf("sgdisk -v says\n%s", got)
	}
	judge(t, dir, "e2fsck", "-f", "-n", sda1)
	judge(t, filepath.Dir(fat), "fsck.vfat", "-n", fat)

	if got := judge(t, dir, "debugfs", "-R", "cat /label", sda1); got != "160001\n" {
		t.Errorf("/label holds %q; want 160001", got)
	}
	if got := judge(t, dir, "debugfs", "-R", "cat /boot/grub/grub.cfg", sda1); got != string(grub.Config) {
		t.Errorf("grub.cfg holds %q", got)
	}
	if got := judge(t, dir, "debugfs", "-R", "stat /a/rootfs.ext4.xz", sda1); !strings.Contains(got, "Size: 41943040") {
		t.Errorf("a/rootfs.ext4.xz is\n%s", got)
	}
	if got := judge(t, filepath.Dir(fat), "mdir", "-b", "-/", "-i", fat, "::"); !strings.Contains(got, "::/EFI/BOOT/BOOTX64.EFI") {
		t.Errorf("the EFI partition holds\n%s", got)
	}
}

// cut copies a partition to a file of its own.
func cut(t *testing.T, disk string, p partitions.Partition) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "partition.img")
	if err := os.WriteFile(out, read(t, disk, p.Start, p.Size), 0o644); err != nil {
		t.Fatal(err)
	}
	return out
}

func read(t *testing.T, disk string, from, size partitions.Size) []byte {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, size)
	if _, err := f.ReadAt(b, int64(from)); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWriteIsReproducibleAndSparse(t *testing.T) {
	o := sample(t)
	one := made(t, o)
	time.Sleep(2100 * time.Millisecond) // FAT counts in twos of seconds.
	two := made(t, o)
	equal(t, one, two)

	var info syscall.Stat_t
	if err := syscall.Stat(one, &info); err != nil {
		t.Fatal(err)
	}
	if partitions.Size(info.Size) != table.DiskSize {
		t.Errorf("the image has %v; want %v", partitions.Size(info.Size), table.DiskSize)
	}
	if used := info.Blocks * 512; used > 48<<20 {
		t.Errorf("the image takes %d bytes of the disk; want little more than its 40 MiB of files", used)
	}
}

// equal compares two images, apart from the hole behind sda1.
func equal(t *testing.T, a, b string) {
	t.Helper()
	boot, _ := table.Part(partitions.Boot)
	for from := partitions.Size(0); from < boot.End(); from += partitions.MiB {
		if !bytes.Equal(read(t, a, from, partitions.MiB), read(t, b, from, partitions.MiB)) {
			t.Errorf("two images differ in the MiB from %v", from)
		}
	}
	last := table.DiskSize - partitions.MiB
	if !bytes.Equal(read(t, a, last, partitions.MiB), read(t, b, last, partitions.MiB)) {
		t.Error("two images differ in the last MiB")
	}
}

func TestErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Options)
		want   string
	}{
		{"missing file", func(o *Options) { o.Boot["a/kernel"] = Source{Path: "/nowhere/kernel"} }, "cannot read /a/kernel of sda1: stat /nowhere/kernel"},
		{"no room", func(o *Options) { o.Boot["a/big"] = Source{Data: make([]byte, 150<<20)} }, "sda1 (350 MiB) has no room for a second image"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := sample(t)
			test.change(&o)
			err := Write(t.Context(), testtools.Open(t, tooltree.Image), o, filepath.Join(t.TempDir(), "disk.img"))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Write(...) = %v; want an error with %q", err, test.want)
			}
		})
	}
}
