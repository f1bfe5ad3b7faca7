// Package bundle is the image set: kernel, ramdisk, packed root file system and
// the signed manifest that lists them. The builder packs and signs it, the
// device checks and unpacks it; the format has its only home here.
package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Format is the version of the manifest that this code writes and reads.
const Format = 1

// The names of a set's files.
const (
	KernelName    = "kernel"
	RamdiskName   = "ramdisk.ext2.xz"
	RootfsName    = "rootfs.ext4.xz"
	ManifestName  = "manifest.json"
	SignatureName = "manifest.json.minisig"
)

// PieceSize is how many bytes of the root file system one piece holds. A small
// change to the system packs one piece again, and as many pieces are packed at
// a time as there are processors.
const PieceSize = 4 << 20

// A Manifest describes a set.
type Manifest struct {
	Format  int    `json:"format"`
	Board   string `json:"board"`
	Arch    string `json:"arch"`
	Label   string `json:"label"`
	Kernel  File   `json:"kernel"`
	Ramdisk File   `json:"ramdisk"`
	Rootfs  Rootfs `json:"rootfs"`
}

// A File is a file of the set.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Sum is the content of the file SumName in the form of sha256sum, for boot
// loaders that cannot read a manifest.
func (f File) Sum() []byte { return fmt.Appendf(nil, "%s  %s\n", f.SHA256, f.Name) }

// SumName is the name of the file that Sum is written to.
func (f File) SumName() string { return f.Name + ".sha256" }

// Started are the files that a boot loader starts.
func (m Manifest) Started() []File { return []File{m.Kernel, m.Ramdisk} }

// Rootfs is the packed root file system and, under Raw, what it unpacks to.
type Rootfs struct {
	File
	RawSize   int64   `json:"raw_size"`
	RawSHA256 string  `json:"raw_sha256"`
	PieceSize int64   `json:"piece_size"`
	Pieces    []Piece `json:"pieces"`
}

// A Piece is one stream of the packed file, which unpacks without the others.
type Piece struct {
	Offset    int64  `json:"offset"` // in the packed file
	Size      int64  `json:"size"`
	RawSize   int64  `json:"raw_size"`
	RawSHA256 string `json:"raw_sha256"`
	SHA256    string `json:"sha256"`
}

// Encode is the text of manifest.json.
func (m Manifest) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(m, "", " ")
	if err != nil {
		return nil, fmt.Errorf("internal error: %w", err)
	}
	return append(b, '\n'), nil
}

// Decode reads manifest.json and checks that its numbers fit together, so that
// nobody who uses them needs to.
func Decode(text []byte) (Manifest, error) {
	var m Manifest
	if err := decodeStrict(text, &m); err != nil {
		return Manifest{}, fmt.Errorf("cannot read the manifest: %w", err)
	}
	if err := m.check(); err != nil {
		return Manifest{}, fmt.Errorf("cannot use the manifest: %w", err)
	}
	return m, nil
}

func (m Manifest) check() error {
	if m.Format != Format {
		return fmt.Errorf("its format is %d and this system knows %d", m.Format, Format)
	}
	for _, word := range []string{m.Board, m.Arch, m.Label} {
		if !isWord(word) {
			return fmt.Errorf("%q cannot be the name of a board or an architecture, or an image number", word)
		}
	}
	for want, f := range map[string]File{KernelName: m.Kernel, RamdiskName: m.Ramdisk, RootfsName: m.Rootfs.File} {
		if f.Name != want || f.Size <= 0 || f.Size > maxFile || !isHash(f.SHA256) {
			return fmt.Errorf("its entry for %s is wrong", want)
		}
	}
	r := m.Rootfs
	if r.PieceSize <= 0 || r.PieceSize > 64<<20 || !isHash(r.RawSHA256) {
		return fmt.Errorf("its entry for %s is wrong", RootfsName)
	}
	var offset, raw int64
	for i, p := range r.Pieces {
		full := p.RawSize == r.PieceSize || i == len(r.Pieces)-1 && p.RawSize > 0 && p.RawSize < r.PieceSize
		if p.Offset != offset || p.Size <= 0 || p.Size > 2*r.PieceSize || !full || !isHash(p.SHA256) || !isHash(p.RawSHA256) {
			return fmt.Errorf("piece %d is wrong", i)
		}
		offset += p.Size
		raw += p.RawSize
	}
	if offset != r.Size || raw != r.RawSize {
		return fmt.Errorf("its pieces do not add up to %s", RootfsName)
	}
	return nil
}

// maxFile is how large a file may be: its size has 11 octal digits in an update
// file (POSIX: pax, ustar interchange format). So no sum of sizes overflows.
const maxFile = 1<<33 - 1

// isWord reports whether a text may stand in file names, messages and the one
// line of a signature's comment.
func isWord(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
}

func isHash(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == sha256.Size
}

// decodeStrict refuses unknown fields and text behind the value.
func decodeStrict(text []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("text behind the closing brace")
	}
	return nil
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
