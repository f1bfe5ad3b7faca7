package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"appplatform/bundle"
	"appplatform/internal/atomicfile"
	"appplatform/internal/cache"
	"appplatform/internal/hint"
)

// SignUpdate gives an update file another signature: that of a release key,
// which the machine that built the file need not know. The file is replaced
// when everything in it was found to be whole.
func SignUpdate(file, key, password string) (bundle.Manifest, error) {
	private, err := os.ReadFile(key)
	if err != nil {
		return bundle.Manifest{}, fmt.Errorf("cannot read the signing key: %w", err)
	}
	in, err := os.Open(file)
	if err != nil {
		return bundle.Manifest{}, err
	}
	defer in.Close()
	var m bundle.Manifest
	err = atomicfile.WriteFunc(file, 0o644, func(w io.Writer) error {
		return bundle.Resign(w, in, func(manifest []byte) (signature []byte, err error) {
			if m, err = bundle.Decode(manifest); err != nil {
				return nil, err
			}
			return bundle.Sign(private, password, manifest)
		})
	})
	if err != nil {
		return m, fmt.Errorf("cannot sign %s: %w", file, err)
	}
	return m, nil
}

// VerifyUpdate reads an update file as a device does, which accepts the keys.
func VerifyUpdate(ctx context.Context, file string, keys []string) (bundle.Manifest, error) {
	in, err := os.Open(file)
	if err != nil {
		return bundle.Manifest{}, err
	}
	defer in.Close()
	u, err := bundle.OpenUpdate(in, keys)
	if errors.Is(err, bundle.ErrSignature) {
		return bundle.Manifest{}, hint.Errorf("name the .pub file of the key it was signed with (--pub)", "%s: %w", file, err)
	}
	if err != nil {
		return bundle.Manifest{}, fmt.Errorf("%s: %w", file, err)
	}
	if err := u.Extract(ctx, func(bundle.File) (io.WriteCloser, error) { return discard{io.Discard}, nil }, nil); err != nil {
		return bundle.Manifest{}, fmt.Errorf("%s: %w", file, err)
	}
	return u.Manifest, nil
}

type discard struct{ io.Writer }

func (discard) Close() error { return nil }

// DevelopmentKeys are the public keys of images that this cache has signed
// without being given a key.
func DevelopmentKeys(c *cache.Dir) ([]string, error) {
	s, err := developmentKey(c)
	return []string{s.Public}, err
}
