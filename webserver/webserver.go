// Package webserver is what listens on the ports of an App Platform: it ends TLS
// and relays requests and WebSockets to the apps that have registered for their
// paths. docs/webserver.md says how.
package webserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Options are where a webserver listens and what it keeps where.
type Options struct {
	HTTPFD, HTTPSFD int    // inherited listeners; -1: none
	HTTP, HTTPS     string // addresses; empty: none
	State           string // folder of the certificates
	Socket, Control string
	Takeover        bool // from a webserver that runs
	Version         string
	Log             *slog.Logger

	progress time.Duration // progressTime, but in tests
}

// A Server runs until it is drained.
type Server struct {
	Options
	log          *slog.Logger
	table        *table
	certificates *certificates
	tls          *tls.Config
	lot          *lot
	door         *door
	h2           *handover
	h2server     *http.Server

	listeners  []listener
	registrars *net.UnixListener
	rulers     *net.UnixListener
	accepting  sync.WaitGroup

	requests, webSockets, waiters, largeHeads atomic.Int64

	mu    sync.Mutex
	apps  map[*net.UnixConn]struct{} // connections that registered
	until time.Time                  // the end of the draining
	drain chan struct{}
	once  sync.Once
}

type listener struct {
	name string
	*net.TCPListener
}

// Run serves until ctx is done or the manager asks for the end, and lets the
// requests that there are come to theirs.
func Run(ctx context.Context, o Options) error {
	s, err := Open(o)
	if err != nil {
		return err
	}
	s.run(ctx)
	return nil
}

func (s *Server) run(ctx context.Context) {
	// A signal shortens a draining that the manager has asked for: one of an hour is to
	// end with the machine's services.
	defer context.AfterFunc(ctx, func() { s.Drain(stopDrain * time.Second) })()
	<-s.drain
	s.finish()
}

// Open begins to serve.
func Open(o Options) (*Server, error) {
	s := &Server{Options: o, log: o.Log, table: newTable(), apps: map[*net.UnixConn]struct{}{}, drain: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.progress == 0 {
		s.progress = progressTime
	}
	if err := s.open(); err != nil {
		for _, l := range s.listeners {
			l.Close()
		}
		return nil, err
	}
	return s, nil
}

func (s *Server) open() (err error) {
	if s.certificates, err = openCertificates(s.State); err != nil {
		return err
	}
	if s.certificates.broken != nil {
		s.log.Warn("shows the self-signed certificate instead", "error", s.certificates.broken)
	}
	if s.door, err = newDoor(); err != nil {
		return err
	}
	for _, l := range []struct {
		name    string
		fd      int
		address string
	}{{"http", s.HTTPFD, s.HTTP}, {"https", s.HTTPSFD, s.HTTPS}} {
		if l.fd < 0 && l.address == "" {
			continue
		}
		tcp, err := listenTCP(l.name, l.fd, l.address)
		if err != nil {
			return err
		}
		s.listeners = append(s.listeners, listener{l.name, tcp})
	}
	if len(s.listeners) == 0 {
		return errors.New("there is neither a listener for http nor one for https")
	}
	if s.lot, err = newLot(); err != nil {
		return err
	}
	if err := s.openHTTP2(); err != nil {
		return err
	}
	if s.registrars, err = listenUnix(s.Socket, 0o666, s.Takeover); err != nil {
		return err
	}
	if s.rulers, err = listenUnix(s.Control, 0o600, s.Takeover); err != nil {
		return err
	}
	s.accepting.Add(2 + len(s.listeners))
	go s.acceptUnix(s.registrars, maxRegistrars, s.registrar)
	go s.acceptUnix(s.rulers, 16, s.control)
	for _, l := range s.listeners {
		go s.accept(l.TCPListener, l.name == "https")
	}
	return nil
}

// newDoor lets in as many as there are descriptors for: a relay needs two. The
// runtime has raised the soft limit to the hard one.
func newDoor() (*door, error) {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, fmt.Errorf("cannot read the limit of open files: %w", err)
	}
	limit := maxConnections
	if files.Cur < 2*maxConnections+1000 {
		limit = max(int(files.Cur)-500, int(files.Cur)/2) / 2
	}
	return &door{limit: limit, ofAddress: maxOfAddress, halfLimit: maxHalfOpen, halfOfAddress: maxHalfOfAddress,
		of: map[netip.Prefix]int{}, halfOf: map[netip.Prefix]int{}, conns: map[*conn]struct{}{}}, nil
}

func (s *Server) openHTTP2() error {
	s.tls = &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return s.certificates.inUse.Load(), nil
		},
	}
	s.h2 = newHandover()
	protocols := &http.Protocols{}
	protocols.SetHTTP2(true)
	s.h2server = &http.Server{
		Handler: s, Protocols: protocols, TLSConfig: s.tls.Clone(), MaxHeaderBytes: maxHead, IdleTimeout: idleTime,
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug), // what clients do wrong
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReceiveBufferPerConnection: maxReceived, MaxReceiveBufferPerStream: maxOfStream,
			SendPingTimeout: time.Minute, PingTimeout: 15 * time.Second, WriteByteTimeout: s.progress},
	}
	go func() { _ = s.h2server.Serve(s.h2) }()
	return nil
}

// registrar keeps the connection, to close it when the webserver drains.
func (s *Server) registrar(c *net.UnixConn) {
	s.mu.Lock()
	if s.draining() {
		s.mu.Unlock()
		c.Close()
		return
	}
	s.apps[c] = struct{}{}
	s.mu.Unlock()
	s.register(c)
	s.mu.Lock()
	delete(s.apps, c)
	s.mu.Unlock()
}

func (s *Server) draining() bool {
	select {
	case <-s.drain:
		return true
	default:
		return false
	}
}

// Drain begins to end: nobody new is let in, and what there is may take until
// within is over. Called again it may shorten that.
func (s *Server) Drain(within time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if until := time.Now().Add(within); s.until.IsZero() || until.Before(s.until) {
		s.until = until
	}
	s.once.Do(func() {
		s.table.drain()
		close(s.drain)
		// Other processes have the listeners, too, and whoever starts one with them
		// makes them blocking for a moment. An accept that blocks by then keeps Close
		// waiting until somebody connects.
		for _, l := range s.listeners {
			go l.Close()
		}
		s.registrars.Close()
		s.rulers.Close()
		for c := range s.apps {
			c.Close()
		}
		s.lot.hurry(time.Now().Add(drainIdleTime))
	})
}

// finish waits for what there is.
func (s *Server) finish() {
	closed := make(chan bool)
	go func() {
		s.accepting.Wait()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(acceptTime):
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { _ = s.h2server.Shutdown(ctx) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for s.door.count() > 0 && time.Now().Before(s.end()) {
		<-tick.C
	}
	s.door.empty()
	s.h2server.Close()
	s.lot.close()
}

func (s *Server) end() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.until
}
