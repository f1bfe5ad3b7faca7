package bundle

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"runtime"
)

// A Packer packs the raw image of a root file system.
type Packer struct {
	// Compress turns a piece into one xz stream with a CRC32 check.
	Compress func(ctx context.Context, raw []byte) ([]byte, error)
	// Cached returns what pack made of a piece with this hash before, or
	// calls pack. It may be nil.
	Cached func(rawSHA256 string, pack func() ([]byte, error)) ([]byte, error)
	// Progress is told how many raw bytes are done. It may be nil.
	Progress func(done, total int64)
	// Workers is how many pieces are packed at a time; 0 means one for each
	// processor.
	Workers int
}

type packed struct {
	piece Piece
	data  []byte
	err   error
}

// Pack reads the size bytes of raw, writes the packed file to w and returns its
// description. Pieces are packed in parallel and written in order.
func (p Packer) Pack(ctx context.Context, raw io.ReaderAt, size int64, w io.Writer) (Rootfs, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := Rootfs{File: File{Name: RootfsName}, RawSize: size, PieceSize: PieceSize}
	whole, rawWhole := sha256.New(), sha256.New()
	results := p.start(ctx, raw, size)
	var done int64
	for result := range results {
		got := <-result
		if got.err != nil {
			return Rootfs{}, fmt.Errorf("cannot pack the root file system: %w", got.err)
		}
		got.piece.Offset = r.Size
		r.Pieces = append(r.Pieces, got.piece)
		r.Size += got.piece.Size
		whole.Write(got.data)
		if _, err := w.Write(got.data); err != nil {
			return Rootfs{}, fmt.Errorf("cannot pack the root file system: %w", err)
		}
		if err := copyRange(rawWhole, raw, done, got.piece.RawSize); err != nil {
			return Rootfs{}, fmt.Errorf("cannot pack the root file system: %w", err)
		}
		done += got.piece.RawSize
		if p.Progress != nil {
			p.Progress(done, size)
		}
	}
	if err := ctx.Err(); err != nil {
		return Rootfs{}, err
	}
	r.SHA256 = hex.EncodeToString(whole.Sum(nil))
	r.RawSHA256 = hex.EncodeToString(rawWhole.Sum(nil))
	return r, nil
}

// start packs each piece in the background; the channel's capacity bounds how
// many are under way.
func (p Packer) start(ctx context.Context, raw io.ReaderAt, size int64) <-chan chan packed {
	workers := p.Workers
	if workers <= 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	results := make(chan chan packed, workers-1)
	go func() {
		defer close(results)
		for offset := int64(0); offset < size; offset += PieceSize {
			result := make(chan packed, 1)
			select {
			case results <- result:
			case <-ctx.Done():
				return
			}
			go func() { result <- p.piece(ctx, raw, offset, min(PieceSize, size-offset)) }()
		}
	}()
	return results
}

func (p Packer) piece(ctx context.Context, raw io.ReaderAt, offset, size int64) packed {
	b := make([]byte, size)
	if _, err := raw.ReadAt(b, offset); err != nil && err != io.EOF {
		return packed{err: err}
	}
	piece := Piece{RawSize: size, RawSHA256: hash(b)}
	pack := func() ([]byte, error) { return p.Compress(ctx, b) }
	cached := p.Cached
	if cached == nil {
		cached = func(_ string, pack func() ([]byte, error)) ([]byte, error) { return pack() }
	}
	data, err := cached(piece.RawSHA256, pack)
	if err != nil {
		return packed{err: err}
	}
	piece.Size, piece.SHA256 = int64(len(data)), hash(data)
	return packed{piece: piece, data: data}
}

func copyRange(w io.Writer, r io.ReaderAt, offset, size int64) error {
	n, err := io.Copy(w, io.NewSectionReader(r, offset, size))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Describe is the manifest's entry for a file at path that the set will hold
// under the name.
func Describe(name, path string) (File, error) {
	sum, size, err := hashFile(context.Background(), path, func(int64) {})
	if err != nil {
		return File{}, fmt.Errorf("cannot describe %s: %w", name, err)
	}
	return File{Name: name, Size: size, SHA256: sum}, nil
}
