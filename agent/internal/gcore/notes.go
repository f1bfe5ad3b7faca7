package gcore

import (
	"bytes"
	"strings"
)

// notes are what a core file tells besides memory. A debugger takes registers to
// be those of the thread whose NT_PRSTATUS came last, and shows the first thread.
func (p process) notes() []byte {
	r := &record{word: p.word}
	for i, t := range p.threads {
		r.note("CORE", ntPrstatus, p.prstatus(t))
		if i == 0 {
			r.note("CORE", ntPrpsinfo, p.prpsinfo())
			r.note("CORE", ntAuxv, p.auxv)
			r.note("CORE", ntFile, p.files())
		}
		for _, s := range t.sets {
			r.note(s.owner, s.note, s.content)
		}
	}
	return r.b
}

// note has name and content at multiples of four bytes in all core files.
func (r *record) note(owner string, kind uint32, content []byte) {
	r.u32(uint64(len(owner) + 1))
	r.u32(uint64(len(content)))
	r.u32(uint64(kind))
	r.bytes([]byte(owner + "\x00"))
	r.align(4)
	r.bytes(content)
	r.align(4)
}

// prstatus is struct elf_prstatus. There is no signal in it: nothing has died.
func (p process) prstatus(t thread) []byte {
	r := &record{word: p.word}
	r.u32(0) // si_signo, si_code, si_errno
	r.u32(0)
	r.u32(0)
	r.u16(0) // pr_cursig
	r.long(t.pending)
	r.long(t.blocked)
	for _, id := range []int{t.id, t.stat.parent, t.stat.group, t.stat.session} {
		r.u32(uint64(id))
	}
	for _, ticks := range t.stat.times {
		r.long(ticks / ticksPerSecond)
		r.long(ticks % ticksPerSecond * (1_000_000 / ticksPerSecond))
	}
	r.bytes(t.regs)
	r.u32(1) // pr_fpvalid
	r.align(r.word)
	return r.b
}

// ticksPerSecond is what Linux counts in for programs, on all our machines.
const ticksPerSecond = 100

// prpsinfo is struct elf_prpsinfo.
func (p process) prpsinfo() []byte {
	s := p.threads[0].stat
	r := &record{word: p.word}
	zombie := byte(0)
	if s.state == 'Z' {
		zombie = 1
	}
	r.bytes([]byte{byte(max(0, strings.IndexByte("RSDTZW", s.state))), s.state, zombie, byte(s.nice)})
	r.long(s.flags)
	if p.shortIDs {
		r.u16(p.uid)
		r.u16(p.gid)
	} else {
		r.u32(p.uid)
		r.u32(p.gid)
	}
	for _, id := range []int{p.pid, s.parent, s.group, s.session} {
		r.u32(uint64(id))
	}
	r.text(p.name, 16)
	r.text(p.command, 80)
	r.align(r.word)
	return r.b
}

// files says which files are where in memory.
func (p process) files() []byte {
	r := &record{word: p.word}
	var names bytes.Buffer
	n := uint64(0)
	for _, m := range p.maps {
		if m.inode != 0 {
			n++
		}
	}
	r.long(n)
	r.long(p.page)
	for _, m := range p.maps {
		if m.inode != 0 {
			r.long(m.start)
			r.long(m.end)
			r.long(m.offset / p.page)
			names.WriteString(m.name + "\x00")
		}
	}
	r.bytes(names.Bytes())
	return r.b
}
