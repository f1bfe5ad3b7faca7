package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode/utf16"
)

// Boot loaders read a file system as it lies there: they replay no journal and
// do not ask whether it is clean, and of two FATs they know the first. So do
// these readers; libraries refuse what a boot loader takes.

// A file is where the content of a file lies on the disk.
type file struct {
	pieces []piece
	size   int64
}

// A piece is consecutive bytes of a file.
type piece struct {
	at   int64 // of the disk, or hole
	size int64
}

// hole is the place of a piece that is nothing but zeros.
const hole = -1

// A volume is a file system on a partition that starts at a place of the disk.
type volume interface {
	root() (file, error)
	// lookup finds a name in a folder.
	lookup(dir []byte, name string) (file, error)
}

// find walks a path of slashes.
func find(v *view, vol volume, path string) (file, error) {
	f, err := vol.root()
	for name := range strings.SplitSeq(path, "/") {
		if err != nil {
			break
		}
		var dir []byte
		if dir, err = f.read(v); err == nil {
			f, err = vol.lookup(dir, name)
		}
	}
	if err != nil {
		return file{}, fmt.Errorf("/%s: %w", path, err)
	}
	return f, nil
}

// read returns the content of a small file.
func (f file) read(v *view) ([]byte, error) {
	const most = 4 << 20
	if f.size > most {
		return nil, fmt.Errorf("it has %d bytes, which is too large for what it is", f.size)
	}
	return io.ReadAll(f.reader(v))
}

