//go:build !arm

package kexec

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"os"

	"github.com/u-root/u-root/pkg/boot/kexec"
	"golang.org/x/sys/unix"
)

func load(kernel, ramdisk, options string) error {
	k, err := open(kernel)
	if err != nil {
		return err
	}
	defer k.Close()
	var r *os.File
	if ramdisk != "" {
		if r, err = os.Open(ramdisk); err != nil {
			return err
		}
		defer r.Close()
	}
	return kexec.FileLoad(k, r, options)
}

// open opens a kernel. An arm64 kernel is packed, and Linux takes it unpacked
// only (Documentation/arch/arm64/booting.rst).
func open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	in := bufio.NewReader(f)
	if magic, err := in.Peek(2); err != nil || !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		_, err := f.Seek(0, io.SeekStart)
		return f, err
	}
	defer f.Close()
	z, err := gzip.NewReader(in)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("kernel", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	out := os.NewFile(uintptr(fd), "kernel")
	if _, err = io.Copy(out, z); err == nil {
		_, err = out.Seek(0, io.SeekStart)
	}
	if err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}
