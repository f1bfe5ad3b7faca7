package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"appplatform/archive"
	"appplatform/image"
	"appplatform/internal/cache"
	"appplatform/internal/hint"
	"appplatform/internal/run"
	"appplatform/tooltree"
)

// A lab is where things are measured. It uses the packages, tools and kernels
// of the user's cache, and leaves the checkout and the rest of the cache alone.
type lab struct {
	board string
	runs  int
	packs int // of these, how many builds go on to an image
	log   func(string)

	connections int // idle WebSockets
	own         system

	repo    string // the checkout
	copy    string // a copy of it, which is changed and built
	work    string // removed at the end
	apimage string
	gocache string

	cache   *cache.Dir
	archive *archive.Archive
	tools   *tooltree.Tree // kind Image
	vm      *tooltree.Tree // kind VM
	image   *built         // the checkout's own, up to date
	lock    *image.Lock

	fresh  int    // caches made so far
	warmed string // a cache in which the copy has been built
}

// newLab checks what a measurement needs and builds the checkout's image, so
// that packages, tools and kernel are in the cache.
func newLab(ctx context.Context, board string, runs int, log func(string)) (*lab, error) {
	l := &lab{board: board, runs: runs, log: log}
	for _, tool := range []string{"mmdebstrap", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, hint.Errorf("apt-get install mmdebstrap", "cannot compare with mmdebstrap: %w", err)
		}
	}
	if err := l.open(ctx); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *lab) open(ctx context.Context) (err error) {
	if l.repo, err = image.FindRepository("."); err != nil {
		return err
	}
	if l.cache, err = cache.Default(); err != nil {
		return err
	}
	if l.work, err = os.MkdirTemp("", "app-platform-bench"); err != nil {
		return err
	}
	// mmdebstrap, run by an ordinary user, works under other user ids.
	if err := os.Chmod(l.work, 0o755); err != nil {
		return err
	}
	out, err := run.Output(ctx, "go", "env", "GOCACHE")
	if err != nil {
		return err
	}
	l.gocache = string(out[:len(out)-1])
	l.apimage = filepath.Join(l.work, "apimage")
	l.log("building the checkout's own image first")
	build := run.Command(ctx, "go", "build", "-trimpath", "-o", l.apimage, "./cmd/apimage")
	build.Dir = l.repo
	if err := run.Wait(build); err != nil {
		return err
	}
	if l.image, err = l.build(ctx, "", l.repo); err != nil {
		return err
	}
	if l.lock, err = image.ReadLock(l.image.file(".lock")); err != nil {
		return err
	}
	l.copy = filepath.Join(l.work, "checkout")
	if err := copyTree(l.copy, l.repo, ".git", "bin", "out"); err != nil {
		return fmt.Errorf("cannot copy the checkout: %w", err)
	}
	return l.openTools(ctx)
}

func (l *lab) openTools(ctx context.Context) (err error) {
	if l.archive, err = archive.Open(ctx, l.cache, os.Getenv("MIRROR"), os.Getenv("SECURITY_MIRROR")); err != nil {
		return err
	}
	l.archive.Log = l.log
	if l.tools, err = tooltree.Open(ctx, l.archive, tooltree.Image, l.lock.ImageTools, nil); err != nil {
		return err
	}
	l.vm, err = image.OpenTools(ctx, l.archive, tooltree.VM, nil)
	return err
}

func (l *lab) close() {
	if l.work != "" {
		_ = cache.RemoveAll(l.work)
	}
}

// freshCache makes a cache that holds packages and their index, tools, kernels
// and the signing key, and nothing that was made from them. home is its
// XDG_CACHE_HOME.
func (l *lab) freshCache() (home string, err error) {
	l.fresh++
	home = filepath.Join(l.work, fmt.Sprintf("cache%d", l.fresh))
	root := filepath.Join(home, "app-platform")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	for _, name := range []string{"pool", "tools", "kernels", "keys"} {
		if err := os.Symlink(l.cache.Path(name), filepath.Join(root, name)); err != nil {
			return "", err
		}
	}
	// What apt answered is left behind: resolving is part of a build.
	if err := copyTree(filepath.Join(root, "apt"), l.cache.Path("apt"), "*/resolved"); err != nil {
		return "", fmt.Errorf("cannot copy the package index: %w", err)
	}
	return home, moveSettings(filepath.Join(root, "apt"), l.cache.Path("apt"))
}

// warmCache returns a cache in which the copy of the checkout has been built.
func (l *lab) warmCache(ctx context.Context) (string, error) {
	if l.warmed != "" {
		return l.warmed, nil
	}
	home, err := l.freshCache()
	if err != nil {
		return "", err
	}
	l.log("building the copy of the checkout")
	if _, err := l.build(ctx, home, l.copy); err != nil {
		return "", err
	}
	l.warmed = home
	return home, nil
}

// dropCache makes room: a cache of a build is about 300 MB.
func (l *lab) dropCache() error {
	if l.warmed == "" {
		return nil
	}
	home := l.warmed
	l.warmed = ""
	return errors.Join(cache.RemoveAll(home), os.RemoveAll(filepath.Join(l.copy, "out")))
}
