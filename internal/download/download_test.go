package download

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// content is large enough to be sent in several pieces.
var content = bytes.Repeat([]byte("0123456789abcdef"), 1<<14)

// A fault may spoil the n-th answer; it returns false for a good one.
type fault func(n int, w http.ResponseWriter, r *http.Request) bool

func serve(t *testing.T, f fault) string {
	t.Helper()
	n := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n++
		if f == nil || !f(n, w, r) {
			w.Header().Set("ETag", `"1"`)
			http.ServeContent(w, r, "image", time.Time{}, bytes.NewReader(content))
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// cut sends the first half under a name and lets the connection go.
func cut(w http.ResponseWriter, tag string) {
	w.Header().Set("ETag", tag)
	w.Header().Set("Content-Length", fmt.Sprint(len(content)))
	_, _ = w.Write(content[:len(content)/2])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func fetch(ctx context.Context, address string, o Options) (int64, []byte, error) {
	f, err := Open(ctx, address, o)
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	return f.Size(), b, err
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	length := int64(len(content))
	for _, c := range []struct {
		name    string
		address string
		opts    Options
		size    int64
		want    []byte
	}{
		{"whole", serve(t, nil), Options{}, length, content},
		{"rest", serve(t, nil), Options{From: 1000}, length, content[1000:]},
		{"nothing left", serve(t, nil), Options{From: length}, length, nil},
		{"file", "file://" + path, Options{From: 5}, 0, content[5:]},
		{"cut once", serve(t, func(n int, w http.ResponseWriter, _ *http.Request) bool {
			if n == 1 {
				cut(w, `"1"`)
			}
			return false
		}), Options{}, length, content},
		{"cut once, no ranges", serve(t, func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				cut(w, `"1"`)
			}
			r.Header.Del("Range")
			return false
		}), Options{}, length, content},
		{"no length", serve(t, func(_ int, w http.ResponseWriter, _ *http.Request) bool {
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(content)
			return true
		}), Options{}, 0, content},
		{"busy at first", serve(t, func(n int, w http.ResponseWriter, _ *http.Request) bool {
			if n < tries {
				http.Error(w, "busy", http.StatusServiceUnavailable)
			}
			return n < tries
		}), Options{}, length, content},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opts.Patience = time.Second
			size, got, err := fetch(t.Context(), c.address, c.opts)
			if err != nil || size != c.size || !bytes.Equal(got, c.want) {
				t.Errorf("got %d bytes of %d, %v; want %d of %d", len(got), size, err, len(c.want), c.size)
			}
		})
	}
}

func TestFileFails(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault fault
		opts  Options
		tries int
		want  string
	}{
		{"gone", func(_ int, w http.ResponseWriter, r *http.Request) bool {
			http.NotFound(w, r)
			return true
		}, Options{}, 1, "404 Not Found"},
		{"busy", func(_ int, w http.ResponseWriter, _ *http.Request) bool {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return true
		}, Options{}, tries, "the server answers 503"},
		{"changed while it was read", func(n int, w http.ResponseWriter, _ *http.Request) bool {
			cut(w, fmt.Sprintf(`"%d"`, n))
			return true
		}, Options{}, 2, ErrChanged.Error()},
		{"another version than before", nil, Options{From: 1000, Version: `"0"`}, 1, ErrChanged.Error()},
		{"shorter than what is here", nil, Options{From: int64(len(content)) + 1}, 1, ErrChanged.Error()},
		{"shorter than it must be", func(_ int, w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write(content[:100])
			return true
		}, Options{Size: int64(len(content))}, tries, "it ends after 100 of"},
		{"silent", func(_ int, w http.ResponseWriter, r *http.Request) bool {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		}, Options{}, tries, "nothing arrived for"},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked := 0
			address := serve(t, func(n int, w http.ResponseWriter, r *http.Request) bool {
				asked = n
				return c.fault != nil && c.fault(n, w, r)
			})
			c.opts.Patience = 300 * time.Millisecond
			_, _, err := fetch(t.Context(), address, c.opts)
			if err == nil || !strings.Contains(err.Error(), c.want) || asked != c.tries {
				t.Errorf("asked %d times, %v; want %d times and %q", asked, err, c.tries, c.want)
			}
		})
	}
}

// Whoever writes to a slow card is not taken for a silent server, and whoever
// has enough is not asked again.
func TestPauseAndCancel(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	f, err := Open(ctx, serve(t, nil), Options{Patience: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1000)
	for range 3 {
		time.Sleep(150 * time.Millisecond)
		if _, err := io.ReadFull(f, b); err != nil {
			t.Fatal(err)
		}
	}
	enough := errors.New("enough")
	cancel(enough)
	if _, err := io.Copy(io.Discard, f); !errors.Is(err, enough) {
		t.Errorf("Copy() = %v after it was canceled; want %v", err, enough)
	}
}
