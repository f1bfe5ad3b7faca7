package app

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"appplatform/internal/wire"
)

// An Instance is what an app serves: it has a path on the webserver, a database
// and a password, and nothing to do with other instances of the app.
type Instance struct {
	key   string
	host  *host
	flags atomic.Uint64

	ctx    context.Context
	cancel context.CancelFunc

	registrar *registrar
	server    *http.Server
	sockets   []*listener
	served    sync.WaitGroup
	guard     guard

	mu     sync.Mutex
	values wire.StartInstance
	onStop []func()
}

func newInstance(ctx context.Context, h *host, values wire.StartInstance) (*Instance, error) {
	i := &Instance{key: values.Instance, host: h, values: values}
	i.guard.throttle.Now = time.Now
	i.flags.Store(uint64(values.LogFlags))
	i.ctx, i.cancel = context.WithCancel(ctx)
	if values.Webserver == "" {
		values.Webserver = wire.WebserverSocket
	}
	i.registrar = newRegistrar(i, values.Webserver)
	return i, nil
}

// start returns when the instance serves and the webserver knows that.
func (i *Instance) start() error {
	handler, err := i.host.Start(i.ctx, i)
	if err != nil {
		return err
	}
	l, err := i.Listen(wire.KindHTTP, "")
	if err != nil {
		return err
	}
	i.server = &http.Server{Handler: i.below(handler)}
	i.served.Go(func() { i.server.Serve(l) })
	return i.registrar.wait(i.ctx)
}

// below shows the handler paths without the instance's own. Pages of the instance
// link relative to its path with a slash; requests without it are sent there, but
// for those that are no pages: WebSockets of a PBX do without.
func (i *Instance) below(h http.Handler) http.Handler {
	if h == nil {
		h = http.NotFoundHandler()
	}
	path := i.Path()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.Log(FlagWebserverTraffic, "%s %s", r.Method, r.URL)
		rest, ok := strings.CutPrefix(r.URL.Path, path)
		if !ok || rest != "" && rest[0] != '/' {
			http.NotFound(w, r)
			return
		}
		if rest == "" && (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.Header.Get("Upgrade") == "" {
			http.Redirect(w, r, (&url.URL{Path: path + "/", RawQuery: r.URL.RawQuery}).String(), http.StatusTemporaryRedirect)
			return
		}
		if rest == "" {
			r.URL.Path = path + "/"
			if r.URL.RawPath != "" {
				r.URL.RawPath += "/"
			}
		}
		http.StripPrefix(path, h).ServeHTTP(w, r)
	})
}

// stop lets requests come to their end, and then the instance.
func (i *Instance) stop() {
	i.cancel()
	i.registrar.close()
	if i.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), drainTime)
		i.server.Shutdown(ctx)
		cancel()
		i.server.Close()
	}
	i.mu.Lock()
	sockets := slices.Clone(i.sockets)
	i.mu.Unlock()
	for _, l := range sockets {
		l.closeAll() // WebSockets, which the server does not know any more
	}
	i.served.Wait()
	i.mu.Lock()
	stops := slices.Clone(i.onStop)
	i.mu.Unlock()
	for _, f := range slices.Backward(stops) {
		f()
	}
}

// update takes values that can change while the instance runs. False: it must be
// started anew for these.
func (i *Instance) update(values wire.StartInstance) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	same := values
	same.Head, same.Password, same.LogFlags = i.values.Head, i.values.Password, i.values.LogFlags
	if same != i.values || i.ctx.Err() != nil {
		return false
	}
	i.values = values
	i.flags.Store(uint64(values.LogFlags))
	return true
}

// OnStop has f called when the instance has been stopped and serves nothing any
// more; functions are called in reverse order. This is the place to close a
// database.
func (i *Instance) OnStop(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.onStop = append(i.onStop, f)
}

func (i *Instance) get() wire.StartInstance {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.values
}

// Key is the name and the domain: "notes@example.com".
func (i *Instance) Key() string { return i.key }

// Name of the instance, such as "notes".
func (i *Instance) Name() string { return i.get().Name }

