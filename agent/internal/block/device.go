package block

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Device is an open partition, or an ordinary file in its place.
type Device struct{ f *os.File }

// OpenDevice opens a partition for reading and writing.
func OpenDevice(path string) (*Device, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &Device{f}, nil
}

// Close ends the use of the device. It does not sync.
func (d *Device) Close() error { return d.f.Close() }

// ReadAt reads like [os.File.ReadAt].
func (d *Device) ReadAt(b []byte, offset int64) (int, error) { return d.f.ReadAt(b, offset) }

// WriteAt writes like [os.File.WriteAt].
func (d *Device) WriteAt(b []byte, offset int64) (int, error) { return d.f.WriteAt(b, offset) }

// Size is how large the partition is.
func (d *Device) Size() (int64, error) { return d.f.Seek(0, 2) }

// zeroChunk is what Zero reads and writes at a time.
const zeroChunk = 1 << 20

// Zero makes a range zero. A new virtual disk reads as zeros already, so it
// looks before it writes, and writing is left to the disk where it can.
func (d *Device) Zero(offset, size int64) error {
	clean, err := d.isZero(offset, size)
	if err != nil || clean {
		return err
	}
	span := [2]uint64{uint64(offset), uint64(size)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.f.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span)))
	runtime.KeepAlive(&span)
	if errno == 0 {
		return nil
	}
	zeros := make([]byte, zeroChunk)
	for end := offset + size; offset < end; offset += zeroChunk {
		if _, err := d.f.WriteAt(zeros[:min(zeroChunk, end-offset)], offset); err != nil {
			return err
		}
	}
	return nil
}

func (d *Device) isZero(offset, size int64) (bool, error) {
	zeros, b := make([]byte, zeroChunk), make([]byte, zeroChunk)
	for end := offset + size; offset < end; offset += zeroChunk {
		n := min(zeroChunk, end-offset)
		if _, err := d.f.ReadAt(b[:n], offset); err != nil {
			return false, err
		}
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false, nil
		}
	}
	return true, nil
}

// Settle brings everything written onto the disk and forgets what the cache
// holds, so that the next read says what the disk really has.
func (d *Device) Settle() error {
	if err := d.f.Sync(); err != nil {
		return fmt.Errorf("cannot sync: %w", err)
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.f.Fd(), unix.BLKFLSBUF, 0)
	if errno != 0 && !errors.Is(errno, unix.ENOTTY) && !errors.Is(errno, unix.EACCES) && !errors.Is(errno, unix.EINVAL) {
		return fmt.Errorf("cannot flush the cache: %w", errno)
	}
	return unix.Fadvise(int(d.f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
