package vhdx

import (
	"encoding/binary"
	"fmt"
	"io"
)

// A Writer writes one disk. What is never written reads as zeros.
type Writer struct {
	f    io.WriterAt
	size int64
	bat  []uint64
	next int64 // where the next block goes
	end  int64 // of what has been written
}

// NewWriter begins a disk of so many bytes, a multiple of 512, in an empty file.
func NewWriter(f io.WriterAt, size int64) (*Writer, error) {
	if size <= 0 || size%SectorSize != 0 || size > MaxSize {
		return nil, fmt.Errorf("cannot write a VHDX of %d bytes: not a multiple of %d up to %d", size, SectorSize, int64(MaxSize))
	}
	return &Writer{f: f, size: size, bat: make([]uint64, batEntries(size)), next: batOffset + batRegionSize(size)}, nil
}

// WriteAt writes data of the disk; blocks get their place in the file in the
// order in which they are first written.
func (w *Writer) WriteAt(p []byte, off int64) (n int, err error) {
	if off < 0 || off+int64(len(p)) > w.size {
		return 0, fmt.Errorf("internal error: write of %d bytes at %d to a disk of %d", len(p), off, w.size)
	}
	for n < len(p) {
		at := off + int64(n)
		part := p[n:min(int64(len(p)), int64(n)+BlockSize-at%BlockSize)]
		entry := &w.bat[batIndex(at/BlockSize)]
		if *entry == 0 {
			// The offset's unit is 1 MiB, in bits 20 and up.
			*entry = uint64(w.next) | blockFullyPresent
			w.next += BlockSize
		}
		place := int64(*entry&^(BlockSize-1)) + at%BlockSize
		m, err := w.f.WriteAt(part, place)
		if n += m; err != nil {
			return n, err
		}
		w.end = max(w.end, place+int64(m))
	}
	return n, nil
}

// Close writes the tables and, as the last thing, what makes the file a VHDX. id
// is derived from the content: the same for the same disk.
func (w *Writer) Close(id [16]byte) error {
	bat := make([]byte, batRegionSize(w.size))
	for i, e := range w.bat {
		binary.LittleEndian.PutUint64(bat[8*i:], e)
	}
	if w.end < w.next { // Blocks are always whole.
		if _, err := w.f.WriteAt([]byte{0}, w.next-1); err != nil {
			return err
		}
	}
	if _, err := w.f.WriteAt(bat, batOffset); err != nil {
		return err
	}
	_, err := w.f.WriteAt(start(w.size, id), 0)
	return err
}
