// Package powercut proves that no power cut bricks a machine: it replays the
// log of everything that a plan wrote to a disk, makes the disk as a cut may
// leave it at each moment, and judges what would boot from it.
package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"appplatform/partitions"
)

// sector is what a disk writes whole or not at all.
const sector = int64(partitions.Sector)

// Kind is what an entry of the log does.
type Kind string

// The kinds of entries.
const (
	Write   Kind = "write"
	Zero    Kind = "zero"    // a write of nothing but zeros
	Discard Kind = "discard" // Such sectors read as zeros, as QEMU's do.
	Flush   Kind = "flush"   // All entries before it are on the disk for good.
)

// An Entry is a request that the disk has completed. They are in the order of
// their completion.
type Entry struct {
	Kind    Kind
	Sector  int64 // of the disk
	Sectors int64
	FUA     bool  // a write that needs no flush to be on the disk for good
	data    int64 // where the log holds it
}

// span is the part of the disk that the entry changes, in bytes.
func (e Entry) span() span { return span{e.Sector * sector, (e.Sector + e.Sectors) * sector} }

// A Log is what was written to a disk.
type Log struct {
	Entries []Entry
	r       io.ReaderAt
}

// The format of the log (Linux: drivers/md/dm-log-writes.c; QEMU writes the
// same: block/blklogwrites.c). Numbers are in little endian. The first sector
// is the superblock: magic, version, number of entries, size of a sector. Then,
// for each entry, a sector with its place, length in sectors, flags and length
// of a mark's text; then the data. QEMU writes an entry when the request is
// complete and stores zeros that a machine asked for as data.
const (
	logMagic   = 0x6a736677736872
	logVersion = 1

	flagFlush    = 1 << 0
	flagFUA      = 1 << 1
	flagDiscard  = 1 << 2
	flagMark     = 1 << 3
	flagMetadata = 1 << 4

	entriesAt     = 16 // of the superblock
	superblockEnd = 28
	entryEnd      = 32
)

// ReadLog reads a log up to the number of entries that its superblock says.
func ReadLog(r io.ReaderAt) (*Log, error) {
	l := &Log{r: r}
	if err := l.read(); err != nil {
		return nil, fmt.Errorf("cannot read the log of writes: %w", err)
	}
	return l, nil
}

// CountEntries is how many entries a log has that is being written.
func CountEntries(r io.ReaderAt) (int, error) {
	b := make([]byte, 8)
	if _, err := r.ReadAt(b, entriesAt); err != nil && err != io.EOF {
		return 0, fmt.Errorf("cannot read the log of writes: %w", err)
	}
	return int(binary.LittleEndian.Uint64(b)), nil
}

func (l *Log) read() error {
	b := make([]byte, superblockEnd)
	if _, err := l.r.ReadAt(b, 0); err != nil {
		return err
	}
	u64 := binary.LittleEndian.Uint64
	if u64(b) != logMagic || u64(b[8:]) != logVersion {
		return errors.New("it is not one of version 1")
	}
	if size := binary.LittleEndian.Uint32(b[24:]); int64(size) != sector {
		return fmt.Errorf("its sectors have %d bytes, not %d", size, sector)
	}
	count, at := u64(b[entriesAt:]), sector
	b = make([]byte, entryEnd)
	for n := range count {
		if _, err := l.r.ReadAt(b, at); err != nil {
			return fmt.Errorf("entry %d of %d: %w", n, count, err)
		}
		entries, length, err := decode(b, at+sector)
		if err != nil {
			return fmt.Errorf("entry %d: %w", n, err)
		}
		for _, e := range entries {
			if e.Kind, err = l.kind(e); err != nil {
				return fmt.Errorf("entry %d: %w", n, err)
			}
			l.Entries = append(l.Entries, e)
		}
		at += sector + length
	}
	return nil
}

// decode reads an entry whose data are at a place of the log. A write that
// flushes first is two entries here.
func decode(b []byte, data int64) (entries []Entry, length int64, err error) {
	place, sectors := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	flags, text := binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	const most = 1 << 40 // sectors: 512 TiB, far from where sums overflow
	if place > most || sectors > most || text > most {
		return nil, 0, errors.New("it lies beyond the end of every disk")
	}
	if flags&^(flagFlush|flagFUA|flagDiscard|flagMark|flagMetadata) != 0 {
		return nil, 0, fmt.Errorf("unknown flags %#x", flags)
	}
	if flags&flagMark != 0 {
		return nil, (int64(text) + sector - 1) / sector * sector, nil
	}
	if flags&flagFlush != 0 {
		entries = append(entries, Entry{Kind: Flush})
	}
	if sectors == 0 {
		return entries, 0, nil
	}
	e := Entry{Kind: Write, Sector: int64(place), Sectors: int64(sectors), FUA: flags&flagFUA != 0, data: data}
	if flags&flagDiscard != 0 {
		e.Kind = Discard
		return append(entries, e), 0, nil
	}
	return append(entries, e), e.Sectors * sector, nil
}

// kind finds the large writes that are only zeros, which nobody needs to copy,
// and data that are missing.
func (l *Log) kind(e Entry) (Kind, error) {
	if e.Kind != Write {
		return e.Kind, nil
	}
	if err := l.readAt(e, make([]byte, 1), e.span().to-1); err != nil {
		return "", err
	}
	const large = 4 << 20 / sector
	if e.Sectors < large {
		return Write, nil
	}
	b := make([]byte, 1<<20)
	for at := e.span().from; at < e.span().to; at += int64(len(b)) {
		b = b[:min(int64(len(b)), e.span().to-at)]
		if err := l.readAt(e, b, at); err != nil {
			return "", err
		}
		if !isZero(b) {
			return Write, nil
		}
	}
	return Zero, nil
}

// readAt reads what an entry puts at a place of the disk within it.
func (l *Log) readAt(e Entry, b []byte, at int64) error {
	if e.Kind != Write {
		clear(b)
		return nil
	}
	_, err := l.r.ReadAt(b, e.data+at-e.Sector*sector)
	return err
}

// Without is the log without an entry, as if nobody had asked for it.
func (l *Log) Without(n int) *Log {
	return &Log{slices.Delete(slices.Clone(l.Entries), n, n+1), l.r}
}

// Moved is the log with an entry at the place of another one, as if the steps
// of the plan were in another order.
func (l *Log) Moved(from, to int) *Log {
	e := l.Entries[from]
	return &Log{slices.Insert(l.Without(from).Entries, to, e), l.r}
}
