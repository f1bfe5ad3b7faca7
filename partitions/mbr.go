package partitions

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// The partition table in the first sector: its four entries lie at tableAt, 16
// bytes each, the disk's signature in front of them. (The layout is that of
// PC DOS 2.0; sectors are counted in 32 bits.)
const (
	signatureAt  = 440
	tableAt      = 446
	mbrEntrySize = 16
	mbrEntries   = 4
	bootMark     = 0x80 // the partition that firmware starts from
)

// ErrNoMBR is a disk whose first sector holds no partition table.
var ErrNoMBR = errors.New("no partition table in the first sector")

// ReadMBR reads the table from the first sector of a disk. It does not say how
// large the disk is: DiskSize is 0.
func ReadMBR(head []byte) (Table, error) {
	if len(head) < int(Sector) || head[510] != 0x55 || head[511] != 0xaa {
		return Table{}, ErrNoMBR
	}
	t := Table{Scheme: MBR, DiskUUID: fmt.Sprintf("%08x", binary.LittleEndian.Uint32(head[signatureAt:]))}
	for n := range mbrEntries {
		e := head[tableAt+n*mbrEntrySize:][:mbrEntrySize]
		if e[0]&^bootMark != 0 || e[4] == 0xee {
			return Table{}, ErrNoMBR // A file system without a table, or GPT's.
		}
		first, count := binary.LittleEndian.Uint32(e[8:]), binary.LittleEndian.Uint32(e[12:])
		if e[4] == 0 || count == 0 {
			continue
		}
		t.Parts = append(t.Parts, Partition{
			Number: n + 1,
			Type:   fmt.Sprintf("%02x", e[4]),
			UUID:   t.mbrUUID(n + 1),
			Start:  Size(first) * Sector,
			Size:   Size(count) * Sector,
		})
	}
	if len(t.Parts) == 0 {
		return Table{}, ErrNoMBR
	}
	slices.SortStableFunc(t.Parts, func(a, b Partition) int { return cmp.Compare(a.Start, b.Start) })
	return t, nil
}

// mbrUUID is how the kernel calls a partition: /dev/disk/by-partuuid.
func (t Table) mbrUUID(number int) string { return MBRUUID(t.DiskUUID, number) }

// MBRUUID is the same by the signature of the disk (Linux: block/partitions/msdos.c).
func MBRUUID(signature string, number int) string { return fmt.Sprintf("%s-%02x", signature, number) }

// mbrWrites is the one sector that holds the table; what it holds in front of
// that stays.
func (t Table) mbrWrites(head []byte) ([]Write, error) {
	b := make([]byte, Sector)
	copy(b, head[:min(len(head), signatureAt)])
	id, err := strconv.ParseUint(t.DiskUUID, 16, 32)
	if err != nil {
		return nil, fmt.Errorf("internal error: %q is no disk signature", t.DiskUUID)
	}
	binary.LittleEndian.PutUint32(b[signatureAt:], uint32(id))
	for _, p := range t.Parts {
		kind, err := strconv.ParseUint(p.Type, 16, 8)
		if err != nil {
			return nil, fmt.Errorf("internal error: type %q of partition %d", p.Type, p.Number)
		}
		if p.Number < 1 || p.Number > mbrEntries || p.Size <= 0 || p.Start < Alignment || p.End() > lastEnd(MBR, t.DiskSize) {
			return nil, fmt.Errorf("internal error: partition %d does not lie on the disk", p.Number)
		}
		e := b[tableAt+(p.Number-1)*mbrEntrySize:][:mbrEntrySize]
		if p.Number == Boot {
			e[0] = bootMark
		}
		// Cylinders, heads and sectors are beyond their largest value.
		copy(e[1:], []byte{0xfe, 0xff, 0xff, byte(kind), 0xfe, 0xff, 0xff})
		binary.LittleEndian.PutUint32(e[8:], uint32(p.Start/Sector))
		binary.LittleEndian.PutUint32(e[12:], uint32(p.Size/Sector))
	}
	b[510], b[511] = 0x55, 0xaa
	return []Write{{0, b}}, nil
}

// Read reads the partition table, of either scheme, from the first HeadSize
// bytes of a disk.
func Read(head []byte) (Table, error) {
	t, err := ReadGPT(head)
	if errors.Is(err, ErrNoGPT) {
		return ReadMBR(head)
	}
	return t, err
}

// Writes is how to bring the table onto a disk of t.DiskSize that begins with
// head, one after the other, each synced; the power may fail between any two
// sectors.
func (t Table) Writes(head []byte) ([]Write, error) {
	if t.Scheme == MBR {
		return t.mbrWrites(head)
	}
	return t.GPTWrites(head)
}
