package gcore

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// A machine is what core files of one kind of processor look like, for programs
// of one width: the kernel's elf_prstatus, elf_prpsinfo and register sets.
type machine struct {
	name string
	elf  uint16 // e_machine
	word int    // bytes of a C long
	regs int    // bytes of the general registers
	// shortIDs: users and groups have 16 bits in elf_prpsinfo.
	shortIDs bool
	// sets are the other registers, if the processor has them.
	sets []registerSet
}

type registerSet struct {
	note  uint32
	owner string
}

// Numbers of notes and register sets, of Linux's elf.h.
const (
	ntPrstatus   = 1
	ntFpregset   = 2
	ntPrpsinfo   = 3
	ntAuxv       = 6
	ntFile       = 0x46494c45
	ntPrxfpreg   = 0x46e62b7f
	ntX86Xstate  = 0x202
	ntArmVFP     = 0x400
	ntArmTLS     = 0x401
	ntArmPACMask = 0x406
)

var machines = []machine{
	{name: "x86_64", elf: 62, word: 8, regs: 216, sets: []registerSet{{ntFpregset, "CORE"}, {ntX86Xstate, "LINUX"}}},
	{name: "i386", elf: 3, word: 4, regs: 68, shortIDs: true, sets: []registerSet{{ntFpregset, "CORE"}, {ntPrxfpreg, "LINUX"}, {ntX86Xstate, "LINUX"}}},
	{name: "arm64", elf: 183, word: 8, regs: 272, sets: []registerSet{{ntFpregset, "CORE"}, {ntArmTLS, "LINUX"}, {ntArmPACMask, "LINUX"}}},
	{name: "arm", elf: 40, word: 4, regs: 72, shortIDs: true, sets: []registerSet{{ntFpregset, "CORE"}, {ntArmVFP, "LINUX"}}},
}

// machineOf tells what the program that runs in a thread was compiled for, which
// may have shorter words than we have.
func machineOf(dir string) (machine, error) {
	f, err := os.Open(filepath.Join(dir, "exe"))
	if err != nil {
		return machine{}, err
	}
	defer f.Close()
	var head [20]byte
	if _, err := f.ReadAt(head[:], 0); err != nil {
		return machine{}, err
	}
	word, elf := int(head[4])*4, binary.LittleEndian.Uint16(head[18:])
	i := slices.IndexFunc(machines, func(m machine) bool { return m.elf == elf && m.word == word })
	if i < 0 || string(head[:4]) != "\x7fELF" || head[5] != 1 {
		return machine{}, fmt.Errorf("programs for processor %d with %d bits are not known", elf, 8*word)
	}
	return machines[i], nil
}

// A record is one of the kernel's structs in the making.
type record struct {
	b    []byte
	word int
}

func (r *record) u16(v uint64) { r.b = binary.LittleEndian.AppendUint16(r.b, uint16(v)) }
func (r *record) u32(v uint64) { r.b = binary.LittleEndian.AppendUint32(r.b, uint32(v)) }
func (r *record) bytes(b []byte) {
	r.b = append(r.b, b...)
}

// long is a C long, at its alignment.
func (r *record) long(v uint64) {
	r.align(r.word)
	if r.word == 4 {
		r.u32(v)
		return
	}
	r.b = binary.LittleEndian.AppendUint64(r.b, v)
}

// text is a string in an array of so many bytes, the last of them 0.
func (r *record) text(s string, size int) {
	field := make([]byte, size)
	copy(field[:size-1], s)
	r.bytes(field)
}

func (r *record) align(n int) {
	for len(r.b)%n != 0 {
		r.b = append(r.b, 0)
	}
}
