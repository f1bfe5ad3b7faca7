package vdisk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A raw image is a disk that is stored as it is, with holes.
type raw struct {
	f      *os.File
	length int64 // of the file
}

// OpenRaw makes a disk of a raw image. Behind the end of an image whose size is
// no multiple of SectorSize there are zeros.
func OpenRaw(f *os.File) (Disk, error) { return openRaw(f) }

func openRaw(f *os.File) (*raw, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return nil, fmt.Errorf("%s is not a disk image with anything in it", f.Name())
	}
	return &raw{f, info.Size()}, nil
}

// Size is that of the disk, in bytes.
func (r *raw) Size() int64 { return (r.length + SectorSize - 1) / SectorSize * SectorSize }

// Walk hands over everything that is not a hole, in ascending order.
func (r *raw) Walk(visit func(offset int64, data []byte) error) error {
	return r.walk(func(offset int64, data []byte) error {
		return visit(offset, data[:min(int64(len(data)), r.Size()-offset)])
	})
}

// walk hands over whole chunks, jobSize at most at once, each in memory of its
// own.
func (r *raw) walk(visit func(offset int64, data []byte) error) error {
	for at := int64(0); at < r.length; {
		data, err := unix.Seek(int(r.f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // Only a hole is left.
		}
		if err != nil {
			return fmt.Errorf("cannot read the image: %w", err)
		}
		hole, err := unix.Seek(int(r.f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return fmt.Errorf("cannot read the image: %w", err)
		}
		// The ends of an extent need not be those of chunks.
		for at = max(at, data/ChunkSize*ChunkSize); at < hole; {
			buf := make([]byte, min(jobSize, (hole-at+ChunkSize-1)/ChunkSize*ChunkSize))
			if n, err := r.f.ReadAt(buf, at); err != nil && (err != io.EOF || at+int64(n) != r.length) {
				return fmt.Errorf("cannot read the image: %w", err)
			}
			if err := visit(at, buf); err != nil {
				return err
			}
			at += int64(len(buf))
		}
	}
	return nil
}
