package vhd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// A Writer writes one disk. What is never written reads as zeros.
type Writer struct {
	f     io.WriterAt
	size  int64
	table []uint32
	next  int64 // where the next block goes
}

// NewWriter begins a disk of so many bytes, a multiple of 512, in an empty file.
func NewWriter(f io.WriterAt, size int64) (*Writer, error) {
	if size <= 0 || size%SectorSize != 0 || size > MaxSize {
		return nil, fmt.Errorf("cannot write a VHD of %d bytes: not a multiple of %d up to %d", size, SectorSize, int64(MaxSize))
	}
	w := &Writer{f: f, size: size, table: make([]uint32, entries(size)), next: tableOffset + tableSize(size)}
	for i := range w.table {
		w.table[i] = unused
	}
	return w, nil
}

// allPresent is the bitmap of a block: every sector of it counts.
var allPresent = bytes.Repeat([]byte{0xff}, bitmapSize)

// WriteAt writes data of the disk; blocks get their place in the file in the
// order in which they are first written.
func (w *Writer) WriteAt(p []byte, off int64) (n int, err error) {
	if off < 0 || off+int64(len(p)) > w.size {
		return 0, fmt.Errorf("internal error: write of %d bytes at %d to a disk of %d", len(p), off, w.size)
	}
	for n < len(p) {
		at := off + int64(n)
		part := p[n:min(int64(len(p)), int64(n)+BlockSize-at%BlockSize)]
		entry := &w.table[at/BlockSize]
		if *entry == unused {
			if _, err := w.f.WriteAt(allPresent, w.next); err != nil {
				return n, err
			}
			*entry = uint32(w.next / SectorSize)
			w.next += bitmapSize + BlockSize
		}
		m, err := w.f.WriteAt(part, int64(*entry)*SectorSize+bitmapSize+at%BlockSize)
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// Close writes the table, the header and the footers. id is derived from the
// content: the same for the same disk.
func (w *Writer) Close(id [16]byte) error {
	foot := footer(w.size, id)
	for _, part := range []struct {
		data []byte
		at   int64
	}{{encodeTable(w.table, w.size), tableOffset}, {header(w.size), headerOffset}, {foot, w.next}, {foot, 0}} {
		if _, err := w.f.WriteAt(part.data, part.at); err != nil {
			return err
		}
	}
	return nil
}

func encodeTable(table []uint32, size int64) []byte {
	b := make([]byte, 0, tableSize(size))
	for _, e := range table {
		b = binary.BigEndian.AppendUint32(b, e)
	}
	for len(b) < cap(b) {
		b = append(b, 0xff)
	}
	return b
}
