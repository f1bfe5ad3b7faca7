package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// makeUpdate is an update file of a small set, and the platform that takes it.
func makeUpdate(t *testing.T) (file []byte, p Platform, key KeyPair) {
	t.Helper()
	dir, p, key := makeSet(t, rawImage()[:PieceSize+5])
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	paths := map[string]string{}
	for _, name := range []string{KernelName, RamdiskName, RootfsName} {
		paths[name] = filepath.Join(dir, name)
	}
	var b bytes.Buffer
	if err := WriteUpdate(&b, read(ManifestName), read(SignatureName), paths); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), p, key
}

// extract reads all of an update file into memory.
func extract(ctx context.Context, file []byte, keys []string) (map[string]string, error) {
	u, err := OpenUpdate(bytes.NewReader(file), keys)
	if err != nil {
		return nil, err
	}
	files := map[string]*bytes.Buffer{}
	err = u.Extract(ctx, func(f File) (io.WriteCloser, error) {
		files[f.Name] = &bytes.Buffer{}
		return open{files[f.Name]}, nil
	}, nil)
	out := map[string]string{}
	for name, b := range files {
		out[name] = b.String()
	}
	return out, err
}

func TestUpdate(t *testing.T) {
	file, p, _ := makeUpdate(t)
	got, err := extract(t.Context(), file, p.Keys)
	if err != nil {
		t.Fatal(err)
	}
	if u, err := OpenUpdate(bytes.NewReader(file), p.Keys); err != nil || u.FileSize() != int64(len(file)) {
		t.Errorf("FileSize() = %d, %v; want %d", u.FileSize(), err, len(file))
	}
	if got[KernelName] != "this is the kernel" || got[RamdiskName] != "this is the ramdisk.ext2.xz" || len(got[RootfsName]) == 0 {
		t.Errorf("Extract() = %.200q", got)
	}
}

