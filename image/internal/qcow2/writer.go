package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A Writer writes one disk. Clusters come in ascending order; those that are
// left out read as zeros.
type Writer struct {
	f      io.WriterAt
	size   int64
	places allocator
	last   int64 // cluster of the disk
	tables [][]uint64
	refs   []uint16 // by host cluster
}

// NewWriter begins a disk of so many bytes, a multiple of 512.
func NewWriter(f io.WriterAt, size int64) (*Writer, error) {
	if size <= 0 || size%SectorSize != 0 || size > maxSize {
		return nil, fmt.Errorf("cannot write a qcow2 of %d bytes: not a positive multiple of %d, or too large", size, SectorSize)
	}
	return &Writer{
		f: f, size: size, places: newAllocator(), last: -1,
		tables: make([][]uint64, ceil(size, ClusterSize*l2Entries)), refs: []uint16{1},
	}, nil
}

// WriteCluster stores the cluster at index, which is the number of clusters
// before it: its ClusterSize bytes, of which the last cluster of a disk may have
// less, or the same as a deflate stream (RFC 1951) that refers back by no more
// than Window, if that is shorter.
func (w *Writer) WriteCluster(index int64, data, stream []byte) error {
	if index <= w.last || index*ClusterSize >= w.size || len(data) > ClusterSize {
		return fmt.Errorf("internal error: cluster %d of %d bytes after %d, of a disk of %d bytes", index, len(data), w.last, w.size)
	}
	w.last = index
	table := &w.tables[index/l2Entries]
	if *table == nil {
		*table = make([]uint64, l2Entries)
	}
	entry := &(*table)[index%l2Entries]
	// Readers other than QEMU's want compressed clusters to be smaller.
	if len(stream) >= ClusterSize {
		offset := w.places.plain()
		*entry = uint64(offset) | copied
		w.count(offset / ClusterSize)
		_, err := w.f.WriteAt(data, offset)
		return err
	}
	length := int64(len(stream))
	offset := w.places.compressed(length)
	w.places.full = nil // They are holes in the file.
	*entry = compressedEntry(offset, length)
	for first, last := span(offset, length); first <= last; first++ {
		w.count(first)
	}
	_, err := w.f.WriteAt(stream, offset)
	return err
}

func compressedEntry(offset, length int64) uint64 {
	sectors := (offset+length-1)/SectorSize - offset/SectorSize
	return compressed | uint64(sectors)<<sectorsShift | uint64(offset)
}

func (w *Writer) count(cluster int64) {
	for int64(len(w.refs)) <= cluster {
		w.refs = append(w.refs, 0)
	}
	w.refs[cluster]++
}

// Close writes the tables and, as the last thing, the header. id is derived from
// the content: the same for the same disk.
func (w *Writer) Close(id [16]byte) error {
	var tables int64
	for _, t := range w.tables {
		if t != nil {
			tables++
		}
	}
	l := plan(w.size, w.places.next, tables)
	root := make([]uint64, l.l1Entries)
	next := l.l2
	for i, t := range w.tables {
		if t == nil {
			continue
		}
		root[i] = uint64(next*ClusterSize) | copied
		if err := w.write(next, encode64(t)); err != nil {
			return err
		}
		next++
	}
	return errors.Join(
		w.write(l.l1, encode64(root)),
		w.write(l.refBlocks, w.refBlocks(l)),
		w.write(l.refRoot, encode64(l.refTable())),
		w.write(0, l.header(w.size, id)))
}

// write writes whole clusters, filled up with zeros.
func (w *Writer) write(cluster int64, b []byte) error {
	b = append(b, make([]byte, ceil(int64(len(b)), ClusterSize)*ClusterSize-int64(len(b)))...)
	_, err := w.f.WriteAt(b, cluster*ClusterSize)
	return err
}

func (l layout) refTable() []uint64 {
	t := make([]uint64, l.refBlockCount)
	for i := range t {
		t[i] = uint64((l.refBlocks + int64(i)) * ClusterSize)
	}
	return t
}

// refBlocks are the refcounts: of data as counted, of tables 1.
func (w *Writer) refBlocks(l layout) []byte {
	b := make([]byte, 0, l.refBlockCount*ClusterSize)
	for i := range l.end {
		ref := uint16(1)
		if i < l.l2 {
			ref = w.refs[i]
		}
		b = binary.BigEndian.AppendUint16(b, ref)
	}
	return b[:cap(b)]
}
