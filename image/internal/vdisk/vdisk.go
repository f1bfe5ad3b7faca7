// Package vdisk writes the disk formats of virtual machines from one reading of
// a raw image. Every chunk is hashed once and compressed once: a cluster of
// qcow2 and a grain of VMDK have the same size and hold the same deflate stream.
// The same image gives the same bytes, and IDs that are derived from it.
package vdisk

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"appplatform/image/internal/qcow2"
	"appplatform/image/internal/vhd"
	"appplatform/image/internal/vhdx"
	"appplatform/image/internal/vmdk"
)

// A Format is named like the extension of its files.
type Format string

// The formats.
const (
	QCOW2 Format = "qcow2" // QEMU, KVM, Proxmox
	VMDK  Format = "vmdk"  // VMware, VirtualBox: streamOptimized
	VHDX  Format = "vhdx"  // Hyper-V: dynamic
	VHD   Format = "vhd"   // older Hyper-V, VirtualBox: dynamic
)

// Formats are all of them.
var Formats = []Format{QCOW2, VMDK, VHDX, VHD}

// ChunkSize is what is hashed and compressed at once, in bytes: a cluster of qcow2,
// and a grain of VMDK.
const ChunkSize = qcow2.ClusterSize

var _ [ChunkSize]byte = [vmdk.GrainSize]byte{} // They share their streams.

// An ID names the content of a disk: the same for the same size and bytes,
// whatever the format and whichever zeros are stored.
type ID [sha256.Size]byte

func (id ID) String() string { return fmt.Sprintf("%x", id[:]) }

// short is what formats have room for.
func (id ID) short() [16]byte { return [16]byte(id[:16]) }

// A summer computes the ID from the chunks that are not all zeros, in ascending
// order.
type summer struct{ h hash.Hash }

func newSummer(size int64) summer {
	s := summer{sha256.New()}
	s.number(size)
	return s
}

func (s summer) number(n int64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(n))
	s.h.Write(b[:])
}

func (s summer) add(index int64, sum [sha256.Size]byte) {
	s.number(index)
	s.h.Write(sum[:])
}

func (s summer) id() ID { return ID(s.h.Sum(nil)) }

var zeros [ChunkSize]byte

func isZero(p []byte) bool { return bytes.Equal(p, zeros[:len(p)]) }

// A Disk is an open disk of some format.
type Disk interface {
	// Size is what the guest sees, in bytes.
	Size() int64
	// Walk hands over what is stored, in ascending order.
	Walk(visit func(offset int64, data []byte) error) error
}

// A file is a disk of one of the formats.
type file interface {
	Disk
	// CheckID compares the IDs in the file with those of the content.
	CheckID(id [16]byte) error
}

// Verify reads a file of the format from end to end and says what is wrong with
// it, or what content it has. size is the file's.
func (f Format) Verify(r io.ReaderAt, size int64) (ID, int64, error) {
	d, err := f.open(r, size)
	if err != nil {
		return ID{}, 0, err
	}
	id, err := Sum(d)
	if err == nil {
		err = d.CheckID(id.short())
	}
	if err != nil {
		return ID{}, 0, fmt.Errorf("a damaged %s: %w", f, err)
	}
	return id, d.Size(), nil
}

func (f Format) open(r io.ReaderAt, size int64) (file, error) {
	switch f {
	case QCOW2:
		return qcow2.Open(r, size)
	case VMDK:
		return vmdk.Open(r, size)
	case VHDX:
		return vhdx.Open(r, size)
	case VHD:
		return vhd.Open(r, size)
	}
	return nil, fmt.Errorf("no disk format %q", f)
}

// Sum reads the whole disk and returns its ID. Formats that store more than a
// chunk at once hand over whole multiples of it.
func Sum(d Disk) (ID, error) {
	s := newSummer(d.Size())
	err := d.Walk(func(offset int64, data []byte) error {
		if offset%ChunkSize != 0 {
			return fmt.Errorf("internal error: data at %d", offset)
		}
		for at := int64(0); at < int64(len(data)); at += ChunkSize {
			part := data[at:min(at+ChunkSize, int64(len(data)))]
			if isZero(part) {
				continue
			}
			chunk := zeros // The last one is filled up.
			copy(chunk[:], part)
			s.add((offset+at)/ChunkSize, sha256.Sum256(chunk[:]))
		}
		return nil
	})
	return s.id(), err
}
