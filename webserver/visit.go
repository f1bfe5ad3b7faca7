package webserver

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"
)

// A visit is a client's connection that speaks HTTP/1. Between requests it is
// parked and has no goroutine and no buffer.
type visit struct {
	srv    *Server
	c      *conn
	rw     net.Conn // c, or TLS over it
	secure bool
	fresh  bool // nothing has come yet
	spot   spot
}

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4096) }}

func (v *visit) ready() { go v.serve() }

func (v *visit) late() { go v.rw.Close() } // which says so to the client

// park waits for the next request.
func (v *visit) park(within time.Duration) {
	if err := v.srv.lot.park(&v.spot, v, time.Now().Add(within)); err != nil {
		v.rw.Close()
	}
}

// serve answers requests until there is none for a while.
func (v *visit) serve() {
	if v.fresh {
		v.fresh = false
		if v.secure && !v.handshake() {
			return
		}
	}
	br := readers.Get().(*bufio.Reader)
	br.Reset(v.rw)
	defer func() {
		br.Reset(nil)
		readers.Put(br)
	}()
	_ = v.c.SetReadDeadline(time.Now().Add(headTime))
	for {
		h, err := readHead(br)
		_ = v.c.SetReadDeadline(time.Time{})
		if err != nil {
			v.refuse(err)
			return
		}
		switch v.answer(h, br) {
		case taken:
			return
		case over:
			v.linger()
			return
		}
		if br.Buffered() == 0 {
			// Most requests come soon after another or not for long.
			_ = v.c.SetReadDeadline(time.Now().Add(lingerTime))
			if _, err := br.Peek(1); err != nil {
				_ = v.c.SetReadDeadline(time.Time{})
				var timeout net.Error
				if !errors.As(err, &timeout) || !timeout.Timeout() || v.srv.draining() {
					v.rw.Close()
					return
				}
				v.park(idleTime)
				return
			}
		}
		_ = v.c.SetReadDeadline(time.Now().Add(headTime))
	}
}

// refuse answers a request that could not be read.
func (v *visit) refuse(err error) {
	var r *refusal
	if !errors.As(err, &r) {
		v.rw.Close()
		return
	}
	w := &response{v: v, header: http.Header{}, close: true, minor: 1, method: http.MethodGet}
	page(w, r.status, r.text)
	w.finish()
	v.linger()
}

// linger closes a connection on which the client may still be sending: closed at
// once, the reset would take away the answer that it has not read yet.
func (v *visit) linger() {
	_ = v.c.SetDeadline(time.Now().Add(closeTime))
	if t, ok := v.rw.(*tls.Conn); ok {
		_ = t.CloseWrite()
	}
	_ = v.c.CloseWrite()
	buf := buffers.Get().(*[]byte)
	for n := 0; n < maxDrain; {
		m, err := v.c.Read(*buf)
		if err != nil {
			break
		}
		n += m
	}
	buffers.Put(buf)
	v.rw.Close()
}

const maxDrain = 256 << 10

// What becomes of a connection after an answer.
type outcome int

const (
	more  outcome = iota // it is good for the next request
	over                 // it has to be closed
	taken                // it is somebody else's now
)

