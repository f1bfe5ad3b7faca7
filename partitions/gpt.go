package partitions

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"unicode/utf16"
)

// Sector is the unit of partition tables. Disks that only know larger ones do
// not boot the image in the first place.
const Sector Size = 512

const (
	entrySize    = 128
	entryCount   = 128
	arraySectors = entryCount * entrySize / Sector
	headerSize   = 92
	firstArray   = 2                         // LBA where every tool puts the entries
	secondArray  = firstArray + arraySectors // LBA of our other place for them
)

// HeadSize is how much of a disk's beginning ReadGPT and GPTWrites look at.
const HeadSize = (secondArray + arraySectors) * Sector

// ErrNoGPT is a disk without a GUID partition table.
var ErrNoGPT = errors.New("no GUID partition table")

// ReadGPT reads the primary table from the first HeadSize bytes of a disk. It
// does not ask whether the table fits the disk: an image written to a smaller
// or a larger disk has one that does not. DiskSize is what the table claims.
func ReadGPT(head []byte) (Table, error) {
	h, err := readHeader(head)
	if err != nil {
		return Table{}, err
	}
	entries := head[h.array*uint64(Sector):][:entryCount*entrySize]
	if crc32.ChecksumIEEE(entries) != h.arrayCRC {
		return Table{}, errors.New("the partition table is damaged: wrong checksum of the entries")
	}
	t := Table{Scheme: GPT, DiskSize: Size(h.backup+1) * Sector, DiskUUID: h.disk}
	for n := range entryCount {
		e := entries[n*entrySize:][:entrySize]
		if bytes.Equal(e[:16], make([]byte, 16)) {
			continue
		}
		first, last := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		if last < first || last > mostSectors {
			return Table{}, fmt.Errorf("the partition table is damaged: partition %d ends before it starts", n+1)
		}
		t.Parts = append(t.Parts, Partition{
			Number: n + 1,
			Name:   nameText(e[56:]),
			Type:   guidText(e[:16]),
			UUID:   guidText(e[16:32]),
			Start:  Size(first) * Sector,
			Size:   Size(last-first+1) * Sector,
		})
	}
	slices.SortStableFunc(t.Parts, func(a, b Partition) int { return cmp.Compare(a.Start, b.Start) })
	return t, nil
}

// mostSectors is more than any disk has, and far from where sums overflow.
const mostSectors = 1 << 53

type gptHeader struct {
	backup, array uint64
	arrayCRC      uint32
	disk          string
}

func readHeader(head []byte) (gptHeader, error) {
	if len(head) < int(HeadSize) {
		return gptHeader{}, ErrNoGPT
	}
	b := slices.Clone(head[Sector:][:headerSize])
	if string(b[:8]) != "EFI PART" {
		return gptHeader{}, ErrNoGPT
	}
	crc := binary.LittleEndian.Uint32(b[16:])
	clear(b[16:20])
	if crc32.ChecksumIEEE(b) != crc || binary.LittleEndian.Uint32(b[12:]) != headerSize {
		return gptHeader{}, errors.New("the partition table is damaged: wrong checksum of the header")
	}
	h := gptHeader{
		backup:   binary.LittleEndian.Uint64(b[32:]),
		array:    binary.LittleEndian.Uint64(b[72:]),
		arrayCRC: binary.LittleEndian.Uint32(b[88:]),
		disk:     guidText(b[56:72]),
	}
	if h.backup > mostSectors {
		return gptHeader{}, errors.New("the partition table is damaged: its copy lies behind the end of every disk")
	}
	if binary.LittleEndian.Uint32(b[80:]) != entryCount || binary.LittleEndian.Uint32(b[84:]) != entrySize ||
		h.array < firstArray || h.array > uint64(secondArray) {
		return gptHeader{}, errors.New("the partition table was made by another system: unusual place or size of the entries")
	}
	return h, nil
}

// A Write is one change to a disk.
type Write struct {
	Offset Size
	Data   []byte
}

