package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/therootcompany/xz"

	"appplatform/internal/smallfile"
)

// A Set is a folder with the files of an image whose manifest has been read.
type Set struct {
	Manifest
	dir string
}

// Open reads the manifest in dir and checks that it is signed by one of the
// keys and made for the platform.
func Open(dir string, p Platform) (Set, error) {
	text, err := smallfile.Read(filepath.Join(dir, ManifestName), maxManifest)
	if err != nil {
		return Set{}, fmt.Errorf("cannot open the image set: %w", err)
	}
	signature, err := smallfile.Read(filepath.Join(dir, SignatureName), maxSignature)
	if err != nil {
		return Set{}, fmt.Errorf("cannot open the image set: %w", err)
	}
	if err := CheckSignature(p.Keys, text, signature); err != nil {
		return Set{}, fmt.Errorf("cannot use the image set in %s: %w", dir, err)
	}
	m, err := Decode(text)
	if err != nil {
		return Set{}, err
	}
	if m.Board != p.Board || m.Arch != p.Arch {
		return Set{}, fmt.Errorf("cannot use the image set in %s: it is for board %s (%s), and this is %s (%s)", dir, m.Board, m.Arch, p.Board, p.Arch)
	}
	return Set{Manifest: m, dir: dir}, nil
}

// Path is the path of a file of the set.
func (s Set) Path(name string) string { return filepath.Join(s.dir, name) }

// Verify compares every file of the set with the manifest.
func (s Set) Verify(ctx context.Context, progress func(done, total int64)) error {
	files := s.Files()
	done, total := int64(0), s.Size()
	for _, f := range files {
		sum, size, err := hashFile(ctx, s.Path(f.Name), func(n int64) { report(progress, done+n, total) })
		if err != nil {
			return fmt.Errorf("cannot check the image set: %w", err)
		}
		if size != f.Size {
			return fmt.Errorf("%s is not what was signed: it has %d bytes instead of %d", s.Path(f.Name), size, f.Size)
		}
		if sum != f.SHA256 {
			return fmt.Errorf("%s is not what was signed: its SHA-256 differs", s.Path(f.Name))
		}
		done += f.Size
	}
	return nil
}

// CheckSums looks at the hashes that lie beside the files for boot loaders.
func (s Set) CheckSums() error {
	for _, f := range s.Started() {
		text, err := smallfile.Read(s.Path(f.SumName()), smallfile.Most)
		if err != nil {
			return fmt.Errorf("cannot read the hash that GRUB compares: %w", err)
		}
		if !bytes.Equal(text, f.Sum()) {
			return fmt.Errorf("%s is not the hash of %s, which GRUB compares", f.SumName(), f.Name)
		}
	}
	return nil
}

func report(progress func(done, total int64), done, total int64) {
	if progress != nil {
		progress(done, total)
	}
}

func hashFile(ctx context.Context, path string, progress func(int64)) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		size += int64(n)
		progress(size)
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), size, nil
		}
		if err != nil {
			return "", size, err
		}
		if err := ctx.Err(); err != nil {
			return "", size, err
		}
	}
}

// A Target is where a root file system is written.
type Target interface {
	io.ReaderAt
	io.WriterAt
	// Zero makes size bytes at offset zero, as cheaply as the disk can.
	Zero(offset, size int64) error
}

// Unpack writes the root file system to the target, several pieces at a time;
// Compare then tells whether it is right. With resume it first looks whether a
// piece is there already, so that an interrupted run goes on where it stopped.
func (s Set) Unpack(ctx context.Context, to Target, resume bool, progress func(done, total int64)) error {
	f, err := os.Open(s.Path(RootfsName))
	if err != nil {
		return fmt.Errorf("cannot unpack the root file system: %w", err)
	}
	defer f.Close()
	return s.each(ctx, progress, func(i int, offset int64) error {
		p := s.Rootfs.Pieces[i]
		if resume && holds(to, offset, p) == nil {
			return nil
		}
		if p.zero() {
			return to.Zero(offset, p.RawSize)
		}
		raw, err := unpackPiece(f, p)
		if err != nil {
			return fmt.Errorf("%s: %w", s.Path(RootfsName), err)
		}
		_, err = to.WriteAt(raw, offset)
		return err
	})
}

// Compare reads the target and returns an error that names the first piece
// which is not as in the set.
func (s Set) Compare(ctx context.Context, in io.ReaderAt, progress func(done, total int64)) error {
	return s.each(ctx, progress, func(i int, offset int64) error { return holds(in, offset, s.Rootfs.Pieces[i]) })
}

// each calls do for every piece with its place in the raw image, from as many
// goroutines as there are processors.
func (s Set) each(ctx context.Context, progress func(done, total int64), do func(i int, offset int64) error) error {
	var (
		next  atomic.Int64
		done  int64
		first error
		mu    sync.Mutex
		wg    sync.WaitGroup
	)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= len(s.Rootfs.Pieces) {
					return
				}
				err := do(i, int64(i)*s.Rootfs.PieceSize)
				mu.Lock()
				if err != nil && first == nil {
					first = fmt.Errorf("piece %d of the root file system: %w", i, err)
					cancel()
				}
				done += s.Rootfs.Pieces[i].RawSize
				report(progress, done, s.Rootfs.RawSize)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if first == nil {
		first = ctx.Err()
	}
	return first
}

// errDiffers is a piece on the disk that is not the piece of the set.
var errDiffers = errors.New("what the disk holds differs from the image")

func holds(in io.ReaderAt, offset int64, p Piece) error {
	b := make([]byte, p.RawSize)
	if _, err := in.ReadAt(b, offset); err != nil && err != io.EOF {
		return err
	}
	if p.zero() {
		if !isZero(b) { // Much faster than a hash, and most pieces are.
			return errDiffers
		}
	} else if hash(b) != p.RawSHA256 {
		return errDiffers
	}
	return nil
}

func isZero(b []byte) bool {
	return len(b) == 0 || b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:])
}

// maxDict bounds the memory that unpacking takes, whatever a file asks for.
const maxDict = 64 << 20

// unpackPiece checks the packed bytes, which the manifest's signature covers.
// What they unpack to is checked by Compare, on the disk, where it matters.
func unpackPiece(f io.ReaderAt, p Piece) ([]byte, error) {
	data := make([]byte, p.Size)
	if _, err := f.ReadAt(data, p.Offset); err != nil {
		return nil, err
	}
	if hash(data) != p.SHA256 {
		return nil, errors.New("it is not what was signed: its SHA-256 differs")
	}
	r, err := xz.NewReader(bytes.NewReader(data), maxDict)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, p.RawSize)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// zeroHash is the hash of a full piece of zeros, which most of a half empty
// file system consists of.
var zeroHash = sync.OnceValue(func() string { return hash(make([]byte, PieceSize)) })

// zero reports whether the piece is nothing but zeros.
func (p Piece) zero() bool { return Zero(p.RawSHA256, p.RawSize) }

// Zero reports whether a piece with this hash and size is nothing but zeros.
// Pieces shorter than PieceSize are not looked at closely.
func Zero(rawSHA256 string, size int64) bool {
	return size == PieceSize && rawSHA256 == zeroHash()
}
