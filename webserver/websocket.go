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
	"sync"
	"syscall"
	"time"
)

// upgrade asks the app for a WebSocket and, if it agrees, relays bytes from then
// on.
func (s *Server) upgrade(w *response, r *http.Request, reg *registration) error {
	app, err := reg.dial(r.Context())
	if errors.Is(err, errNotAccepting) {
		return err
	}
	if err != nil {
		s.failed(w, r, reg, w.body.failure, err)
		return nil
	}
	stop := context.AfterFunc(r.Context(), func() { app.SetDeadline(time.Unix(1, 0)) })
	br := readers.Get().(*bufio.Reader)
	br.Reset(app)
	defer func() {
		br.Reset(nil)
		readers.Put(br)
	}()
	_ = app.SetWriteDeadline(time.Now().Add(progressTime))
	_, err = app.Write(upgradeHead(r, w.head))
	var answer *http.Response
	if err == nil {
		answer, err = http.ReadResponse(br, r)
	}
	if err != nil {
		app.Close()
		s.failed(w, r, reg, w.body.failure, err)
		return nil
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		s.copyAnswer(w, r, answer)
		answer.Body.Close()
		app.Close()
		return nil
	}
	if !stop() {
		app.Close()
		w.abort()
		return nil
	}
	early, _ := br.Peek(br.Buffered())
	if err := w.switchProtocols(answer.Header, early); err != nil {
		app.Close()
		return nil
	}
	return s.begin(w, app, nil)
}

// upgradeHead is the request for the app. The body of one that asks for a
// WebSocket would be taken for the first frames.
func upgradeHead(r *http.Request, h *head) []byte {
	header := outgoing(r)
	delete(header, "Host")
	delete(header, "Content-Length")
	b := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n", r.URL.RequestURI(), h.host)
	for name, values := range header {
		for _, value := range values {
			b = append(b, name+": "+value+"\r\n"...)
		}
	}
	return append(b, "\r\n"...)
}

// switchProtocols answers 101 with the app's words.
func (w *response) switchProtocols(header http.Header, early []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := []byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n")
	strip(header, []string{"Connection", "Upgrade", "Transfer-Encoding", "Content-Length", "Keep-Alive"})
	for name, values := range header {
		for _, value := range values {
			b = append(b, name+": "+clean(value)+"\r\n"...)
		}
	}
	w.status = http.StatusSwitchingProtocols
	w.close = true
	return w.put(append(append(b, "\r\n"...), early...))
}

// passThrough hands the connection to the app, beginning with the request's head
// as it came.
func (s *Server) passThrough(w *response, r *http.Request, reg *registration) error {
	app, err := reg.dial(r.Context())
	if errors.Is(err, errNotAccepting) {
		return err
	}
	if err != nil {
		s.failed(w, r, reg, w.body.failure, err)
		return nil
	}
	return s.begin(w, app, w.head.raw)
}

// begin makes a relay of the two connections. What is read already of the
// client's words goes first.
func (s *Server) begin(w *response, app *net.UnixConn, first []byte) error {
	raw, err := app.SyscallConn()
	if err == nil {
		early, _ := w.br.Peek(w.br.Buffered())
		if len(first)+len(early) > 0 {
			_ = app.SetWriteDeadline(time.Now().Add(progressTime))
			_, err = app.Write(append(first, early...))
		}
	}
	if err != nil {
		app.Close()
		w.abort()
		return nil
	}
	w.taken = true
	w.then = func() {
		v := w.v
		r := &relay{srv: s, client: v.c, rw: v.rw, app: app}
		r.up = way{relay: r, spot: spot{raw: v.c.raw, known: v.spot.known}}
		r.down = way{relay: r, spot: spot{raw: raw}}
		_ = v.c.SetDeadline(time.Time{})
		v.c.eager.Store(true)
		s.webSockets.Add(1)
		// TLS may hold bytes that the descriptor does not show any more.
		r.up.ready()
		r.down.park()
	}
	return nil
}

// A relay copies bytes in both directions. While there are none, it has no
// goroutine and no buffer.
type relay struct {
	srv      *Server
	client   *conn
	rw       net.Conn // client, or TLS over it
	app      *net.UnixConn
	up, down way

	mu    sync.Mutex
	half  bool // one of the ways is at its end
	ended bool
}

// A way is one direction of a relay.
type way struct {
	relay *relay
	spot  spot
}

// pieces are the first buffers of a pump; a way that fills one gets a larger.
var pieces = sync.Pool{New: func() any { b := make([]byte, 4096); return &b }}

func (w *way) ready() { go w.pump() }
func (w *way) late()  { go w.relay.close() }

func (w *way) park() {
	r := w.relay
	var until time.Time
	r.mu.Lock()
	if r.half {
		until = time.Now().Add(halfTime)
	}
	r.mu.Unlock()
	if r.srv.lot.park(&w.spot, w, until) != nil {
		r.close()
	}
}

// pump copies what there is and parks.
func (w *way) pump() {
	r := w.relay
	pool := &pieces
	buf := pool.Get().(*[]byte)
	defer func() { pool.Put(buf) }()
	for {
		n, err := w.read(*buf)
		if n > 0 {
			if w.write((*buf)[:n]) != nil {
				r.close()
				return
			}
			if n == len(*buf) && pool == &pieces {
				pool.Put(buf)
				pool = &buffers
				buf = pool.Get().(*[]byte)
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, errNotYet):
			w.park()
			return
		case errors.Is(err, io.EOF):
			w.end()
			return
		default:
			r.close()
			return
		}
	}
}

func (w *way) read(p []byte) (int, error) {
	if w == &w.relay.up {
		return w.relay.rw.Read(p)
	}
	return readNow(w.spot.raw, p)
}

func (w *way) write(p []byte) error {
	r := w.relay
	to := net.Conn(r.app)
	if w == &r.down {
		_ = r.client.SetWriteDeadline(time.Now().Add(progressTime))
		to = r.rw
	} else {
		_ = r.app.SetWriteDeadline(time.Now().Add(progressTime))
	}
	_, err := to.Write(p)
	return err
}

// end tells the other side that this way is at its end.
func (w *way) end() {
	r := w.relay
	r.mu.Lock()
	both := r.half
	r.half = true
	r.mu.Unlock()
	if both {
		r.close()
		return
	}
	var err error
	if w == &r.up {
		err = r.app.CloseWrite()
	} else {
		if t, ok := r.rw.(*tls.Conn); ok {
			err = t.CloseWrite()
		}
		err = errors.Join(err, r.client.CloseWrite())
	}
	if err != nil && !errors.Is(err, syscall.ENOTCONN) {
		r.close()
		return
	}
	// The other way may be parked without an end.
	other := &r.down.spot
	if w == &r.down {
		other = &r.up.spot
	}
	r.srv.lot.bound(other, time.Now().Add(halfTime))
}

// close ends both ways, whatever is under way.
func (r *relay) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		return
	}
	r.ended = true
	r.srv.lot.leave(&r.up.spot)
	r.srv.lot.leave(&r.down.spot)
	r.rw.Close()
	r.app.Close()
	r.srv.webSockets.Add(-1)
}