// OS-E6: every byte of the file is vouched for, in its place.
func TestUpdateRefuses(t *testing.T) {
	file, p, _ := makeUpdate(t)
	change := func(do func(b []byte) []byte) []byte { return do(bytes.Clone(file)) }
	// retar writes the entries anew, after do changed the list.
	type item struct {
		tar.Header
		text []byte
	}
	retar := func(do func([]item) []item) []byte {
		var items []item
		r := tar.NewReader(bytes.NewReader(file))
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			items = append(items, item{*h, text})
		}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, i := range do(items) {
			i.Size = int64(len(i.text))
			if err := w.WriteHeader(&i.Header); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(i.text); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	if same := retar(func(i []item) []item { return i }); !bytes.Equal(same, file) {
		t.Fatal("another writer of tar archives makes another file of the same entries")
	}
	other, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := PublicKey(other.Public)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		file []byte
		keys []string
		want string
	}{
		{"empty", nil, p.Keys, "where manifest.json should be: EOF"},
		{"text", []byte(strings.Repeat("hello\n", 1000)), p.Keys, "where manifest.json should be"},
		{"foreign key", file, []string{foreign}, ErrSignature.Error()},
		{"no key", file, nil, ErrSignature.Error()},
		{"kernel missing", retar(func(i []item) []item { return append(i[:2:2], i[3:]...) }), p.Keys, `where kernel should be there is "ramdisk.ext2.xz"`},
		{"other order", retar(func(i []item) []item { i[2], i[3] = i[3], i[2]; return i }), p.Keys, "where kernel should be"},
		{"path trick", retar(func(i []item) []item { i[2].Name = "../kernel"; return i }), p.Keys, `there is "../kernel"`},
		{"absolute path", retar(func(i []item) []item { i[2].Name = "/a/kernel"; return i }), p.Keys, `there is "/a/kernel"`},
		{"link", retar(func(i []item) []item {
			i[2].Typeflag, i[2].Linkname, i[2].text = tar.TypeSymlink, "/etc/shadow", nil
			return i
		}), p.Keys, "where kernel should be"},
		{"long kernel", retar(func(i []item) []item { i[2].text = append(i[2].text, 'x'); return i }), p.Keys, "kernel has 19 bytes, and the manifest says 18"},
		{"attributes", retar(func(i []item) []item {
			i[2].Format, i[2].PAXRecords = tar.FormatPAX, map[string]string{"APP.x": "y"}
			return i
		}), p.Keys, "where kernel should be"},
		{"sixth file", retar(func(i []item) []item {
			extra := i[2]
			extra.Name = "extra"
			return append(i, extra)
		}), p.Keys, "something follows the last file"},
		{"bytes behind the end", append(bytes.Clone(file), 1), p.Keys, "1 bytes follow its end"},
		{"huge manifest", retar(func(i []item) []item { i[0].text = make([]byte, maxManifest+1); return i }), p.Keys, "manifest.json has 1048577 bytes"},
		{"no end", change(func(b []byte) []byte { return b[:len(b)-1024] }), p.Keys, ""},
	} {
		_, err := extract(t.Context(), c.file, c.keys)
		if c.name == "no end" { // Everything that is signed is there.
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
	end := len(file) - 1024
	for at := 0; at < end; at += 101 {
		for _, b := range [][]byte{file[:at], change(func(b []byte) []byte { b[at] ^= 4; return b })} {
			if _, err := extract(t.Context(), b, p.Keys); err == nil && !padding(file, at) {
				t.Errorf("a file that is cut off or altered at byte %d is accepted", at)
			}
		}
	}
}

// padding reports whether a byte says nothing about the content: it lies behind
// a file's last one, in the rest of a block, or in the signature's first line,
// an "untrusted comment".
func padding(file []byte, at int) bool {
	r := bytes.NewReader(file)
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err != nil {
			return true
		}
		start := len(file) - r.Len()
		text, err := io.ReadAll(t)
		if err != nil {
			return true
		}
		if h.Name == SignatureName && at >= start && at < start+bytes.IndexByte(text, '\n') {
			return true
		}
		if at >= start && at < start+len(text) {
			return false
		}
	}
}

// A release engineer signs what a machine without the release key has built.
func TestResign(t *testing.T) {
	file, p, _ := makeUpdate(t)
	release, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(manifest []byte) ([]byte, error) { return Sign(release.Private, "", manifest) }
	var signed bytes.Buffer
	if err := Resign(&signed, bytes.NewReader(file), sign); err != nil {
		t.Fatal(err)
	}
	key, err := PublicKey(release.Public)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := extract(t.Context(), signed.Bytes(), []string{key}); err != nil {
		t.Errorf("the signed file: %v", err)
	}
	if _, err := extract(t.Context(), signed.Bytes(), p.Keys); !errors.Is(err, ErrSignature) {
		t.Errorf("the signed file with the old key: %v", err)
	}
	damaged := bytes.Clone(file)
	damaged[bytes.Index(damaged, []byte("this is the kernel"))] ^= 1
	if err := Resign(io.Discard, bytes.NewReader(damaged), sign); err == nil || !strings.Contains(err.Error(), "its SHA-256 differs") {
		t.Errorf("Resign() of an altered file = %v", err)
	}
}

func TestExtractStops(t *testing.T) {
	file, p, _ := makeUpdate(t)
	u, err := OpenUpdate(bytes.NewReader(file), p.Keys)
	if err != nil {
		t.Fatal(err)
	}
	full := fmt.Errorf("the disk is full")
	if err := u.Extract(t.Context(), func(File) (io.WriteCloser, error) { return nil, full }, nil); !errors.Is(err, full) {
		t.Errorf("Extract() = %v; want %v", err, full)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := extract(ctx, file, p.Keys); !errors.Is(err, context.Canceled) {
		t.Errorf("Extract() of a canceled context = %v", err)
	}
}
