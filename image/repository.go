package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"appplatform/archive"
	"appplatform/internal/cache"
	"appplatform/internal/hint"
	"appplatform/tooltree"
)

// module is this project's, as go.mod names it.
const module = "module appplatform\n"

// A repository is the checkout that an image is built from.
type repository struct {
	dir string
	fs  fs.FS
}

// openRepository finds the checkout that holds dir.
func openRepository(dir string) (*repository, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for d := dir; ; d = filepath.Dir(d) {
		text, err := os.ReadFile(filepath.Join(d, "go.mod"))
		if err == nil && strings.HasPrefix(string(text), module) {
			return &repository{d, os.DirFS(d)}, nil
		}
		if d == filepath.Dir(d) {
			return nil, hint.Errorf("change into one, or name it with --repo", "%s is not inside a checkout of App Platform", dir)
		}
	}
}

// hash names the content of files and folders of the checkout: paths, bytes and
// whether a file is executable. Missing ones count as empty.
func (r *repository) hash(keep func(path string) bool, names ...string) (string, error) {
	h := sha256.New()
	for _, name := range names {
		err := fs.WalkDir(r.fs, name, func(path string, e fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) && path == name {
				return nil
			}
			if err != nil {
				return err
			}
			if e.IsDir() || keep != nil && !keep(path) {
				return nil
			}
			return r.hashFile(h, path, e)
		})
		if err != nil {
			return "", fmt.Errorf("cannot read %s: %w", filepath.Join(r.dir, name), err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (r *repository) hashFile(h io.Writer, path string, e fs.DirEntry) error {
	if e.Type()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(filepath.Join(r.dir, path))
		fmt.Fprintf(h, "%s -> %s\n", path, to)
		return err
	}
	text, err := fs.ReadFile(r.fs, path)
	if err != nil {
		return err
	}
	fmt.Fprintf(h, "%s %x\n", path, sha256.Sum256(text))
	return nil
}

// notOf are the files and folders that a system does not read.
var notOf = map[string][]string{
	"system":  {"rootfs/ramdisk", "rootfs/*/ramdisk"},
	"ramdisk": {"rootfs/overlay", "rootfs/gateway", "rootfs/*/system", "boards/*/overlay", "boards/*/packages", "boards/*/rules", licenceFile},
}

// sources are keys of what of the checkout goes into an image besides the
// kernel's options and the board, which a plan reads itself.
type sources struct {
	programs        [len(programs)]string
	system, ramdisk string
}

func (r *repository) sources(board string) (s sources, err error) {
	for i, prog := range programs {
		if s.programs[i], err = r.programSource(prog); err != nil {
			return s, err
		}
	}
	if s.system, err = r.data("system", board); err != nil {
		return s, err
	}
	s.ramdisk, err = r.data("ramdisk", board)
	return s, err
}

// data is the key of what rootfs reads from the checkout for a system of a
// board.
func (r *repository) data(system, board string) (string, error) {
	return r.hash(func(path string) bool {
		if filepath.Ext(path) == ".go" || strings.HasSuffix(path, "kernel.config") {
			return false
		}
		return !slices.ContainsFunc(notOf[system], func(pattern string) bool { return below(path, pattern) })
	}, "rootfs", "boards/"+board, licenceFile)
}

// below reports whether the path, or a folder it lies in, matches the pattern.
func below(path, pattern string) bool {
	elements := strings.Split(path, "/")
	depth := min(len(elements), strings.Count(pattern, "/")+1)
	matched, _ := filepath.Match(pattern, strings.Join(elements[:depth], "/"))
	return matched
}

// programSource is the key of the source that a program is compiled from; pages
// and statements that are embedded count, tests do not.
func (r *repository) programSource(prog program) (string, error) {
	sum, err := r.hash(func(path string) bool {
		return !strings.HasSuffix(path, "_test.go") && !strings.Contains(path, "/testdata/")
	}, prog.Source...)
	if err != nil {
		return "", err
	}
	mod, err := r.hash(nil, "go.mod", "go.sum")
	if err != nil {
		return "", err
	}
	return cache.Key(sum, mod, runtime.Version()), nil
}

// self is the key of this program: another builder may build another image.
func self() (string, error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("cannot read this program: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("cannot read this program: %w", err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// FindRepository returns the root of the checkout that holds dir.
func FindRepository(dir string) (string, error) {
	r, err := openRepository(dir)
	if err != nil {
		return "", err
	}
	return r.dir, nil
}

// OpenTools sets up a kind of build tools at today's versions, for use by hand
// and for starting images.
func OpenTools(ctx context.Context, a *archive.Archive, kind tooltree.Kind, progress func(int64)) (*tooltree.Tree, error) {
	pkgs, err := tooltree.Resolve(ctx, a, kind)
	if err != nil {
		return nil, err
	}
	return tooltree.Open(ctx, a, kind, pkgs, progress)
}
