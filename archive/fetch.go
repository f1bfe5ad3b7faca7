package archive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"appplatform/internal/download"
	"appplatform/internal/hint"
)

// parallelFetches is how many packages are fetched at once.
const parallelFetches = 4

// Fetch brings every package into the pool that is not there yet. progress is
// told the bytes that arrive, of the sum that Lacking gives.
func (a *Archive) Fetch(ctx context.Context, pkgs []Package, progress func(n int64)) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelFetches)
	for _, p := range pkgs {
		if a.has(p) {
			continue
		}
		group.Go(func() error { return a.fetch(ctx, p, progress) })
	}
	return group.Wait()
}

// Lacking is the number of bytes that Fetch would fetch.
func (a *Archive) Lacking(pkgs []Package) (bytes int64) {
	for _, p := range pkgs {
		if !a.has(p) {
			bytes += p.Size
		}
	}
	return bytes
}

func (a *Archive) has(p Package) bool {
	info, err := os.Stat(a.Path(p))
	return err == nil && info.Size() == p.Size
}

// Verify reads every package in the pool again. One that was altered is put
// aside, so that the next Fetch brings it anew.
func (a *Archive) Verify(ctx context.Context, pkgs []Package) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for _, p := range pkgs {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			f, err := os.Open(a.Path(p))
			if err != nil {
				return fmt.Errorf("cannot read package %s from the pool: %w", p, err)
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return fmt.Errorf("cannot read package %s from the pool: %w", p, err)
			}
			if sum := hex.EncodeToString(h.Sum(nil)); sum != p.SHA256 {
				bad := a.Path(p) + ".altered"
				if err := os.Rename(a.Path(p), bad); err != nil {
					return fmt.Errorf("package %s in the pool is altered: %w", p, err)
				}
				return hint.Errorf("it was put aside as "+bad+"; build again and it is fetched anew",
					"package %s in the pool is altered: its SHA-256 is %s, the signed index says %s", p, sum, p.SHA256)
			}
			return nil
		})
	}
	return group.Wait()
}

// fetch brings one package into the pool. Only whole, verified files get there.
func (a *Archive) fetch(ctx context.Context, p Package, progress func(int64)) error {
	if a.noMirror != nil {
		return fmt.Errorf("cannot fetch package %s: %w", p, a.noMirror)
	}
	path := a.Path(p)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("cannot make the package pool: %w", err)
	}
	dir, remove, err := a.Cache.Temp()
	if err != nil {
		return fmt.Errorf("cannot fetch package %s: %w", p, err)
	}
	defer remove()
	f, err := os.Create(filepath.Join(dir, "deb"))
	if err != nil {
		return fmt.Errorf("cannot fetch package %s: %w", p, err)
	}
	defer f.Close()
	root := a.Main
	if p.security() {
		root = a.Security
	}
	sum, err := a.download(ctx, root+"/"+p.Filename, f, p.Size, progress)
	if err != nil {
		return explainFetch(p, err)
	}
	if sum != p.SHA256 {
		return hint.Errorf("the mirror or the way to it alters files: use another mirror (MIRROR=)", "cannot fetch package %s: its SHA-256 is %s, the signed index says %s", p, sum, p.SHA256)
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync(), os.Rename(f.Name(), path)); err != nil {
		return explainFetch(p, err)
	}
	return nil
}

func explainFetch(p Package, err error) error {
	var gone *download.GoneError
	switch {
	case errors.As(err, &gone):
		return hint.Errorf("build without --locked and with --update to take today's version, or use a mirror that keeps old versions (MIRROR=)",
			"cannot fetch package %s: the mirror no longer has it (%w)", p, err)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return hint.Errorf(hint.NoSpace, "cannot fetch package %s: %w", p, err)
	default:
		return hint.Errorf("check the mirror (MIRROR=) and the network; the packages that were fetched are kept", "cannot fetch package %s: %w", p, err)
	}
}

// client takes the way that apt takes: the proxy of the host's configuration
// of apt, else that of the environment.
func (a *Archive) client() *http.Client {
	a.clientOnce.Do(func() {
		a.httpClient = &http.Client{Transport: &http.Transport{
			Proxy: func(r *http.Request) (*url.URL, error) {
				if a.Proxy != "" {
					return url.Parse(a.Proxy)
				}
				return http.ProxyFromEnvironment(r)
			},
			MaxIdleConnsPerHost: parallelFetches,
		}}
	})
	return a.httpClient
}

// download writes the file at address, of the given size, to f and returns its
// SHA-256.
func (a *Archive) download(ctx context.Context, address string, f *os.File, size int64, progress func(int64)) (string, error) {
	if rest, ok := strings.CutPrefix(address, "copy:"); ok { // apt's other word for a mirror in a folder
		address = "file:" + rest
	}
	from, err := download.Open(ctx, address, download.Options{Client: a.client(), Size: size, Patience: a.patience})
	if err != nil {
		return "", err
	}
	defer from.Close()
	h := sha256.New()
	// One byte too many is enough to tell that it is another file.
	if _, err := io.Copy(io.MultiWriter(f, h, counter(progress)), io.LimitReader(from, size+1)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// A counter is told how much is written to it.
type counter func(n int64)

func (c counter) Write(p []byte) (int, error) {
	if c != nil {
		c(int64(len(p)))
	}
	return len(p), nil
}
