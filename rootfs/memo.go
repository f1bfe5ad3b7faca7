package rootfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/gob"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"appplatform/internal/atomicfile"
)

// A memo remembers what the rules kept of each package, because decompressing
// packages is most of the work of making a tree. It is a folder for each
// version of the rules; without one nothing is remembered.
type memo struct{ dir string }

// memoFormat changes when what is remembered does.
const memoFormat = "1"

// openMemo finds the memo for a system's rules below the folder.
func openMemo(dir string, repo fs.FS, system string, rules []string) (memo, error) {
	if dir == "" {
		return memo{}, nil
	}
	all := []byte(memoFormat + "\n")
	for _, file := range rules {
		text, err := fs.ReadFile(repo, file)
		if err != nil {
			return memo{}, err
		}
		all = append(all, text...)
	}
	sum := sha256.Sum256(all)
	m := memo{filepath.Join(dir, system+"-"+hex.EncodeToString(sum[:8]))}
	if err := os.MkdirAll(m.dir, 0o755); err != nil {
		return memo{}, fmt.Errorf("cannot remember unpacked packages: %w", err)
	}
	return m, nil
}

// A remembered package is what readDeb made of it: every file's name, so that
// the rules see what they apply to, and the entries that were kept.
type remembered struct {
	Names   []string
	Entries []rememberedEntry
}

type rememberedEntry struct {
	Path           string
	Mode           fs.FileMode
	UID, GID       int
	Link, HardLink string
	Content        []byte
	Loaded         bool
}

// readDeb is the function of this name, remembered.
func (m memo) readDeb(ctx context.Context, d Deb, r *rules) ([]file, error) {
	if m.dir == "" {
		files, _, err := readDeb(ctx, d, r)
		return files, err
	}
	name := filepath.Join(m.dir, d.SHA256)
	if files, ok := recall(name, d, r); ok {
		return files, nil
	}
	files, names, err := readDeb(ctx, d, r)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	p := remembered{Names: names}
	for _, f := range files {
		p.Entries = append(p.Entries, rememberedEntry{f.path, f.Mode, f.UID, f.GID, f.Link, f.HardLink, f.Content, f.loaded})
	}
	if err := gob.NewEncoder(&b).Encode(p); err != nil {
		return nil, fmt.Errorf("internal error: %w", err)
	}
	return files, atomicfile.WriteQuick(name, b.Bytes(), 0o644)
}

// recall reads a remembered package; one that cannot be read is none.
func recall(name string, d Deb, r *rules) ([]file, bool) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, false
	}
	var p remembered
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(&p); err != nil {
		return nil, false
	}
	for _, name := range p.Names {
		r.keeps(name)
	}
	files := make([]file, len(p.Entries))
	for i, e := range p.Entries {
		files[i] = file{e.Path, &Entry{
			Mode: e.Mode, UID: e.UID, GID: e.GID, Link: e.Link, HardLink: e.HardLink,
			Content: e.Content, loaded: e.Loaded, owner: d.Name,
		}}
	}
	return files, true
}
