package webserver

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/hint"
	"appplatform/internal/wire"
)

// A registration is a path of somebody's.
type registration struct {
	wire.Register
	uid  uint32
	pid  int32
	root *os.Root        // files
	http *http.Transport // the other kinds

	hangUp func() // on whoever has registered it
}

// A table says whose which path is.
type table struct {
	mu       sync.RWMutex
	paths    map[string][]*registration // the last one of a kind counts
	count    int
	of       map[uint32]int // of it, by users
	depth    int            // slashes of the deepest path there ever was
	grants   []wire.Grant
	granted  bool // somebody has said what the grants are
	began    time.Time
	left     map[string]time.Time // paths that nobody has any more, and since when
	enough   int                  // of these, to forget some
	changed  chan struct{}        // closed and made anew with every registration
	draining bool
}

func newTable() *table {
	return &table{paths: map[string][]*registration{}, of: map[uint32]int{}, left: map[string]time.Time{}, changed: make(chan struct{}), began: time.Now()}
}

// checkPath wants what a registered path must look like.
func checkPath(path string) error {
	switch {
	case path == "":
		return nil
	case len(path) > maxPath:
		return fmt.Errorf("the path is longer than %d bytes", maxPath)
	case !strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/"):
		return hint.Errorf("begin it with a slash and end it without", "%q is no path", path)
	case strings.Contains(path, "//") || strings.ContainsAny(path, "?#\\") || strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return fmt.Errorf("%q is no path", path)
	}
	for part := range strings.SplitSeq(path[1:], "/") {
		if part == "." || part == ".." {
			return fmt.Errorf("%q is no path", path)
		}
	}
	return nil
}

// below reports whether path is base or inside of it.
func below(path, base string) bool {
	return path == base || strings.HasPrefix(path, base) && (base == "" || path[len(base)] == '/')
}

// grantOf returns what lets the user register the path. Root needs no grant.
func (t *table) grantOf(uid uint32, r wire.Register) (wire.Grant, bool) {
	if uid == 0 {
		return wire.Grant{Path: "", Dir: "/"}, true
	}
	for _, g := range t.grants {
		if g.UID != uid || !below(r.Path, g.Path) {
			continue
		}
		if r.Kind != wire.KindFiles || g.Dir != "" && inFolder(r.Dir, g.Dir) {
			return g, true
		}
	}
	return wire.Grant{}, false
}

func inFolder(dir, base string) bool {
	rel, err := filepath.Rel(base, dir)
	return err == nil && filepath.IsLocal(rel)
}

