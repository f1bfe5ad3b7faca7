package block

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"appplatform/partitions"
)

// A PartitionSetter changes what the kernel believes about the partitions of
// an open disk; nothing is written.
type PartitionSetter interface {
	Add(disk *os.File, p partitions.Partition) error
	Resize(disk *os.File, p partitions.Partition) error
	Delete(disk *os.File, number int) error
}

// Announce makes the kernel see the partitions where the table has them. It
// does not ask the kernel to read the table: the kernel refuses one that was
// made for a larger disk, and refuses to look again while sda1 is in use.
func (d Disk) Announce(k PartitionSetter, parts ...partitions.Partition) error {
	f, err := os.Open(d.Path())
	if err != nil {
		return fmt.Errorf("cannot announce partitions: %w", err)
	}
	defer f.Close()
	for _, p := range parts {
		if err := d.announce(k, f, p); err != nil {
			return fmt.Errorf("cannot announce %s to the kernel: %w", d.PartName(p.Number), err)
		}
		if err := waitFor(d.PartPath(p.Number)); err != nil {
			return err
		}
	}
	return nil
}

func (d Disk) announce(k PartitionSetter, f *os.File, p partitions.Partition) error {
	start, size, err := d.kernelPart(p.Number)
	switch {
	case errors.Is(err, errNotThere):
		return k.Add(f, p)
	case err != nil:
		return err
	case start == p.Start && size == p.Size:
		return nil
	case start == p.Start:
		return k.Resize(f, p)
	}
	if err := k.Delete(f, p.Number); err != nil {
		return err
	}
	return k.Add(f, p)
}

// waitFor waits until devtmpfs has made the device file.
func waitFor(path string) error {
	for range 100 {
		if exists(path) {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("cannot use %s: the device file did not appear", path)
}

// BLKPG is the PartitionSetter of the running kernel.
type BLKPG struct{}

const (
	blkpgAdd    = 1
	blkpgDelete = 2
	blkpgResize = 3
)

// blkpgArg and blkpgPartition have the layout of the kernel's structures on 32
// and 64 bit machines alike.
type blkpgArg struct {
	op, flags, length int32
	data              unsafe.Pointer
}

type blkpgPartition struct {
	start, length int64 // in bytes
	number        int32
	name          [2][64]byte
	_             [4]byte // The kernel's structure is padded on 64 bit; it checks a minimum only.
}

// Add makes the kernel know a partition.
func (BLKPG) Add(disk *os.File, p partitions.Partition) error { return blkpg(disk, blkpgAdd, p) }

// Resize moves the end of a partition, which may be mounted.
func (BLKPG) Resize(disk *os.File, p partitions.Partition) error { return blkpg(disk, blkpgResize, p) }

// Delete makes the kernel forget a partition. It may be busy for a moment, as
// whoever looks for file systems opens new partitions.
func (BLKPG) Delete(disk *os.File, number int) (err error) {
	for range 50 {
		err = blkpg(disk, blkpgDelete, partitions.Partition{Number: number})
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return err
}

func blkpg(disk *os.File, op int32, p partitions.Partition) error {
	part := &blkpgPartition{start: int64(p.Start), length: int64(p.Size), number: int32(p.Number)}
	arg := &blkpgArg{op: op, length: int32(unsafe.Sizeof(*part)), data: unsafe.Pointer(part)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, disk.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(arg)))
	runtime.KeepAlive(part)
	if errno != 0 {
		return errno
	}
	return nil
}
