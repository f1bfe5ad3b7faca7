// Package vhdx writes and reads dynamic VHDX disks, the format of Hyper-V. It
// needs nothing but the standard library.
//
// The format is that of Microsoft's open specification [MS-VHDX], revision 8.0;
// its section 2 names the structures. A disk of this package has no parent and
// an empty log, and lies in its file as
//
//	  0  file type identifier
//	64K  header 1, at 128K header 2, at 192K and 256K the region tables
//	 1M  log, 1 MiB, never used
//	 2M  metadata, 1 MiB
//	 3M  block allocation table (BAT)
//	     payload blocks of 1 MiB
package vhdx

import (
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"slices"
	"strings"
	"unicode/utf16"
)

const (
	// SectorSize is the logical sector size of the disk, in bytes.
	SectorSize = 512
	// BlockSize is what is allocated at once, in bytes: the smallest that the
	// format knows, and what Microsoft recommends for Linux guests.
	BlockSize = 1 << 20
	// MaxSize is the size of the largest disk, in bytes (section 2.6.2.2).
	MaxSize = 64 << 40

	physicalSectorSize = 4096 // what Hyper-V gives new disks

	headerSize = 4 << 10
	tableSize  = 64 << 10 // of region and metadata tables

	logOffset      = 1 << 20
	logSize        = 1 << 20
	metadataOffset = 2 << 20
	metadataSize   = 1 << 20
	batOffset      = 3 << 20

	// chunkRatio is how many payload blocks one sector bitmap block stands for
	// (section 2.5). The BAT has an entry for the latter after so many of the
	// former, which is empty in disks without a parent.
	chunkRatio = (1 << 23) * SectorSize / BlockSize
)

var (
	headerOffsets = []int64{64 << 10, 128 << 10}
	regionOffsets = []int64{192 << 10, 256 << 10}
)

// blockFullyPresent is the state of a payload block whose data are in the file
// (section 2.5.1.1); 0 is that of one which was never written.
const blockFullyPresent = 6

// A guid is in the order in which it is written as text.
type guid [16]byte

func parseGUID(s string) (g guid) {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || copy(g[:], b) != len(g) {
		panic("internal error: a GUID " + s)
	}
	return g
}

// encode puts the first three fields in little-endian order.
func (g guid) encode() []byte {
	b := slices.Clone(g[:])
	slices.Reverse(b[:4])
	slices.Reverse(b[4:6])
	slices.Reverse(b[6:8])
	return b
}

// decode undoes encode.
func (g guid) decode() [16]byte { return [16]byte(g.encode()) }

// derive makes one of a disk's GUIDs from its ID: version 8 of RFC 9562, of own
// making.
func derive(id [16]byte, which byte) guid {
	g := guid(id)
	g[0] ^= which
	g[6] = g[6]&0x0f | 0x80
	g[8] = g[8]&0x3f | 0x80
	return g
}

// The GUIDs of a disk: of its content, of writes to the file, and of its data.
const (
	diskGUID = iota
	fileWriteGUID
	dataWriteGUID
)

// sum puts the CRC-32C of a structure, whose field at 4 is for it, there.
func sum(b []byte) []byte {
	clear(b[4:8])
	binary.LittleEndian.PutUint32(b[4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// identifier is the file type identifier (section 2.2.1).
func identifier() []byte {
	b := make([]byte, 8+512)
	copy(b, "vhdxfile")
	for i, c := range utf16.Encode([]rune("App Platform")) {
		binary.LittleEndian.PutUint16(b[8+2*i:], c)
	}
	return b
}

// header is one of the two headers (section 2.2.2); the one with the higher
// sequence number counts.
func header(sequence uint64, id [16]byte) []byte {
	b := make([]byte, headerSize)
	copy(b, "head")
	binary.LittleEndian.PutUint64(b[8:], sequence)
	copy(b[16:], derive(id, fileWriteGUID).encode())
	copy(b[32:], derive(id, dataWriteGUID).encode())
	// The log's GUID stays zero: nothing is in it.
	binary.LittleEndian.PutUint16(b[66:], 1) // version
	binary.LittleEndian.PutUint32(b[68:], logSize)
	binary.LittleEndian.PutUint64(b[72:], logOffset)
	return sum(b)
}

var (
	batRegion      = parseGUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
	metadataRegion = parseGUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
)

// regionTable says where BAT and metadata are (section 2.2.3).
func regionTable(batSize uint32) []byte {
	b := make([]byte, tableSize)
	copy(b, "regi")
	binary.LittleEndian.PutUint32(b[8:], 2)
	for i, r := range []struct {
		id     guid
		offset uint64
		size   uint32
	}{{batRegion, batOffset, batSize}, {metadataRegion, metadataOffset, metadataSize}} {
		e := b[16+32*i:]
		copy(e, r.id.encode())
		binary.LittleEndian.PutUint64(e[16:], r.offset)
		binary.LittleEndian.PutUint32(e[24:], r.size)
		binary.LittleEndian.PutUint32(e[28:], 1) // required
	}
	return sum(b)
}

// Flags of a metadata entry (section 2.6.1.2).
const (
	isVirtualDisk = 1 << 1
	isRequired    = 1 << 2
)

// metadata is the metadata region: its table, and behind it the items that it
// lists (section 2.6).
func metadata(size int64, id [16]byte) []byte {
	le := binary.LittleEndian
	items := []struct {
		id    guid
		flags uint32
		data  []byte
	}{
		// File parameters: block size, and flags of which none is set.
		{parseGUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B"), isRequired, le.AppendUint64(nil, BlockSize)},
		{parseGUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8"), isRequired | isVirtualDisk, le.AppendUint64(nil, uint64(size))},
		{parseGUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F"), isRequired | isVirtualDisk, le.AppendUint32(nil, SectorSize)},
		{parseGUID("CDA348C7-445D-4471-9CC9-E9885251C556"), isRequired | isVirtualDisk, le.AppendUint32(nil, physicalSectorSize)},
		{parseGUID("BECA12AB-B2E6-4523-93EF-C309E000C746"), isRequired | isVirtualDisk, derive(id, diskGUID).encode()},
	}
	b := make([]byte, metadataSize)
	copy(b, "metadata")
	le.PutUint16(b[10:], uint16(len(items)))
	at := tableSize
	for i, item := range items {
		e := b[32+32*i:]
		copy(e, item.id.encode())
		le.PutUint32(e[16:], uint32(at))
		le.PutUint32(e[20:], uint32(len(item.data)))
		le.PutUint32(e[24:], item.flags)
		at += copy(b[at:], item.data)
	}
	return b
}

// batEntries is how many entries the BAT of a disk has.
func batEntries(size int64) int64 {
	blocks := (size + BlockSize - 1) / BlockSize
	return blocks + (blocks-1)/chunkRatio
}

// batIndex is where the entry of a payload block is.
func batIndex(block int64) int64 { return block + block/chunkRatio }

// batRegionSize is a multiple of 1 MiB, as every region's.
func batRegionSize(size int64) int64 {
	return (batEntries(size)*8 + BlockSize - 1) / BlockSize * BlockSize
}

// start is everything before the BAT.
func start(size int64, id [16]byte) []byte {
	b := make([]byte, batOffset)
	copy(b, identifier())
	for i, at := range headerOffsets {
		copy(b[at:], header(uint64(i+1), id))
	}
	for _, at := range regionOffsets {
		copy(b[at:], regionTable(uint32(batRegionSize(size))))
	}
	copy(b[metadataOffset:], metadata(size, id))
	return b
}
