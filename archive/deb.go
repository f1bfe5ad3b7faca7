package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"
)

// A Deb is an open Debian package file: an ar archive of debian-binary,
// control.tar.* and data.tar.* (deb(5)).
type Deb struct {
	file *os.File
	data *tar.Reader
	zstd *zstd.Decoder
}

// arHeader is the size of an ar member's header and arMagic the file's first
// bytes (ar(5)).
const (
	arHeader = 60
	arMagic  = "!<arch>\n"
)

// OpenDeb opens the package at path for reading its files. Nothing is
// decompressed before the first read from Data.
func OpenDeb(path string) (*Deb, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open package: %w", err)
	}
	d := &Deb{file: f}
	if err := d.open(); err != nil {
		d.Close()
		return nil, fmt.Errorf("cannot open package %s: %w", path, err)
	}
	return d, nil
}

// Data reads the package's files: paths as the package has them ("./usr/...").
func (d *Deb) Data() *tar.Reader { return d.data }

// Close releases the file; Data must not be read any more.
func (d *Deb) Close() error {
	if d.zstd != nil {
		d.zstd.Close()
	}
	return d.file.Close()
}

func (d *Deb) open() error {
	magic := make([]byte, len(arMagic))
	if _, err := io.ReadFull(d.file, magic); err != nil || string(magic) != arMagic {
		return fmt.Errorf("not a Debian package (no ar archive)")
	}
	for off := int64(len(arMagic)); ; {
		head := make([]byte, arHeader)
		if _, err := d.file.ReadAt(head, off); err != nil {
			return fmt.Errorf("no data.tar in it: %w", err)
		}
		name := strings.TrimRight(string(head[:16]), " /")
		size, err := strconv.ParseInt(string(bytes.TrimSpace(head[48:58])), 10, 64)
		if err != nil || size < 0 {
			return fmt.Errorf("broken ar header of %q", name)
		}
		off += arHeader
		if ext, ok := strings.CutPrefix(name, "data.tar"); ok {
			return d.decode(ext, io.NewSectionReader(d.file, off, size))
		}
		off += size + size%2
	}
}

func (d *Deb) decode(ext string, packed io.Reader) error {
	packed = bufio.NewReaderSize(packed, 256<<10)
	var plain io.Reader
	var err error
	switch ext {
	case ".xz":
		plain, err = xz.NewReader(packed, 0)
	case ".zst":
		d.zstd, err = zstd.NewReader(packed, zstd.WithDecoderConcurrency(1))
		plain = d.zstd
	case ".gz":
		plain, err = gzip.NewReader(packed)
	case "":
		plain = packed
	default:
		err = fmt.Errorf("unknown compression data.tar%s", ext)
	}
	if err != nil {
		return err
	}
	d.data = tar.NewReader(plain)
	return nil
}
