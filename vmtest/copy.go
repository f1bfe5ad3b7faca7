package vmtest

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"appplatform/partitions"
)

// CopyDisk makes a copy of a raw image, cut or grown to size (0: as it is), as
// somebody does who writes it to a disk of that size. Holes stay holes, so
// this takes little time and room.
func CopyDisk(to, from string, size partitions.Size) error {
	if err := copyDisk(to, from, int64(size)); err != nil {
		return fmt.Errorf("cannot copy the disk: %w", err)
	}
	return nil
}

func copyDisk(to, from string, size int64) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	if size == 0 {
		size = info.Size()
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := out.Truncate(size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(in.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if start >= size {
			break
		}
		end = min(end, size)
		if _, err := io.Copy(io.NewOffsetWriter(out, start), io.NewSectionReader(in, start, end-start)); err != nil {
			return err
		}
		at = end
	}
	return out.Close()
}
