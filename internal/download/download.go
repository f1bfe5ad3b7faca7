// Package download reads files from web servers as one stream, which goes on
// where a cut or silent connection left it.
package download

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// Options are how a file is read; the zero value is fine.
type Options struct {
	Client *http.Client // by default one that takes the proxy of the environment
	From   int64        // bytes to leave out, because they are there already
	// Version is that of the file which these bytes are from, "" if nobody
	// knows; another one is refused with ErrChanged.
	Version string
	// Size is how long the whole file must be, in bytes; 0 if nobody knows. A
	// stream that ends sooner was cut.
	Size     int64
	Patience time.Duration // how long a server may send nothing; by default a minute
}

// tries is how many connections in a row may bring nothing.
const tries = 4

// A GoneError is a file that is not there, or no longer.
type GoneError struct{ Status string }

func (e *GoneError) Error() string { return e.Status }

// A File is a file on a server that is read once.
type File struct {
	ctx     context.Context
	address *url.URL
	opts    Options
	version string // as the server names it
	at      int64  // of the whole file
	failed  int    // connections since the last byte

	conn *connection // nil between two
}

// A connection ends when the server is silent for too long.
type connection struct {
	body   io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	silent *time.Timer // runs while something is waited for
}

func (c *connection) close() error {
	c.silent.Stop()
	c.cancel(nil)
	if c.body == nil {
		return nil
	}
	return c.body.Close()
}

// Open asks for the file at an http:, https: or file: address.
func Open(ctx context.Context, address string, o Options) (*File, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, err
	}
	o.Patience = cmp.Or(o.Patience, time.Minute)
	if o.Client == nil {
		o.Client = http.DefaultClient
	}
	f := &File{ctx: ctx, address: u, opts: o, at: o.From, version: o.Version}
	for {
		if err = f.connect(); err == nil {
			return f, nil
		}
		if err = f.again(err); err != nil {
			return nil, err
		}
	}
}

// Size is that of the whole file in bytes, 0 if nobody knows.
func (f *File) Size() int64 { return f.opts.Size }

// Version is what tells this content of the file from another one, "" if the
// server does not say.
func (f *File) Version() string { return f.version }

// Close ends the connection.
func (f *File) Close() error {
	if f.conn == nil {
		return nil
	}
	err := f.conn.close()
	f.conn = nil
	return err
}

// Read returns what arrives, over as many connections as it takes. Time that
// passes between two calls is not the server's.
func (f *File) Read(p []byte) (int, error) {
	for {
		n, err := f.read(p)
		if n > 0 {
			f.at, f.failed = f.at+int64(n), 0
			return n, nil
		}
		if err == io.EOF {
			if f.at >= f.opts.Size {
				return 0, io.EOF
			}
			err = fmt.Errorf("it ends after %d of %d bytes", f.at, f.opts.Size)
		}
		if err != nil {
			if err = f.again(err); err != nil {
				return 0, err
			}
		}
	}
}

func (f *File) read(p []byte) (int, error) {
	if f.ctx.Err() != nil {
		return 0, context.Cause(f.ctx)
	}
	if f.conn == nil {
		if f.opts.Size > 0 && f.at >= f.opts.Size {
			return 0, io.EOF
		}
		if err := f.connect(); err != nil {
			return 0, err
		}
	}
	f.conn.silent.Reset(f.opts.Patience)
	n, err := f.conn.body.Read(p)
	f.conn.silent.Stop()
	return n, f.conn.explain(err)
}

// explain tells a connection that was given up from one that failed.
func (c *connection) explain(err error) error {
	if err != nil && err != io.EOF && c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	return err
}

// ErrChanged is a file that would have to be put together from two.
var ErrChanged = errors.New("the file on the server has changed meanwhile: begin again")

// again waits a little before the next connection, if there is to be one.
func (f *File) again(err error) error {
	f.Close()
	f.failed++
	var gone *GoneError
	switch {
	case f.ctx.Err() != nil:
		return context.Cause(f.ctx)
	case f.failed >= tries || errors.As(err, &gone) || errors.Is(err, ErrChanged):
		return err
	}
	select {
	case <-f.ctx.Done():
		return context.Cause(f.ctx)
	case <-time.After(time.Duration(f.failed) * f.opts.Patience / 60):
		return nil
	}
}

// connect asks for the rest of the file.
func (f *File) connect() error {
	c := &connection{}
	c.ctx, c.cancel = context.WithCancelCause(f.ctx)
	c.silent = time.AfterFunc(f.opts.Patience, func() { c.cancel(fmt.Errorf("nothing arrived for %v", f.opts.Patience)) })
	err := c.explain(f.ask(c))
	if err != nil {
		c.close()
		return err
	}
	c.silent.Stop()
	f.conn = c
	return nil
}

func (f *File) ask(c *connection) error {
	if f.address.Scheme == "file" {
		file, err := os.Open(f.address.Path)
		if errors.Is(err, os.ErrNotExist) {
			return &GoneError{err.Error()}
		} else if err != nil {
			return err
		}
		c.body = file
		_, err = file.Seek(f.at, io.SeekStart)
		return err
	}
	req, err := http.NewRequestWithContext(c.ctx, http.MethodGet, f.address.String(), nil)
	if err != nil {
		return err
	}
	if f.at > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", f.at))
	}
	res, err := f.opts.Client.Do(req)
	if err != nil {
		return err
	}
	err = f.accept(res)
	c.body = res.Body
	return err
}

// accept checks that an answer goes on where the last one ended. A server that
// cannot go on in the middle sends all of the file.
func (f *File) accept(res *http.Response) error {
	whole := res.ContentLength
	switch res.StatusCode {
	case http.StatusOK:
	case http.StatusPartialContent:
		whole = -1
		var from, to int64
		if _, err := fmt.Sscanf(res.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &whole); from != f.at {
			return fmt.Errorf("the server sends another part than was asked for (%v)", err)
		}
	case http.StatusRequestedRangeNotSatisfiable:
		if _, err := fmt.Sscanf(res.Header.Get("Content-Range"), "bytes */%d", &whole); err != nil || whole != f.at {
			return ErrChanged // It is shorter than what is here.
		}
		res.Body.Close()
		res.Body = http.NoBody
	case http.StatusNotFound, http.StatusGone:
		return &GoneError{res.Status}
	default:
		return fmt.Errorf("the server answers %s", strings.ToLower(res.Status))
	}
	version := cmp.Or(res.Header.Get("ETag"), res.Header.Get("Last-Modified"))
	if f.version != "" && version != f.version {
		return ErrChanged
	}
	f.version = version
	if f.opts.Size == 0 {
		f.opts.Size = max(whole, 0)
	}
	if res.StatusCode == http.StatusOK && f.at > 0 {
		_, err := io.CopyN(io.Discard, res.Body, f.at)
		return err
	}
	return nil
}
