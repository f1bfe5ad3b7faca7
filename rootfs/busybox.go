package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

const busybox = "usr/bin/busybox"

// addBusyboxLinks gives every tool inside busybox a name, unless a package has
// a tool of that name already. The links are relative to nothing: busybox's
// init and shell look their tools up by these paths.
func addBusyboxLinks(t *Tree) error {
	e, ok := t.Get(busybox)
	if !ok {
		return fmt.Errorf("cannot link busybox tools: no /%s in the tree", busybox)
	}
	names, err := applets(e.Content)
	if err != nil {
		return fmt.Errorf("cannot link busybox tools: %w", err)
	}
	for _, name := range names {
		if _, ok := t.Get("usr/sbin/" + name); ok {
			continue
		}
		file := path.Join("usr/bin", name)
		if _, ok := t.Get(file); ok {
			continue
		}
		t.put(file, &Entry{Mode: fs.ModeSymlink | 0o777, Link: "busybox", layer: generated, owner: "busybox"})
	}
	return nil
}

// applets reads the names of busybox's tools out of the program, which cannot
// be asked when it is for another processor: a sorted run of NUL-terminated
// strings that begins with "[" and "[[".
func applets(program []byte) ([]string, error) {
	at := bytes.Index(program, []byte("\x00[\x00[[\x00"))
	if at < 0 {
		return nil, errors.New("no list of tools in the program")
	}
	var names []string
	for rest := program[at+1:]; ; {
		name, more, ok := bytes.Cut(rest, []byte{0})
		if !ok || len(name) == 0 || (len(names) > 0 && string(name) <= names[len(names)-1]) || strings.ContainsAny(string(name), "/ %\n") {
			break
		}
		names, rest = append(names, string(name)), more
	}
	// Fewer names mean that the run was something else.
	const fewest = 100
	if len(names) < fewest {
		return nil, fmt.Errorf("list of tools in the program ends after %d", len(names))
	}
	return names, nil
}
