package secret

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/chacha20poly1305"

	"appplatform/internal/atomicfile"
)

// A Key seals secrets that are needed in clear, so that a dump of the database
// alone does not have them.
type Key struct {
	key [chacha20poly1305.KeySize]byte
}

// OpenKey reads a key from a file, which it makes if it is not there. Only its
// owner may have access to it.
func OpenKey(path string) (*Key, error) {
	k, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	k = &Key{}
	_, _ = rand.Read(k.key[:]) // It never fails.
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the key %s: %w", path, err)
	}
	// A file that is not whole must never have the name, nor may two managers
	// take different keys: the link is made once.
	temp := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := atomicfile.Write(temp, k.key[:], 0o600); err != nil {
		return nil, err
	}
	defer os.Remove(temp)
	if err := os.Link(temp, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("cannot make the key %s: %w", path, err)
	}
	// What is sealed must not outlive its key in a power cut.
	dir, err := os.Open(filepath.Dir(path))
	if err == nil {
		err = dir.Sync()
		dir.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make the key %s: %w", path, err)
	}
	return readKey(path)
}

func readKey(path string) (*Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read the key: %w", err)
	}
	k := &Key{}
	if info.Size() != int64(len(k.key)) {
		return nil, fmt.Errorf("cannot read the key %s: it has %d bytes instead of %d", path, info.Size(), len(k.key))
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("cannot take the key %s: others may read it", path)
	}
	if _, err := f.ReadAt(k.key[:], 0); err != nil {
		return nil, fmt.Errorf("cannot read the key %s: %w", path, err)
	}
	return k, nil
}

// Seal encrypts a text. What is the name under which it is stored: moved to
// another name it cannot be opened.
func (k *Key) Seal(what, text string) string {
	aead, err := chacha20poly1305.NewX(k.key[:])
	if err != nil {
		panic(err) // The key has the right size.
	}
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+len(text)+aead.Overhead())
	_, _ = rand.Read(nonce) // It never fails.
	return base64.RawStdEncoding.EncodeToString(aead.Seal(nonce, nonce, []byte(text), []byte(what)))
}

// Open decrypts what Seal has made.
func (k *Key) Open(what, sealed string) (string, error) {
	aead, err := chacha20poly1305.NewX(k.key[:])
	if err != nil {
		panic(err) // The key has the right size.
	}
	raw, err := base64.RawStdEncoding.DecodeString(sealed)
	if err != nil || len(raw) < aead.NonceSize() {
		return "", fmt.Errorf("cannot open the sealed %s: it is damaged", what)
	}
	text, err := aead.Open(nil, raw[:aead.NonceSize()], raw[aead.NonceSize():], []byte(what))
	if err != nil {
		return "", fmt.Errorf("cannot open the sealed %s: it is damaged, or of another key", what)
	}
	return string(text), nil
}
