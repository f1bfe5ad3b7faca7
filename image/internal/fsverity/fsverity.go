// Package fsverity names the content of a file by the root of a tree of hashes,
// as Linux' fs-verity does and the program fsverity prints it. What is a hole
// needs not be read: a disk image of 16 GiB takes as long as what is in it.
package fsverity

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// The tree that the program makes without being told: blocks of 4 KiB, SHA-256.
const (
	logBlock = 12
	block    = 1 << logBlock
	arity    = block / sha256.Size // hashes in a block of the tree
)

// Sum is what `fsverity digest --hash-alg=sha256` prints for the file, in hex.
func Sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	t := tree{file: f, size: info.Size()}
	var root []byte
	if t.size > 0 {
		if root, err = t.root(); err != nil {
			return "", fmt.Errorf("cannot read %s: %w", path, err)
		}
	}
	return t.describe(root), nil
}

// describe hashes the struct fsverity_descriptor (linux/fsverity.h) that has this
// root in it.
func (t *tree) describe(root []byte) string {
	var d [256]byte
	d[0], d[1], d[2] = 1, 1, logBlock // version, FS_VERITY_HASH_ALG_SHA256
	binary.LittleEndian.PutUint64(d[8:], uint64(t.size))
	copy(d[16:], root)
	sum := sha256.Sum256(d[:])
	return hex.EncodeToString(sum[:])
}

type tree struct {
	file *os.File
	size int64
	// The file has no data from asked up to data.
	asked, data int64
	zeros       [][]byte // the hash of a whole hole, by level
}

func (t *tree) root() ([]byte, error) {
	level, span := 0, int64(block)
	for span < t.size {
		level, span = level+1, span*arity
	}
	t.zeros = append(t.zeros, hash(make([]byte, block)))
	for range level {
		var hashes []byte
		for range arity {
			hashes = append(hashes, t.zeros[len(t.zeros)-1]...)
		}
		t.zeros = append(t.zeros, hash(hashes))
	}
	return t.node(level, 0, span)
}

// node hashes what is below one place of the tree: span bytes from start on.
func (t *tree) node(level int, start, span int64) ([]byte, error) {
	if start+span <= t.size {
		if hole, err := t.hole(start, start+span); hole || err != nil {
			return t.zeros[level], err
		}
	}
	b := make([]byte, block)
	if level == 0 {
		n := min(block, t.size-start)
		if _, err := t.file.ReadAt(b[:n], start); err != nil {
			return nil, err
		}
		return hash(b), nil
	}
	span /= arity
	for i := range int64(arity) {
		if start+i*span >= t.size {
			break
		}
		sum, err := t.node(level-1, start+i*span, span)
		if err != nil {
			return nil, err
		}
		copy(b[i*sha256.Size:], sum)
	}
	return hash(b), nil
}

// hole reports whether the file has no data between the two places.
func (t *tree) hole(from, to int64) (bool, error) {
	if from < t.asked || from >= t.data {
		data, err := unix.Seek(int(t.file.Fd()), from, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole is left
			data, err = t.size, nil
		}
		if err != nil {
			return false, err
		}
		t.asked, t.data = from, data
	}
	return to <= t.data, nil
}

func hash(b []byte) []byte {
	sum := sha256.Sum256(b)
	return sum[:]
}
