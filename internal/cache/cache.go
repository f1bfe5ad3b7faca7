// Package cache keeps what is expensive to make: packages, tool trees, kernels,
// compressed pieces. Every entry is named by what went into it, appears whole
// under its name or not at all, and may be deleted at any time.
package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/atomicfile"
)

// A Dir is the cache of one user, outside any checkout.
type Dir struct{ root string }

// Default is $XDG_CACHE_HOME/app-platform, by default ~/.cache/app-platform.
func Default() (*Dir, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return nil, fmt.Errorf("cannot find the cache folder: %w (set HOME or XDG_CACHE_HOME)", err)
	}
	return Open(filepath.Join(base, "app-platform"))
}

// Open makes the cache in root if it is not there yet.
func Open(root string) (*Dir, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("cannot open the cache: %w", err)
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, fmt.Errorf("cannot open the cache: %w (set XDG_CACHE_HOME to a folder you may write)", err)
	}
	return &Dir{root}, nil
}

// Path is the host path of an entry, whether or not it exists.
func (d *Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{d.root}, elem...)...)
}

// Has reports whether the entry exists.
func (d *Dir) Has(elem ...string) bool {
	_, err := os.Lstat(d.Path(elem...))
	return err == nil
}

// Key names an entry by its inputs; no two lists of parts give the same key.
func Key(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s,", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:32]
}

// File returns the path of the entry; when it is missing, fill writes it first.
func (d *Dir) File(name string, fill func(w io.Writer) error) (string, error) {
	path := d.Path(name)
	if used(path) {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	dir, remove, err := d.Temp()
	if err != nil {
		return "", err
	}
	defer remove()
	f, err := os.Create(filepath.Join(dir, "entry"))
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := fill(f); err != nil {
		return "", err
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync(), os.Rename(f.Name(), path)); err != nil {
		return "", err
	}
	return path, atomicfile.SyncDir(filepath.Dir(path))
}

// Use reports whether the entry exists and keeps it from being removed soon.
func (d *Dir) Use(elem ...string) bool { return used(d.Path(elem...)) }

// used reports whether the entry is there and notes that it was asked for, so
// that Keep does not take it from under a build.
func used(path string) bool {
	if _, err := os.Stat(path); err != nil {
		return false
	}
	now := time.Now()
	_ = os.Chtimes(path, now, now)
	return true
}

// Folder returns the path of a folder entry; when it is missing, fill makes it
// in a temporary folder that then takes the name. Only one process fills an
// entry at a time; waiting is called when another one is at it.
func (d *Dir) Folder(name string, waiting func(), fill func(dir string) error) (string, error) {
	path := d.Path(name)
	if used(path) {
		return path, nil
	}
	unlock, err := d.Lock(name, waiting)
	if err != nil {
		return "", err
	}
	defer unlock()
	if used(path) {
		return path, nil
	}
	temp := path + part // Left by a killed process: the lock says that nobody works in it.
	if err := RemoveAll(temp); err != nil {
		return "", err
	}
	if err := os.MkdirAll(temp, 0o755); err != nil {
		return "", err
	}
	if err := fill(temp); err != nil {
		_ = RemoveAll(temp)
		return "", err
	}
	// A power cut after the rename must not leave an entry with empty files.
	if f, err := os.Open(temp); err == nil {
		_ = unix.Syncfs(int(f.Fd()))
		f.Close()
	}
	if err := os.Rename(temp, path); err != nil {
		return "", err
	}
	return path, nil
}

// part ends the name of a folder that is being filled.
const part = ".part"

// Temp makes a folder for unfinished work, which remove deletes. What a killed
// process left in its own goes with the next call.
func (d *Dir) Temp() (dir string, remove func(), err error) {
	unlock, err := d.Lock("tmp", nil)
	if err != nil {
		return "", nil, err
	}
	defer unlock()
	parent := d.Path("tmp")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", nil, err
	}
	entries, err := os.ReadDir(parent)
	if err != nil {
		return "", nil, err
	}
	for _, e := range entries {
		if owner, err := flock(filepath.Join(parent, e.Name())); err == nil {
			_ = RemoveAll(owner.Name())
			owner.Close()
		}
	}
	if dir, err = os.MkdirTemp(parent, ""); err != nil {
		return "", nil, err
	}
	owner, err := flock(dir)
	if err != nil {
		return "", nil, fmt.Errorf("cannot lock %s: %w", dir, err)
	}
	return dir, func() { _ = RemoveAll(dir); owner.Close() }, nil
}

// flock opens and locks a folder unless another process has it locked.
func flock(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Lock makes other processes wait that lock the same name. The lock goes with
// the process, so a killed build never leaves it behind.
func (d *Dir) Lock(name string, waiting func()) (unlock func(), err error) {
	path := d.Path("locks", strings.ReplaceAll(name, "/", "_"))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the cache: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		if waiting != nil {
			waiting()
		}
		for {
			if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, syscall.EINTR) {
				break
			}
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// Keep removes all but the n entries of a folder that were asked for last.
func (d *Dir) Keep(folder string, n int) {
	entries, err := os.ReadDir(d.Path(folder))
	if err != nil {
		return
	}
	modified := func(e fs.DirEntry) time.Time {
		info, err := e.Info()
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	// Another build may be writing those.
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return strings.HasSuffix(e.Name(), part) })
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return modified(b).Compare(modified(a)) })
	for _, e := range entries[min(n, len(entries)):] {
		_ = RemoveAll(d.Path(folder, e.Name()))
	}
}

// RemoveAll is os.RemoveAll that also deletes folders without write permission,
// as unpacked packages have them.
func RemoveAll(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if e != nil && e.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}
