// Package rootfs turns Debian packages and this repository's own files into
// the file trees of the two systems an image carries: the installed system and
// the ramdisk that installs and rescues it. It runs no maintainer script, needs
// no root and writes no disk; what the scripts would have done is data beside
// this file, or a small function here.
package rootfs

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// stamp is the modification time of every file: a fixed one keeps images
// reproducible, and one after 1980 can be told by every tool.
var stamp = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// A layer says when an entry is written: what changes rarely comes first, so
// that a changed script moves only the end of the file system image.
type layer int

const (
	fromPackage layer = iota
	generated         // made here from packages' files
	fromOverlay       // the repository's own files
	fromBuild         // given by the caller: the agent, platform.json
)

// An Entry is one file, folder or symbolic link.
type Entry struct {
	Mode     fs.FileMode // type, permissions, setuid and setgid
	UID, GID int
	Link     string // what a symbolic link says
	HardLink string // path of the file this is another name of
	Content  []byte

	layer   layer
	owner   string // the package or file of the repository it comes from
	changed bool   // the builder has changed what the package holds
	loaded  bool   // programs open it by name, so nothing else has to
}

// A Tree is the content of a file system: paths, as in "usr/bin/sudo", to
// entries. A path's folders are always in the tree too.
type Tree struct {
	entries map[string]*Entry
}

func newTree() *Tree {
	return &Tree{entries: map[string]*Entry{".": folder(fromPackage)}}
}

func folder(l layer) *Entry { return &Entry{Mode: fs.ModeDir | 0o755, layer: l} }

// Get returns the entry at path; symbolic links are not followed.
func (t *Tree) Get(path string) (*Entry, bool) {
	e, ok := t.entries[path]
	return e, ok
}

// Paths returns all paths, sorted, without the root.
func (t *Tree) Paths() []string {
	paths := slices.Sorted(maps.Keys(t.entries))
	return slices.DeleteFunc(paths, func(p string) bool { return p == "." })
}

// Size is the sum of all files' contents in bytes.
func (t *Tree) Size() int64 {
	var n int64
	for _, e := range t.entries {
		n += int64(len(e.Content))
	}
	return n
}

// put adds or replaces an entry and adds the folders above it.
func (t *Tree) put(name string, e *Entry) {
	for dir := path.Dir(name); t.entries[dir] == nil; dir = path.Dir(dir) {
		t.entries[dir] = folder(e.layer)
	}
	t.entries[name] = e
}

// remove takes an entry away; the folders above it stay.
func (t *Tree) remove(name string) { delete(t.entries, name) }

// maxLinks bounds the symbolic links followed in one path, as the kernel does.
const maxLinks = 40

// resolve follows symbolic links inside the tree, as a process with the tree
// as its root would, and returns the path where the file really is.
func (t *Tree) resolve(name string) (string, bool) {
	at, rest := ".", strings.Split(path.Clean(strings.TrimLeft(name, "/")), "/")
	for links := 0; len(rest) > 0; {
		next := path.Join(at, rest[0])
		if rest[0] == ".." && at == "." {
			next = "."
		}
		rest = rest[1:]
		e, ok := t.entries[next]
		if !ok {
			return "", false
		}
		if e.Mode&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", false
		}
		if strings.HasPrefix(e.Link, "/") {
			at = "."
		}
		rest = append(strings.Split(path.Clean(strings.TrimLeft(e.Link, "/")), "/"), rest...)
	}
	return at, true
}

// WriteTar writes the tree as a tar archive, always the same bytes for the
// same tree: packages first, own files last, sorted within, and every folder
// before what is in it.
func (t *Tree) WriteTar(w io.Writer) error {
	tw := tar.NewWriter(w)
	done := map[string]bool{}
	var write func(string) error
	write = func(name string) error {
		if done[name] {
			return nil
		}
		done[name] = true
		e := t.entries[name]
		if name != "." {
			if err := write(path.Dir(name)); err != nil {
				return err
			}
		}
		if e.HardLink != "" {
			if err := write(e.HardLink); err != nil {
				return err
			}
		}
		if err := tw.WriteHeader(header(name, e)); err != nil {
			return err
		}
		if e.HardLink != "" {
			return nil
		}
		_, err := tw.Write(e.Content)
		return err
	}
	for _, name := range t.order() {
		if err := write(name); err != nil {
			return fmt.Errorf("cannot write tar: %s: %w", name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("cannot write tar: %w", err)
	}
	return nil
}

// order sorts the paths by layer and then by name.
func (t *Tree) order() []string {
	return slices.SortedFunc(maps.Keys(t.entries), func(a, b string) int {
		if d := t.entries[a].layer - t.entries[b].layer; d != 0 {
			return int(d)
		}
		return strings.Compare(a, b)
	})
}

func header(name string, e *Entry) *tar.Header {
	h := &tar.Header{
		Name:    "./" + name,
		Mode:    int64(unixMode(e.Mode)),
		Uid:     e.UID,
		Gid:     e.GID,
		ModTime: stamp,
		Format:  tar.FormatPAX,
	}
	if name == "." {
		h.Name = "./"
	}
	switch {
	case e.Mode.IsDir():
		h.Typeflag = tar.TypeDir
		h.Name = strings.TrimSuffix(h.Name, "/") + "/"
	case e.Mode&fs.ModeSymlink != 0:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
	case e.HardLink != "":
		h.Typeflag, h.Linkname = tar.TypeLink, "./"+e.HardLink
	default:
		h.Typeflag, h.Size = tar.TypeReg, int64(len(e.Content))
	}
	return h
}

// unixMode is the mode without the type, setuid and setgid where Unix has them.
func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for bit, unix := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			mode |= unix
		}
	}
	return mode
}

// fileMode is the inverse of unixMode: the type comes from kind.
func fileMode(unix uint32, kind fs.FileMode) fs.FileMode {
	mode := kind | fs.FileMode(unix&0o777)
	for bit, u := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if unix&u != 0 {
			mode |= bit
		}
	}
	return mode
}
