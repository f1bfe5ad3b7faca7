package webserver

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A conn is a client's connection below TLS. It is counted until it is closed.
type conn struct {
	*net.TCPConn
	raw     syscall.RawConn
	door    *door
	from    netip.Prefix
	refused int         // the status that it gets, being over a limit
	eager   atomic.Bool // Read takes what is there and does not wait
	closed  atomic.Bool
	half    atomic.Bool // counted as half open
}

// errNotYet is what an eager Read returns when there is nothing. Being temporary
// and a timeout, it breaks no TLS connection.
var errNotYet net.Error = notYet{}

type notYet struct{}

func (notYet) Error() string   { return "nothing to read yet" }
func (notYet) Timeout() bool   { return true }
func (notYet) Temporary() bool { return true }

func (c *conn) Read(p []byte) (int, error) {
	if !c.eager.Load() {
		return c.TCPConn.Read(p)
	}
	return readNow(c.raw, p)
}

// readNow reads without waiting.
func readNow(raw syscall.RawConn, p []byte) (n int, err error) {
	if len(p) == 0 {
		return 0, nil
	}
	failed := raw.Read(func(fd uintptr) bool {
		for {
			n, err = syscall.Read(int(fd), p)
			if err != syscall.EINTR {
				return true
			}
		}
	})
	switch {
	case failed != nil:
		return 0, failed
	case err == syscall.EAGAIN:
		return 0, errNotYet
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

func (c *conn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	c.full()
	c.door.leave(c)
	return c.TCPConn.Close()
}

// full ends the time in which the connection counts as half open.
func (c *conn) full() {
	if c.half.Swap(false) {
		c.door.leaveHalf(c)
	}
}

// A door counts who is in, all together and of each address: connections, and the
// requests of HTTP/2, of which each may need a connection to an app.
type door struct {
	refusals atomic.Int64

	mu               sync.Mutex
	limit, ofAddress int
	in               int
	of               map[netip.Prefix]int
	conns            map[*conn]struct{}

	halfLimit, halfOfAddress int
	halfOpen                 int
	halfOf                   map[netip.Prefix]int
}

// enter lets a connection in. One over a limit gets a status to refuse it by, or,
// if there are many of these, nil.
func (d *door) enter(t *net.TCPConn) *conn {
	raw, err := t.SyscallConn()
	if err != nil {
		t.Close()
		return nil
	}
	c := &conn{TCPConn: t, raw: raw, door: d, from: origin(t.RemoteAddr())}
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.refused = d.add(c.from); c.refused != 0 {
		if d.refusals.Add(1) > maxRefusals {
			d.refusals.Add(-1)
			t.Close()
			return nil
		}
	}
	d.conns[c] = struct{}{}
	return c
}

// add counts one more, or returns the status to refuse it by. The lock is held.
func (d *door) add(from netip.Prefix) int {
	switch {
	case d.in >= d.limit:
		return http.StatusServiceUnavailable
	case d.of[from] >= d.ofAddress:
		return http.StatusTooManyRequests
	}
	d.in++
	d.of[from]++
	return 0
}

func (d *door) remove(from netip.Prefix) {
	d.in--
	if d.of[from]--; d.of[from] == 0 {
		delete(d.of, from)
	}
}

// begin counts a request of HTTP/2, or returns the status to refuse it by.
func (d *door) begin(from netip.Prefix) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.add(from)
}

func (d *door) end(from netip.Prefix) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.remove(from)
}

// enterHalf counts a connection as half open. One address cannot have all the
// places, or nobody else could begin a handshake.
func (d *door) enterHalf(c *conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.halfOpen >= d.halfLimit || d.halfOf[c.from] >= d.halfOfAddress {
		return false
	}
	d.halfOpen++
	d.halfOf[c.from]++
	c.half.Store(true)
	return true
}

func (d *door) leaveHalf(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.halfOpen--
	if d.halfOf[c.from]--; d.halfOf[c.from] == 0 {
		delete(d.halfOf, c.from)
	}
}

func (d *door) leave(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
	if c.refused != 0 {
		d.refusals.Add(-1)
		return
	}
	d.remove(c.from)
}

// count is how many connections there are, those over a limit as well.
func (d *door) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns)
}

// empty throws everybody out.
func (d *door) empty() {
	d.mu.Lock()
	all := make([]*conn, 0, len(d.conns))
	for c := range d.conns {
		all = append(all, c)
	}
	d.mu.Unlock()
	for _, c := range all {
		c.Close()
	}
}

// origin is whom a connection counts for: an IPv4 address, or the network of an
// IPv6 one, in which a host has as many addresses as it likes.
func origin(a net.Addr) netip.Prefix {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	return network(tcp.AddrPort().Addr())
}

func network(ip netip.Addr) netip.Prefix {
	ip = ip.Unmap()
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	prefix, _ := ip.WithZone("").Prefix(bits)
	return prefix
}

// accept serves a listener until it is closed.
func (s *Server) accept(l net.Listener, secure bool) {
	defer s.accepting.Done()
	trouble := acceptTrouble{log: s.log}
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// No descriptors left, or a client that is gone already.
			trouble.say(err, time.Now())
			time.Sleep(10 * time.Millisecond)
			continue
		}
		t, ok := c.(*net.TCPConn)
		if !ok {
			c.Close()
			continue
		}
		in := s.door.enter(t)
		if in == nil {
			continue
		}
		if secure && !s.door.enterHalf(in) {
			in.Close()
			continue
		}
		v := &visit{srv: s, c: in, rw: in, secure: secure, fresh: true}
		v.spot.raw = in.raw
		v.park(headTime)
	}
}

// handshake makes the connection a TLS connection. It reports whether the visit
// goes on in HTTP/1.1.
func (v *visit) handshake() bool {
	t := tls.Server(v.c, v.srv.tls)
	_ = v.c.SetDeadline(time.Now().Add(headTime))
	if err := t.Handshake(); err != nil {
		v.c.Close()
		return false
	}
	_ = v.c.SetDeadline(time.Time{})
	v.c.full()
	v.rw = t
	if t.ConnectionState().NegotiatedProtocol != "h2" {
		return true
	}
	if v.c.refused != 0 {
		t.Close()
		return false
	}
	v.srv.h2.hand(t)
	return false
}

// A handover is a listener of connections that somebody else has accepted.
type handover struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
	addr  net.Addr
}

func newHandover() *handover {
	return &handover{conns: make(chan net.Conn), done: make(chan struct{}), addr: &net.TCPAddr{}}
}

func (h *handover) hand(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		c.Close()
	}
}

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

func (h *handover) Addr() net.Addr { return h.addr }
