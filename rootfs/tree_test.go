package rootfs

import (
	"archive/tar"
	"bytes"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWriteTar(t *testing.T) {
	tree := newTree()
	tree.put("usr/bin/apagent", &Entry{Mode: 0o755, Content: []byte("agent"), layer: fromBuild})
	tree.put("etc/hosts", &Entry{Mode: 0o644, Content: []byte("own"), layer: fromOverlay})
	tree.put("usr/bin/sudo", &Entry{Mode: fs.ModeSetuid | 0o755, Content: []byte("s"), layer: fromPackage})
	tree.put("usr/bin/a", &Entry{Mode: 0o755, HardLink: "usr/bin/tool", layer: fromPackage})
	tree.put("usr/bin/tool", &Entry{Mode: 0o755, GID: 42, Content: []byte("tool"), layer: fromPackage})
	tree.put("bin", &Entry{Mode: fs.ModeSymlink | 0o777, Link: "usr/bin", layer: fromPackage})

	var first, second bytes.Buffer
	if err := tree.WriteTar(&first); err != nil {
		t.Fatal(err)
	}
	if err := tree.WriteTar(&second); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("WriteTar writes other bytes the second time")
	}

	type entry struct {
		Name, Link string
		Mode       int64
		GID        int
		Text       string
	}
	var got []entry
	for r := tar.NewReader(&first); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(r)
		if !h.ModTime.Equal(stamp) {
			t.Errorf("%s has time %v; want %v", h.Name, h.ModTime, stamp)
		}
		got = append(got, entry{h.Name, h.Linkname, h.Mode, h.Gid, string(text)})
	}
	want := []entry{ // what changes rarely first, folders before what is in them
		{"./", "", 0o755, 0, ""},
		{"./bin", "usr/bin", 0o777, 0, ""},
		{"./usr/", "", 0o755, 0, ""},
		{"./usr/bin/", "", 0o755, 0, ""},
		{"./usr/bin/tool", "", 0o755, 42, "tool"},
		{"./usr/bin/a", "./usr/bin/tool", 0o755, 0, ""},
		{"./usr/bin/sudo", "", 0o4755, 0, "s"},
		{"./etc/", "", 0o755, 0, ""},
		{"./etc/hosts", "", 0o644, 0, "own"},
		{"./usr/bin/apagent", "", 0o755, 0, "agent"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("WriteTar (-want +got):\n%s", diff)
	}
}

func TestResolve(t *testing.T) {
	tree := newTree()
	link := func(path, target string) { tree.put(path, &Entry{Mode: fs.ModeSymlink | 0o777, Link: target}) }
	tree.put("usr/lib/libc.so.6", &Entry{})
	link("lib", "usr/lib")
	link("usr/lib/libc.so", "libc.so.6")
	link("usr/lib/up", "../../../lib/libc.so")
	link("etc/loop", "/etc/loop")
	link("etc/nowhere", "/run/x")
	for _, c := range []struct{ path, want string }{
		{"usr/lib/libc.so.6", "usr/lib/libc.so.6"},
		{"/lib/libc.so", "usr/lib/libc.so.6"},
		{"/lib/up", "usr/lib/libc.so.6"},
		{"etc/loop", ""},
		{"etc/nowhere", ""},
		{"/usr", "usr"},
	} {
		if got, _ := tree.resolve(c.path); got != c.want {
			t.Errorf("resolve(%q) = %q; want %q", c.path, got, c.want)
		}
	}
}

func TestCertificates(t *testing.T) {
	tree := newTree()
	tree.put("usr/share/ca-certificates/mozilla/B.crt", &Entry{Content: []byte("B")})
	tree.put("usr/share/ca-certificates/mozilla/A.crt", &Entry{Content: []byte("A\n")})
	addCertificates(tree)
	removeEmptyFolders(tree)
	e, ok := tree.Get("etc/ssl/certs/ca-certificates.crt")
	if !ok || string(e.Content) != "A\nB\n" {
		t.Errorf("bundle = %+v; want A and B, one a line", e)
	}
	if got := strings.Join(tree.Paths(), " "); got != "etc etc/ssl etc/ssl/certs etc/ssl/certs/ca-certificates.crt" {
		t.Errorf("Paths() = %s; want nothing but the bundle", got)
	}
}
