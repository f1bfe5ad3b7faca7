package webserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/wire"
)

// methods are those that apps get, WebDAV's included; others of HTTP's are not
// allowed, all others not known.
var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK"}

// ServeHTTP answers a request, of HTTP/1 and HTTP/2 alike.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor > 1 {
		s.requests.Add(1)
		w = &pacedWriter{ResponseWriter: w, rc: http.NewResponseController(w), progress: s.progress}
		leave, err := s.enterRequest(r)
		defer leave()
		if err != nil {
			page(w, err.status, err.text)
			return
		}
	}
	defer func() {
		if p := recover(); p != nil {
			s.fault(p)
			breakOff(w)
		}
	}()
	if err := check(r); err != nil {
		var refused *refusal
		errors.As(err, &refused)
		page(w, refused.status, refused.text)
		return
	}
	r.URL.RawPath = encoded(r.URL.RawPath) // HTTP/2's
	upgrade := isUpgrade(r)
	wait := s.newPatience(r.Context())
	defer wait.end()
	broken := false // once
	for {
		reg, soon, changed := s.table.find(r.URL.Path, upgrade)
		switch {
		case reg != nil:
			err := s.relay(w, r, reg, upgrade, broken)
			if err == nil {
				return
			}
			// The app is being started anew, or another process of it has
			// registered by now.
			broken = broken || errors.Is(err, errBroken)
		case !soon && s.draining():
			w.Header().Set("Retry-After", "1")
			page(w, http.StatusServiceUnavailable, "this webserver is being replaced")
			return
		case !soon:
			page(w, http.StatusNotFound, "no app has this address")
			return
		}
		if !wait.more(changed, reg != nil) {
			w.Header().Set("Retry-After", "5")
			page(w, http.StatusServiceUnavailable, "the app does not answer at the moment")
			return
		}
	}
}

// fault is told of a panic: one request must not end all others.
func (s *Server) fault(p any) {
	if p != http.ErrAbortHandler {
		s.log.Error("internal error", "panic", p, "stack", string(debug.Stack()))
	}
}

// breakOff makes the client see that the answer has no proper end.
func breakOff(w http.ResponseWriter) {
	if h1, ok := w.(*response); ok {
		h1.abort()
		return
	}
	panic(http.ErrAbortHandler) // net/http resets the stream
}

// enterRequest counts a request of HTTP/2 as a connection, and a large head as
// such: a client may send many at a time.
func (s *Server) enterRequest(r *http.Request) (leave func(), refused *refusal) {
	from, _ := netip.ParseAddrPort(r.RemoteAddr)
	of := network(from.Addr())
	if status := s.door.begin(of); status != 0 {
		return func() {}, &refusal{status, "there are too many requests"}
	}
	size := len(r.RequestURI)
	for name, values := range r.Header {
		for _, value := range values {
			size += len(name) + len(value)
		}
	}
	if size <= smallHead {
		return func() { s.door.end(of) }, nil
	}
	if !s.largeHead() {
		return func() { s.door.end(of) }, &refusal{http.StatusServiceUnavailable, "there are too many requests with long headers"}
	}
	return func() {
		s.largeHeads.Add(-1)
		s.door.end(of)
	}, nil
}

// A pacedWriter bounds how slowly a client of HTTP/2 may read.
type pacedWriter struct {
	http.ResponseWriter
	rc       *http.ResponseController
	progress time.Duration
}

