package vmdk

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A Writer writes one disk. Grains come in ascending order; those that are left
// out read as zeros.
type Writer struct {
	f        io.WriterAt
	out      *bufio.Writer
	at       uint64 // sector that is written next
	name     string
	capacity uint64 // sectors
	last     int64  // grain
	table    [tableEntries]uint32
	tableNo  int64
	dir      []uint32
}

// NewWriter begins a disk of so many bytes, a multiple of 512. name is what the
// descriptor calls the file; readers that get another name do not mind.
func NewWriter(f io.WriterAt, name string, size int64) (*Writer, error) {
	if size <= 0 || size%SectorSize != 0 {
		return nil, fmt.Errorf("cannot write a VMDK of %d bytes: not a positive multiple of %d", size, SectorSize)
	}
	if strings.ContainsAny(name, "\"\n") || len(name) > 255 {
		return nil, fmt.Errorf("cannot write a VMDK named %q", name)
	}
	tables := (size + GrainSize*tableEntries - 1) / (GrainSize * tableEntries)
	return &Writer{
		f: f, out: bufio.NewWriterSize(io.NewOffsetWriter(f, overhead*SectorSize), 1<<20), at: overhead,
		name: name, capacity: uint64(size) / SectorSize, last: -1, dir: make([]uint32, tables),
	}, nil
}

// WriteGrain stores the grain at index, which is the number of grains before it.
// stream is its GrainSize bytes as a zlib stream (RFC 1950); the last grain of a
// disk is filled up with zeros.
func (w *Writer) WriteGrain(index int64, stream []byte) error {
	if index <= w.last || uint64(index)*grainSectors >= w.capacity {
		return fmt.Errorf("internal error: grain %d after %d, of a disk of %d sectors", index, w.last, w.capacity)
	}
	if index/tableEntries != w.tableNo {
		if err := w.flushTable(); err != nil {
			return err
		}
		w.tableNo = index / tableEntries
	}
	w.last = index
	w.table[index%tableEntries] = uint32(w.at)
	head := make([]byte, 12)
	binary.LittleEndian.PutUint64(head, uint64(index)*grainSectors)
	binary.LittleEndian.PutUint32(head[8:], uint32(len(stream)))
	return w.write(head, stream)
}

var errTooLarge = errors.New("the VMDK would be larger than its 32-bit tables can address (2 TiB)")

// write appends the parts, and zeros up to the next sector.
func (w *Writer) write(parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		if _, err := w.out.Write(p); err != nil {
			return err
		}
		n += len(p)
	}
	var zeros [SectorSize]byte
	if rest := n % SectorSize; rest != 0 {
		if _, err := w.out.Write(zeros[rest:]); err != nil {
			return err
		}
	}
	w.at += uint64(n+SectorSize-1) / SectorSize
	if w.at > 1<<32-1 {
		return errTooLarge
	}
	return nil
}

// flushTable writes the table of the grains so far, if it has any.
func (w *Writer) flushTable() error {
	if w.table == [tableEntries]uint32{} {
		return nil
	}
	if err := w.write(marker(markerTable, tableSectors)); err != nil {
		return err
	}
	w.dir[w.tableNo] = uint32(w.at)
	err := w.write(encode32(w.table[:]))
	w.table = [tableEntries]uint32{}
	return err
}

func encode32(entries []uint32) []byte {
	b := make([]byte, 0, 4*len(entries))
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint32(b, e)
	}
	return b
}

// Close writes what is behind the grains and, as the last thing, the header. id
// is derived from the content: the same for the same disk.
func (w *Writer) Close(id [16]byte) error {
	if err := w.flushTable(); err != nil {
		return err
	}
	dir := encode32(w.dir)
	if err := w.write(marker(markerDirectory, uint64(len(dir)+SectorSize-1)/SectorSize)); err != nil {
		return err
	}
	directory := w.at
	if err := w.write(dir); err != nil {
		return err
	}
	if err := w.write(marker(markerFooter, 1), newHeader(w.capacity, directory).encode(), marker(markerEnd, 0)); err != nil {
		return err
	}
	if err := w.out.Flush(); err != nil {
		return err
	}
	_, err := w.f.WriteAt(start(w.name, w.capacity, id), 0)
	return err
}
