package rootfs

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// A program is what the loader reads of an ELF file.
type program struct {
	machine elf.Machine
	class   elf.Class
	interp  string
	needed  []string // names of libraries
	dirs    []string // own search path, $ORIGIN resolved
}

// readELF returns nil for files that are not ELF programs or libraries.
func readELF(name string, e *Entry) (*program, error) {
	if !e.Mode.IsRegular() || !bytes.HasPrefix(e.Content, []byte(elf.ELFMAG)) {
		return nil, nil
	}
	f, err := elf.NewFile(bytes.NewReader(e.Content))
	if err != nil {
		return nil, fmt.Errorf("cannot read /%s: %w", name, err)
	}
	defer f.Close()
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return nil, nil
	}
	p := &program{machine: f.Machine, class: f.Class}
	for _, s := range f.Progs {
		if s.Type == elf.PT_INTERP {
			p.interp = string(bytes.TrimRight(e.Content[s.Off:s.Off+s.Filesz], "\x00"))
		}
	}
	if f.Section(".dynamic") == nil {
		return p, nil // statically linked
	}
	if p.needed, err = f.ImportedLibraries(); err != nil {
		return nil, fmt.Errorf("cannot read /%s: %w", name, err)
	}
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		values, err := f.DynString(tag)
		if err != nil {
			return nil, fmt.Errorf("cannot read /%s: %w", name, err)
		}
		for _, v := range values {
			for _, dir := range strings.Split(v, ":") {
				dir = strings.NewReplacer("$ORIGIN", "/"+path.Dir(name), "${ORIGIN}", "/"+path.Dir(name)).Replace(dir)
				p.dirs = append(p.dirs, strings.TrimPrefix(path.Clean(dir), "/"))
			}
		}
	}
	return p, nil
}

// programs reads every ELF file of the tree.
func programs(t *Tree) (map[string]*program, error) {
	all := map[string]*program{}
	for name, e := range t.entries {
		p, err := readELF(name, e)
		if err != nil {
			return nil, err
		}
		if p != nil {
			all[name] = p
		}
	}
	return all, nil
}

// tripletDirs are where the loader looks by itself: no ld.so.cache is needed,
// because every package of the archive puts its libraries there, with the
// names that programs ask for.
var tripletDirs = map[string][]string{
	"amd64": {"usr/lib/x86_64-linux-gnu", "usr/lib"},
	"arm64": {"usr/lib/aarch64-linux-gnu", "usr/lib"},
	"armel": {"usr/lib/arm-linux-gnueabi", "usr/lib"},
}

// findLibrary returns the file that the loader opens for a library's name.
func findLibrary(t *Tree, all map[string]*program, p *program, name string, dirs []string) (string, bool) {
	for _, dir := range slices.Concat(p.dirs, dirs) {
		file, ok := t.resolve(path.Join(dir, name))
		if lib := all[file]; ok && lib != nil && lib.machine == p.machine && lib.class == p.class {
			return file, true
		}
	}
	return "", false
}

// dropUnusedLibraries removes the libraries in the loader's folders that no
// remaining program needs. Those that programs open by name at run time must
// be named by a keep rule.
func dropUnusedLibraries(t *Tree, arch string) error {
	all, err := programs(t)
	if err != nil {
		return err
	}
	dirs := tripletDirs[arch]
	optional := func(name string) bool {
		return slices.Contains(dirs, path.Dir(name)) && strings.Contains(path.Base(name), ".so")
	}
	reached := map[string]bool{}
	var reach func(name string)
	reach = func(name string) {
		if reached[name] {
			return
		}
		reached[name] = true
		for _, lib := range all[name].needed {
			if file, ok := findLibrary(t, all, all[name], lib, dirs); ok {
				reach(file)
			}
		}
	}
	for name := range all {
		if e := t.entries[name]; e.loaded || !optional(name) {
			reach(name)
		}
	}
	for _, name := range t.Paths() {
		e := t.entries[name]
		if e.loaded || !optional(name) {
			continue
		}
		if e.Mode&fs.ModeSymlink != 0 {
			// The link of a kept library goes with another's only when that
			// is gone: decided once all libraries are.
			continue
		}
		if all[name] != nil && !reached[name] {
			t.remove(name)
		}
	}
	for _, name := range t.Paths() {
		if e := t.entries[name]; e.Mode&fs.ModeSymlink != 0 && optional(name) {
			if _, ok := t.resolve(name); !ok {
				t.remove(name)
			}
		}
	}
	return nil
}
