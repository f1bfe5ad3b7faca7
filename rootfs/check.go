package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"appplatform/internal/hint"
	"appplatform/partitions"
)

// Check proves that everything in the tree can start: every program finds its
// libraries, every script its interpreter and every link its target. It
// reports all that is missing at once.
func (t *Tree) Check(arch string) error {
	return t.check(arch, &rules{})
}

func (t *Tree) check(arch string, r *rules) error {
	all, err := programs(t)
	if err != nil {
		return err
	}
	var missing []error
	for _, name := range t.Paths() {
		e := t.entries[name]
		if p := all[name]; p != nil {
			missing = append(missing, checkProgram(t, all, name, arch)...)
		}
		missing = append(missing, checkScript(t, name, e), checkLink(t, name, e, r))
	}
	if err := errors.Join(missing...); err != nil {
		return fmt.Errorf("the tree is not complete:\n%w", err)
	}
	return nil
}

func checkProgram(t *Tree, all map[string]*program, name, arch string) []error {
	var missing []error
	p := all[name]
	if p.interp != "" {
		if _, ok := t.resolve(p.interp); !ok {
			missing = append(missing, fmt.Errorf("/%s needs the loader %s", name, p.interp))
		}
	}
	for _, lib := range p.needed {
		if _, ok := findLibrary(t, all, p, lib, tripletDirs[arch]); !ok {
			missing = append(missing, fmt.Errorf("/%s (%s) needs the library %s", name, t.entries[name].owner, lib))
		}
	}
	return missing
}

// checkScript checks the first line of scripts. A script in an overlay that
// nobody may execute was forgotten in the permissions table.
func checkScript(t *Tree, name string, e *Entry) error {
	if !e.Mode.IsRegular() || !bytes.HasPrefix(e.Content, []byte("#!")) {
		return nil
	}
	if e.Mode&0o111 == 0 {
		if e.layer == fromOverlay {
			return hint.Errorf("give it a mode in "+permissionsDir, "/%s is a script that nobody may execute", name)
		}
		return nil
	}
	first, _, _ := bytes.Cut(e.Content[2:], []byte("\n"))
	words := strings.Fields(string(first))
	if len(words) == 0 {
		return fmt.Errorf("/%s (%s) names no interpreter", name, e.owner)
	}
	interp := words[0]
	if path.Base(interp) == "env" && len(words) > 1 {
		interp = path.Join("usr/bin", words[1])
	}
	if _, ok := t.resolve(interp); !ok {
		return fmt.Errorf("/%s (%s) needs the interpreter %s", name, e.owner, interp)
	}
	return nil
}

// runtimeDirs are the folders whose content appears only on the running device.
var runtimeDirs = []string{"dev", "proc", "run", "sys", "mnt"}

func checkLink(t *Tree, name string, e *Entry, r *rules) error {
	if e.Mode&fs.ModeSymlink == 0 || first(r.dangling, name) != nil {
		return nil
	}
	target := e.Link
	if !path.IsAbs(target) {
		target = path.Join("/", path.Dir(name), target)
	}
	top, _, _ := strings.Cut(strings.TrimPrefix(path.Clean(target), "/"), "/")
	if slices.Contains(runtimeDirs, top) {
		return nil
	}
	if _, ok := t.resolve(name); !ok {
		return fmt.Errorf("/%s (%s) points to %s, which is not there", name, e.owner, e.Link)
	}
	return nil
}

// checkSize compares the sum of all files with the board's limit.
func checkSize(t *Tree, limit partitions.Size) error {
	if n := t.Size(); n > int64(limit) {
		return hint.Errorf("see which package grew, then drop files in "+rulesDir+" or raise the limit in board.json",
			"the tree has %d MiB, more than the limit of %v", n>>20, limit)
	}
	return nil
}