// add registers a path.
func (t *table) add(m wire.Register, uid uint32, pid int32, hangUp func()) (*registration, error) {
	if err := checkPath(m.Path); err != nil {
		return nil, err
	}
	switch m.Kind {
	case wire.KindHTTP, wire.KindWebSocket, wire.KindPassThrough:
		if !filepath.IsAbs(m.Socket) {
			return nil, fmt.Errorf("the socket %q is no absolute path", m.Socket)
		}
	case wire.KindFiles:
		if !filepath.IsAbs(m.Dir) {
			return nil, fmt.Errorf("the folder %q is no absolute path", m.Dir)
		}
	default:
		return nil, hint.Errorf("kinds are http, websocket, passthrough and files", "there is no kind %q", m.Kind)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.draining {
		return nil, errors.New("this webserver is about to end; connect anew")
	}
	if t.count >= maxRegistrations {
		return nil, fmt.Errorf("there are %d registrations already", t.count)
	}
	if uid != 0 && t.of[uid] >= maxOfUser {
		return nil, fmt.Errorf("the user %d has %d registrations already, and nobody may have more", uid, t.of[uid])
	}
	grant, ok := t.grantOf(uid, m)
	if !ok {
		return nil, hint.Errorf("the manager grants paths to the apps that it has started", "the user %d may not register %q as %s", uid, m.Path, m.Kind)
	}
	r := &registration{Register: m, uid: uid, pid: pid, hangUp: hangUp}
	if m.Kind == wire.KindFiles {
		root, err := openFolder(grant.Dir, m.Dir)
		if err != nil {
			return nil, err
		}
		r.root = root
	} else {
		r.http = r.transport()
	}
	t.paths[m.Path] = append(t.paths[m.Path], r)
	t.count++
	t.of[uid]++
	t.depth = max(t.depth, strings.Count(m.Path, "/"))
	delete(t.left, m.Path)
	close(t.changed)
	t.changed = make(chan struct{})
	return r, nil
}

// openFolder opens dir from the folder that was granted: a link in between may
// not lead out of that.
func openFolder(granted, dir string) (*os.Root, error) {
	base, err := os.OpenRoot(granted)
	if err != nil {
		return nil, fmt.Errorf("cannot serve files: %w", err)
	}
	defer base.Close()
	rel, err := filepath.Rel(granted, dir)
	if err != nil {
		return nil, fmt.Errorf("cannot serve files: %w", err)
	}
	root, err := base.OpenRoot(rel)
	if err != nil {
		return nil, fmt.Errorf("cannot serve files: %w", err)
	}
	return root, nil
}

// remove ends a registration. While the webserver is draining they stay, for the
// requests that it still has.
func (t *table) remove(r *registration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.draining {
		t.drop(r)
	}
}

func (t *table) drop(r *registration) {
	list := t.paths[r.Path]
	i := slices.Index(list, r)
	if i < 0 {
		return
	}
	if list = slices.Delete(slices.Clone(list), i, i+1); len(list) > 0 {
		t.paths[r.Path] = list
	} else {
		delete(t.paths, r.Path)
		t.forget()
		t.left[r.Path] = time.Now()
	}
	t.count--
	if t.of[r.uid]--; t.of[r.uid] == 0 {
		delete(t.of, r.uid)
	}
	if r.root != nil {
		r.root.Close()
	} else {
		r.http.CloseIdleConnections()
	}
}

// forget bounds what is remembered of paths that are gone. It looks at all of them
// only when there are twice as many as it left the last time.
func (t *table) forget() {
	if len(t.left) < t.enough {
		return
	}
	for path, since := range t.left {
		if time.Since(since) > rememberTime || len(t.left) > maxRegistrations {
			delete(t.left, path)
		}
	}
	t.enough = max(1000, 2*len(t.left))
}

// grant replaces the grants and ends what they do not cover any more. Who has
// registered that is hung up on, and may ask again: what is withdrawn by mistake,
// as by a manager whose database is away, would else never come back.
func (t *table) grant(grants []wire.Grant) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.grants, t.granted = grants, true
	for _, list := range t.paths {
		for _, r := range slices.Clone(list) {
			if _, ok := t.grantOf(r.uid, r.Register); !ok {
				t.drop(r)
				r.hangUp()
			}
		}
	}
}

func (t *table) drain() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.draining = true
}

// find returns whose the path is. If nobody has it, soon says whether it is worth
// while to wait for changed.
func (t *table) find(path string, upgrade bool) (r *registration, soon bool, changed <-chan struct{}) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for p := range prefixes(path, t.depth) {
		if r = choose(t.paths[p], upgrade); r != nil {
			// One that was there until a moment ago and is longer comes back, too; and of
			// all that register with a new webserver, somebody is the first.
			if t.granted && t.maybe(path, len(p)) {
				return nil, true, t.changed
			}
			return r, false, t.changed
		}
		if since, ok := t.left[p]; ok && time.Since(since) < rememberTime && !t.draining {
			return nil, true, t.changed
		}
	}
	return nil, t.maybe(path, -1), t.changed
}

// maybe says whether an app may still be about to register the path, by a name of
// more bytes than longer, for the first time since the webserver was started. With one
// that drains nobody registers any more.
func (t *table) maybe(path string, longer int) bool {
	if time.Since(t.began) > startTime || t.draining {
		return false
	}
	return !t.granted || slices.ContainsFunc(t.grants, func(g wire.Grant) bool { return len(g.Path) > longer && below(path, g.Path) })
}

