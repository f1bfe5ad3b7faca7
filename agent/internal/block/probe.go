package block

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

	"appplatform/partitions"
)

// An Ext is what the superblock of an ext2, ext3 or ext4 file system says.
type Ext struct {
	Label string
	Size  partitions.Size
	// Used is whether the file system has ever been mounted for writing, or
	// was repaired since it was made. The first mount leaves its time in the
	// superblock, where mke2fs leaves 0; e2fsck, which may have to take a copy
	// of the superblock from before the first mount, leaves its own (Linux:
	// Documentation/filesystems/ext4/super.rst).
	Used bool
	// Dirty is whether the journal holds what has to be written yet.
	Dirty bool
	group partitions.Size // of one block group
}

// Fills reports whether the file system takes all of a partition. A rest behind
// a complete group that is hardly larger than a further group's own tables is
// left over by mke2fs and resize2fs alike.
func (e Ext) Fills(size partitions.Size) bool {
	const leftOver = 8 * partitions.MiB
	rest := size - e.Size
	return rest < extBlock || e.group > 0 && e.Size%e.group == 0 && rest < leftOver
}

// extBlock is the largest block of a file system that Linux can mount here.
const extBlock = 4 * partitions.KiB

// ProbeExt looks for an ext file system at offset of a disk or partition.
func ProbeExt(path string, offset partitions.Size) (ext Ext, found bool, err error) {
	b := make([]byte, 1024)
	f, err := os.Open(path)
	if err != nil {
		return Ext{}, false, fmt.Errorf("cannot look for a file system: %w", err)
	}
	defer f.Close()
	if _, err := f.ReadAt(b, int64(offset)+1024); err != nil {
		return Ext{}, false, fmt.Errorf("cannot look for a file system: %w", err)
	}
	if binary.LittleEndian.Uint16(b[56:]) != 0xef53 {
		return Ext{}, false, nil
	}
	blocks := uint64(binary.LittleEndian.Uint32(b[4:]))
	if binary.LittleEndian.Uint32(b[96:])&0x80 != 0 { // INCOMPAT_64BIT
		blocks |= uint64(binary.LittleEndian.Uint32(b[0x150:])) << 32
	}
	shift := binary.LittleEndian.Uint32(b[24:])
	if shift > 6 || blocks > 1<<44 {
		return Ext{}, false, nil
	}
	block := partitions.KiB << shift
	mounted := binary.LittleEndian.Uint32(b[44:]) != 0
	// mke2fs sets both times itself, one soon after the other.
	checked := int64(binary.LittleEndian.Uint32(b[64:])) - int64(binary.LittleEndian.Uint32(b[264:]))
	return Ext{
		Label: string(bytes.TrimRight(b[120:136], "\x00")),
		Size:  partitions.Size(blocks) * block,
		Used:  mounted || checked < -2 || checked > 2,
		Dirty: binary.LittleEndian.Uint32(b[96:])&0x4 != 0, // INCOMPAT_RECOVER
		group: partitions.Size(binary.LittleEndian.Uint32(b[32:])) * block,
	}, true, nil
}

// swapPage is the size of a page on every machine we build kernels for.
const swapPage = 4096

// MakeSwap writes the header of an empty swap space of version 1. A header
// that fits is left alone.
func MakeSwap(path, label string, uuid [16]byte) error {
	d, err := OpenDevice(path)
	if err != nil {
		return fmt.Errorf("cannot make swap space: %w", err)
	}
	defer d.Close()
	size, err := d.Size()
	if err != nil {
		return fmt.Errorf("cannot make swap space: %w", err)
	}
	last := uint32(min(size/swapPage, 1<<32) - 1)
	page := make([]byte, swapPage)
	if _, err := d.ReadAt(page, 0); err != nil {
		return fmt.Errorf("cannot make swap space: %w", err)
	}
	version, end, bad := binary.LittleEndian.Uint32(page[1024:]), binary.LittleEndian.Uint32(page[1028:]), binary.LittleEndian.Uint32(page[1032:])
	if string(page[swapPage-10:]) == "SWAPSPACE2" && version == 1 && end == last && bad == 0 {
		return nil
	}
	clear(page)
	binary.LittleEndian.PutUint32(page[1024:], 1)
	binary.LittleEndian.PutUint32(page[1028:], last)
	copy(page[1036:], uuid[:])
	copy(page[1052:1068], label)
	copy(page[swapPage-10:], "SWAPSPACE2")
	if _, err := d.WriteAt(page, 0); err != nil {
		return fmt.Errorf("cannot make swap space: %w", err)
	}
	return d.Settle()
}
