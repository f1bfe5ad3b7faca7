package vhdx

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
	r    io.ReaderAt
	size int64
	id   [16]byte // without the bits that GUIDs have for themselves
	bat  []uint64
}

// Open checks everything but the payload. size is the file's.
func Open(r io.ReaderAt, size int64) (*Reader, error) {
	v := &Reader{r: r}
	if err := v.open(size); err != nil {
		return nil, fmt.Errorf("not a sound dynamic VHDX: %w", err)
	}
	return v, nil
}

func (v *Reader) open(size int64) error {
	head := make([]byte, batOffset)
	if _, err := io.ReadFull(io.NewSectionReader(v.r, 0, size), head); err != nil {
		return fmt.Errorf("a file of %d bytes (%w)", size, err)
	}
	if !bytes.HasPrefix(head, []byte("vhdxfile")) {
		return errors.New("the file type identifier is another one")
	}
	// Everything else follows from the size and the ID, which are in it.
	v.size = int64(binary.LittleEndian.Uint64(head[metadataOffset+tableSize+8:]))
	if v.size <= 0 || v.size%SectorSize != 0 || v.size > MaxSize {
		return fmt.Errorf("a disk of %d bytes", v.size)
	}
	guid := guid(head[headerOffsets[0]+16:][:16])
	v.id = guid.decode()
	v.id[0] ^= fileWriteGUID
	want := start(v.size, v.id)
	for i := range want {
		if head[i] != want[i] {
			return fmt.Errorf("headers, region tables or metadata are damaged at byte %d", i)
		}
	}
	return v.readBAT(size)
}

// readBAT wants blocks to lie behind each other up to the end of the file.
func (v *Reader) readBAT(size int64) error {
	next := batOffset + batRegionSize(v.size)
	if size < next {
		return fmt.Errorf("a file of %d bytes: its BAT is cut off", size)
	}
	b := make([]byte, next-batOffset)
	if _, err := v.r.ReadAt(b, batOffset); err != nil {
		return err
	}
	v.bat = make([]uint64, batEntries(v.size))
	for i := range v.bat {
		v.bat[i] = binary.LittleEndian.Uint64(b[8*i:])
		switch bitmap := i%(chunkRatio+1) == chunkRatio; {
		case v.bat[i] == 0:
		case bitmap || v.bat[i] != uint64(next)|blockFullyPresent:
			return fmt.Errorf("BAT entry %d is %#x", i, v.bat[i])
		default:
			next += BlockSize
		}
	}
	if len(bytes.Trim(b[8*len(v.bat):], "\x00")) != 0 {
		return errors.New("something follows the BAT")
	}
	if next != size {
		return fmt.Errorf("the file has %d bytes and should have %d", size, next)
	}
	return nil
}

// CheckID compares the GUIDs with those that Close derives from id.
func (v *Reader) CheckID(id [16]byte) error {
	if derive(v.id, diskGUID) != derive(id, diskGUID) {
		return errors.New("its content is not that of its ID: one of them has changed")
	}
	return nil
}

// Size is that of the disk, in bytes.
func (v *Reader) Size() int64 { return v.size }

// Walk hands over every block that is stored, in ascending order. The data is
// valid during the call.
func (v *Reader) Walk(visit func(offset int64, data []byte) error) error {
	buf := make([]byte, BlockSize)
	for block := int64(0); block*BlockSize < v.size; block++ {
		entry := v.bat[batIndex(block)]
		if entry == 0 {
			continue
		}
		if _, err := v.r.ReadAt(buf, int64(entry&^(BlockSize-1))); err != nil {
			return err
		}
		data := buf[:min(BlockSize, v.size-block*BlockSize)]
		if len(bytes.Trim(buf[len(data):], "\x00")) != 0 {
			return errors.New("there are data behind the end of the disk")
		}
		if err := visit(block*BlockSize, data); err != nil {
			return err
		}
	}
	return nil
}
