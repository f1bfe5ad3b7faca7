package bundle

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// An update file is a tar archive (POSIX.1-1988, ustar) with the files of one
// set and nothing else: manifest, signature, kernel, ramdisk, root file system.
// The first two make it possible to refuse the file after some kilobytes.

// Limits of what is read before a signature was checked, in bytes.
const (
	maxManifest  = 1 << 20
	maxSignature = 4 << 10
)

// Time is what every file of an image, and every entry of an update file, says of
// when it was made: both are to be the same twice.
var Time = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// ErrUpdate is a file that is no update file, or not a whole one.
var ErrUpdate = errors.New("it is not a whole update file")

// entry is the one header that an update file may have for a file.
func entry(name string, size int64) *tar.Header {
	return &tar.Header{Name: name, Mode: 0o644, Size: size, ModTime: Time, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
}

// WriteUpdate writes a set as an update file; paths are where the files that
// the manifest lists lie.
func WriteUpdate(w io.Writer, manifest, signature []byte, paths map[string]string) error {
	m, err := Decode(manifest)
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	if err := writeHead(t, manifest, signature); err != nil {
		return fmt.Errorf("cannot write the update file: %w", err)
	}
	for _, f := range m.Files() {
		if err := writeFile(t, f, paths[f.Name]); err != nil {
			return fmt.Errorf("cannot write the update file: %s: %w", f.Name, err)
		}
	}
	return t.Close()
}

func writeHead(t *tar.Writer, manifest, signature []byte) error {
	for _, f := range []struct {
		name  string
		text  []byte
		limit int
	}{{ManifestName, manifest, maxManifest}, {SignatureName, signature, maxSignature}} {
		if len(f.text) > f.limit {
			return fmt.Errorf("%s has %d bytes, and %d may be read", f.name, len(f.text), f.limit)
		}
		if err := t.WriteHeader(entry(f.name, int64(len(f.text)))); err != nil {
			return err
		}
		if _, err := t.Write(f.text); err != nil {
			return err
		}
	}
	return nil
}

func writeFile(t *tar.Writer, f File, path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := t.WriteHeader(entry(f.Name, f.Size)); err != nil {
		return err
	}
	n, err := io.Copy(t, in)
	if err == nil && n != f.Size {
		err = fmt.Errorf("it has %d bytes instead of %d", n, f.Size)
	}
	return err
}

// Files are the files that the manifest describes, in the order of an update
// file.
func (m Manifest) Files() []File { return []File{m.Kernel, m.Ramdisk, m.Rootfs.File} }

// Size is the sum of a set's files in bytes, without manifest and signature.
func (m Manifest) Size() (bytes int64) {
	for _, f := range m.Files() {
		bytes += f.Size
	}
	return bytes
}

// FileSize is the length of the update file in bytes: blocks of 512, one more in
// front of each file, and two at the end.
func (u *Update) FileSize() int64 {
	const block = 512
	size := int64(2 * block)
	for _, n := range []int64{int64(len(u.Text)), int64(len(u.Signature)), u.Kernel.Size, u.Ramdisk.Size, u.Rootfs.Size} {
		size += block + (n+block-1)/block*block
	}
	return size
}

// An Update is an update file that is being read.
type Update struct {
	Manifest
	Text      []byte // of the manifest
	Signature []byte
	tar       *tar.Reader
	rest      io.Reader
}

// OpenUpdate reads the beginning of an update file: manifest and signature. It
// refuses what none of the keys has signed.
func OpenUpdate(r io.Reader, keys []string) (*Update, error) {
	u, err := readHead(r)
	if err != nil {
		return nil, err
	}
	if err := CheckSignature(keys, u.Text, u.Signature); err != nil {
		return nil, fmt.Errorf("cannot use the update file: %w", err)
	}
	u.Manifest, err = Decode(u.Text)
	return u, err
}

func readHead(r io.Reader) (*Update, error) {
	u := &Update{tar: tar.NewReader(r), rest: r}
	var err error
	if u.Text, err = u.small(ManifestName, maxManifest); err != nil {
		return nil, err
	}
	u.Signature, err = u.small(SignatureName, maxSignature)
	return u, err
}

// small reads one of the two files that nothing vouches for yet.
func (u *Update) small(name string, limit int64) ([]byte, error) {
	size, err := u.next(name)
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, broken("%s has %d bytes", name, size)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(u.tar, b); err != nil {
		return nil, broken("%s: %v", name, err)
	}
	return b, nil
}

func broken(format string, args ...any) error {
	return fmt.Errorf("cannot read the update file: %w: %s", ErrUpdate, fmt.Sprintf(format, args...))
}

// next goes to the next entry, which must be the one of this name and exactly
// as it is written: no folders, links, long names or attributes.
func (u *Update) next(name string) (size int64, err error) {
	h, err := u.tar.Next()
	if err != nil {
		return 0, broken("where %s should be: %v", name, err)
	}
	want := entry(name, h.Size)
	if h.Name != want.Name || h.Typeflag != want.Typeflag || h.Format != want.Format || h.Linkname != "" || len(h.PAXRecords) > 0 || h.Size < 0 {
		return 0, broken("where %s should be there is %q", name, h.Name)
	}
	return h.Size, nil
}

// Extract copies the files that the manifest lists to where create says, checks
// them while they pass, and makes sure that nothing follows them. What was
// created is only good if it returns nil. progress may be nil.
func (u *Update) Extract(ctx context.Context, create func(File) (io.WriteCloser, error), progress func(done, total int64)) error {
	done, total := int64(0), u.Size()
	for _, f := range u.Files() {
		size, err := u.next(f.Name)
		if err != nil {
			return err
		}
		if size != f.Size {
			return broken("%s has %d bytes, and the manifest says %d", f.Name, size, f.Size)
		}
		w, err := create(f)
		if err != nil {
			return err
		}
		err = u.copy(ctx, w, f, func(n int64) { report(progress, done+n, total) })
		if err = errors.Join(err, w.Close()); err != nil {
			return err
		}
		done += f.Size
	}
	if _, err := u.tar.Next(); err != io.EOF {
		return broken("something follows the last file")
	}
	// The archive ends with zeros; a reader stops in the middle of them.
	if n, err := io.Copy(io.Discard, u.rest); err != nil || n > 0 {
		return broken("%d bytes follow its end (%v)", n, err)
	}
	return nil
}

func (u *Update) copy(ctx context.Context, w io.Writer, f File, progress func(int64)) error {
	h, buf, done := sha256.New(), make([]byte, 1<<20), int64(0)
	for done < f.Size {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		n, err := u.tar.Read(buf)
		h.Write(buf[:n])
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		done += int64(n)
		progress(done)
		if err != nil && done < f.Size {
			return broken("it ends in the middle of %s (%v)", f.Name, err)
		}
	}
	if hex.EncodeToString(h.Sum(nil)) != f.SHA256 {
		return fmt.Errorf("%s is not what was signed: its SHA-256 differs", f.Name)
	}
	return nil
}

// Resign copies an update file and gives it another signature: release keys are
// often kept away from the machine that builds. What sign signs is only checked
// to be whole; who built it is for the caller to know. What was written is only
// good if Resign returns nil.
func Resign(w io.Writer, r io.Reader, sign func(manifest []byte) ([]byte, error)) error {
	u, err := readHead(r)
	if err != nil {
		return err
	}
	if u.Manifest, err = Decode(u.Text); err != nil {
		return err
	}
	signature, err := sign(u.Text)
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	if err := writeHead(t, u.Text, signature); err != nil {
		return fmt.Errorf("cannot write the update file: %w", err)
	}
	err = u.Extract(context.Background(), func(f File) (io.WriteCloser, error) {
		return open{t}, t.WriteHeader(entry(f.Name, f.Size))
	}, nil)
	if err != nil {
		return err
	}
	return t.Close()
}

// open is a writer that stays open.
type open struct{ io.Writer }

func (open) Close() error { return nil }
