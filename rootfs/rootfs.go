package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"appplatform/boards"
	"appplatform/partitions"
)

// An Input is what a tree is made from.
type Input struct {
	// Repo is the root of the repository: lists and overlays are read from
	// there, so that changing one needs no new builder.
	Repo  fs.FS
	Board boards.Board
	// Debs are the packages that SystemPackages or RamdiskPackages resolve to.
	Debs []Deb
	// Files are those that only this build knows: the agent, platform.json.
	Files []File
	// Describe is asked for more files, about the tree, when all else is in it; it
	// may be nil.
	Describe func(*Tree) ([]File, error)
	// Memo is a folder that remembers unpacked packages from one build to the
	// next; empty remembers nothing.
	Memo string
	// Log is told what happens, a line each; it may be nil.
	Log func(string)
}

// A File is one that the caller adds, owned by root.
type File struct {
	Path    string // "usr/bin/apagent"
	Mode    fs.FileMode
	Content []byte
	// From says what it is made from: a folder of the repository, or a program.
	From string
}

// System makes the tree of the installed system.
func System(ctx context.Context, in Input) (*Tree, error) {
	t, err := build(ctx, in, "system", systemOverlays(in.Board), in.Board.RootfsLimit)
	if err != nil {
		return nil, fmt.Errorf("cannot make the system's tree: %w", err)
	}
	return t, nil
}

// systemOverlays are the overlays of the installed system, the board's own last.
func systemOverlays(b boards.Board) []string {
	dirs := []string{sharedOverlay, systemOverlay}
	if b.Overlay != "" {
		dirs = append(dirs, path.Join(overlaysDir, b.Overlay))
	}
	return append(dirs, path.Join(boards.Dir, b.Name, "overlay"))
}

// Ramdisk makes the tree of the system that installs, updates and rescues.
func Ramdisk(ctx context.Context, in Input) (*Tree, error) {
	t, err := build(ctx, in, "ramdisk", []string{sharedOverlay, ramdiskOverlay}, in.Board.RamdiskLimit)
	if err != nil {
		return nil, fmt.Errorf("cannot make the ramdisk's tree: %w", err)
	}
	return t, nil
}

func build(ctx context.Context, in Input, system string, overlays []string, limit partitions.Size) (*Tree, error) {
	files := ruleFiles(in.Repo, system, in.Board.Name)
	r, err := readRules(in.Repo, files...)
	if err != nil {
		return nil, err
	}
	ids, err := readAccounts(in.Repo)
	if err != nil {
		return nil, err
	}
	memo, err := openMemo(in.Memo, in.Repo, system, files)
	if err != nil {
		return nil, err
	}
	t, err := unpack(ctx, in.Debs, r, memo)
	if err != nil {
		return nil, err
	}
	if err := dropUnusedLibraries(t, in.Board.Arch); err != nil {
		return nil, err
	}
	if err := shrinkLibraries(t, r); err != nil {
		return nil, err
	}
	if err := addBusyboxLinks(t); err != nil {
		return nil, err
	}
	addCertificates(t)
	if err := addAccounts(t, in.Repo); err != nil {
		return nil, err
	}
	for _, dir := range overlays {
		if err := addOverlay(t, in.Repo, dir); err != nil {
			return nil, err
		}
	}
	if err := addLinks(t, in.Repo, system); err != nil {
		return nil, err
	}
	addFiles(t, in.Files)
	if in.Describe != nil {
		more, err := in.Describe(t)
		if err != nil {
			return nil, err
		}
		addFiles(t, more)
	}
	removeEmptyFolders(t)
	if err := addPermissions(t, in.Repo, system, ids); err != nil {
		return nil, err
	}
	if in.Log != nil {
		for _, text := range r.unused() {
			in.Log(text)
		}
		in.Log(fmt.Sprintf("%s: %d files, %d MiB from %d packages", system, len(t.entries), t.Size()>>20, len(in.Debs)))
	}
	return t, errors.Join(t.check(in.Board.Arch, r), checkCopyrights(t), checkSize(t, limit))
}

func addFiles(t *Tree, files []File) {
	for _, f := range files {
		t.put(f.Path, &Entry{Mode: f.Mode, Content: f.Content, layer: fromBuild, owner: f.From})
	}
}

// shrinkLibraries applies the rules for the inside of ICU's data library.
func shrinkLibraries(t *Tree, r *rules) error {
	if len(r.icu) == 0 {
		return nil
	}
	for name, e := range t.entries {
		if !strings.HasPrefix(path.Base(name), "libicudata.so") || !e.Mode.IsRegular() {
			continue
		}
		if err := shrinkICU(e.Content, func(item string) bool { return first(r.icu, item) != nil }); err != nil {
			return fmt.Errorf("cannot shrink /%s: %w", name, err)
		}
		e.changed = true
	}
	return nil
}

// The authorities' certificates as the package has them, and as programs want
// them.
const (
	certificatesDir    = "usr/share/ca-certificates/"
	certificatesBundle = "etc/ssl/certs/ca-certificates.crt"
)

// addCertificates makes one file of all authorities' certificates, as
// update-ca-certificates does. Without the package there is none.
func addCertificates(t *Tree) {
	var bundle bytes.Buffer
	for _, name := range t.Paths() {
		if !strings.HasPrefix(name, certificatesDir) || path.Ext(name) != ".crt" {
			continue
		}
		content := t.entries[name].Content
		bundle.Write(content)
		if !bytes.HasSuffix(content, []byte("\n")) {
			bundle.WriteByte('\n')
		}
		t.remove(name)
	}
	if bundle.Len() > 0 {
		t.put(certificatesBundle, &Entry{Mode: 0o644, Content: bundle.Bytes(), layer: generated, owner: "ca-certificates"})
	}
}

// removeEmptyFolders removes the folders that dropped libraries leave behind;
// those that must exist empty are in the permissions table.
func removeEmptyFolders(t *Tree) {
	full := map[string]bool{".": true}
	for name, e := range t.entries {
		if e.Mode.IsDir() {
			continue
		}
		for dir := path.Dir(name); !full[dir]; dir = path.Dir(dir) {
			full[dir] = true
		}
	}
	for _, name := range slices.Collect(maps.Keys(t.entries)) {
		if t.entries[name].Mode.IsDir() && !full[name] {
			t.remove(name)
		}
	}
}
