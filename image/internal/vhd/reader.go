package vhd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A Reader reads a disk that this package could have written, and says what is
// wrong with any other.
type Reader struct {
	r     io.ReaderAt
	size  int64
	id    [16]byte
	table []uint32
}

// Open checks everything but the blocks. size is the file's.
func Open(r io.ReaderAt, size int64) (*Reader, error) {
	v := &Reader{r: r}
	if err := v.open(size); err != nil {
		return nil, fmt.Errorf("not a sound dynamic VHD: %w", err)
	}
	return v, nil
}

func (v *Reader) open(size int64) error {
	start := make([]byte, tableOffset)
	if _, err := io.ReadFull(io.NewSectionReader(v.r, 0, size), start); err != nil {
		return fmt.Errorf("a file of %d bytes (%w)", size, err)
	}
	// Everything else follows from the size and the ID, which are in it.
	v.size = int64(binary.BigEndian.Uint64(start[48:]))
	if v.size <= 0 || v.size%SectorSize != 0 || v.size > MaxSize {
		return fmt.Errorf("a disk of %d bytes", v.size)
	}
	v.id = [16]byte(start[68:])
	foot := footer(v.size, v.id)
	if !bytes.Equal(start[:headerOffset], foot) {
		return errors.New("the copy of the footer is damaged")
	}
	if !bytes.Equal(start[headerOffset:], header(v.size)) {
		return errors.New("the dynamic disk header is damaged")
	}
	last := make([]byte, SectorSize)
	if _, err := v.r.ReadAt(last, size-SectorSize); err != nil {
		return err
	}
	if !bytes.Equal(last, foot) {
		return errors.New("the footer is missing or damaged: the file may be cut off")
	}
	return v.readTable(size - SectorSize)
}

// readTable wants blocks to lie behind each other up to the footer.
func (v *Reader) readTable(end int64) error {
	next := tableOffset + tableSize(v.size)
	if end < next {
		return errors.New("the block allocation table is cut off")
	}
	b := make([]byte, next-tableOffset)
	if _, err := v.r.ReadAt(b, tableOffset); err != nil {
		return err
	}
	v.table = make([]uint32, entries(v.size))
	for i := range v.table {
		v.table[i] = binary.BigEndian.Uint32(b[4*i:])
		switch {
		case v.table[i] == unused:
		case int64(v.table[i])*SectorSize != next:
			return fmt.Errorf("block %d is at sector %d", i, v.table[i])
		default:
			next += bitmapSize + BlockSize
		}
	}
	if !bytes.Equal(b, encodeTable(v.table, v.size)) {
		return errors.New("something follows the block allocation table")
	}
	if next != end {
		return fmt.Errorf("the footer is at %d and should be at %d", end, next)
	}
	return nil
}

// CheckID compares the disk's ID with the one that Close was given.
func (v *Reader) CheckID(id [16]byte) error {
	if v.id != id {
		return errors.New("its content is not that of its ID: one of them has changed")
	}
	return nil
}

// Size is that of the disk, in bytes.
func (v *Reader) Size() int64 { return v.size }

// Walk hands over every block that is stored, in ascending order. The data is
// valid during the call.
func (v *Reader) Walk(visit func(offset int64, data []byte) error) error {
	buf := make([]byte, bitmapSize+BlockSize)
	for block, sector := range v.table {
		if sector == unused {
			continue
		}
		if _, err := v.r.ReadAt(buf, int64(sector)*SectorSize); err != nil {
			return err
		}
		if !bytes.Equal(buf[:bitmapSize], allPresent) {
			return fmt.Errorf("the bitmap of block %d leaves sectors out", block)
		}
		offset := int64(block) * BlockSize
		data := buf[bitmapSize:][:min(BlockSize, v.size-offset)]
		if len(bytes.Trim(buf[bitmapSize+len(data):], "\x00")) != 0 {
			return errors.New("there are data behind the end of the disk")
		}
		if err := visit(offset, data); err != nil {
			return err
		}
	}
	return nil
}