func (f file) reader(v *view) io.Reader {
	var parts []io.Reader
	for _, p := range f.pieces {
		if p.at == hole {
			parts = append(parts, io.LimitReader(zeros{}, p.size))
		} else {
			parts = append(parts, io.NewSectionReader(v, p.at, p.size))
		}
	}
	return io.LimitReader(io.MultiReader(parts...), f.size)
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// add appends a block, to the last piece if it follows it.
func (f *file) add(at, size int64) {
	if n := len(f.pieces); n > 0 {
		last := &f.pieces[n-1]
		if at == hole && last.at == hole || at != hole && last.at != hole && last.at+last.size == at {
			last.size += size
			return
		}
	}
	f.pieces = append(f.pieces, piece{at, size})
}

var errDamaged = errors.New("the file system is damaged")

// ext2 is a file system without extents (Linux: fs/ext2/ext2.h).
type ext2 struct {
	v         *view
	start     int64 // on the disk
	block     int64 // bytes
	blocks    uint32
	first     uint32 // block of the superblock
	perGroup  uint32 // inodes
	inodes    uint32
	inodeSize int64
}

const (
	ext2Magic    = 0xef53
	ext2Root     = 2 // inode
	ext2Filetype = 0x2
	ext2Recover  = 0x4 // a journal must be replayed, which GRUB does not do
	inodeBytes   = 128 // as much of an inode as this reads
)

func openExt2(v *view, start int64) (*ext2, error) {
	b := make([]byte, 1024)
	if _, err := v.ReadAt(b, start+1024); err != nil {
		return nil, err
	}
	u16, u32 := binary.LittleEndian.Uint16, binary.LittleEndian.Uint32
	if u16(b[56:]) != ext2Magic {
		return nil, errors.New("no ext2 file system")
	}
	if unknown := u32(b[96:]) &^ (ext2Filetype | ext2Recover); unknown != 0 {
		return nil, fmt.Errorf("the file system has unknown features %#x", unknown)
	}
	e := &ext2{v: v, start: start, inodes: u32(b), blocks: u32(b[4:]), first: u32(b[20:]), perGroup: u32(b[40:]), inodeSize: 128}
	if u32(b[76:]) > 0 {
		e.inodeSize = int64(u16(b[88:]))
	}
	shift := u32(b[24:])
	if shift > 2 || e.perGroup == 0 || e.inodeSize < inodeBytes {
		return nil, errDamaged
	}
	e.block = 1024 << shift
	return e, nil
}

func (e *ext2) root() (file, error) { return e.inode(ext2Root) }

func (e *ext2) lookup(dir []byte, name string) (file, error) {
	for len(dir) >= 8 {
		size, length := int(binary.LittleEndian.Uint16(dir[4:])), int(dir[6])
		if size < 8+length || size > len(dir) {
			return file{}, errDamaged
		}
		if n := binary.LittleEndian.Uint32(dir); n != 0 && string(dir[8:8+length]) == name {
			return e.inode(n)
		}
		dir = dir[size:]
	}
	return file{}, fs.ErrNotExist
}

// inode is the file with a number.
func (e *ext2) inode(n uint32) (file, error) {
	if n == 0 || n > e.inodes {
		return file{}, errDamaged
	}
	group, index := (n-1)/e.perGroup, (n-1)%e.perGroup
	b := make([]byte, 32)
	if _, err := e.v.ReadAt(b, e.start+(int64(e.first)+1)*e.block+int64(group)*32); err != nil {
		return file{}, err
	}
	table := int64(binary.LittleEndian.Uint32(b[8:])) * e.block
	b = make([]byte, inodeBytes)
	if _, err := e.v.ReadAt(b, e.start+table+int64(index)*e.inodeSize); err != nil {
		return file{}, err
	}
	f := file{size: int64(binary.LittleEndian.Uint32(b[4:]))}
	if f.size > int64(e.blocks)*e.block {
		return file{}, errDamaged
	}
	left := f.size
	for i := range 15 {
		if err := e.follow(&f, &left, binary.LittleEndian.Uint32(b[40+4*i:]), max(0, i-11)); err != nil {
			return file{}, err
		}
	}
	return f, nil
}

// follow adds the blocks below a pointer that is so many levels above data.
func (e *ext2) follow(f *file, left *int64, n uint32, level int) error {
	switch {
	case *left <= 0:
		return nil
	case n >= e.blocks:
		return errDamaged
	case level == 0 && n == 0:
		f.add(hole, e.block)
	case level == 0:
		f.add(e.start+int64(n)*e.block, e.block)
	}
	if level == 0 {
		*left -= e.block
		return nil
	}
	pointers := make([]byte, e.block)
	if n != 0 {
		if _, err := e.v.ReadAt(pointers, e.start+int64(n)*e.block); err != nil {
			return err
		}
	}
	for ; len(pointers) > 0; pointers = pointers[4:] {
		if err := e.follow(f, left, binary.LittleEndian.Uint32(pointers), level-1); err != nil {
			return err
		}
	}
	return nil
}

// fat32 is a FAT file system with 32 bits a cluster (Microsoft: fatgen103).
type fat32 struct {
	v        *view
	fat      int64 // the first FAT, on the disk
	fatSize  int64
	data     int64 // cluster 2
	cluster  int64 // bytes
	rootFrom uint32
}

func openFAT32(v *view, start int64) (*fat32, error) {
	b := make([]byte, sector)
	if _, err := v.ReadAt(b, start); err != nil {
		return nil, err
	}
	u16, u32 := binary.LittleEndian.Uint16, binary.LittleEndian.Uint32
	if b[510] != 0x55 || b[511] != 0xaa || u16(b[11:]) != uint16(sector) || b[13] == 0 || u16(b[22:]) != 0 {
		return nil, errors.New("no FAT32 file system")
	}
	f := &fat32{v: v, fat: start + int64(u16(b[14:]))*sector, fatSize: int64(u32(b[36:])) * sector, cluster: int64(b[13]) * sector, rootFrom: u32(b[44:])}
	f.data = f.fat + int64(b[16])*f.fatSize
	return f, nil
}

// unknownSize is what a folder says about its size; it has mostFolder at most
// (65536 entries of 32 bytes).
const (
	unknownSize = -1
	mostFolder  = 2 << 20
)

func (f *fat32) root() (file, error) { return f.chain(f.rootFrom, unknownSize) }

// chain is the file that starts at a cluster.
func (f *fat32) chain(cluster uint32, size int64) (file, error) {
	const end = 0x0ffffff8
	var chain file
	b := make([]byte, 4)
	for length := int64(0); cluster < end && (size == unknownSize || length < size); length += f.cluster {
		if cluster < 2 || int64(cluster)*4 >= f.fatSize || length > f.fatSize/4*f.cluster || size == unknownSize && length >= mostFolder {
			return file{}, errDamaged
		}
		chain.add(f.data+int64(cluster-2)*f.cluster, f.cluster)
		chain.size += f.cluster
		if _, err := f.v.ReadAt(b, f.fat+int64(cluster)*4); err != nil {
			return file{}, err
		}
		cluster = binary.LittleEndian.Uint32(b) & 0x0fffffff
	}
	if size != unknownSize {
		if chain.size < size {
			return file{}, errDamaged
		}
		chain.size = size
	}
	return chain, nil
}

func (f *fat32) lookup(dir []byte, name string) (file, error) {
	const (
		entry    = 32
		deleted  = 0xe5
		longName = 0x0f // an attribute
		isLabel  = 0x08
		isFolder = 0x10
	)
	var long []uint16
	for ; len(dir) >= entry && dir[0] != 0; dir = dir[entry:] {
		attributes := dir[11]
		if dir[0] == deleted {
			long = nil
			continue
		}
		if attributes == longName { // The parts come last part first.
			long = append(longPart(dir), long...)
			continue
		}
		text := shortName(dir)
		if long != nil {
			text = string(utf16.Decode(long))
		}
		long = nil
		if attributes&isLabel != 0 || !strings.EqualFold(text, name) {
			continue
		}
		u16 := binary.LittleEndian.Uint16
		cluster, size := uint32(u16(dir[20:]))<<16|uint32(u16(dir[26:])), int64(binary.LittleEndian.Uint32(dir[28:]))
		if attributes&isFolder != 0 {
			size = unknownSize
		}
		return f.chain(cluster, size)
	}
	return file{}, fs.ErrNotExist
}

// longPart is the 13 characters of an entry of a long name.
func longPart(entry []byte) []uint16 {
	var part []uint16
	for _, at := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
		u := binary.LittleEndian.Uint16(entry[at:])
		if u == 0 {
			break
		}
		part = append(part, u)
	}
	return part
}

func shortName(entry []byte) string {
	name := strings.TrimRight(string(entry[:8]), " ")
	if extension := strings.TrimRight(string(entry[8:11]), " "); extension != "" {
		name += "." + extension
	}
	return name
}