func (w *pacedWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		_ = w.rc.SetWriteDeadline(time.Now().Add(w.progress))
		n, err := w.ResponseWriter.Write(p[done:min(len(p), done+progressBytes)])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func check(r *http.Request) error {
	switch {
	case len(r.RequestURI) > maxPath:
		return refuse(http.StatusRequestURITooLong, "the address is longer than %d bytes", maxPath)
	case r.Method == http.MethodConnect || r.Method == http.MethodTrace:
		return refuse(http.StatusMethodNotAllowed, "%s is not allowed here", r.Method)
	case !slices.Contains(methods, r.Method):
		return refuse(http.StatusNotImplemented, "there is no such method")
	case r.ProtoMajor > 1 && strings.ContainsAny(r.RequestURI, " #"):
		return bad("the address has a space or a fragment") // and would be the line's end in HTTP/1
	case r.ProtoMajor > 1 && !isHost(r.Host):
		return bad("the request must name its host")
	}
	return nil
}

// isUpgrade reports whether the client wants to go on with WebSocket. The body of
// such a request would be taken for the first frames.
func isUpgrade(r *http.Request) bool {
	return r.ProtoMajor == 1 && r.ProtoMinor == 1 && r.Method == http.MethodGet && r.ContentLength == 0 &&
		hasToken(r.Header, "Connection", "upgrade") && hasToken(r.Header, "Upgrade", "websocket")
}

// A patience bounds how long a request waits for an app.
type patience struct {
	s       *Server
	ctx     context.Context
	end_    time.Time
	waiting bool
}

func (s *Server) newPatience(ctx context.Context) *patience { return &patience{s: s, ctx: ctx} }

// more waits until something may have changed: a registration, or, by asking
// again, a socket. It reports false when the request has waited long enough.
func (p *patience) more(changed <-chan struct{}, ask bool) bool {
	if !p.waiting {
		if p.s.waiters.Add(1) > maxWaiters {
			p.s.waiters.Add(-1)
			return false
		}
		p.waiting, p.end_ = true, time.Now().Add(holdTime)
	}
	left := time.Until(p.end_)
	if left <= 0 {
		return false
	}
	if ask {
		left = min(left, retryEvery)
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-changed:
	case <-timer.C:
	case <-p.ctx.Done():
		return false
	}
	return true
}

func (p *patience) end() {
	if p.waiting {
		p.s.waiters.Add(-1)
	}
}

var (
	// errNotAccepting: nobody listens at an app's socket at the moment.
	errNotAccepting = errors.New("the app does not accept connections")
	// errBroken: the app has ended while it had a request that may be repeated.
	errBroken = errors.New("the app broke off")
)

// canRepeat reports whether a request may be sent again when its connection broke
// before there was an answer (RFC 9110, 9.2.2). It must not have a body: that is gone.
func canRepeat(r *http.Request, err error) bool {
	if r.ContentLength != 0 || r.Context().Err() != nil {
		return false
	}
	switch r.Method {
	case "GET", "HEAD", "OPTIONS", "PROPFIND":
		return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
	}
	return false
}

// dial connects to the app. The socket must be served by the user who has
// registered it, or one app could have another's requests.
func (r *registration) dial(ctx context.Context) (*net.UnixConn, error) {
	d := net.Dialer{Timeout: dialTime}
	c, err := d.DialContext(ctx, "unix", r.Socket)
	if err != nil {
		if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EAGAIN) {
			return nil, errNotAccepting
		}
		return nil, err
	}
	u := c.(*net.UnixConn)
	cred, err := peer(u)
	if err == nil && cred.Uid != r.uid {
		err = fmt.Errorf("%s is served by the user %d and not by %d, who has registered it", r.Socket, cred.Uid, r.uid)
	}
	if err != nil {
		u.Close()
		return nil, err
	}
	return u, nil
}

// peer tells who is at the other end.
func peer(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(err, failed)
}

func (r *registration) transport() *http.Transport {
	return &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return r.dial(ctx) },
		DisableCompression:     true,
		MaxIdleConns:           keepCount,
		MaxIdleConnsPerHost:    keepCount,
		IdleConnTimeout:        keepIdle,
		ExpectContinueTimeout:  headTime,
		MaxResponseHeaderBytes: maxHead,
	}
}

