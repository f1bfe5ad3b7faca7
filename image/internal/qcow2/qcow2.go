// Package qcow2 writes and reads qcow2 disks of version 3 whose clusters are
// compressed where that makes them smaller.
//
// The format is that of QEMU's docs/interop/qcow2.txt. A disk of this package
// has no backing file and no snapshots, and lies in its file as: header,
// clusters, L2 tables, L1 table, refcount blocks, refcount table.
package qcow2

import (
	"bytes"
	"encoding/binary"
	"slices"
)

const (
	// SectorSize is what the size of a disk is a multiple of, in bytes.
	SectorSize = 512
	// ClusterSize is what is compressed at once, in bytes: QEMU's default.
	ClusterSize = 1 << clusterBits
	// Window is the farthest that a compressed cluster may refer back, in bytes:
	// QEMU inflates with a window of 12 bits.
	Window = 1 << 12

	clusterBits = 16
	l2Entries   = ClusterSize / 8
	refEntries  = ClusterSize / 2 // refcounts have 16 bits

	compressed = 1 << 62
	copied     = 1 << 63 // of tables and plain clusters: the refcount is 1
	// A compressed cluster's descriptor has its place in the lower bits and in
	// the upper ones how many sectors it reaches into behind the first.
	sectorsShift = 62 - (clusterBits - 8)
	maxSectors   = 1 << (clusterBits - 8)
)

// A header is that of version 3 without the optional fields, which readers take
// for zero: no compression other than deflate.
type header struct {
	Magic         uint32
	Version       uint32
	BackingOffset uint64
	BackingSize   uint32
	ClusterBits   uint32
	Size          uint64
	CryptMethod   uint32
	L1Size        uint32 // entries
	L1Offset      uint64
	RefOffset     uint64
	RefClusters   uint32
	Snapshots     uint32
	SnapshotsAt   uint64
	Incompatible  uint64
	Compatible    uint64
	AutoClear     uint64
	RefOrder      uint32 // refcounts have 1 << RefOrder bits
	Length        uint32
	// Readers skip header extensions that they do not know.
	Extension       uint32
	ExtensionLength uint32
	ID              [16]byte
	ExtensionEnd    uint64 // an empty one ends their list
}

const (
	headerLength = 104
	// idExtension is the type of the header extension with the ID of the content.
	// It is of own making: plain clusters have no checksum, and the format has no
	// other place for one.
	idExtension = 0x41505049 // "APPI"
	// maxSize follows from the largest L1 table that QEMU takes, 32 MiB.
	maxSize = 32 << 20 / 8 * l2Entries * ClusterSize
)

// A layout is where the tables are, which follows from the size of the disk and
// the length of its data.
type layout struct {
	l1Entries                  int64
	l2, l1, refBlocks, refRoot int64 // clusters
	refBlockCount, refRootSize int64 // clusters
	end                        int64 // clusters
}

func ceil(a, b int64) int64 { return (a + b - 1) / b }

// plan places the tables behind data that end in the cluster before first, for
// so many L2 tables.
func plan(size, first, tables int64) layout {
	l := layout{l1Entries: ceil(size, ClusterSize*l2Entries), l2: first}
	l.l1 = first + tables
	l.refBlocks = l.l1 + ceil(l.l1Entries*8, ClusterSize)
	// Refcounts count their own clusters, too.
	for {
		l.refRoot = l.refBlocks + l.refBlockCount
		l.refRootSize = ceil(l.refBlockCount*8, ClusterSize)
		l.end = l.refRoot + l.refRootSize
		need := ceil(l.end, refEntries)
		if need == l.refBlockCount {
			return l
		}
		l.refBlockCount = need
	}
}

func (l layout) header(size int64, id [16]byte) []byte {
	var b bytes.Buffer
	_ = binary.Write(&b, binary.BigEndian, header{ // A buffer takes everything.
		Magic: 0x514649fb, Version: 3, ClusterBits: clusterBits, Size: uint64(size),
		L1Size: uint32(l.l1Entries), L1Offset: uint64(l.l1 * ClusterSize),
		RefOffset: uint64(l.refRoot * ClusterSize), RefClusters: uint32(l.refRootSize),
		RefOrder: 4, Length: headerLength,
		Extension: idExtension, ExtensionLength: uint32(len(id)), ID: id,
	})
	return append(b.Bytes(), make([]byte, ClusterSize-b.Len())...)
}

// An allocator gives clusters their places in the file. Plain clusters lie on
// borders. A compressed one goes where it leaves least of what earlier ones have
// left of their host clusters; if it fits nowhere, it begins behind the last one.
type allocator struct {
	next int64 // host cluster that is free, as all behind it
	gaps []gap // what is left of host clusters, in the order of the file
	full []gap // what is too small to be looked at again, since the last look
}

// A gap is a range of bytes.
type gap struct{ from, to int64 }

// maxGaps bounds how many places are looked at for each cluster.
const maxGaps = 64

func newAllocator() allocator { return allocator{next: 1} } // behind the header

// plain is the offset of a cluster as it is.
func (a *allocator) plain() int64 {
	a.next++
	return (a.next - 1) * ClusterSize
}

// compressed is the offset of a cluster of so many bytes, less than ClusterSize.
func (a *allocator) compressed(length int64) int64 {
	best := -1
	for i, g := range a.gaps {
		if room := g.to - g.from; room >= length && (best < 0 || room < a.gaps[best].to-a.gaps[best].from) {
			best = i
		}
	}
	if best < 0 {
		best = len(a.gaps) - 1
		if best < 0 || a.gaps[best].to != a.next*ClusterSize { // Somebody else's data begin there.
			a.gaps = append(a.gaps, gap{a.next * ClusterSize, a.next * ClusterSize})
			best = len(a.gaps) - 1
		}
		a.next++
		a.gaps[best].to = a.next * ClusterSize
	}
	offset := a.gaps[best].from
	if a.gaps[best].from += length; a.gaps[best].from == a.gaps[best].to {
		a.gaps = slices.Delete(a.gaps, best, best+1)
	}
	if len(a.gaps) > maxGaps {
		a.drop()
	}
	return offset
}

// drop gives up the smallest gap.
func (a *allocator) drop() {
	least := 0
	for i, g := range a.gaps {
		if g.to-g.from < a.gaps[least].to-a.gaps[least].from {
			least = i
		}
	}
	a.full = append(a.full, a.gaps[least])
	a.gaps = slices.Delete(a.gaps, least, least+1)
}

// span is the range of host clusters that a compressed cluster lies in.
func span(offset, length int64) (first, last int64) {
	return offset / ClusterSize, (offset + length - 1) / ClusterSize
}

func encode64(entries []uint64) []byte {
	b := make([]byte, 0, 8*len(entries))
	for _, e := range entries {
		b = binary.BigEndian.AppendUint64(b, e)
	}
	return b
}
