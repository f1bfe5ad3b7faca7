package powercut

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"appplatform/partitions"
)

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

// volumes are the file systems that boot loaders read, made by foreign tools at
// volumeAt of a disk.
var volumes = map[string]struct {
	make func(t *testing.T, disk, files string)
	open func(*view) (volume, error)
}{
	"grub": {func(t *testing.T, disk, files string) {
		tool(t, []string{files, filepath.Dir(disk)}, "mke2fs", "-q", "-t", "ext2", "-b", "1024", "-d", files, "-E", "offset="+decimal(volumeAt), disk, "100M")
	}, func(v *view) (volume, error) { return openExt2(v, volumeAt) }},
	"extlinux": {func(t *testing.T, disk, files string) {
		image := disk + "@@1M"
		tool(t, []string{filepath.Dir(disk)}, "mformat", "-i", image, "-F", "-c", "1", "-T", decimal(100<<20/sector), "::")
		tool(t, []string{files, filepath.Dir(disk)}, "sh", "-c", "mcopy -s -i "+image+" "+files+"/* ::")
	}, func(v *view) (volume, error) { return openFAT32(v, volumeAt) }},
}

const volumeAt = 1 << 20

// newVolume puts files onto a new disk.
func newVolume(t *testing.T, kind string, files map[string][]byte) (*os.File, *view) {
	t.Helper()
	const size = 101 << 20
	src, disk := t.TempDir(), filepath.Join(t.TempDir(), "disk")
	for name, text := range files {
		write(t, filepath.Join(src, name), string(text))
	}
	f, err := os.Create(disk)
	if err == nil {
		err = f.Truncate(size)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	volumes[kind].make(t, disk, src)
	return f, &view{disk: &Disk{base: f, size: size, log: &Log{}}, memo: &memo{groups: map[string][]*group{}}}
}

// Files that foreign tools have put into both file systems are read as they
// were: empty, in one block, through each level of pointers, with long names.
func TestFind(t *testing.T) {
	files := map[string][]byte{
		"label":                  []byte("160001\n"),
		"empty":                  nil,
		"a/kernel":               noise(100_000),
		"a/ramdisk.ext2.xz":      noise(12 * 1024),
		"a/rootfs.ext4.xz":       append(noise(300_000), make([]byte, 66<<20)...), // three levels, with holes
		"extlinux/extlinux.conf": []byte("DEFAULT rescue-a\n"),
	}
	for kind, volume := range volumes {
		t.Run(kind, func(t *testing.T) {
			f, v := newVolume(t, kind, files)
			vol, err := volume.open(v)
			if err != nil {
				t.Fatal(err)
			}
			if fat, ok := vol.(*fat32); ok { // A torn write leaves FATs that differ.
				if _, err := f.WriteAt(make([]byte, sector), fat.fat+fat.fatSize); err != nil {
					t.Fatal(err)
				}
			}
			for name, want := range files {
				file, err := find(v, vol, name)
				if err != nil {
					t.Errorf("find(%s): %v", name, err)
					continue
				}
				got, err := io.ReadAll(file.reader(v))
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s holds %d bytes, %v; want the %d of the source", name, len(got), err, len(want))
				}
			}
			for _, name := range []string{"b/kernel", "a/kerne", "none"} {
				if _, err := find(v, vol, name); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("find(%s) = %v; want %v", name, err, fs.ErrNotExist)
				}
			}
			if _, err := f.WriteAt(make([]byte, 4*sector), volumeAt); err != nil {
				t.Fatal(err)
			}
			if _, err := volume.open(v); err == nil {
				t.Error("a place without a file system was opened")
			}
		})
	}
}

// The boot loaders' ways out: another set, another entry.
func TestChooses(t *testing.T) {
	const env = grubEnvHeader + "set=b\n"
	for _, test := range []struct {
		name, kind string
		files      string // besides the configuration
		config     string
		want       string // the choice, or an error
	}{
		{"rescue", "grub", "a/kernel a/ramdisk.ext2.xz", "set default=0\n", "the ramdisk of set a"},
		{"system", "grub", "a/kernel a/ramdisk.ext2.xz b/kernel", "set default=1\n", "the system of set b"},
		{"other set", "grub", "a/kernel a/ramdisk.ext2.xz b/kernel", "set default=0\n", "the ramdisk of set a"},
		{"other set, by hash", "grub", "a/kernel a/ramdisk.ext2.xz b/kernel!", "set default=1\n", "the system of set a"},
		{"other set, by the ramdisk's", "grub", "a/kernel a/ramdisk.ext2.xz b/kernel b/ramdisk.ext2.xz!", "set default=0\n", "the ramdisk of set a"},
		{"no hash", "extlinux", "a/kernel! a/ramdisk.ext2.xz!", "DEFAULT rescue-a\n", "the ramdisk of set a"},
		{"no set", "grub", "label", "set default=1\n", "nothing on sda1 can be started"},
		{"no default", "grub", "a/kernel", "set default=2\n", "no line set default=0 or 1"},
		{"more has changed", "grub", "a/kernel", "set default=1\nreboot\n", "changed in more than its default"},
		{"rescue", "extlinux", "a/kernel a/ramdisk.ext2.xz", "DEFAULT rescue-a\n", "the ramdisk of set a"},
		{"system", "extlinux", "a/kernel b/kernel", "DEFAULT normal-b\n", "the system of set b"},
		{"next label", "extlinux", "a/kernel", "DEFAULT rescue-a\n", "the system of set a"},
		{"no set", "extlinux", "label", "DEFAULT rescue-a\n", "nothing on sda1 can be started"},
		{"no default", "extlinux", "a/kernel", "DEFAULT other-a\n", "no line DEFAULT"},
		{"more has changed", "extlinux", "a/kernel", "DEFAULT rescue-a\nPROMPT 1\n", "changed in more than its default"},
	} {
		t.Run(test.kind+" "+test.name, func(t *testing.T) {
			c := &Checker{config: []byte("set default=0\n")}
			files := map[string][]byte{grubConfig: []byte(test.config), grubEnv: []byte(env + strings.Repeat("#", grubEnvSize-len(env)))}
			if c.plan.Platform.Boot = test.kind; test.kind == "extlinux" {
				c.config, files = []byte("DEFAULT rescue-a\n"), map[string][]byte{extlinuxConfig: []byte(test.config)}
			}
			for name := range strings.FieldsSeq(test.files) {
				if hash, ok := strings.CutSuffix(name, "!"); ok { // It is of something else.
					name = hash
					files[name], files[name+".sha256"] = []byte("something"), []byte("else")
					continue
				}
				files[name] = []byte("something")
				if strings.HasPrefix(name, "a/") || strings.HasPrefix(name, "b/") {
					files[name+".sha256"] = fmt.Appendf(nil, "%x  %s\n", sha256.Sum256(files[name]), path.Base(name))
				}
			}
			_, v := newVolume(t, test.kind, files)
			choice, err := c.chooses(v, partitions.Partition{Start: volumeAt}, true)
			got := choice.String()
			if err != nil {
				got = err.Error()
			}
			if !strings.Contains(got, test.want) {
				t.Errorf("chooses(...) = %s; want %s", got, test.want)
			}
		})
	}
}
