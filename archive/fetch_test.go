package archive

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"appplatform/internal/hint"
)

// one resolves the mirror's package that the tests below fetch.
func (m *mirror) one(a *Archive) Package {
	m.t.Helper()
	res, err := a.Resolve(m.t.Context(), Request{Arch: "amd64", Names: []string{"lib1"}})
	if err != nil {
		m.t.Fatal(err)
	}
	return res.Packages[0]
}

// damage changes one byte in the middle of a file.
func damage(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// checkClean fails if anything but finished packages is in the cache.
func checkClean(t *testing.T, a *Archive) {
	t.Helper()
	for _, pattern := range []string{"pool/*/*", "tmp/*"} {
		found, _ := filepath.Glob(a.Cache.Path(pattern))
		for _, f := range found {
			if !strings.HasSuffix(f, ".deb") && !strings.HasSuffix(f, ".altered") {
				t.Errorf("%s is left behind", f)
			}
		}
	}
}

func TestAlteredOnMirror(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	a := m.open("")
	p := m.one(a)
	damage(t, m.file(p))
	checkHint(t, a.Fetch(t.Context(), []Package{p}, nil), p.String(), p.SHA256, "another mirror")
	if a.has(p) {
		t.Error("the altered package is in the pool")
	}
	checkClean(t, a)
}

func TestAlteredInPool(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	a := m.open("")
	p := m.one(a)
	pkgs := []Package{p}
	if err := a.Fetch(t.Context(), pkgs, nil); err != nil {
		t.Fatal(err)
	}
	damage(t, a.Path(p))
	if err := a.Fetch(t.Context(), pkgs, nil); err != nil {
		t.Fatal(err)
	}
	checkHint(t, a.Verify(t.Context(), pkgs), p.String(), "altered", a.Path(p)+".altered", "build again")
	if _, err := os.Stat(a.Path(p) + ".altered"); err != nil {
		t.Errorf("the altered package is not put aside: %v", err)
	}
	if err := a.Fetch(t.Context(), pkgs, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.Verify(t.Context(), pkgs); err != nil {
		t.Errorf("Verify() = %v after another Fetch", err)
	}
	// A file that lost its end is fetched again without a word.
	if err := os.Truncate(a.Path(p), p.Size/2); err != nil {
		t.Fatal(err)
	}
	if n := a.Lacking(pkgs); n != p.Size {
		t.Errorf("Lacking() = %d for a truncated file; want %d", n, p.Size)
	}
	if err := a.Fetch(t.Context(), pkgs, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.Verify(t.Context(), pkgs); err != nil {
		t.Errorf("Verify() = %v after a truncated file was fetched again", err)
	}
}

func TestVanishedPackage(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	for _, base := range []string{"file:" + m.dir, m.serve(nil)} {
		a := m.open(base)
		p := m.one(a)
		path := m.file(p)
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		checkHint(t, a.Fetch(t.Context(), []Package{p}, nil), p.String(), "no longer has it", "--locked")
		checkClean(t, a)
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
	}
}

// A server answers requests for packages as the test says and counts them.
type server struct {
	mu     sync.Mutex
	ranges []string // of the requests for packages
	answer func(n int, w http.ResponseWriter, r *http.Request) bool
}

func (s *server) fault(w http.ResponseWriter, r *http.Request) bool {
	if !strings.HasSuffix(r.URL.Path, ".deb") {
		return false
	}
	s.mu.Lock()
	s.ranges = append(s.ranges, r.Header.Get("Range"))
	n := len(s.ranges)
	s.mu.Unlock()
	return s.answer(n, w, r)
}

// half sends half of the file and lets the connection go.
func (m *mirror) half(w http.ResponseWriter, p Package) {
	data, err := os.ReadFile(m.file(p))
	if err != nil {
		m.t.Error(err)
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(data)))
	_, _ = w.Write(data[:len(data)/2])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func TestCutConnection(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprintf("ranges %v", ranges), func(t *testing.T) {
			t.Parallel()
			m := newMirror(t)
			var p Package
			s := &server{answer: func(n int, w http.ResponseWriter, r *http.Request) bool {
				if n == 1 {
					m.half(w, p)
				}
				if !ranges {
					r.Header.Del("Range")
				}
				return false
			}}
			a := m.open(m.serve(s.fault))
			p = m.one(a)
			var got int64
			if err := a.Fetch(t.Context(), []Package{p}, func(n int64) { got += n }); err != nil {
				t.Fatal(err)
			}
			if err := a.Verify(t.Context(), []Package{p}); err != nil {
				t.Error(err)
			}
			if want := fmt.Sprintf("bytes=%d-", p.Size/2); len(s.ranges) != 2 || s.ranges[0] != "" || s.ranges[1] != want {
				t.Errorf("asked for the ranges %q; want everything and then %s", s.ranges, want)
			}
			if got != p.Size {
				t.Errorf("progress came to %d bytes; want %d", got, p.Size)
			}
			checkClean(t, a)
		})
	}
}

// A mirror that stops sending is given up in the end, and one that never stops
// does not fill the disk.
func TestMisbehavingServer(t *testing.T) {
	for _, c := range []struct {
		name   string
		answer func(m *mirror, p Package, w http.ResponseWriter, r *http.Request)
		tries  int
		want   string
	}{
		{"always cut", func(m *mirror, p Package, w http.ResponseWriter, _ *http.Request) {
			panic(http.ErrAbortHandler)
		}, 4, "EOF"},
		{"error", func(_ *mirror, _ Package, w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "busy", http.StatusServiceUnavailable)
		}, 4, "503"},
		{"stalled", func(_ *mirror, p Package, w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(p.Size))
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, 4, "nothing arrived for"},
		{"endless", func(_ *mirror, _ Package, w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write(make([]byte, 1<<20))
			}
		}, 1, "SHA-256"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMirror(t)
			var p Package
			s := &server{answer: func(_ int, w http.ResponseWriter, r *http.Request) bool {
				c.answer(m, p, w, r)
				return true
			}}
			a := m.open(m.serve(s.fault))
			p = m.one(a)
			a.patience = 200 * time.Millisecond
			checkHint(t, a.Fetch(t.Context(), []Package{p}, nil), p.String(), c.want)
			if len(s.ranges) != c.tries {
				t.Errorf("asked %d times; want %d", len(s.ranges), c.tries)
			}
			checkClean(t, a)
		})
	}
}

func TestFullDiskHint(t *testing.T) {
	for _, err := range []error{fmt.Errorf("write x: %w", syscall.ENOSPC), fmt.Errorf("write x: %w", syscall.EDQUOT)} {
		p := Package{Name: "tool", Version: "1", Arch: "all"}
		checkHint(t, explainFetch(p, err), "tool_1_all", hint.NoSpace)
	}
}

// A mirror that only a proxy reaches, as behind a company's firewall: apt and
// the fetching of packages both go through it.
func TestProxy(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	a := m.open("http://mirror.invalid")
	a.Proxy = m.serve(nil)
	res, err := a.Resolve(t.Context(), Request{Arch: "amd64", Names: []string{"tool"}})
	if err != nil {
		t.Fatalf("Resolve() through a proxy: %v", err)
	}
	if err := a.Fetch(t.Context(), res.Packages, nil); err != nil {
		t.Errorf("Fetch() through a proxy: %v", err)
	}
}
