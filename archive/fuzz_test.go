package archive

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"appplatform/internal/cache"
	"appplatform/internal/fuzzing"
)

// Whatever an index says, a package that is taken from it is complete, its file
// lies in the pool, of the mirror and of the cache, and says nothing about the
// package after it.
func FuzzStanzas(f *testing.F) {
	const good = "Package: lib1\nVersion: 1.0-1\nArchitecture: amd64\nSource: lib (1.0)\nSection: misc\nFilename: pool/main/l/lib1_1.0-1_amd64.deb\nSize: 1234\n" +
		"SHA256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\nDescription: a library\n with more lines\n"
	f.Add(good, good)
	f.Add("Source: other\n", strings.Replace(good, "Source: lib (1.0)\n", "", 1))
	f.Add(good, strings.Replace(good, "pool/", "pool/../../", 1))
	f.Add(good, strings.Replace(good, "0123456789abcdef", "../../../../../a", 1))
	f.Add(good, strings.Replace(good, "Size: 1", "Size: -1", 1))
	pool := &Archive{Cache: &cache.Dir{}}
	f.Fuzz(func(t *testing.T, first, second string) {
		both, err := parseStanzas(strings.NewReader(first + "\n\n" + second))
		a, err1 := parseStanzas(strings.NewReader(first))
		b, err2 := parseStanzas(strings.NewReader(second))
		if (err == nil) != (err1 == nil && err2 == nil) || err == nil && !slices.Equal(both, slices.Concat(a, b)) {
			t.Errorf("together: %v, %v; apart: %v, %v and %v, %v", both, err, a, err1, b, err2)
		}
		for _, p := range both {
			if err := p.Validate(); err != nil {
				t.Error(err)
			}
			path := pool.Path(p)
			if in, err := filepath.Rel(pool.Cache.Path("pool"), path); err != nil || !filepath.IsLocal(in) || strings.Count(in, "/") != 1 {
				t.Errorf("%v lies at %s of the cache", p, path)
			}
			if strings.Contains(p.String()+p.Filename, "\n") {
				t.Errorf("%q lies at %q", p, p.Filename)
			}
		}
	})
}

// debMemory is what reading the first MiB of a package may take: the window of
// the strongest compression that Debian uses, xz -9, and of zstd, twice over.
const debMemory = 256 << 20

// Whatever a package file holds, it is read to its end or an error, in bounded
// memory.
func FuzzDeb(f *testing.F) {
	exts := []string{"", ".xz", ".zst", ".gz"}
	var debs [][]byte
	for i, ext := range exts {
		debs = append(debs, makeDeb(f, "data.tar"+ext, pack(f, ext, dataTar(f, "usr/share/text", strings.Repeat("some text\n", 50)))))
		f.Add(byte(i), []byte(nil), uint16(0))
		f.Add(byte(i), fuzzing.Edit(len(arMagic)+48, "99999999999"), uint16(0))
		f.Add(byte(i), []byte(nil), uint16(100))
	}
	path := filepath.Join(f.TempDir(), "some.deb")
	f.Fuzz(func(t *testing.T, kind byte, edits []byte, cut uint16) {
		b := fuzzing.Edited(debs[int(kind)%len(debs)], edits)
		b = b[:max(0, len(b)-int(cut))]
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		if n := fuzzing.Allocated(func() { readSome(path, &text) }); n > debMemory {
			t.Errorf("reading %d bytes took %d", len(b), n)
		}
	})
}

// readSome reads the files of a package, but no more than a MiB of each of the
// first hundred.
func readSome(path string, to io.Writer) {
	d, err := OpenDeb(path)
	if err != nil {
		return
	}
	defer d.Close()
	for range 100 {
		if _, err := d.Data().Next(); err != nil {
			return
		}
		if _, err := io.CopyN(to, d.Data(), 1<<20); err != nil && err != io.EOF {
			return
		}
	}
}
