package rootfs

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"appplatform/internal/hint"
)

// An Origin says where a file or link of a tree comes from: a package, a file
// of the repository, or what the caller gave.
type Origin struct {
	Package string // its name, or
	Source  string // a path in the repository, or what File.From says
	// Made is what the builder has made from the package's files, or changed.
	Made bool
}

// Origin tells where the entry comes from. A folder has none: it is there
// because of what is in it.
func (e *Entry) Origin() Origin {
	if e.layer == fromPackage || e.layer == generated {
		return Origin{Package: e.owner, Made: e.layer == generated || e.changed}
	}
	return Origin{Source: e.owner}
}

// docDir is where each package has its copyright file.
const docDir = "usr/share/doc"

// CopyrightFile is the path of a package's copyright file in a tree. Several
// packages may share one through a link of their folder.
func (t *Tree) CopyrightFile(pkg string) (string, bool) {
	name, ok := t.resolve(path.Join(docDir, pkg, "copyright"))
	return name, ok && t.entries[name].Mode.IsRegular()
}

// Packages are the names of the packages that something in the tree is from.
func (t *Tree) Packages() []string {
	var names []string
	for _, e := range t.entries {
		if from := e.Origin(); !e.Mode.IsDir() && from.Package != "" {
			names = append(names, from.Package)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// checkCopyrights proves that every package of which there is something in the
// tree has its copyright file there, as the licences ask for.
func checkCopyrights(t *Tree) error {
	var missing []string
	for _, pkg := range t.Packages() {
		if _, ok := t.CopyrightFile(pkg); !ok {
			missing = append(missing, fmt.Sprintf("/%s/%s/copyright", docDir, pkg))
		}
	}
	if len(missing) > 0 {
		return hint.Errorf("keep them in "+rulesDir+": the file, or the link of the folder and the package that it leads to",
			"licences are missing: %s", strings.Join(missing, ", "))
	}
	return nil
}
