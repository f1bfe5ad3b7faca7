package qcow2

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A Reader reads a disk that this package could have written, and says what is
// wrong with any other.
type Reader struct {
	r      io.ReaderAt
	size   int64
	id     [16]byte
	layout layout
	root   []uint64
	refs   []byte
}

// Open checks header, L1 table and refcount table. size is the file's.
func Open(r io.ReaderAt, size int64) (*Reader, error) {
	v := &Reader{r: r}
	if err := v.open(size); err != nil {
		return nil, fmt.Errorf("not a sound compressed qcow2: %w", err)
	}
	return v, nil
}

func (v *Reader) open(size int64) error {
	start := make([]byte, ClusterSize)
	if size%ClusterSize != 0 || size < 4*ClusterSize {
		return fmt.Errorf("a file of %d bytes: it may be cut off", size)
	}
	if _, err := v.r.ReadAt(start, 0); err != nil {
		return err
	}
	var h header
	if _, err := binary.Decode(start, binary.BigEndian, &h); err != nil {
		return err
	}
	if h.Size == 0 || h.Size%SectorSize != 0 || h.Size > maxSize {
		return fmt.Errorf("a disk of %d bytes", h.Size)
	}
	v.size, v.id = int64(h.Size), h.ID
	clusters := size / ClusterSize
	entries := ceil(v.size, ClusterSize*l2Entries)
	if entries*8 > size {
		return fmt.Errorf("a disk of %d bytes in a file of %d: it may be cut off", v.size, size)
	}
	// The L1 table says how many L2 tables there are, and with that the layout
	// follows.
	v.root = make([]uint64, entries)
	if h.L1Offset > uint64(size-entries*8) {
		return errors.New("the header is damaged")
	}
	if err := v.read64(v.root, int64(h.L1Offset)); err != nil {
		return err
	}
	var tables int64
	for _, e := range v.root {
		if e != 0 {
			tables++
		}
	}
	v.layout = plan(v.size, int64(h.L1Offset)/ClusterSize-tables, tables)
	if v.layout.l2 < 1 || !bytes.Equal(start, v.layout.header(v.size, v.id)) {
		return errors.New("the header is damaged")
	}
	if v.layout.end != clusters {
		return fmt.Errorf("the file has %d clusters and should have %d", clusters, v.layout.end)
	}
	refTable := make([]uint64, v.layout.refRootSize*ClusterSize/8)
	if err := v.read64(refTable, v.layout.refRoot*ClusterSize); err != nil {
		return err
	}
	for i, want := range append(v.layout.refTable(), make([]uint64, len(refTable))...)[:len(refTable)] {
		if refTable[i] != want {
			return errors.New("the refcount table is damaged")
		}
	}
	v.refs = make([]byte, v.layout.refBlockCount*ClusterSize)
	_, err := v.r.ReadAt(v.refs, v.layout.refBlocks*ClusterSize)
	return err
}

func (v *Reader) read64(to []uint64, at int64) error {
	b := make([]byte, 8*len(to))
	if _, err := v.r.ReadAt(b, at); err != nil {
		return err
	}
	for i := range to {
		to[i] = binary.BigEndian.Uint64(b[8*i:])
	}
	return nil
}

// Size is that of the disk, in bytes.
func (v *Reader) Size() int64 { return v.size }

// Walk hands over every cluster that is stored, in ascending order, and fails at
// the first thing that is not as it should be; the refcounts are compared at the
// end. The data is valid during the call.
func (v *Reader) Walk(visit func(offset int64, data []byte) error) error {
	w := &Writer{refs: []uint16{1}, places: newAllocator()} // allocates and counts
	next := v.layout.l2
	table := make([]uint64, l2Entries)
	for i, entry := range v.root {
		if entry == 0 {
			continue
		}
		if entry != uint64(next*ClusterSize)|copied {
			return fmt.Errorf("entry %d of the L1 table is %#x", i, entry)
		}
		if err := v.read64(table, next*ClusterSize); err != nil {
			return err
		}
		next++
		for j, entry := range table {
			if entry == 0 {
				continue
			}
			index := int64(i)*l2Entries + int64(j)
			data, err := v.cluster(w, entry)
			if err != nil {
				return fmt.Errorf("cluster %d: %w", index, err)
			}
			offset := index * ClusterSize
			if offset >= v.size {
				return fmt.Errorf("cluster %d is behind the end of the disk", index)
			}
			if err := visit(offset, data[:min(ClusterSize, v.size-offset)]); err != nil {
				return err
			}
		}
	}
	if w.places.next != v.layout.l2 {
		return errors.New("there is something between the data and the tables")
	}
	l1End := v.layout.l1*ClusterSize + 8*v.layout.l1Entries
	for _, g := range append(w.places.gaps, gap{l1End, v.layout.refBlocks * ClusterSize}) {
		if err := v.checkGap(g); err != nil {
			return err
		}
	}
	if !bytes.Equal(w.refBlocks(v.layout), v.refs) {
		return errors.New("the refcounts are wrong")
	}
	return nil
}

// checkGap wants zeros.
func (v *Reader) checkGap(g gap) error {
	b := make([]byte, g.to-g.from)
	if _, err := v.r.ReadAt(b, g.from); err != nil {
		return err
	}
	if len(bytes.Trim(b, "\x00")) != 0 {
		return fmt.Errorf("what fills up the cluster at %#x is not zero", g.from)
	}
	return nil
}

// CheckID compares the ID in the header with the one that Close was given.
func (v *Reader) CheckID(id [16]byte) error {
	if v.id != id {
		return errors.New("its content is not that of its ID: one of them has changed")
	}
	return nil
}

// cluster reads the cluster of an L2 entry, which has to be where the writer
// would have put it.
func (v *Reader) cluster(w *Writer, entry uint64) ([]byte, error) {
	if entry&compressed == 0 {
		offset := w.places.plain()
		if entry != uint64(offset)|copied || offset >= v.layout.l2*ClusterSize {
			return nil, fmt.Errorf("its L2 entry is %#x", entry)
		}
		w.count(offset / ClusterSize)
		data := make([]byte, ClusterSize)
		_, err := v.r.ReadAt(data, offset)
		return data, err
	}
	offset := int64(entry & (1<<sectorsShift - 1))
	if offset >= v.layout.l2*ClusterSize {
		return nil, fmt.Errorf("its L2 entry is %#x", entry)
	}
	packed := make([]byte, min(ClusterSize, v.layout.l2*ClusterSize-offset))
	if _, err := v.r.ReadAt(packed, offset); err != nil {
		return nil, err
	}
	in := bytes.NewReader(packed) // a ByteReader: no byte too many is taken
	data := make([]byte, ClusterSize+1)
	n, err := io.ReadFull(flate.NewReader(in), data)
	if n != ClusterSize || err != io.ErrUnexpectedEOF {
		return nil, fmt.Errorf("it has %d bytes (%w)", n, err)
	}
	length := int64(len(packed) - in.Len())
	if want := w.places.compressed(length); entry != compressedEntry(want, length) {
		return nil, fmt.Errorf("its L2 entry is %#x; its %d bytes should be at %#x", entry, length, want)
	}
	for first, last := span(offset, length); first <= last; first++ {
		w.count(first)
	}
	for _, g := range w.places.full {
		if err := v.checkGap(g); err != nil {
			return nil, err
		}
	}
	w.places.full = nil
	return data[:ClusterSize], nil
}
