package archive

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func openBytes(t *testing.T, data []byte) (*Deb, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "some.deb")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return OpenDeb(path)
}

// readAll reads the package's only file and then its end.
func readAll(d *Deb) (name, content string, err error) {
	h, err := d.Data().Next()
	if err != nil {
		return "", "", err
	}
	text, err := io.ReadAll(d.Data())
	if err != nil {
		return h.Name, "", err
	}
	if _, err := d.Data().Next(); !errors.Is(err, io.EOF) {
		return h.Name, string(text), err
	}
	return h.Name, string(text), nil
}

func TestOpenDeb(t *testing.T) {
	content := strings.Repeat("some text, some text\n", 10000)
	for _, ext := range []string{"", ".xz", ".zst", ".gz"} {
		t.Run("data.tar"+ext, func(t *testing.T) {
			d, err := openBytes(t, makeDeb(t, "data.tar"+ext, pack(t, ext, dataTar(t, "usr/share/text", content))))
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			name, text, err := readAll(d)
			if name != "./usr/share/text" || text != content || err != nil {
				t.Errorf("read %s with %d bytes, %v; want ./usr/share/text with %d", name, len(text), err, len(content))
			}
		})
	}
}

func TestOpenDebRefuses(t *testing.T) {
	deb := makeDeb(t, "data.tar.xz", pack(t, ".xz", dataTar(t, "usr/share/text", "text")))
	for _, c := range []struct {
		name, want string
		data       []byte
	}{
		{"empty", "not a Debian package", nil},
		{"text", "not a Debian package", []byte("<html>404</html>")},
		{"cut in a header", "no data.tar in it", deb[:len(arMagic)+30]},
		{"cut before data.tar", "no data.tar in it", deb[:len(arMagic)+arHeader+4]},
		{"header with rubbish", "broken ar header", append([]byte(arMagic), strings.Repeat("x", arHeader)...)},
		{"header with a negative size", "broken ar header", []byte(arMagic + "debian-binary   0           0     0     100644  -100      `\n")},
		{"unknown compression", "unknown compression data.tar.lzma", makeDeb(t, "data.tar.lzma", nil)},
	} {
		t.Run(c.name, func(t *testing.T) {
			d, err := openBytes(t, c.data)
			if err == nil {
				d.Close()
				t.Fatalf("OpenDeb() succeeds; want %q", c.want)
			}
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "some.deb") {
				t.Errorf("OpenDeb() = %v; want the file's name and %q", err, c.want)
			}
		})
	}
}

// A package whose end is missing must not look like a smaller one.
func TestTruncatedDeb(t *testing.T) {
	noise := make([]byte, 100000) // that does not compress
	for i, x := 0, uint32(1); i < len(noise); i++ {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	plain := dataTar(t, "usr/share/noise", string(noise))
	for _, ext := range []string{"", ".xz", ".zst", ".gz"} {
		deb := makeDeb(t, "data.tar"+ext, pack(t, ext, plain))
		for _, keep := range []int{len(deb) / 2, len(deb) - 3000} {
			d, err := openBytes(t, deb[:keep])
			if err != nil {
				continue
			}
			if _, _, err := readAll(d); err == nil {
				t.Errorf("data.tar%s cut to %d of %d bytes reads without an error", ext, keep, len(deb))
			}
			d.Close()
		}
	}
}
