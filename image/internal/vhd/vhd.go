// Package vhd writes and reads dynamic VHD disks, the format of Virtual PC and
// older Hyper-V.
//
// The format is that of Microsoft's "Virtual Hard Disk Image Format
// Specification" (version 1.0, 2006), whose names are used here. All numbers
// are big-endian.
package vhd

import (
	"encoding/binary"
	"time"
)

const (
	// SectorSize is the unit of all addresses, in bytes.
	SectorSize = 512
	// BlockSize is what is allocated at once, in bytes: the specification's
	// default, and the one that every reader knows.
	BlockSize = 2 << 20
	// MaxSize is the size of the largest disk, in bytes (Hyper-V's limit).
	MaxSize = 2040 << 30

	headerOffset = SectorSize // behind the copy of the footer
	headerSize   = 1024
	tableOffset  = headerOffset + headerSize
	// bitmapSize is what stands before each block, a bit a sector.
	bitmapSize = BlockSize / SectorSize / 8

	unused = 1<<32 - 1 // entry of a block that is not there
)

// created is in the footer, in seconds since 2000.
var created = uint32(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Sub(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) / time.Second)

// footer is at the end of the file, with a copy at its start. Readers take the
// size from it; some compute it from the geometry, which cannot say every size,
// unless the creator is one whose disks are known to mean the size: "win ", as
// Windows writes it, is.
func footer(size int64, id [16]byte) []byte {
	b := make([]byte, SectorSize)
	be := binary.BigEndian
	copy(b, "conectix")
	be.PutUint32(b[8:], 2)        // features: the bit that is always set
	be.PutUint32(b[12:], 0x10000) // version
	be.PutUint64(b[16:], headerOffset)
	be.PutUint32(b[24:], created)
	copy(b[28:], "win ")
	be.PutUint32(b[32:], 0xa0000) // Windows 10.0
	copy(b[36:], "Wi2k")
	be.PutUint64(b[40:], uint64(size)) // original size
	be.PutUint64(b[48:], uint64(size)) // current size
	cylinders, heads, sectors := geometry(size)
	be.PutUint16(b[56:], cylinders)
	b[58], b[59] = heads, sectors
	be.PutUint32(b[60:], 3) // dynamic
	copy(b[68:], id[:])
	return sum(b, 64)
}

// sum puts the ones' complement of the sum of all bytes at the given place.
func sum(b []byte, at int) []byte {
	clear(b[at : at+4])
	var s uint32
	for _, c := range b {
		s += uint32(c)
	}
	binary.BigEndian.PutUint32(b[at:], ^s)
	return b
}

// geometry is the calculation of the specification's appendix.
func geometry(size int64) (cylinders uint16, heads, sectorsPerTrack uint8) {
	total := min(size/SectorSize, 65535*16*255)
	var spt, h, cth int64
	if total >= 65535*16*63 {
		spt, h = 255, 16
		cth = total / spt
	} else {
		spt = 17
		cth = total / spt
		h = max((cth+1023)/1024, 4)
		if cth >= h*1024 || h > 16 {
			spt, h = 31, 16
			cth = total / spt
		}
		if cth >= h*1024 {
			spt, h = 63, 16
			cth = total / spt
		}
	}
	return uint16(cth / h), uint8(h), uint8(spt)
}

// entries is how many blocks a disk has.
func entries(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// tableSize is that of the block allocation table, in bytes, filled up.
func tableSize(size int64) int64 {
	return (entries(size)*4 + SectorSize - 1) / SectorSize * SectorSize
}

// header is the dynamic disk header.
func header(size int64) []byte {
	b := make([]byte, headerSize)
	be := binary.BigEndian
	copy(b, "cxsparse")
	be.PutUint64(b[8:], 1<<64-1) // there is no next structure
	be.PutUint64(b[16:], tableOffset)
	be.PutUint32(b[24:], 0x10000) // version
	be.PutUint32(b[28:], uint32(entries(size)))
	be.PutUint32(b[32:], BlockSize)
	return sum(b, 36)
}
