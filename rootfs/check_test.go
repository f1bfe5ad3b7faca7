package rootfs

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io/fs"
	"strings"
	"testing"

	"appplatform/partitions"
)

// makeELF is a 64-bit program or library with nothing in it but what the
// loader asks for: interpreter, needed libraries and a search path.
func makeELF(machine elf.Machine, interp string, runpath string, needed ...string) []byte {
	names := "\x00" // string table of the libraries and of the sections
	add := func(s string) uint64 {
		names += s + "\x00"
		return uint64(len(names) - len(s) - 1)
	}
	var dynamic bytes.Buffer
	tag := func(tag elf.DynTag, value uint64) {
		_ = binary.Write(&dynamic, binary.LittleEndian, elf.Dyn64{Tag: int64(tag), Val: value})
	}
	for _, lib := range needed {
		tag(elf.DT_NEEDED, add(lib))
	}
	if runpath != "" {
		tag(elf.DT_RUNPATH, add(runpath))
	}
	tag(elf.DT_NULL, 0)
	dynamicName, stringsName := add(".dynamic"), add(".dynstr")

	const headers, segment, section = 64, 56, 64
	interpAt := uint64(headers + segment)
	dynamicAt := interpAt + uint64(len(interp))
	namesAt := dynamicAt + uint64(dynamic.Len())
	head := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Phoff: headers, Phentsize: segment,
		Shoff: namesAt + uint64(len(names)), Shentsize: section, Shnum: 3, Shstrndx: 2, Ehsize: headers,
	}
	if interp != "" {
		head.Phnum = 1
	}
	var out bytes.Buffer
	for _, part := range []any{
		head,
		elf.Prog64{Type: uint32(elf.PT_INTERP), Off: interpAt, Filesz: uint64(len(interp))},
		[]byte(interp), dynamic.Bytes(), []byte(names),
		elf.Section64{},
		elf.Section64{Name: uint32(dynamicName), Type: uint32(elf.SHT_DYNAMIC), Off: dynamicAt, Size: uint64(dynamic.Len()), Link: 2, Entsize: 16},
		elf.Section64{Name: uint32(stringsName), Type: uint32(elf.SHT_STRTAB), Off: namesAt, Size: uint64(len(names))},
	} {
		_ = binary.Write(&out, binary.LittleEndian, part)
	}
	return out.Bytes()
}

const libDir = "usr/lib/x86_64-linux-gnu/"

// program puts an amd64 program or library into the tree.
func (t *Tree) program(path, interp string, needed ...string) {
	t.put(path, &Entry{Mode: 0o755, Content: makeELF(elf.EM_X86_64, interp, "", needed...), owner: "pkg"})
}

func (t *Tree) link(path, target string) {
	t.put(path, &Entry{Mode: fs.ModeSymlink | 0o777, Link: target, owner: "pkg"})
}

func TestCheckComplete(t *testing.T) {
	tree := newTree()
	tree.program("usr/lib64/ld-linux-x86-64.so.2", "")
	tree.program("usr/bin/psql", "/lib64/ld-linux-x86-64.so.2", "libpq.so.5", "libown.so")
	tree.program(libDir+"libpq.so.5.17", "")
	tree.link(libDir+"libpq.so.5", "libpq.so.5.17")
	tree.link("lib64", "usr/lib64")
	tree.put("usr/bin/psql", &Entry{Mode: 0o755, Content: makeELF(elf.EM_X86_64, "/lib64/ld-linux-x86-64.so.2", "$ORIGIN/../lib/psql", "libpq.so.5", "libown.so")})
	tree.program("usr/lib/psql/libown.so", "")
	tree.put("usr/bin/sh", &Entry{Mode: 0o755})
	tree.put("usr/bin/script", &Entry{Mode: 0o755, Content: []byte("#! /usr/bin/sh -e\n")})
	tree.put("usr/bin/other", &Entry{Mode: 0o755, Content: []byte("#!/usr/bin/env sh\n")})
	tree.put("usr/bin/data.py", &Entry{Mode: 0o644, Content: []byte("#!/usr/bin/python\n")})
	tree.link("var/run", "/run")
	tree.link("etc/mtab", "../proc/self/mounts")
	if err := tree.Check("amd64"); err != nil {
		t.Errorf("Check() = %v; want nil", err)
	}
}

func TestCheckReportsAllThatIsMissing(t *testing.T) {
	tree := newTree()
	tree.program("usr/bin/gdb", "/lib64/ld-linux-x86-64.so.2", "libpython3.13.so.1.0", "libarm.so")
	tree.put(libDir+"libarm.so", &Entry{Mode: 0o644, Content: makeELF(elf.EM_ARM, "", "")})
	tree.put("usr/bin/gcore", &Entry{Mode: 0o755, Content: []byte("#!/bin/bash\n"), owner: "gdb"})
	tree.put("etc/init.d/S99", &Entry{Mode: 0o644, Content: []byte("#!/bin/sh\n"), layer: fromOverlay})
	tree.link("usr/bin/psql", "../lib/postgresql/17/bin/psql")
	err := tree.Check("amd64")
	if err == nil {
		t.Fatal("Check() = nil; want an error")
	}
	for _, want := range []string{
		"/usr/bin/gdb needs the loader /lib64/ld-linux-x86-64.so.2",
		"/usr/bin/gdb (pkg) needs the library libpython3.13.so.1.0",
		"/usr/bin/gdb (pkg) needs the library libarm.so", // there, but for another processor
		"/usr/bin/gcore (gdb) needs the interpreter /bin/bash",
		"/etc/init.d/S99 is a script that nobody may execute",
		"/usr/bin/psql (pkg) points to ../lib/postgresql/17/bin/psql, which is not there",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("Check() = %v; want %q in it", err, want)
		}
	}
}

func TestDropUnusedLibraries(t *testing.T) {
	tree := newTree()
	tree.program("usr/bin/tool", "", "liba.so.1")
	tree.program(libDir+"liba.so.1.0", "", "libb.so.2")
	tree.link(libDir+"liba.so.1", "liba.so.1.0")
	tree.program(libDir+"libb.so.2", "")
	tree.program(libDir+"libc.so.3.1", "") // nobody asks for it
	tree.link(libDir+"libc.so.3", "libc.so.3.1")
	tree.program(libDir+"libd.so.4", "", "libe.so.5") // opened by name
	tree.entries[libDir+"libd.so.4"].loaded = true
	tree.program(libDir+"libe.so.5", "")
	tree.program(libDir+"plugins/p.so", "", "libf.so.6") // in a folder of its own
	tree.program(libDir+"libf.so.6", "")
	if err := dropUnusedLibraries(tree, "amd64"); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"liba.so.1": true, "liba.so.1.0": true, "libb.so.2": true, "libc.so.3": false, "libc.so.3.1": false,
		"libd.so.4": true, "libe.so.5": true, "libf.so.6": true, "plugins/p.so": true,
	} {
		if _, got := tree.Get(libDir + path); got != want {
			t.Errorf("%s is in the tree = %v; want %v", path, got, want)
		}
	}
}

func TestCheckSize(t *testing.T) {
	tree := newTree()
	tree.put("big", &Entry{Content: make([]byte, 2<<20)})
	if err := checkSize(tree, 2*partitions.MiB); err != nil {
		t.Errorf("checkSize at the limit = %v; want nil", err)
	}
	if err := checkSize(tree, partitions.MiB); err == nil || !strings.Contains(err.Error(), "more than the limit of 1 MiB") {
		t.Errorf("checkSize above the limit = %v; want an error that names it", err)
	}
}
