package bundle

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"

	"aead.dev/minisign"
)

// A KeyPair is the text of the two files that the minisign tool keeps a key in.
type KeyPair struct{ Private, Public []byte }

// NewKey makes a key pair without a password: it is meant for builds that run
// unattended, and the file's mode protects it.
func NewKey() (KeyPair, error) {
	public, private, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		return KeyPair{}, fmt.Errorf("cannot make a signing key: %w", err)
	}
	var pair KeyPair
	if pair.Private, err = private.MarshalText(); err != nil {
		return KeyPair{}, fmt.Errorf("cannot make a signing key: %w", err)
	}
	if pair.Public, err = public.MarshalText(); err != nil {
		return KeyPair{}, fmt.Errorf("cannot make a signing key: %w", err)
	}
	pair.Private, pair.Public = line(pair.Private), line(pair.Public)
	return pair, nil
}

func line(b []byte) []byte { return append(bytes.TrimRight(b, "\n"), '\n') }

// PublicKey is the one line of a public key file that platform.json lists.
func PublicKey(file []byte) (string, error) {
	var key minisign.PublicKey
	if err := key.UnmarshalText(bytes.TrimSpace(file)); err != nil {
		return "", fmt.Errorf("cannot read the public key: %w", err)
	}
	return key.String(), nil
}

// Sign signs the text of a manifest with a private key file; password is empty
// for a key without one. The same key and text always give the same signature,
// so that images are reproducible.
func Sign(private []byte, password string, manifest []byte) ([]byte, error) {
	m, err := Decode(manifest)
	if err != nil {
		return nil, err
	}
	return SignText(private, password, manifest, fmt.Sprintf("%s image %s", m.Board, m.Label),
		"App Platform manifest, check with minisign -Vm "+ManifestName)
}

// SignText signs any text. The trusted comment is signed, too, and shown to
// whoever checks the signature; the other one is not.
func SignText(private []byte, password string, text []byte, trusted, comment string) ([]byte, error) {
	var key minisign.PrivateKey
	var err error
	private = bytes.TrimSpace(private)
	if minisign.IsEncrypted(private) {
		key, err = minisign.DecryptKey(password, private)
	} else {
		err = key.UnmarshalText(private)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use the signing key: %w", err)
	}
	r := minisign.NewReader(bytes.NewReader(text))
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, fmt.Errorf("cannot sign: %w", err)
	}
	return r.SignWithComments(key, trusted, comment), nil
}

// ErrSignature is a text that none of the known keys has signed.
var ErrSignature = errors.New("its signature is not from a known key")

// CheckSignature accepts a signature of the text by any one of the keys.
func CheckSignature(keys []string, text, signature []byte) error {
	for _, line := range keys {
		var key minisign.PublicKey
		if err := key.UnmarshalText([]byte(strings.TrimSpace(line))); err != nil {
			return fmt.Errorf("cannot read the public key %q: %w", line, err)
		}
		if minisign.Verify(key, text, signature) {
			return nil
		}
	}
	return ErrSignature
}