// prefixes are the path and what is above it, longest first, by whole segments;
// none has more slashes than depth.
func prefixes(path string, depth int) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		end, slashes := len(path), 0
		for i := range len(path) {
			if path[i] != '/' {
				continue
			}
			if slashes++; slashes > depth {
				end = i
				break
			}
		}
		for p := path[:end]; ; p = p[:strings.LastIndexByte(p, '/')] {
			if !yield(p) || p == "" || p[0] != '/' {
				return
			}
		}
	}
}

// choose takes the last registration that fits: passthrough is for everything,
// websocket for upgrades only.
func choose(list []*registration, upgrade bool) *registration {
	var found *registration
	rank := 0
	for _, r := range list {
		n := 1
		switch r.Kind {
		case wire.KindPassThrough:
			n = 3
		case wire.KindWebSocket:
			if n = 2; !upgrade {
				n = 0
			}
		case wire.KindFiles:
			if upgrade {
				n = 0
			}
		}
		if n >= rank && n > 0 {
			found, rank = r, n
		}
	}
	if found == nil && len(list) > 0 {
		return list[len(list)-1] // which says what it wants instead
	}
	return found
}

// all are the registrations, for the manager to see.
func (t *table) all() []wire.RegisterOf {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make([]wire.RegisterOf, 0, t.count)
	for _, list := range t.paths {
		for _, r := range list {
			all = append(all, wire.RegisterOf{Register: r.Register, UID: r.uid, PID: r.pid})
		}
	}
	slices.SortStableFunc(all, func(a, b wire.RegisterOf) int { return strings.Compare(a.Path+"\x00"+a.Kind, b.Path+"\x00"+b.Kind) })
	return all
}

// register answers one connection to the registration socket until its end.
func (s *Server) register(c *net.UnixConn) {
	defer c.Close()
	cred, err := peer(c)
	if err != nil {
		s.log.Warn("cannot tell who registers", "error", err)
		return
	}
	mine := map[[2]string]*registration{}
	defer func() {
		for _, r := range mine {
			s.table.remove(r)
		}
	}()
	conn := wire.NewConn(c)
	for {
		m, err := conn.Receive()
		if err != nil {
			return
		}
		var result wire.RegisterResult
		switch m.MT {
		case "Register":
			result = s.registerOne(m, cred, func() { c.Close() }, mine)
		case "Unregister":
			result = s.unregisterOne(m, mine)
		default:
			result.Error = fmt.Sprintf("there is no message %q here", m.MT)
		}
		result.Head = wire.Head{MT: "RegisterResult", ID: m.ID}
		_ = c.SetWriteDeadline(time.Now().Add(dialTime))
		if conn.Send(result) != nil {
			return
		}
	}
}

func (s *Server) registerOne(m wire.Message, who *unix.Ucred, hangUp func(), mine map[[2]string]*registration) wire.RegisterResult {
	var ask wire.Register
	if err := m.Decode(&ask); err != nil {
		return wire.RegisterResult{Error: err.Error()}
	}
	ask.Head = wire.Head{}
	r, err := s.table.add(ask, who.Uid, who.Pid, hangUp)
	if err != nil {
		s.log.Warn("refused to register", "path", ask.Path, "kind", ask.Kind, "uid", who.Uid, "pid", who.Pid, "error", err)
		return wire.RegisterResult{Path: ask.Path, Error: err.Error()}
	}
	key := [2]string{ask.Path, ask.Kind}
	if old := mine[key]; old != nil {
		s.table.remove(old)
	}
	mine[key] = r
	return wire.RegisterResult{Path: ask.Path}
}

func (s *Server) unregisterOne(m wire.Message, mine map[[2]string]*registration) wire.RegisterResult {
	var ask wire.Unregister
	if err := m.Decode(&ask); err != nil {
		return wire.RegisterResult{Error: err.Error()}
	}
	key := [2]string{ask.Path, ask.Kind}
	r := mine[key]
	if r == nil {
		return wire.RegisterResult{Path: ask.Path, Error: fmt.Sprintf("%q is not registered as %s by this connection", ask.Path, ask.Kind)}
	}
	delete(mine, key)
	s.table.remove(r)
	return wire.RegisterResult{Path: ask.Path}
}