func (v *visit) answer(h *head, br *bufio.Reader) outcome {
	v.srv.requests.Add(1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b := &body{v: v, br: br, left: h.length, expects: h.expects}
	w := &response{v: v, br: br, head: h, body: b, header: http.Header{}, close: h.closes || v.srv.draining(), minor: h.minor, method: h.method}
	b.w = w
	r, err := v.request(h, b)
	if err == nil && v.c.refused != 0 {
		err = refuse(v.c.refused, "there are too many connections")
	}
	if err != nil {
		var refused *refusal
		if !errors.As(err, &refused) {
			refused = &refusal{http.StatusBadRequest, err.Error()}
		}
		w.close = true
		page(w, refused.status, refused.text)
	} else {
		watch := v.watch(cancel)
		v.srv.ServeHTTP(w, r.WithContext(ctx))
		watch.stop()
	}
	if w.taken {
		w.then()
		return taken
	}
	w.finish()
	if !b.end() || w.close || w.err != nil {
		return over
	}
	return more
}

// request is the head in net/http's words.
func (v *visit) request(h *head, b *body) (*http.Request, error) {
	u, err := h.url()
	if err != nil {
		return nil, err
	}
	r := &http.Request{Method: h.method, URL: u, Proto: fmt.Sprintf("HTTP/1.%d", h.minor), ProtoMajor: 1, ProtoMinor: h.minor,
		Header: h.header, Host: h.host, RequestURI: h.target, ContentLength: h.length, RemoteAddr: v.c.RemoteAddr().String(), Body: http.NoBody}
	if v.secure {
		r.TLS = &tls.ConnectionState{}
	}
	if h.length != 0 {
		r.Body = b
	}
	if h.length < 0 {
		r.TransferEncoding = []string{"chunked"}
		b.chunks = httputil.NewChunkedReader(b.br)
		r.Trailer = http.Header{}
		b.trailer = r.Trailer
	}
	return r, nil
}

// A body reads what follows the head. The transport may close it early and read
// it in another goroutine.
type body struct {
	v       *visit
	w       *response
	br      *bufio.Reader
	chunks  io.Reader
	trailer http.Header
	expects bool

	mu     sync.Mutex
	left   int64 // -1: chunked
	window int   // bytes until the next deadline
	err    error // io.EOF at the end
	ended  bool
}

func (b *body) Read(p []byte) (n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.err != nil:
		return 0, b.err
	case b.ended: // and the connection is another request's
		return 0, http.ErrBodyReadAfterClose
	case b.left == 0:
		b.err = io.EOF
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	}
	if b.expects {
		b.expects = false
		b.w.proceed()
	}
	if b.window <= 0 {
		b.window = progressBytes
		_ = b.v.c.SetReadDeadline(time.Now().Add(progressTime))
	}
	if b.left > 0 {
		n, err = b.br.Read(p[:min(int64(len(p)), b.left)])
		if b.left -= int64(n); b.left == 0 && err == nil {
			err = io.EOF
		} else if err != nil {
			err = broken(err)
		}
	} else if n, err = b.chunks.Read(p); err == io.EOF {
		err = b.readTrailer()
	}
	b.window -= n
	if err != nil {
		b.err = err
		_ = b.v.c.SetReadDeadline(time.Time{})
	}
	return n, err
}

func (b *body) readTrailer() error {
	trailer, err := readTrailer(b.br)
	if err != nil {
		return err
	}
	for name, values := range trailer {
		b.trailer[name] = values
	}
	return io.EOF
}

// Close is called by the transport, which may begin anew with another app's
// process: what was not read is still there.
func (b *body) Close() error { return nil }

// touched reports whether somebody has begun to read.
func (b *body) touched() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err != nil || b.window != 0 || !b.expects && b.w.head.expects
}

// failure is why the body could not be read to its end, if it could not.
func (b *body) failure() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == io.EOF {
		return nil
	}
	return b.err
}

// whole reports whether the body was read to its end; it does not wait for a
// reader.
func (b *body) whole() bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	return b.err == io.EOF || b.left == 0
}

// end takes the connection back from whoever still reads the body. It reports
// whether there is nothing of it left on the connection.
func (b *body) end() bool {
	if !b.mu.TryLock() {
		_ = b.v.c.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	b.ended = true
	return b.err == io.EOF || b.left == 0
}

// A watcher ends a request whose client has gone away.
type watcher struct {
	v      *visit
	cancel context.CancelFunc
	timer  *time.Timer

	mu   sync.Mutex
	done bool
	on   bool
}

// watch begins after a while: most answers come sooner.
func (v *visit) watch(cancel context.CancelFunc) *watcher {
	w := &watcher{v: v, cancel: cancel}
	w.timer = time.AfterFunc(watchAfter, w.begin)
	return w
}

func (w *watcher) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.done {
		w.on = w.v.srv.lot.watchEnd(&w.v.spot, w) == nil
	}
}

func (w *watcher) stop() {
	if w.timer.Stop() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = true
	if w.on {
		w.v.srv.lot.leave(&w.v.spot)
	}
}

func (w *watcher) ready() { w.cancel() }
func (w *watcher) late()  {}
