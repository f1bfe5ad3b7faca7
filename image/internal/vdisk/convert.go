package vdisk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/adler32"
	"io"
	"os"
	"runtime"

	"github.com/klauspost/compress/flate"
	"golang.org/x/sync/errgroup"

	"appplatform/image/internal/qcow2"
	"appplatform/image/internal/vhd"
	"appplatform/image/internal/vhdx"
	"appplatform/image/internal/vmdk"
)

// An Output is a file to be written: empty, and named as VMDKs call themselves.
type Output struct {
	Format Format
	File   io.WriterAt
	Name   string
}

// SectorSize is what the size of every disk is a multiple of, in bytes. A raw
// image whose size is none gets zeros behind its end.
const SectorSize = 512

// Convert writes the raw image to all outputs, reading what is not a hole once.
// progress is told how many bytes of the image are behind it.
func Convert(ctx context.Context, raw *os.File, outputs []Output, progress func(done, total int64)) (ID, error) {
	in, err := openRaw(raw)
	if err != nil {
		return ID{}, err
	}
	c := &converter{raw: in, size: in.Size(), progress: progress}
	for _, o := range outputs {
		w, err := c.newWriter(o)
		if err != nil {
			return ID{}, err
		}
		c.writers = append(c.writers, w)
	}
	return c.run(ctx)
}

// A chunk is one of the image that is not all zeros.
type chunk struct {
	index    int64
	data     []byte // up to the end of the disk
	sum      [sha256.Size]byte
	deflated []byte // raw stream of the whole chunk (RFC 1951)
	adler    uint32
}

// zlib is the stream as VMDK wants it, in the frame of RFC 1950.
func (c *chunk) zlib() []byte {
	b := make([]byte, 0, len(c.deflated)+6)
	b = append(b, 0x78, 0x9c)
	b = append(b, c.deflated...)
	return binary.BigEndian.AppendUint32(b, c.adler)
}

// A writer is one output.
type writer struct {
	add   func(*chunk) error
	close func(ID) error
}

func (c *converter) newWriter(o Output) (writer, error) {
	switch o.Format {
	case QCOW2:
		c.deflate = true
		w, err := qcow2.NewWriter(o.File, c.size)
		return writer{func(k *chunk) error { return w.WriteCluster(k.index, k.data, k.deflated) }, func(id ID) error { return w.Close(id.short()) }}, err
	case VMDK:
		c.deflate = true
		w, err := vmdk.NewWriter(o.File, o.Name, c.size)
		return writer{func(k *chunk) error { return w.WriteGrain(k.index, k.zlib()) }, func(id ID) error { return w.Close(id.short()) }}, err
	case VHDX:
		w, err := vhdx.NewWriter(o.File, c.size)
		return writer{writeAt(w), func(id ID) error { return w.Close(id.short()) }}, err
	case VHD:
		w, err := vhd.NewWriter(o.File, c.size)
		return writer{writeAt(w), func(id ID) error { return w.Close(id.short()) }}, err
	}
	return writer{}, fmt.Errorf("no disk format %q", o.Format)
}

func writeAt(w io.WriterAt) func(*chunk) error {
	return func(k *chunk) error {
		_, err := w.WriteAt(k.data, k.index*ChunkSize)
		return err
	}
}

type converter struct {
	raw      *raw
	size     int64
	deflate  bool // some output wants it
	writers  []writer
	progress func(done, total int64)
}

// A job is some chunks in a row. It goes to a worker and, in the order of the
// image, to the outputs, which wait for the worker.
type job struct {
	offset int64
	buf    []byte
	chunks []*chunk
	done   chan struct{}
}

// jobSize keeps the processors from waiting for each other too often.
const jobSize = 16 * ChunkSize

func (c *converter) run(ctx context.Context) (ID, error) {
	workers := runtime.GOMAXPROCS(0)
	todo := make(chan *job, workers)
	ordered := make(chan *job, 4*workers) // bounds the memory
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		defer close(todo)
		defer close(ordered)
		return c.raw.walk(func(offset int64, buf []byte) error {
			j := &job{offset: offset, buf: buf, done: make(chan struct{})}
			for _, to := range []chan *job{ordered, todo} {
				select {
				case to <- j:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	})
	for range workers {
		group.Go(func() error {
			d, err := newDeflater()
			if err != nil {
				return err
			}
			for j := range todo {
				if err := c.work(d, j); err != nil {
					return err
				}
				close(j.done)
			}
			return nil
		})
	}
	var id ID
	group.Go(func() (err error) {
		id, err = c.write(ctx, ordered)
		return err
	})
	err := group.Wait()
	return id, err
}

// work finds the chunks of a job that are not all zeros.
func (c *converter) work(d *deflater, j *job) error {
	for at := int64(0); at < int64(len(j.buf)); at += ChunkSize {
		data := j.buf[at : at+ChunkSize]
		if isZero(data) {
			continue
		}
		offset := j.offset + at
		k := &chunk{index: offset / ChunkSize, data: data[:min(ChunkSize, c.size-offset)], sum: sha256.Sum256(data)}
		if c.deflate {
			var err error
			if k.deflated, err = d.deflate(data); err != nil {
				return err
			}
			k.adler = adler32.Checksum(data)
		}
		j.chunks = append(j.chunks, k)
	}
	return nil
}

// A deflater compresses chunks, one at a time.
type deflater struct {
	w   *flate.Writer
	out bytes.Buffer
}

func newDeflater() (*deflater, error) {
	w, err := flate.NewWriterWindow(nil, qcow2.Window)
	return &deflater{w: w}, err
}

func (d *deflater) deflate(data []byte) ([]byte, error) {
	d.out.Reset()
	d.w.Reset(&d.out)
	if _, err := d.w.Write(data); err != nil {
		return nil, err
	}
	if err := d.w.Close(); err != nil {
		return nil, err
	}
	return bytes.Clone(d.out.Bytes()), nil
}

// write hands the chunks to the outputs in the order of the image.
func (c *converter) write(ctx context.Context, ordered <-chan *job) (ID, error) {
	s := newSummer(c.size)
	for j := range ordered {
		select {
		case <-j.done:
		case <-ctx.Done():
			return ID{}, ctx.Err()
		}
		for _, k := range j.chunks {
			s.add(k.index, k.sum)
			for _, w := range c.writers {
				if err := w.add(k); err != nil {
					return ID{}, err
				}
			}
		}
		if c.progress != nil {
			c.progress(min(j.offset+int64(len(j.buf)), c.size), c.size)
		}
	}
	if err := ctx.Err(); err != nil {
		return ID{}, err // The jobs ended because something failed.
	}
	id := s.id()
	for _, w := range c.writers {
		if err := w.close(id); err != nil {
			return ID{}, err
		}
	}
	return id, nil
}
