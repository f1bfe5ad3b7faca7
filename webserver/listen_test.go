package webserver

import (
	"bytes"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// brokenListener has no descriptors left, so many times.
type brokenListener struct {
	net.Listener
	left int
}

func (b *brokenListener) AcceptUnix() (*net.UnixConn, error) {
	_, err := b.Accept()
	return nil, err
}

func (b *brokenListener) Accept() (net.Conn, error) {
	if b.left--; b.left < 0 {
		return nil, net.ErrClosed
	}
	return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
}

// Without a descriptor left the log has a line, and not a hundred a second.
func TestNoDescriptors(t *testing.T) {
	for name, serve := range map[string]func(*Server, *brokenListener){
		"tcp":  func(s *Server, l *brokenListener) { s.accept(l, false) },
		"unix": func(s *Server, l *brokenListener) { s.acceptUnix(l, 1, nil) },
	} {
		var log bytes.Buffer
		s := &Server{log: slog.New(slog.NewTextHandler(&log, nil))}
		s.accepting.Add(1)
		serve(s, &brokenListener{left: 20})
		if n := strings.Count(log.String(), "too many open files"); n != 1 {
			t.Errorf("%s: %d lines are logged; want 1:\n%s", name, n, log.String())
		}
	}
	var log bytes.Buffer
	trouble := acceptTrouble{log: slog.New(slog.NewTextHandler(&log, nil))}
	for i := range 250 {
		trouble.say(syscall.EMFILE, time.Unix(int64(i), 0))
	}
	if lines := strings.Split(strings.TrimSpace(log.String()), "\n"); len(lines) != 5 || !strings.Contains(lines[1], "before=59") {
		t.Errorf("in 250 seconds are logged %q; want 5 lines", lines)
	}
}
