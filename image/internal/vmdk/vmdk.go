// Package vmdk writes and reads streamOptimized VMDK disks, the format of the
// disks in an OVA: compressed grains one after the other, their tables behind
// them, so that a reader needs no seeking.
//
// The format is that of VMware's "Virtual Disk Format 5.0" (2011), sections
// "Hosted Sparse Extents" and "Stream-Optimized Compressed Sparse Extents".
package vmdk

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

const (
	// SectorSize is the unit of all addresses in a VMDK, in bytes.
	SectorSize = 512
	// GrainSize is what is compressed at once, in bytes.
	GrainSize = 64 << 10

	grainSectors = GrainSize / SectorSize
	// tableEntries is fixed by the format; a table describes 32 MiB.
	tableEntries = 512
	tableSectors = tableEntries * 4 / SectorSize

	// The header is followed by the descriptor. Data begins on a grain's
	// border, as VMware writes it.
	descriptorSectors = 20
	overhead          = grainSectors

	magic           = 0x564d444b // "KDMV", read as a little-endian number
	version         = 3          // of compressed extents
	flagNewline     = 1 << 0     // the newline detection below is valid
	flagCompressed  = 1 << 16
	flagMarkers     = 1 << 17
	compressDeflate = 1 // RFC 1950
	// atEnd as the directory's place says that the footer knows it.
	atEnd = 1<<64 - 1
)

// Kinds of markers other than a grain's.
const (
	markerEnd       = 0
	markerTable     = 1
	markerDirectory = 2
	markerFooter    = 3
)

// A header is SparseExtentHeader, at the start and, with the directory's place,
// before the end of the file.
type header struct {
	Magic            uint32
	Version          uint32
	Flags            uint32
	Capacity         uint64 // of the disk, in sectors
	GrainSize        uint64 // sectors
	DescriptorOffset uint64 // sectors
	DescriptorSize   uint64 // sectors
	TableEntries     uint32
	RedundantOffset  uint64
	DirectoryOffset  uint64 // sectors
	Overhead         uint64 // sectors before the data
	Unclean          uint8
	Newlines         [4]byte // changed by a transfer as text
	Compression      uint16
	_                [433]byte
}

func newHeader(capacity, directory uint64) header {
	return header{
		Magic: magic, Version: version, Flags: flagNewline | flagCompressed | flagMarkers,
		Capacity: capacity, GrainSize: grainSectors, DescriptorOffset: 1, DescriptorSize: descriptorSectors,
		TableEntries: tableEntries, DirectoryOffset: directory, Overhead: overhead,
		Newlines: [4]byte{'\n', ' ', '\r', '\n'}, Compression: compressDeflate,
	}
}

func (h header) encode() []byte {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, h) // A buffer takes everything.
	return b.Bytes()
}

// A marker stands before tables, directory, footer, and at the end; sectors is
// the size of what follows.
func marker(kind uint32, sectors uint64) []byte {
	b := make([]byte, SectorSize)
	binary.LittleEndian.PutUint64(b, sectors)
	binary.LittleEndian.PutUint32(b[12:], kind)
	return b
}

// The geometry is what BIOSes play for SCSI disks; guests that matter use
// sector numbers.
const (
	heads           = 255
	sectorsPerTrack = 63
)

// contentIDs are the two IDs of a disk in its descriptor: they must differ
// between disks with different content.
func contentIDs(id [16]byte) (short, long string) {
	cid := binary.BigEndian.Uint32(id[12:])
	if cid >= 0xfffffffe { // these mean "no parent" and "none yet"
		cid = 0xfffffffd
	}
	short = fmt.Sprintf("%08x", cid)
	return short, fmt.Sprintf("%x%s", id[:12], short)
}

// start is everything before the data: header and descriptor, the text that says
// what the extent is.
func start(name string, capacity uint64, id [16]byte) []byte {
	short, long := contentIDs(id)
	text := fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=%s
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW %d SPARSE "%s"

# The Disk Data Base
#DDB

ddb.adapterType = "lsilogic"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "%d"
ddb.geometry.sectors = "%d"
ddb.longContentID = "%s"
ddb.virtualHWVersion = "14"
`, short, capacity, name, cylinders(capacity), heads, sectorsPerTrack, long)
	b := make([]byte, overhead*SectorSize)
	copy(b, newHeader(capacity, atEnd).encode())
	copy(b[SectorSize:], text)
	return b
}

func cylinders(capacity uint64) uint64 {
	return min(max(capacity/(heads*sectorsPerTrack), 1), 65535)
}
