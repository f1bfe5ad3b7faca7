package vmdk

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"regexp"
)

// A Reader reads a disk that this package could have written, and says what is
// wrong with any other.
type Reader struct {
	r    io.ReaderAt
	head header
	id   [16]byte
	dir  []uint32
	end  int64 // of grains and tables, in bytes
}

// Open checks the disk's header, descriptor and footer. size is the file's.
func Open(r io.ReaderAt, size int64) (*Reader, error) {
	v := &Reader{r: r}
	if err := v.open(size); err != nil {
		return nil, fmt.Errorf("not a sound streamOptimized VMDK: %w", err)
	}
	return v, nil
}

func (v *Reader) open(size int64) error {
	// Header, and at the end footer and end marker.
	if size < (overhead+4)*SectorSize || size%SectorSize != 0 {
		return fmt.Errorf("a file of %d bytes", size)
	}
	begin := make([]byte, overhead*SectorSize)
	if _, err := v.r.ReadAt(begin, 0); err != nil {
		return err
	}
	if _, err := binary.Decode(begin, binary.LittleEndian, &v.head); err != nil {
		return err
	}
	h := v.head
	if !bytes.Equal(begin[:SectorSize], newHeader(h.Capacity, atEnd).encode()) {
		return errors.New("the header is none of streamOptimized disks, or is damaged")
	}
	if h.Capacity == 0 || h.Capacity > 1<<40 {
		return fmt.Errorf("a capacity of %d sectors", h.Capacity)
	}
	if err := v.readDescriptor(begin); err != nil {
		return err
	}
	end := make([]byte, 3*SectorSize)
	if _, err := v.r.ReadAt(end, size-int64(len(end))); err != nil {
		return err
	}
	var footer header
	if _, err := binary.Decode(end[SectorSize:], binary.LittleEndian, &footer); err != nil {
		return err
	}
	if !bytes.Equal(end[:SectorSize], marker(markerFooter, 1)) || !bytes.Equal(end[2*SectorSize:], marker(markerEnd, 0)) ||
		!bytes.Equal(end[SectorSize:2*SectorSize], newHeader(h.Capacity, footer.DirectoryOffset).encode()) {
		return errors.New("the footer is missing or damaged: the file may be cut off")
	}
	return v.readDirectory(footer.DirectoryOffset, size-int64(len(end)))
}

var descriptorPattern = regexp.MustCompile(`(?ms)^RW \d+ SPARSE "([^"\n]*)".*^ddb.longContentID = "([0-9a-f]{32})"$`)

// readDescriptor takes name and ID from the descriptor, from which everything
// else in it follows.
func (v *Reader) readDescriptor(begin []byte) error {
	m := descriptorPattern.FindSubmatch(begin[SectorSize:])
	if m == nil {
		return errors.New("the descriptor is damaged")
	}
	if _, err := hex.Decode(v.id[:], m[2]); err != nil {
		return err
	}
	if !bytes.Equal(begin, start(string(m[1]), v.head.Capacity, v.id)) {
		return errors.New("the descriptor is damaged, or says something else than the header")
	}
	return nil
}

// CheckID compares the disk's IDs with those that Close derives from id.
func (v *Reader) CheckID(id [16]byte) error {
	_, got := contentIDs(v.id)
	if _, want := contentIDs(id); got != want {
		return errors.New("its content is not that of its ID: one of them has changed")
	}
	return nil
}

// readDirectory reads the directory, which ends where the footer begins.
func (v *Reader) readDirectory(sector uint64, end int64) error {
	grains := (v.head.Capacity + grainSectors - 1) / grainSectors
	tables := (grains + tableEntries - 1) / tableEntries
	sectors := (tables*4 + SectorSize - 1) / SectorSize
	v.end = end - int64(sectors+1)*SectorSize
	if v.end < overhead*SectorSize || sector != uint64(end)/SectorSize-sectors {
		return errors.New("the directory is not where it belongs")
	}
	v.dir = make([]uint32, tables)
	b := make([]byte, (sectors+1)*SectorSize)
	if _, err := v.r.ReadAt(b, v.end); err != nil {
		return err
	}
	if !bytes.Equal(b[:SectorSize], marker(markerDirectory, sectors)) {
		return errors.New("the directory's marker is damaged")
	}
	decode32(v.dir, b[SectorSize:])
	if len(bytes.Trim(b[SectorSize+4*len(v.dir):], "\x00")) != 0 {
		return errors.New("something follows the directory")
	}
	return nil
}

