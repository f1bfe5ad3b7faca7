package powercut

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"appplatform/internal/fuzzing"
)

// fuzzVolume is a small file system with the files that a boot loader reads.
func fuzzVolume(f *testing.F, kind string) []byte {
	f.Helper()
	src, disk := f.TempDir(), filepath.Join(f.TempDir(), "disk")
	for name, text := range fuzzFiles {
		write(f, filepath.Join(src, name), text)
	}
	dirs := []string{src, filepath.Dir(disk)}
	if kind == "grub" {
		tool(f, dirs, "mke2fs", "-q", "-t", "ext2", "-b", "1024", "-N", "32", "-d", src, disk, "128k")
	} else {
		write(f, disk, strings.Repeat("\x00", 60<<10))
		tool(f, dirs, "sh", "-c", "mformat -i "+disk+" -F -c 1 -T 120 :: && mcopy -s -i "+disk+" "+src+"/* ::")
	}
	b, err := os.ReadFile(disk)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

var fuzzFiles = map[string]string{
	grubConfig:      "set default=0\n",
	"empty":         "",
	"a/kernel":      strings.Repeat("a kernel with more than twelve blocks\n", 360),
	"a/a long name": "text\n",
}

func newView(disk []byte) *view {
	return &view{disk: &Disk{base: bytes.NewReader(disk), size: int64(len(disk)), log: &Log{}}, memo: &memo{groups: map[string][]*group{}}}
}

// volumeMemory is what finding and reading one file may take, in bytes: a file of
// as many blocks as the volume can have needs a list of them.
const volumeMemory = 1 << 20

// checkVolume reads all files. A file that is found has as many bytes as it says,
// or reading it ends in an error.
func checkVolume(t *testing.T, v *view, open func(*view, int64) (volume, error)) {
	for name := range fuzzFiles {
		n := fuzzing.Allocated(func() { checkFile(t, v, open, name) })
		if n > volumeMemory {
			t.Errorf("reading %s took %d bytes of memory", name, n)
		}
	}
}

func checkFile(t *testing.T, v *view, open func(*view, int64) (volume, error), name string) {
	vol, err := open(v, 0)
	if err != nil {
		return
	}
	file, err := find(v, vol, name)
	if err != nil {
		return
	}
	var pieces int64
	for _, p := range file.pieces {
		if p.at < hole || p.size <= 0 {
			t.Fatalf("%s has a piece of %d bytes at %d", name, p.size, p.at)
		}
		pieces += p.size
	}
	if file.size < 0 || pieces < file.size {
		t.Errorf("%s has %d bytes in pieces of %d", name, file.size, pieces)
	}
	if n, err := io.Copy(io.Discard, io.LimitReader(file.reader(v), 1<<20)); err == nil && n != min(file.size, 1<<20) {
		t.Errorf("%d of %d bytes of %s were read", n, file.size, name)
	}
}

func openExt2Volume(v *view, at int64) (volume, error) { return openExt2(v, at) }
func openFATVolume(v *view, at int64) (volume, error)  { return openFAT32(v, at) }

// Whatever a torn write makes of an ext2 file system, its files are read or
// refused, in little time and memory.
func FuzzExt2(f *testing.F) {
	disk := fuzzVolume(f, "grub")
	f.Add([]byte(nil))
	f.Add(fuzzing.Edit(1024+4, "\xff\xff\xff\xff"))
	f.Add(fuzzing.Edit(1024+40, "\x01\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, edits []byte) {
		checkVolume(t, newView(fuzzing.Edited(disk, edits)), openExt2Volume)
	})
}

// The same for FAT.
func FuzzFAT32(f *testing.F) {
	disk := fuzzVolume(f, "extlinux")
	f.Add([]byte(nil))
	f.Add(fuzzing.Edit(36, "\xff\xff\xff\xff"))
	fat := int(disk[14]) * int(sector)
	f.Add(append(fuzzing.Edit(36, "\xff\xff\xff\x0f"), fuzzing.Edit(fat+8, "\x02\x00\x00\x00")...)) // The root leads to itself.
	f.Fuzz(func(t *testing.T, edits []byte) {
		checkVolume(t, newView(fuzzing.Edited(disk, edits)), openFATVolume)
	})
}

// A flatVolume has its files one behind the other on the disk.
type flatVolume map[string]file

func (flatVolume) root() (file, error) { return file{}, nil }

func (f flatVolume) lookup(_ []byte, name string) (file, error) { return f[name], nil }

// Whatever stands in grub.cfg, grubenv or extlinux.conf, the checker's reading of
// it is what the boot loader would do: start the entry that it names first, and
// the files have changed in nothing else.
func FuzzChoices(f *testing.F) {
	const config, env = "set default=0\nset timeout=2\n", grubEnvHeader + "set=b\n"
	f.Add(false, config, env+strings.Repeat("#", grubEnvSize-len(env)))
	f.Add(false, "set default=1\nset timeout=2\n", env)
	f.Add(false, "set default=1\nset default=0\n", "set=../a\n")
	f.Add(true, "DEFAULT normal-b\nPROMPT 0\n", "")
	f.Add(true, "DEFAULT rescue-a\nPROMPT 0\n", "")
	named := regexp.MustCompile(`(?m)^DEFAULT (rescue|normal)-([ab])$`)
	f.Fuzz(func(t *testing.T, extlinux bool, text, env string) {
		v := newView([]byte(text + env))
		at := func(from, size int) file {
			return file{[]piece{{int64(from), int64(size)}}, int64(size)}
		}
		vol := flatVolume{"grub.cfg": at(0, len(text)), "extlinux.conf": at(0, len(text)), "grubenv": at(len(text), len(env))}
		c := &Checker{config: []byte(config)}
		order, err := c.grubOrder(v, vol)
		if extlinux {
			c.config = []byte("DEFAULT rescue-a\nPROMPT 0\n")
			order, err = c.extlinuxOrder(v, vol)
		}
		if err != nil {
			return
		}
		for _, choice := range order {
			if choice.Set != "a" && choice.Set != "b" {
				t.Fatalf("%v of %q", choice, text)
			}
		}
		if n := len(text) - len(c.config); n != 0 {
			t.Errorf("%q is longer than the configuration by %d", text, n)
		}
		if extlinux {
			m := named.FindStringSubmatch(text)
			if m == nil || order[0] != (Choice{m[1] == "normal", m[2]}) {
				t.Errorf("%q starts %v", text, order)
			}
			return
		}
		if order[0].System != strings.Contains(text, "set default=1\n") || order[0].Set == "b" && !strings.Contains(env, "\nset=b") {
			t.Errorf("%q with %q starts %v", text, env, order)
		}
	})
}
