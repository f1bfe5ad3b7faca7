package archive

import (
	"cmp"
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
	"time"

	"golang.org/x/sync/errgroup"

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
	var gone *goneError
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

// A goneError is a file that the mirror says it does not have.
type goneError struct{ status string }

func (e *goneError) Error() string { return e.status }

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

// maxSilence is how long a mirror may send nothing before it is asked again.
const maxSilence = time.Minute

// download writes the file at address, of the given size, to f, trying again
// from where a cut connection left it, and returns its SHA-256.
func (a *Archive) download(ctx context.Context, address string, f *os.File, size int64, progress func(int64)) (string, error) {
	patience := cmp.Or(a.patience, maxSilence)
	var err error
	for try := range 4 {
		if try > 0 {
			select {
			case <-ctx.Done():
				return "", ctx.Err()
			case <-time.After(time.Duration(try) * patience / 60):
			}
		}
		err = a.downloadRest(ctx, address, f, size, patience, progress)
		var gone *goneError
		if err == nil || errors.As(err, &gone) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return "", err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func (a *Archive) downloadRest(ctx context.Context, address string, f *os.File, size int64, patience time.Duration, progress func(int64)) error {
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil || have >= size {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(patience, func() { cancel(fmt.Errorf("nothing arrived for %v", patience)) })
	defer silence.Stop()
	body, err := a.open(ctx, address, have)
	if err == nil {
		defer body.Close()
		arrived := func(n int64) {
			silence.Reset(patience)
			if progress != nil {
				progress(n)
			}
		}
		// One byte too many is enough to tell that it is another file.
		_, err = io.Copy(f, io.LimitReader(&counter{body, arrived}, size-have+1))
	}
	if err != nil && context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	return err
}

// open starts reading a file: or http address from the given byte on.
func (a *Archive) open(ctx context.Context, address string, from int64) (io.ReadCloser, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "file" || u.Scheme == "copy" {
		f, err := os.Open(u.Path)
		if errors.Is(err, os.ErrNotExist) {
			return nil, &goneError{err.Error()}
		} else if err != nil {
			return nil, err
		}
		_, err = f.Seek(from, io.SeekStart)
		return f, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if from > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	res, err := a.client().Do(req)
	if err != nil {
		return nil, err
	}
	if from > 0 && res.StatusCode == http.StatusOK {
		// A server that cannot go on in the middle sends all of it.
		if _, err := io.CopyN(io.Discard, res.Body, from); err != nil {
			res.Body.Close()
			return nil, err
		}
		return res.Body, nil
	}
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusPartialContent {
		res.Body.Close()
		if res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusGone {
			return nil, &goneError{res.Status}
		}
		return nil, fmt.Errorf("the mirror answers %s", strings.ToLower(res.Status))
	}
	return res.Body, nil
}

// A counter tells how much was read through it.
type counter struct {
	io.ReadCloser
	progress func(int64)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if n > 0 {
		c.progress(int64(n))
	}
	return n, err
}