// GPTWrites is how to bring the table onto a disk of t.DiskSize that begins
// with head. After each Write the disk must be synced. The power may fail
// between any two sectors: the primary entries go to the one of two places
// that the present header does not use, so a single sector, the primary
// header, switches from the old table to the new one, and at no time is there
// a primary header with wrong checksums (kernels ignore the backup then). It is
// the last of all: whoever reads the new table knows that everything is written.
func (t Table) GPTWrites(head []byte) ([]Write, error) {
	entries, err := t.entries()
	if err != nil {
		return nil, err
	}
	array := uint64(firstArray)
	if h, err := readHeader(head); err == nil {
		if h.array < uint64(secondArray) {
			array = uint64(secondArray)
		}
	}
	sectors := uint64(t.DiskSize / Sector)
	last := sectors - 1
	primary := t.header(1, last, array, entries)
	backup := t.header(last, 1, last-uint64(arraySectors), entries)
	return []Write{
		{Size(last-uint64(arraySectors)) * Sector, entries},
		{Size(last) * Sector, backup},
		{Size(array) * Sector, entries},
		{0, protectiveMBR(head, last)},
		{Sector, primary},
	}, nil
}

// protectiveMBR keeps the boot code in the first sector and says that the disk
// belongs to GPT.
func protectiveMBR(head []byte, last uint64) []byte {
	b := make([]byte, Sector)
	copy(b, head[:min(len(head), 440)])
	e := b[446:]
	copy(e[1:], []byte{0, 2, 0, 0xee, 0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[12:], uint32(min(last, 0xffffffff)))
	b[510], b[511] = 0x55, 0xaa
	return b
}

func (t Table) header(self, other, array uint64, entries []byte) []byte {
	b := make([]byte, Sector)
	copy(b, "EFI PART")
	put32, put64 := binary.LittleEndian.PutUint32, binary.LittleEndian.PutUint64
	put32(b[8:], 1<<16)
	put32(b[12:], headerSize)
	put64(b[24:], self)
	put64(b[32:], other)
	put64(b[40:], uint64(Alignment/Sector)) // Behind both places of the entries.
	put64(b[48:], uint64(t.DiskSize/Sector-arraySectors-2))
	guid, _ := guidBytes(t.DiskUUID)
	copy(b[56:], guid[:])
	put64(b[72:], array)
	put32(b[80:], entryCount)
	put32(b[84:], entrySize)
	put32(b[88:], crc32.ChecksumIEEE(entries))
	put32(b[16:], crc32.ChecksumIEEE(b[:headerSize]))
	return b
}

func (t Table) entries() ([]byte, error) {
	if _, err := guidBytes(t.DiskUUID); err != nil {
		return nil, fmt.Errorf("internal error: disk: %w", err)
	}
	b := make([]byte, entryCount*entrySize)
	for _, p := range t.Parts {
		kind, err := guidBytes(p.Type)
		if err != nil {
			return nil, fmt.Errorf("internal error: type of partition %d: %w", p.Number, err)
		}
		id, err := guidBytes(p.UUID)
		if err != nil {
			return nil, fmt.Errorf("internal error: partition %d: %w", p.Number, err)
		}
		if p.Number < 1 || p.Number > entryCount || p.Size <= 0 || p.Start < Alignment || p.End() > lastEnd(GPT, t.DiskSize) {
			return nil, fmt.Errorf("internal error: partition %d does not lie on the disk", p.Number)
		}
		e := b[(p.Number-1)*entrySize:][:entrySize]
		copy(e, kind[:])
		copy(e[16:], id[:])
		binary.LittleEndian.PutUint64(e[32:], uint64(p.Start/Sector))
		binary.LittleEndian.PutUint64(e[40:], uint64(p.End()/Sector-1))
		for i, u := range utf16.Encode([]rune(p.Name)) {
			if i < 36 {
				binary.LittleEndian.PutUint16(e[56+2*i:], u)
			}
		}
	}
	return b, nil
}

func nameText(b []byte) string {
	var units []uint16
	for i := 0; i < 72; i += 2 {
		u := binary.LittleEndian.Uint16(b[i:])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}

// GUIDs are stored with their first three groups in little endian.
var guidOrder = [16]int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15}

func guidText(b []byte) string {
	var g [16]byte
	for i, from := range guidOrder {
		g[i] = b[from]
	}
	s := strings.ToUpper(hex.EncodeToString(g[:]))
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

func guidBytes(text string) (b [16]byte, err error) {
	g, err := hex.DecodeString(strings.ReplaceAll(text, "-", ""))
	if err != nil || len(g) != 16 || len(text) != 36 {
		return b, fmt.Errorf("%q is not a GUID", text)
	}
	for i, to := range guidOrder {
		b[to] = g[i]
	}
	return b, nil
}

// NewUUID makes a GUID of 16 random bytes.
func NewUUID(random [16]byte) string {
	random[6] = random[6]&0x0f | 0x40
	random[8] = random[8]&0x3f | 0x80
	var stored [16]byte
	for i, to := range guidOrder {
		stored[to] = random[i]
	}
	return guidText(stored[:])
}
