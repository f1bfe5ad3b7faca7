package block

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"appplatform/internal/fuzzing"
	"appplatform/partitions"
)

const fuzzPart = 64 * partitions.MiB

// Whatever a superblock says, its sizes are sizes, and a file system that was
// mounted or repaired counts as used: it must not be formatted.
func FuzzProbeExt(f *testing.F) {
	path := sparse(f, fuzzPart)
	tool(f, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "ap-data", path)
	super := make([]byte, 2048)
	part, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = part.ReadAt(super, 0)
	}
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { part.Close() })
	const at = 1024
	f.Add([]byte(nil))
	f.Add(fuzzing.Edit(at+4, "\xff\xff\xff\xff"))                                           // blocks
	f.Add(append(fuzzing.Edit(at+24, "\x06\x00\x00\x00"), fuzzing.Edit(at+336, "\xff")...)) // block size, more blocks
	f.Add(fuzzing.Edit(at+44, "\x01\x02\x03\x04"))                                          // mounted
	f.Add(fuzzing.Edit(at+56, "\x00"))                                                      // magic
	f.Add(fuzzing.Edit(at+120, "ap-data\x00\xff\n"))
	f.Fuzz(func(t *testing.T, edits []byte) {
		b := fuzzing.Edited(super, edits)
		if _, err := part.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		ext, found, err := ProbeExt(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(b[1024+at:]) }
		if magic := u32(56) & 0xffff; !found || magic != 0xef53 {
			if found || ext != (Ext{}) {
				t.Errorf("ProbeExt() = %+v, %v with the magic number %#x", ext, found, magic)
			}
			return
		}
		if ext.Size < 0 || ext.group < 0 || len(ext.Label) > 16 {
			t.Errorf("ProbeExt() = %+v", ext)
		}
		if mounted := u32(44); mounted != 0 && !ext.Used {
			t.Errorf("a file system that was mounted at %d is not used", mounted)
		}
		if ext.Size <= fuzzPart && ext.Fills(ext.Size+partitions.GiB) {
			t.Errorf("a file system of %v fills a partition of %v", ext.Size, ext.Size+partitions.GiB)
		}
	})
}

// Whatever lies on sda4, MakeSwap leaves a header that the kernel takes (Linux:
// mm/swapfile.c, read_swap_header) for all of the partition, and leaves it alone
// the next time.
func FuzzMakeSwap(f *testing.F) {
	dir := f.TempDir()
	path := filepath.Join(dir, "swap")
	empty := make([]byte, swapPage)
	if err := os.WriteFile(path, make([]byte, 4*swapPage), 0o600); err != nil {
		f.Fatal(err)
	}
	if err := MakeSwap(path, "ap-swap", [16]byte{}); err != nil {
		f.Fatal(err)
	}
	made, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(false, uint8(4), []byte(nil))
	f.Add(true, uint8(4), []byte(nil))
	f.Add(true, uint8(5), []byte(nil))
	f.Add(true, uint8(0), []byte(nil))
	f.Add(true, uint8(4), fuzzing.Edit(1024, "\x02"))                 // version
	f.Add(true, uint8(4), fuzzing.Edit(1032, "\x01\x00\x00\x00"))     // bad pages
	f.Add(true, uint8(4), fuzzing.Edit(swapPage-10, "SWAPSPACE3xyz")) // magic
	f.Fuzz(func(t *testing.T, used bool, pages uint8, edits []byte) {
		b := empty
		if used {
			b = made[:swapPage]
		}
		if err := os.WriteFile(path, fuzzing.Edited(b, edits), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, int64(pages)*swapPage); err != nil {
			t.Fatal(err)
		}
		err := MakeSwap(path, "ap-swap", [16]byte{})
		if pages < 2 {
			return // No swap space at all.
		}
		if err != nil {
			t.Fatal(err)
		}
		h, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(h[at:]) }
		if string(h[swapPage-10:swapPage]) != "SWAPSPACE2" || u32(1024) != 1 || u32(1028) != uint32(pages)-1 || u32(1032) != 0 {
			t.Errorf("the header has version %d, last page %d of %d, %d bad pages", u32(1024), u32(1028), pages, u32(1032))
		}
		if err := MakeSwap(path, "another", [16]byte{1}); err != nil {
			t.Error(err)
		}
		if again, err := os.ReadFile(path); err != nil || string(again) != string(h) {
			t.Errorf("a good header was written anew, %v", err)
		}
	})
}