// relay answers a request by what the registration says. The only errors that it
// returns are errNotAccepting, when nothing has happened yet, and errBroken, unless the
// request was repeated already.
func (s *Server) relay(w http.ResponseWriter, r *http.Request, reg *registration, upgrade, repeated bool) error {
	h1, _ := w.(*response)
	switch {
	case reg.Kind == wire.KindFiles && upgrade:
		page(w, http.StatusBadRequest, "there are only files here")
	case reg.Kind == wire.KindFiles:
		s.file(w, r, reg)
	case reg.Kind == wire.KindPassThrough && h1 == nil:
		page(w, http.StatusHTTPVersionNotSupported, "this address speaks HTTP/1.1 only")
	case reg.Kind == wire.KindPassThrough:
		return s.passThrough(h1, r, reg)
	case reg.Kind == wire.KindWebSocket && !upgrade:
		if h1 != nil { // HTTP/2 has no such field
			w.Header().Set("Upgrade", "websocket")
		}
		page(w, http.StatusUpgradeRequired, "this address speaks WebSocket only, over HTTP/1.1")
	case upgrade:
		return s.upgrade(h1, r, reg)
	default:
		return s.forward(w, r, reg, repeated)
	}
	return nil
}

// hop are the fields that are between two neighbours only, and those that only
// the webserver may set.
var hop = []string{"Connection", "Keep-Alive", "Proxy", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade", "Forwarded", "X-Real-Ip", "Content-Length", "Host"}

// reserved reports whether a client's field is not for the app. To apps that see
// fields as environment variables, X_Forwarded_For is X-Forwarded-For.
func reserved(name string) bool {
	name = http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
	return strings.HasPrefix(name, "X-Forwarded-") || slices.Contains(hop, name)
}

// outgoing is the header that the app gets.
func outgoing(r *http.Request) http.Header {
	header := make(http.Header, len(r.Header)+4)
	for name, values := range r.Header {
		if !reserved(name) {
			header[name] = values
		}
	}
	strip(header, r.Header["Connection"])
	if hasToken(r.Header, "Te", "trailers") {
		header["Te"] = []string{"trailers"}
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	proto := "http"
	if r.TLS != nil {
		proto = "https"
	}
	header["X-Forwarded-For"] = []string{host}
	header["X-Forwarded-Proto"] = []string{proto}
	if r.Host != "" {
		header["X-Forwarded-Host"] = []string{r.Host}
	}
	return header
}

// strip removes the fields that Connection names, and others.
func strip(header http.Header, connection []string, names ...string) {
	for _, value := range connection {
		for name := range strings.SplitSeq(value, ",") {
			if name = textproto.TrimString(name); !strings.EqualFold(name, "close") {
				header.Del(name)
			}
		}
	}
	for _, name := range names {
		delete(header, name)
	}
}

// forward relays a request and its answer.
func (s *Server) forward(w http.ResponseWriter, r *http.Request, reg *registration, repeated bool) error {
	out := &http.Request{Method: r.Method, URL: r.URL, Host: r.Host, Header: outgoing(r), Body: r.Body, ContentLength: r.ContentLength, Trailer: r.Trailer,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	u := *r.URL
	u.Scheme, u.Host = "http", "app"
	out.URL = &u
	for name := range out.Trailer { // those that HTTP/2 announces
		if reserved(name) {
			delete(out.Trailer, name)
		}
	}
	if out.Header["User-Agent"] == nil {
		out.Header["User-Agent"] = []string{""} // or the transport sends its own
	}
	in, paced := s.pace(w, r)
	if r.Body == http.NoBody || r.ContentLength == 0 {
		out.Body = http.NoBody
	} else {
		out.Body = in
		out.GetBody = func() (io.ReadCloser, error) { // on a new connection, as long as nothing is lost
			if b, ok := in.(*body); ok && !b.touched() {
				return b, nil
			}
			return nil, errors.New("a part of the body is gone")
		}
	}
	out = out.WithContext(r.Context())
	answer, err := reg.http.RoundTrip(out)
	if errors.Is(err, errNotAccepting) {
		return errNotAccepting
	}
	if err != nil && !repeated && canRepeat(r, err) {
		return errBroken
	}
	if err != nil {
		s.failed(w, r, reg, paced, err)
		return nil
	}
	defer answer.Body.Close()
	if answer.StatusCode < 200 { // 101, which nobody has asked for
		s.failed(w, r, reg, paced, errors.New("the app has changed the protocol by itself"))
		return nil
	}
	s.copyAnswer(w, r, answer)
	return nil
}

// pace bounds how slowly a body may come. In HTTP/1 the body does that itself.
func (s *Server) pace(w http.ResponseWriter, r *http.Request) (io.ReadCloser, func() error) {
	if b, ok := r.Body.(*body); ok {
		return b, b.failure
	}
	p := &pacer{ReadCloser: r.Body, rc: http.NewResponseController(w), progress: s.progress}
	return p, p.failure
}

// A pacer is the body of a request of HTTP/2.
type pacer struct {
	io.ReadCloser
	rc       *http.ResponseController
	progress time.Duration
	window   int

	mu  sync.Mutex
	err error
}

func (p *pacer) Read(b []byte) (int, error) {
	if p.window <= 0 {
		p.window = progressBytes
		_ = p.rc.SetReadDeadline(time.Now().Add(p.progress))
	}
	n, err := p.ReadCloser.Read(b)
	p.window -= n
	if err != nil && err != io.EOF {
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
	}
	return n, err
}

// Close leaves the body to the server.
func (p *pacer) Close() error { return nil }

func (p *pacer) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// failed answers a request that got no answer.
func (s *Server) failed(w http.ResponseWriter, r *http.Request, reg *registration, failure func() error, err error) {
	var refused *refusal
	broken := failure()
	switch {
	case r.Context().Err() != nil:
		if h1, ok := w.(*response); ok {
			h1.abort()
		}
	case errors.As(broken, &refused):
		page(w, refused.status, refused.text)
	case errors.Is(broken, os.ErrDeadlineExceeded):
		page(w, http.StatusRequestTimeout, "the request came too slowly")
	case broken != nil:
		page(w, http.StatusBadRequest, "the request's body cannot be read")
	default:
		s.log.Warn("an app did not answer", "path", reg.Path, "socket", reg.Socket, "error", err)
		page(w, http.StatusBadGateway, "the app broke off before it answered")
	}
}

// copyAnswer relays what the app answers, each part when it comes.
func (s *Server) copyAnswer(w http.ResponseWriter, r *http.Request, answer *http.Response) {
	strip(answer.Header, answer.Header["Connection"], "Connection", "Keep-Alive", "Proxy-Connection", "Te", "Transfer-Encoding", "Upgrade")
	header := w.Header()
	for name, values := range answer.Header {
		header[name] = values
	}
	announced := len(answer.Trailer)
	for name := range answer.Trailer {
		header.Add("Trailer", name)
	}
	w.WriteHeader(answer.StatusCode)
	err := s.copyBody(w, answer.Body, answer.ContentLength < 0 && r.Method != http.MethodHead)
	if err != nil {
		breakOff(w)
		return
	}
	for name, values := range answer.Trailer {
		if announced == 0 {
			name = http.TrailerPrefix + name
		}
		header[name] = values
	}
}

// copyBody copies what comes, when it comes. The writer bounds how slowly the
// client may read.
func (s *Server) copyBody(w http.ResponseWriter, from io.Reader, flush bool) error {
	rc := http.NewResponseController(w)
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	if flush {
		if f, ok := w.(*response); !ok || f.status != 0 {
			_ = rc.Flush()
		}
	}
	for {
		n, err := from.Read((*buf)[:progressBytes])
		if n > 0 {
			if _, err := w.Write((*buf)[:n]); err != nil {
				return err
			}
			if flush {
				_ = rc.Flush()
			}
			_ = rc.SetWriteDeadline(time.Time{}) // of HTTP/2; the next part may take its time
		}
		if err == io.EOF {
			_ = rc.SetWriteDeadline(time.Now().Add(s.progress)) // for what is still in a buffer
			return nil
		}
		if err != nil {
			return err
		}
	}
}
