package webserver

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/hint"
)

// listenTCP takes an inherited listener or makes one.
func listenTCP(name string, fd int, address string) (*net.TCPListener, error) {
	if fd < 0 {
		l, err := net.Listen("tcp", address)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, hint.Errorf("a webserver that runs hands its listeners over: --"+name+"-fd", "cannot listen for %s: %w", name, err)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot listen for %s: %w", name, err)
		}
		return l.(*net.TCPListener), nil
	}
	f := os.NewFile(uintptr(fd), name)
	if f == nil {
		return nil, fmt.Errorf("cannot take over the listener of %s: %d is no descriptor", name, fd)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("cannot take over the listener of %s: %w", name, err)
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("cannot take over the listener of %s: it is %s", name, l.Addr().Network())
	}
	return tcp, nil
}

// listenUnix makes a socket in place of one on which nobody answers any more, or
// with takeover of anybody's. There is no moment without a socket of that name.
func listenUnix(path string, mode fs.FileMode, takeover bool) (*net.UnixListener, error) {
	if !takeover {
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			c.Close()
			return nil, hint.Errorf("end it, or take over with --takeover", "cannot listen on %s: another webserver does", path)
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
		}
	}
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false) // the name may be the successor's by then
	if err = os.Chmod(temporary, mode); err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		l.Close()
		os.Remove(temporary)
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	return l, nil
}

// sendListeners writes a message with the listeners' descriptors.
func sendListeners(to *net.UnixConn, line []byte, listeners []*net.TCPListener) error {
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, l := range listeners {
		raw, err := l.SyscallConn()
		if err != nil {
			return err
		}
		fd := -1
		var failed error
		err = raw.Control(func(own uintptr) { fd, failed = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	_, _, err := to.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
	return err
}

// acceptUnix gives each connection to serve, of no more than limit at a time.
func (s *Server) acceptUnix(l interface{ AcceptUnix() (*net.UnixConn, error) }, limit int, serve func(*net.UnixConn)) {
	defer s.accepting.Done()
	places := make(chan struct{}, limit)
	trouble := acceptTrouble{log: s.log}
	for {
		c, err := l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			trouble.say(err, time.Now())
			time.Sleep(10 * time.Millisecond)
			continue
		}
		select {
		case places <- struct{}{}:
			go func() {
				serve(c)
				<-places
			}()
		default:
			c.Close()
		}
	}
}

// acceptTrouble logs the first of many errors, and then one in sayEvery: without a
// descriptor left there are a hundred a second.
type acceptTrouble struct {
	log  *slog.Logger
	said time.Time
	more int // errors since then
}

func (t *acceptTrouble) say(err error, now time.Time) {
	if !t.said.IsZero() && now.Sub(t.said) < sayEvery {
		t.more++
		return
	}
	t.log.Warn("cannot accept a connection", "error", err, "before", t.more)
	t.said, t.more = now, 0
}
