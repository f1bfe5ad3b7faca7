package gcore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A mapping is a part of the address space, from /proc/PID/smaps.
type mapping struct {
	start, end, offset uint64
	perms              string // "rw-p"
	inode              uint64 // 0 if there is no file behind it
	name               string
	own                uint64   // bytes that are in no file: written to, or swapped out
	flags              []string // VmFlags, see proc(5)
}

func readMaps(dir string) ([]mapping, error) {
	text, err := os.ReadFile(filepath.Join(dir, "smaps"))
	if err != nil {
		return nil, err
	}
	return parseMaps(string(text))
}

func parseMaps(text string) ([]mapping, error) {
	var maps []mapping
	for l := range strings.Lines(text) {
		f := strings.Fields(l)
		if len(f) == 0 {
			continue
		}
		if key, ok := strings.CutSuffix(f[0], ":"); ok && len(maps) > 0 {
			if err := maps[len(maps)-1].attribute(key, f[1:]); err != nil {
				return nil, fmt.Errorf("smaps: %q: %w", l, err)
			}
			continue
		}
		m, err := parseMapping(l)
		if err != nil {
			return nil, fmt.Errorf("smaps: %q: %w", l, err)
		}
		maps = append(maps, m)
	}
	if len(maps) == 0 {
		return nil, errEnded
	}
	return maps, nil
}

// parseMapping reads the first line of a mapping, which ends in a file's name.
func parseMapping(l string) (mapping, error) {
	f := strings.SplitN(strings.TrimSuffix(l, "\n"), " ", 6)
	if len(f) < 5 {
		return mapping{}, errors.New("too few fields")
	}
	m := mapping{perms: f[1]}
	from, to, _ := strings.Cut(f[0], "-")
	var errs [4]error
	m.start, errs[0] = strconv.ParseUint(from, 16, 64)
	m.end, errs[1] = strconv.ParseUint(to, 16, 64)
	m.offset, errs[2] = strconv.ParseUint(f[2], 16, 64)
	m.inode, errs[3] = strconv.ParseUint(f[4], 10, 64)
	if len(f) == 6 {
		m.name = strings.ReplaceAll(strings.TrimLeft(f[5], " "), `\012`, "\n")
	}
	return m, errors.Join(errs[:]...)
}

func (m *mapping) attribute(key string, values []string) error {
	switch {
	case key == "VmFlags":
		m.flags = values
	case (key == "Anonymous" || key == "Swap") && len(values) > 0:
		kib, err := strconv.ParseUint(values[0], 10, 64)
		m.own += kib << 10
		return err
	}
	return nil
}

// What is saved, as bits of /proc/PID/coredump_filter, see core(5).
const (
	privateMemory = 1 << iota
	sharedMemory
	privateFiles
	sharedFiles
	fileHeads
	privateHuge
	sharedHuge
)

// usualFilter is the kernel's own.
const usualFilter = privateMemory | sharedMemory | fileHeads | privateHuge

func readFilter(dir string) (uint64, error) {
	text, err := os.ReadFile(filepath.Join(dir, "coredump_filter"))
	if errors.Is(err, fs.ErrNotExist) {
		return usualFilter, nil
	}
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimSpace(string(text)), 16, 64)
}

// saved is how much of the mapping is saved, from its start. It is what the kernel
// saves, and all private memory that can be written to: the file that it is from
// may have been replaced by the time that somebody looks.
func (m mapping) saved(filter, page uint64) uint64 {
	all := m.end - m.start
	if which := m.kind(); which != 0 && filter&which != 0 || m.fromKernel() {
		return all
	}
	// The first page of a program or library tells which it is.
	if !m.left() && filter&fileHeads != 0 && m.inode != 0 && m.offset == 0 && m.perms[0] == 'r' && m.perms[3] == 'p' {
		return min(all, page)
	}
	return 0
}

// kind is the bit of the filter that decides about the mapping; none if it has
// nothing to be saved.
func (m mapping) kind() uint64 {
	private := m.perms[3] == 'p'
	deleted := strings.HasSuffix(m.name, " (deleted)")
	switch {
	case m.left():
		return 0
	case slices.Contains(m.flags, "ht") && private:
		return privateHuge
	case slices.Contains(m.flags, "ht"):
		return sharedHuge
	case !private && deleted: // memory that processes share is a file without name
		return sharedMemory
	case !private:
		return sharedFiles
	case m.inode == 0 && m.own == 0: // never written to
		return 0
	case m.inode == 0, m.own > 0, deleted, m.perms[1] == 'w':
		return privateMemory
	}
	return privateFiles
}

// left reports whether the memory is a device's, or the program has asked for it
// to be left out.
func (m mapping) left() bool {
	return slices.Contains(m.flags, "io") || slices.Contains(m.flags, "dd")
}

// fromKernel is code that the kernel lends to programs, which is in no file.
func (m mapping) fromKernel() bool {
	return m.name == "[vdso]" || m.name == "[sigpage]" || m.name == "[vectors]"
}
