package archive

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"appplatform/internal/cache"
)

// A mirror is a small Debian archive that the host's apt accepts as one.
type mirror struct {
	t       *testing.T
	dir     string // its folders debian and debian-security are the two roots
	signer  *openpgp.Entity
	keyring string
	indexes map[string]*strings.Builder // Packages by suite

	published int // how often
}

// newMirror makes a mirror with a library and a tool that needs it, of which
// the security archive has a newer version.
func newMirror(t *testing.T) *mirror {
	m := &mirror{t: t, dir: t.TempDir(), signer: newSigner(t), indexes: map[string]*strings.Builder{}}
	m.keyring = filepath.Join(t.TempDir(), "keyring.gpg")
	var ring bytes.Buffer
	if err := m.signer.Serialize(&ring); err != nil {
		t.Fatal(err)
	}
	m.write(m.keyring, ring.Bytes())
	for _, s := range Suites {
		m.indexes[s] = &strings.Builder{}
	}
	m.add("trixie", "lib1", "1.0-1", "Source: lib (1.0)")
	m.add("trixie", "tool", "1.0-1", "Depends: lib1 (>= 1.0)\nRecommends: extra")
	m.add("trixie", "extra", "1.0-1", "")
	m.add("trixie-security", "tool", "1.0-1+deb13u1", "Depends: lib1 (>= 1.0)")
	m.add("trixie-updates", "zone", "2026b", "")
	for _, s := range Suites {
		m.publish(s)
	}
	return m
}

func newSigner(t *testing.T) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity("Archive", "", "archive@example.org", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (m *mirror) write(path string, data []byte) {
	m.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// root is the folder of the archive that carries the suite.
func (m *mirror) root(suite string) string {
	if strings.HasSuffix(suite, "-security") {
		return filepath.Join(m.dir, "debian-security")
	}
	return filepath.Join(m.dir, "debian")
}

// file is the host path of a package, so that a test can damage it.
func (m *mirror) file(p Package) string {
	if p.security() {
		return filepath.Join(m.dir, "debian-security", p.Filename)
	}
	return filepath.Join(m.dir, "debian", p.Filename)
}

func (m *mirror) index(suite string) string {
	return filepath.Join(m.root(suite), "dists", suite, "main/binary-amd64/Packages")
}

// add puts a package into a suite. It holds one file, which names it.
func (m *mirror) add(suite, name, version, fields string) {
	below := "pool/main/"
	if strings.HasSuffix(suite, "-security") {
		below = "pool/updates/main/"
	}
	filename := fmt.Sprintf("%s%c/%s_%s_amd64.deb", below, name[0], name, version)
	content := strings.Repeat(name+" "+version+"\n", 5000)
	deb := makeDeb(m.t, "data.tar", dataTar(m.t, "usr/share/"+name, content))
	m.write(filepath.Join(m.root(suite), filename), deb)
	if fields != "" {
		fields += "\n"
	}
	fmt.Fprintf(m.indexes[suite], "Package: %s\nVersion: %s\nArchitecture: amd64\nSection: misc\n%sFilename: %s\nSize: %d\nSHA256: %x\nDescription: test\n\n",
		name, version, fields, filename, len(deb), sha256.Sum256(deb))
}

// publish writes and signs a suite's index.
func (m *mirror) publish(suite string) {
	text := []byte(m.indexes[suite].String())
	m.write(m.index(suite), text)
	release := fmt.Sprintf("Origin: Debian\nLabel: Debian\nSuite: stable\nCodename: %s\nDate: %s\nArchitectures: amd64\nComponents: main\nSHA256:\n %x %d main/binary-amd64/Packages\n",
		suite, time.Now().UTC().Format(time.RFC1123), sha256.Sum256(text), len(text))
	m.sign(suite, release, m.signer)
}

func (m *mirror) sign(suite, release string, signer *openpgp.Entity) {
	var signed bytes.Buffer
	w, err := clearsign.Encode(&signed, signer.PrivateKey, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := io.WriteString(w, release); err != nil {
		m.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.write(m.inRelease(suite), signed.Bytes())
	// apt asks only for what is newer, in whole seconds.
	m.published++
	at := time.Now().Add(time.Duration(m.published) * time.Second)
	if err := os.Chtimes(m.inRelease(suite), at, at); err != nil {
		m.t.Fatal(err)
	}
}

func (m *mirror) inRelease(suite string) string {
	return filepath.Join(m.root(suite), "dists", suite, "InRelease")
}

// serve serves the mirror over HTTP. fault may answer a request itself.
func (m *mirror) serve(fault func(http.ResponseWriter, *http.Request) bool) string {
	files := http.FileServer(http.Dir(m.dir))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault == nil || !fault(w, r) {
			files.ServeHTTP(w, r)
		}
	}))
	m.t.Cleanup(s.Close)
	return s.URL
}

// open opens the archive at base (a URL of the mirror's folder, "file:" if it
// is empty) with an empty cache.
func (m *mirror) open(base string) *Archive {
	m.t.Helper()
	c, err := cache.Open(filepath.Join(m.t.TempDir(), "a cache"))
	if err != nil {
		m.t.Fatal(err)
	}
	if base == "" {
		base = "file:" + m.dir
	}
	a := &Archive{Cache: c, Main: base + "/debian", Security: base + "/debian-security", Keyring: m.keyring, patience: time.Second}
	a.Log = func(line string) { m.t.Log(line) }
	// The tests need not wait for apt's own tries.
	m.write(filepath.Join(a.aptDir("amd64"), "etc/apt.conf.d/tries"), []byte("Acquire::Retries \"0\";\n"))
	return a
}

// dataTar is an archive of one file.
func dataTar(t testing.TB, name, content string) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	if err := w.WriteHeader(&tar.Header{Name: "./" + name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// makeDeb is a .deb whose last member has the given name and content.
func makeDeb(t testing.TB, member string, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	out.WriteString(arMagic)
	for _, m := range []struct {
		name string
		body []byte
	}{{"debian-binary", []byte("2.0\n")}, {"control.tar", []byte("odd")}, {member, data}} {
		fmt.Fprintf(&out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", m.name, 0, 0, 0, "100644", len(m.body), m.body)
		if len(m.body)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

// pack compresses as the end of a member's name says.
func pack(t testing.TB, ext string, plain []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch ext {
	case ".xz":
		w, err = xz.NewWriter(&out)
	case ".zst":
		w, err = zstd.NewWriter(&out)
	case ".gz":
		w = gzip.NewWriter(&out)
	default:
		return plain
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// checkHint fails unless err names all the wanted words and ends in one hint.
func checkHint(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error; want one with %q", want)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error = %v\nwant %q in it", err, w)
		}
	}
	lines := strings.Split(err.Error(), "\n")
	if last := lines[len(lines)-1]; !strings.HasPrefix(last, "hint: ") || strings.Count(err.Error(), "hint: ") != 1 {
		t.Errorf("error = %v\nwant a hint as its last line", err)
	}
}