func decode32(to []uint32, from []byte) {
	for i := range to {
		to[i] = binary.LittleEndian.Uint32(from[4*i:])
	}
}

// Size is that of the disk, in bytes.
func (v *Reader) Size() int64 { return int64(v.head.Capacity) * SectorSize }

// Walk hands over every grain that is stored, in ascending order, and fails at
// the first thing that is not as it should be. The data is valid during the call.
func (v *Reader) Walk(visit func(offset int64, data []byte) error) error {
	next := int64(overhead * SectorSize)
	table := make([]uint32, tableEntries)
	for t, sector := range v.dir {
		if sector == 0 {
			continue
		}
		at := int64(sector) * SectorSize
		b := make([]byte, (1+tableSectors)*SectorSize)
		if at < next || at+tableSectors*SectorSize > v.end {
			return fmt.Errorf("table %d lies outside of the data", t)
		}
		if _, err := v.r.ReadAt(b, at-SectorSize); err != nil {
			return err
		}
		if !bytes.Equal(b[:SectorSize], marker(markerTable, tableSectors)) {
			return fmt.Errorf("the marker of table %d is damaged", t)
		}
		decode32(table, b[SectorSize:])
		for i, sector := range table {
			if sector == 0 {
				continue
			}
			index := int64(t)*tableEntries + int64(i)
			if int64(sector)*SectorSize != next {
				return fmt.Errorf("grain %d is not where the one before it ends", index)
			}
			data, end, err := v.grain(index, next)
			if err != nil {
				return fmt.Errorf("grain %d: %w", index, err)
			}
			if err := visit(index*GrainSize, data[:min(GrainSize, v.Size()-index*GrainSize)]); err != nil {
				return err
			}
			next = end
		}
		if next != at-SectorSize {
			return fmt.Errorf("table %d does not follow its last grain", t)
		}
		next = at + tableSectors*SectorSize
	}
	if next != v.end {
		return errors.New("there is something between the last table and the directory")
	}
	return nil
}

// grain reads one grain and says where it ends.
func (v *Reader) grain(index, at int64) (data []byte, end int64, err error) {
	head := make([]byte, 12)
	if _, err := v.r.ReadAt(head, at); err != nil {
		return nil, 0, err
	}
	if lba := binary.LittleEndian.Uint64(head); lba != uint64(index)*grainSectors {
		return nil, 0, fmt.Errorf("it says that it belongs to sector %d", lba)
	}
	size := int64(binary.LittleEndian.Uint32(head[8:]))
	end = (at + 12 + size + SectorSize - 1) / SectorSize * SectorSize
	if size == 0 || size > 2*GrainSize || end > v.end {
		return nil, 0, fmt.Errorf("a size of %d bytes", size)
	}
	packed := make([]byte, end-at-12)
	if _, err := v.r.ReadAt(packed, at+12); err != nil {
		return nil, 0, err
	}
	if len(bytes.Trim(packed[size:], "\x00")) != 0 {
		return nil, 0, errors.New("what fills up its last sector is not zero")
	}
	in := bytes.NewReader(packed[:size])
	z, err := zlib.NewReader(in)
	if err != nil {
		return nil, 0, err
	}
	data = make([]byte, GrainSize)
	if _, err := io.ReadFull(z, data); err != nil {
		return nil, 0, err
	}
	if n, err := z.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		return nil, 0, fmt.Errorf("more than %d bytes in it (%v)", GrainSize, err)
	}
	if in.Len() != 0 {
		return nil, 0, errors.New("something follows its data")
	}
	return data, end, nil
}