// Domain of the instance, such as "example.com".
func (i *Instance) Domain() string { return i.get().Domain }

// Path on the webserver, such as "/example.com/notes", without a slash at its end.
func (i *Instance) Path() string { return i.get().WebserverPath }

// Password is the one that users of the instance and its PBX object know. It can
// change: ask each time.
func (i *Instance) Password() string { return i.get().Password }

// WorkingPath is a folder for files of the instance. What should be in a backup
// belongs in the database.
func (i *Instance) WorkingPath() string { return i.get().WorkingPath }

// Platform tells about the machine.
func (i *Instance) Platform() Platform {
	i.host.mu.Lock()
	defer i.host.mu.Unlock()
	return i.host.platform
}

// Kinds of paths, for Listen.
const (
	KindHTTP        = wire.KindHTTP        // requests, and upgrades to WebSockets
	KindWebSocket   = wire.KindWebSocket   // WebSockets only
	KindPassThrough = wire.KindPassThrough // connections as they are, beginning with the request
)

var errStopped = errors.New("cannot listen: the instance is stopped")

// Listen makes a socket for what is below a path of the instance, such as
// "/events", and asks the webserver for that. The handler of Start has one already.
func (i *Instance) Listen(kind, below string) (net.Listener, error) {
	if i.ctx.Err() != nil {
		return nil, errStopped
	}
	path := i.Path() + below
	// The name does not change when the app is started anew, so that a webserver
	// knows where to wait. Names of instances can be too long for an address.
	sum := sha256.Sum256([]byte(i.key + "\n" + kind + "\n" + path))
	name := filepath.Join(i.host.dir, hex.EncodeToString(sum[:8])+".sock")
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	l, err := net.Listen("unix", name)
	if err != nil {
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	// Who may come this far is said by the folder.
	if err := os.Chmod(name, 0o666); err != nil {
		l.Close()
		return nil, fmt.Errorf("cannot listen: %w", err)
	}
	own := &listener{Listener: l, conns: map[net.Conn]struct{}{}}
	i.mu.Lock()
	if i.ctx.Err() != nil {
		i.mu.Unlock()
		l.Close()
		return nil, errStopped // It has closed all that there were.
	}
	i.sockets = append(i.sockets, own)
	i.mu.Unlock()
	i.registrar.add(wire.Register{Path: path, Kind: kind, Socket: name})
	return own, nil
}

// Files lets the webserver serve the files of a folder below a path of the
// instance, such as "/static". It must be in the app's own folder.
func (i *Instance) Files(below, dir string) {
	i.registrar.add(wire.Register{Path: i.Path() + below, Kind: wire.KindFiles, Dir: dir})
}

// Alarm tells the administrator of a trouble, which lasts until it is cleared. Code
// names the kind of trouble; severity is "indeterminate", "major" or "critical".
func (i *Instance) Alarm(code, severity, text, details string) {
	i.host.alarm(wire.Alarm{Instance: i.key, Code: code, Severity: severity, Text: text, Details: details})
}

// ClearAlarm tells the administrator that a trouble is over.
func (i *Instance) ClearAlarm(code, text string) {
	i.host.alarm(wire.Alarm{Instance: i.key, Code: code, Severity: "indeterminate", Text: text, Cleared: true})
}

// A listener remembers its connections: http.Server forgets those that became
// WebSockets.
type listener struct {
	net.Listener
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

type conn struct {
	net.Conn
	l *listener
}

func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	own := &conn{c, l}
	l.mu.Lock()
	l.conns[own] = struct{}{}
	l.mu.Unlock()
	return own, nil
}

func (c *conn) Close() error {
	c.l.mu.Lock()
	delete(c.l.conns, c)
	c.l.mu.Unlock()
	return c.Conn.Close()
}

func (l *listener) closeAll() {
	l.Listener.Close()
	l.mu.Lock()
	open := make([]net.Conn, 0, len(l.conns))
	for c := range l.conns {
		open = append(open, c)
	}
	l.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
}
