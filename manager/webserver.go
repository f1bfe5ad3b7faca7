package manager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/wire"
)

// A control is the connection over which the manager rules the webserver.
type control struct {
	socket string

	mu     sync.Mutex
	conn   *wire.Conn
	ready  wire.Ready
	lastID int64
}

// controlTimeout bounds a question and its answer.
const controlTimeout = 10 * time.Second

// ask sends a message and decodes its answer. A connection that broke is made
// anew, once: the webserver may have been restarted.
func (c *control) ask(ctx context.Context, message func(id int64) any, into any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.conn != nil
	err := c.once(ctx, message, into)
	if err != nil && old && ctx.Err() == nil {
		err = c.once(ctx, message, into)
	}
	return err
}

func (c *control) once(ctx context.Context, message func(id int64) any, into any) (err error) {
	if c.conn == nil {
		if c.conn, c.ready, err = dialControl(ctx, c.socket); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil {
			c.conn.Close()
			c.conn = nil
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Now()) })
	defer stop()
	_ = c.conn.SetDeadline(time.Now().Add(controlTimeout))
	c.lastID++
	if err := c.conn.Send(message(c.lastID)); err != nil {
		return fmt.Errorf("cannot talk to the webserver: %w", err)
	}
	for {
		m, err := c.conn.Receive()
		if err != nil {
			return fmt.Errorf("cannot talk to the webserver: %w", err)
		}
		if m.ID == c.lastID {
			return m.Decode(into)
		}
	}
}

// tell is ask for what is answered by a Result.
func (c *control) tell(ctx context.Context, message func(id int64) any) error {
	var r wire.Result
	if err := c.ask(ctx, message, &r); err != nil {
		return err
	}
	if r.Error != "" {
		return fmt.Errorf("the webserver refuses: %s", r.Error)
	}
	return nil
}

// peer is what the webserver has said of itself, when it was asked last.
func (c *control) peer() wire.Ready {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ready
}

// drop ends the connection.
func (c *control) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func dialControl(ctx context.Context, socket string) (*wire.Conn, wire.Ready, error) {
	var ready wire.Ready
	var d net.Dialer
	raw, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, ready, fmt.Errorf("the webserver does not answer: %w", err)
	}
	conn := wire.NewConn(raw)
	_ = conn.SetDeadline(time.Now().Add(controlTimeout))
	m, err := conn.Receive()
	if err == nil && m.MT != "Ready" {
		err = fmt.Errorf("it says %.40q", m.MT)
	}
	if err == nil {
		err = m.Decode(&ready)
	}
	if err == nil && ready.Protocol != wire.Version {
		err = fmt.Errorf("it speaks version %d of the protocol and the manager version %d", ready.Protocol, wire.Version)
	}
	if err != nil {
		conn.Close()
		return nil, ready, fmt.Errorf("the webserver does not answer: %w", err)
	}
	return conn, ready, nil
}

// fetchListeners takes the listeners of a webserver that runs, so that a new
// manager needs not make others while somebody connects.
func fetchListeners(ctx context.Context, socket string) (map[string]*os.File, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(controlTimeout))
	conn, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.New("internal error: no Unix socket")
	}
	const id = 1
	ask, err := json.Marshal(wire.GetListeners{Head: wire.Head{MT: "GetListeners", ID: id}})
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(append(ask, '\n')); err != nil {
		return nil, err
	}
	var text []byte
	var files []*os.File
	fail := func(err error) (map[string]*os.File, error) {
		for _, f := range files {
			f.Close()
		}
		return nil, fmt.Errorf("cannot take over the listeners of the webserver: %w", err)
	}
	for {
		buffer, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(8*4))
		n, oobn, _, _, err := conn.ReadMsgUnix(buffer, oob)
		if err != nil || n == 0 {
			return fail(errors.Join(err, errors.New("it has ended the connection")))
		}
		more, err := receivedFiles(oob[:oobn])
		files = append(files, more...)
		if err != nil {
			return fail(err)
		}
		if text = append(text, buffer[:n]...); len(text) > wire.MaxLine {
			return fail(errors.New("its answer is too long"))
		}
		for {
			line, rest, ok := bytes.Cut(text, []byte("\n"))
			if !ok {
				break
			}
			text = rest
			var l wire.Listeners
			if err := json.Unmarshal(line, &l); err != nil {
				return fail(err)
			}
			if l.MT != "Listeners" {
				continue // Ready
			}
			if len(l.Names) != len(files) {
				return fail(fmt.Errorf("it sends %d files for %q", len(files), l.Names))
			}
			named := map[string]*os.File{}
			for i, name := range l.Names {
				named[name] = files[i]
			}
			return named, nil
		}
	}
}

func receivedFiles(oob []byte) (files []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			_ = unix.SetNonblock(fd, true)
			files = append(files, os.NewFile(uintptr(fd), "listener"))
		}
	}
	return files, nil
}

// openListener makes a listener that outlives this process in others. It stays
// non-blocking, which all who have it share: a file of net's own becomes blocking when
// it is handed to a program, and then a webserver that ends waits for somebody to
// connect.
func openListener(address string) (*os.File, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	t, ok := l.(*net.TCPListener)
	if !ok {
		return nil, errors.New("internal error: no TCP listener")
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	failed := raw.Control(func(listener uintptr) { fd, err = unix.FcntlInt(listener, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(failed, err); err != nil {
		return nil, fmt.Errorf("cannot keep a listener: %w", err)
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}

// unregisterTime is how long the webserver may take to let a manager go.
const unregisterTime = time.Second

// register asks the webserver for requests below paths, as long as ctx lasts.
// When it ends or drains, its successor is asked.
func register(ctx context.Context, socket, listen string, paths []string, logf func(string, ...any)) {
	pause := 20 * time.Millisecond
	for ctx.Err() == nil {
		began := time.Now()
		err := registerOnce(ctx, socket, listen, paths)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > 5*time.Second {
			pause = 20 * time.Millisecond
		} else if pause == 20*time.Millisecond && !errors.Is(err, os.ErrNotExist) {
			logf("the manager's paths: %v", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
	}
}

func registerOnce(ctx context.Context, socket, listen string, paths []string) error {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	conn := wire.NewConn(raw)
	defer conn.Close()
	// The webserver answers when it has taken the paths away: from then on requests wait
	// for the next manager.
	defer context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Now().Add(unregisterTime))
		for i, path := range paths {
			_ = conn.Send(wire.Unregister{Head: wire.Head{MT: "Unregister", ID: int64(len(paths) + i + 1)}, Path: path, Kind: wire.KindHTTP})
		}
	})()
	for i, path := range paths {
		m := wire.Register{Head: wire.Head{MT: "Register", ID: int64(i + 1)}, Path: path, Kind: wire.KindHTTP, Socket: listen}
		if err := conn.Send(m); err != nil {
			return err
		}
	}
	for {
		m, err := conn.Receive()
		if err != nil {
			return err
		}
		if m.ID == int64(2*len(paths)) {
			return ctx.Err()
		}
		var r wire.RegisterResult
		if m.MT == "RegisterResult" && m.Decode(&r) == nil && r.Error != "" {
			return fmt.Errorf("the webserver refuses %q: %s", r.Path, r.Error)
		}
	}
}

// listenUnix makes a Unix socket at once, in place of one that nobody uses any
// more; group may use it besides root, if there is one.
func listenUnix(path string, mode os.FileMode, group int) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	temporary := path + ".new"
	_ = os.Remove(temporary)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(temporary, mode)
	if err == nil && os.Geteuid() == 0 && group >= 0 {
		err = os.Chown(temporary, 0, group)
	}
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}
