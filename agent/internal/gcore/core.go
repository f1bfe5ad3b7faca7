package gcore

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A core is a core file before memory is written to it: the file's first bytes,
// and where it gets the parts of memory.
type core struct {
	head     []byte
	segments []segment
	page     uint64
}

// A segment is a mapping whose first size bytes lie at an offset of the file.
type segment struct {
	mapping
	size, offset uint64
}

// end is how long the file is.
func (c core) end() uint64 {
	last := c.segments[len(c.segments)-1]
	return last.offset + last.size
}

// needs is how much room the file takes at most: memory that was never written to
// takes none.
func (c core) needs() uint64 {
	sum := uint64(len(c.head))
	for _, s := range c.segments {
		if s.sparse() {
			sum += min(s.size, s.own)
		} else {
			sum += s.size
		}
	}
	return sum
}

// sparse reports whether the kernel can tell which of the pages there are. Pages
// of files are there even if nobody has read them yet.
func (s segment) sparse() bool { return s.inode == 0 && !s.fromKernel() }

// Sizes of the ELF header and of a program header, for 4 and 8 bytes a word.
var (
	headerSize  = map[int]uint64{4: 52, 8: 64}
	programSize = map[int]uint64{4: 32, 8: 56}
)

// plan lays out the file: ELF header, program headers, notes, and memory from a
// whole page on. Memory that is not saved has a program header, too.
func plan(p process) core {
	notes := p.notes()
	c := core{page: p.page}
	at := headerSize[p.word] + programSize[p.word]*uint64(len(p.maps)+1)
	first := at
	at = roundUp(at+uint64(len(notes)), p.page)
	for _, m := range p.maps {
		s := segment{m, m.saved(p.filter, p.page), at}
		at += s.size
		c.segments = append(c.segments, s)
	}
	r := p.header(len(p.maps) + 1)
	p.program(r, programHeader{kind: ptNote, offset: first, size: uint64(len(notes)), align: 4})
	for _, s := range c.segments {
		p.program(r, programHeader{ptLoad, s.rights(), s.offset, s.start, s.size, s.end - s.start, p.page})
	}
	c.head = append(r.b, notes...)
	return c
}

func roundUp(n, to uint64) uint64 { return (n + to - 1) / to * to }

// header is the ELF header of a core file with so many program headers.
func (m machine) header(programs int) *record {
	r := &record{word: m.word}
	r.bytes([]byte{0x7f, 'E', 'L', 'F', byte(m.word / 4), 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	r.u16(4) // ET_CORE
	r.u16(uint64(m.elf))
	r.u32(1)
	r.long(0) // no entry point
	r.long(headerSize[m.word])
	r.long(0) // no sections
	r.u32(0)
	r.u16(headerSize[m.word])
	r.u16(programSize[m.word])
	r.u16(uint64(programs))
	r.u16(0)
	r.u16(0)
	r.u16(0)
	return r
}

const (
	ptLoad = 1
	ptNote = 4
)

type programHeader struct{ kind, flags, offset, address, size, memory, align uint64 }

// program appends a program header; its flags have another place in wide ones.
func (m machine) program(r *record, h programHeader) {
	r.u32(h.kind)
	if m.word == 8 {
		r.u32(h.flags)
	}
	for _, v := range []uint64{h.offset, h.address, 0, h.size, h.memory} {
		r.long(v)
	}
	if m.word == 4 {
		r.u32(h.flags)
	}
	r.long(h.align)
}

// rights are the mapping's as a program header has them.
func (m mapping) rights() uint64 {
	var flags uint64
	for i, bit := range []uint64{4, 2, 1} { // PF_R, PF_W, PF_X
		if m.perms[i] != '-' {
			flags |= bit
		}
	}
	return flags
}

// chunk is how much memory is read at once.
const chunk = 1 << 20

// write writes the file, with the memory of the process whose folder below /proc
// is given. Pages full of zeros become holes.
func (c core) write(ctx context.Context, proc string, out *os.File) error {
	mem, err := os.Open(filepath.Join(proc, "mem"))
	if err != nil {
		return err
	}
	defer mem.Close()
	pages, err := os.Open(filepath.Join(proc, "pagemap"))
	if err != nil {
		return err
	}
	defer pages.Close()
	if _, err := out.WriteAt(c.head, 0); err != nil {
		return err
	}
	s := saver{mem, pages, out, c.page, make([]byte, chunk), make([]byte, c.page)}
	for _, seg := range c.segments {
		for done := uint64(0); done < seg.size; done += chunk {
			if ctx.Err() != nil {
				return fmt.Errorf("interrupted: %w", context.Cause(ctx))
			}
			if err := s.save(seg, done, min(chunk, seg.size-done)); err != nil {
				return err
			}
		}
	}
	return out.Truncate(int64(c.end()))
}

type saver struct {
	mem, pages, out *os.File
	page            uint64
	buffer, zeros   []byte
}

// save writes size bytes of the segment, from the given one on.
func (s saver) save(seg segment, from, size uint64) error {
	address, offset := seg.start+from, seg.offset+from
	b := s.buffer[:size]
	if !seg.sparse() {
		if err := s.read(b, address); err != nil {
			return err
		}
		return s.put(b, offset)
	}
	there, err := s.there(address, size/s.page)
	if err != nil {
		return err
	}
	for first := uint64(0); first < uint64(len(there)); {
		end := first
		for end < uint64(len(there)) && there[end] {
			end++
		}
		part := b[first*s.page : end*s.page]
		if err := s.read(part, address+first*s.page); err != nil {
			return err
		}
		if err := s.put(part, offset+first*s.page); err != nil {
			return err
		}
		first = end + 1 // which is not there
	}
	return nil
}

// there says which pages exist. Reading the others would make them, and page
// tables with them, in a process that reserves much more than it uses.
func (s saver) there(address, pages uint64) ([]bool, error) {
	entries := make([]byte, 8*pages)
	if _, err := s.pages.ReadAt(entries, int64(address/s.page*8)); err != nil {
		return nil, ended(err)
	}
	there := make([]bool, pages)
	for i := range there {
		there[i] = binary.LittleEndian.Uint64(entries[8*i:])>>62 != 0 // in memory, or swapped out
	}
	return there, nil
}

// read reads memory. Pages that cannot be read, such as those of a file that was
// cut short, are zeros.
func (s saver) read(b []byte, address uint64) error {
	for len(b) > 0 {
		n, err := s.mem.ReadAt(b, int64(address))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EFAULT) {
			return ended(err)
		}
		good := n / int(s.page) * int(s.page)
		bad := b[good:min(len(b), good+int(s.page))]
		clear(bad)
		b, address = b[good+len(bad):], address+uint64(good+len(bad))
	}
	return nil
}

// ended explains that there is nothing to read any more.
func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ESRCH) {
		return errEnded
	}
	return err
}

// put writes memory to the file but for pages full of zeros.
func (s saver) put(b []byte, offset uint64) error {
	page := int(s.page)
	zero := func(at int) bool { return bytes.Equal(b[at:at+page], s.zeros) }
	for at := 0; at < len(b); {
		end := at
		for end < len(b) && !zero(end) {
			end += page
		}
		if end > at {
			if _, err := s.out.WriteAt(b[at:end], int64(offset)+int64(at)); err != nil {
				return err
			}
		}
		at = end + page
	}
	return nil
}
