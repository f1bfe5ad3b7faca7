package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"appplatform/internal/hint"
)

// accounts are the fixed users and groups of the device: the one source for
// both systems and for every owner named in a permissions table.
type accounts struct{ users, groups map[string]int }

// accountFiles are the files of accountsDir, each at its place in /etc.
var accountFiles = []string{"passwd", "group", "shadow"}

func readAccounts(repo fs.FS) (accounts, error) {
	a := accounts{}
	var err error
	if a.users, err = readIDs(repo, "passwd"); err != nil {
		return a, err
	}
	a.groups, err = readIDs(repo, "group")
	return a, err
}

// readIDs reads the numbers of a passwd(5) or group(5) file.
func readIDs(repo fs.FS, name string) (map[string]int, error) {
	file := path.Join(accountsDir, name)
	text, err := fs.ReadFile(repo, file)
	if err != nil {
		return nil, fmt.Errorf("cannot read accounts: %w", err)
	}
	ids, names := map[string]int{}, map[int]string{}
	for n, l := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		fields := strings.Split(l, ":")
		if len(fields) < 4 {
			return nil, fmt.Errorf("%s:%d: too few fields", file, n+1)
		}
		id, err := strconv.Atoi(fields[2])
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %q is not a number", file, n+1, fields[2])
		}
		if other, ok := names[id]; ok {
			return nil, fmt.Errorf("%s:%d: %s and %s have the same number %d", file, n+1, other, fields[0], id)
		}
		ids[fields[0]], names[id] = id, fields[0]
	}
	return ids, nil
}

// addAccounts puts passwd, group and shadow into etc/.
func addAccounts(t *Tree, repo fs.FS) error {
	for _, name := range accountFiles {
		text, err := fs.ReadFile(repo, path.Join(accountsDir, name))
		if err != nil {
			return fmt.Errorf("cannot read accounts: %w", err)
		}
		t.put(path.Join("etc", name), &Entry{Mode: 0o644, Content: text, layer: fromOverlay, owner: path.Join(accountsDir, name)})
	}
	return nil
}

// foreign are names that have no business on a device: they lie in an overlay
// by mistake.
var foreign = []string{"*.go", "go.mod", "go.sum", ".git*", "*~", "*.orig", "*.rej", ".*.sw?"}

// addOverlay puts the files below dir into the tree, over what packages have
// there. Modes are not taken from the checkout, where they depend on umask and
// file system, but from the permissions table.
func addOverlay(t *Tree, repo fs.FS, dir string) error {
	err := fs.WalkDir(repo, dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			if name == dir && errors.Is(err, fs.ErrNotExist) {
				return fs.SkipAll // a board without an overlay
			}
			return err
		}
		for _, pattern := range foreign {
			if hit, _ := path.Match(pattern, d.Name()); hit {
				return hint.Errorf("remove it from the overlay", "%s does not belong on a device", name)
			}
		}
		switch {
		case d.IsDir():
			return nil
		case d.Type()&fs.ModeSymlink != 0:
			return hint.Errorf("list it in "+linksDir, "%s is a symbolic link", name)
		case !d.Type().IsRegular():
			return fmt.Errorf("%s is not a regular file", name)
		}
		content, err := fs.ReadFile(repo, name)
		if err != nil {
			return err
		}
		t.put(strings.TrimPrefix(name, dir+"/"), &Entry{Mode: 0o644, Content: content, layer: fromOverlay, owner: name})
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot add overlay: %w", err)
	}
	return nil
}

// addLinks puts the symbolic links of the list into the tree: path and target.
func addLinks(t *Tree, repo fs.FS, system string) error {
	lines, err := readList(repo, path.Join(linksDir, system))
	if err != nil {
		return err
	}
	for _, l := range lines {
		if len(l.fields) != 2 {
			return l.errorf("want a path and what it points to")
		}
		if e, ok := t.Get(l.fields[0]); ok && e.Mode.IsDir() {
			return l.errorf("%s is a folder", l.fields[0])
		}
		t.put(l.fields[0], &Entry{Mode: fs.ModeSymlink | 0o777, Link: l.fields[1], layer: fromOverlay, owner: l.file})
	}
	return nil
}

// addPermissions gives files and folders the modes and owners of the table,
// and makes the folders it names. It has the last word over what packages say.
func addPermissions(t *Tree, repo fs.FS, system string, ids accounts) error {
	lines, err := readList(repo, path.Join(permissionsDir, system))
	if err != nil {
		return err
	}
	for _, l := range lines {
		if err := l.apply(t, ids); err != nil {
			return err
		}
	}
	return nil
}

// apply carries out one line of a permissions table: path, octal mode and
// user:group. A path that ends in "/" is a folder, made if need be.
func (l line) apply(t *Tree, ids accounts) error {
	if len(l.fields) != 3 {
		return l.errorf("want a path, a mode and user:group")
	}
	mode, err := strconv.ParseUint(l.fields[1], 8, 12)
	if err != nil {
		return l.errorf("%q is not an octal mode", l.fields[1])
	}
	user, group, _ := strings.Cut(l.fields[2], ":")
	uid, known := ids.users[user]
	if !known {
		return l.errorf("unknown user %q", user)
	}
	gid, known := ids.groups[group]
	if !known {
		return l.errorf("unknown group %q", group)
	}

	name, isDir := strings.CutSuffix(l.fields[0], "/")
	if _, ok := t.Get(name); isDir && !ok {
		t.put(name, folder(fromOverlay))
	}
	pattern, err := newGlob(name)
	if err != nil {
		return l.errorf("%v", err)
	}
	hits := 0
	for file, e := range t.entries {
		if e.Mode&fs.ModeSymlink != 0 || e.Mode.IsDir() != isDir || !pattern.match(file) {
			continue
		}
		e.Mode, e.UID, e.GID = fileMode(uint32(mode), e.Mode.Type()), uid, gid
		hits++
	}
	if hits == 0 {
		return l.errorf("nothing in the tree fits %s", l.fields[0])
	}
	return nil
}
