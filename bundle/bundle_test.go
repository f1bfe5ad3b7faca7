package bundle

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/ulikunitz/xz"
)

// compress is a stand-in for the xz tool.
func compress(_ context.Context, raw []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := xz.WriterConfig{CheckSum: xz.CRC32, DictCap: 1 << 20}.NewWriter(&b)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(raw); err != nil {
		return nil, err
	}
	err = w.Close()
	return b.Bytes(), err
}

// rawImage has text, zeros, noise, and a last piece that is not full.
func rawImage() []byte {
	raw := make([]byte, 3*PieceSize+12345)
	copy(raw, bytes.Repeat([]byte("a root file system "), 1000))
	noise := rand.New(rand.NewPCG(1, 2))
	for i := 2*PieceSize + 100; i < 2*PieceSize+200000; i++ {
		raw[i] = byte(noise.Uint32())
	}
	copy(raw[len(raw)-4:], "end.")
	return raw
}

var testPlatform = Platform{Board: "x86_64", Arch: "amd64", Label: "160001", Scheme: "gpt"}

// makeSet writes a set with the raw image into a folder and returns the
// platform that accepts it.
func makeSet(t *testing.T, raw []byte) (dir string, p Platform, key KeyPair) {
	t.Helper()
	dir = t.TempDir()
	f, err := os.Create(filepath.Join(dir, RootfsName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := Manifest{Format: Format, Board: "x86_64", Arch: "amd64", Label: "160001"}
	m.Rootfs, err = Packer{Compress: compress}.Pack(t.Context(), bytes.NewReader(raw), int64(len(raw)), f)
	if err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]*File{KernelName: &m.Kernel, RamdiskName: &m.Ramdisk} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("this is the "+name), 0o644); err != nil {
			t.Fatal(err)
		}
		if *to, err = Describe(name, path); err != nil {
			t.Fatal(err)
		}
	}
	key, err = NewKey()
	if err != nil {
		t.Fatal(err)
	}
	sign(t, dir, m, key)
	p = testPlatform
	public, err := PublicKey(key.Public)
	if err != nil {
		t.Fatal(err)
	}
	p.Keys = []string{public}
	return dir, p, key
}

func sign(t *testing.T, dir string, m Manifest, key KeyPair) {
	t.Helper()
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	signature, err := Sign(key.Private, "", text)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{ManifestName: text, SignatureName: signature} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// A memory is a Target; writes are counted.
type memory struct {
	b      []byte
	writes int
}

func (m *memory) ReadAt(b []byte, offset int64) (int, error) {
	return bytes.NewReader(m.b).ReadAt(b, offset)
}

func (m *memory) WriteAt(b []byte, offset int64) (int, error) {
	m.writes++
	return copy(m.b[offset:], b), nil
}

func (m *memory) Zero(offset, size int64) error {
	clear(m.b[offset:][:size])
	return nil
}

func TestUnpack(t *testing.T) {
	raw := rawImage()
	dir, p, _ := makeSet(t, raw)
	set, err := Open(dir, p)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	to := &memory{b: bytes.Repeat([]byte{0xaa}, len(raw)+100)} // What was on the disk before.
	if err := set.Unpack(t.Context(), to, false, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(to.b[:len(raw)], raw) {
		t.Error("the unpacked image differs")
	}
	if to.writes != 3 {
		t.Errorf("%d pieces written; want 3, and the zeros left to Zero", to.writes)
	}
	if err := set.Compare(t.Context(), to, nil); err != nil {
		t.Errorf("Compare() = %v", err)
	}
	for _, at := range []int{0, PieceSize + 7, 2*PieceSize + 150, len(raw) - 1} {
		to.b[at] ^= 1
		if err := set.Compare(t.Context(), to, nil); !errors.Is(err, errDiffers) {
			t.Errorf("Compare() with byte %d changed = %v; want %v", at, err, errDiffers)
		}
		to.b[at] ^= 1
	}
	to.b[2*PieceSize]++
	to.writes = 0
	if err := set.Unpack(t.Context(), to, true, nil); err != nil {
		t.Fatal(err)
	}
	if to.writes != 1 || set.Compare(t.Context(), to, nil) != nil {
		t.Errorf("resumed: %d pieces written; want the one that differed", to.writes)
	}
}

// OS-E6: what is altered, truncated, unsigned or for another machine is refused.
func TestOpenAndVerifyRefuse(t *testing.T) {
	raw := rawImage()[:PieceSize+5]
	dir, p, key := makeSet(t, raw)
	other, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	foreignKey, err := PublicKey(other.Public)
	if err != nil {
		t.Fatal(err)
	}
	edit := func(name string, change func([]byte) []byte) func(string) {
		return func(dir string) {
			path := filepath.Join(dir, name)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, change(b), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	shorten := func(b []byte) []byte { return b[:len(b)-1] }
	resign := func(change func(*Manifest)) func(string) {
		return func(dir string) {
			b, err := os.ReadFile(filepath.Join(dir, ManifestName))
			if err != nil {
				t.Fatal(err)
			}
			m, err := Decode(b)
			if err != nil {
				t.Fatal(err)
			}
			change(&m)
			sign(t, dir, m, key)
		}
	}
	tests := []struct {
		name   string
		damage func(dir string)
		p      func(*Platform)
		want   string
	}{
		{"kernel altered", edit(KernelName, flip), nil, "kernel is not what was signed: its SHA-256 differs"},
		{"kernel truncated", edit(KernelName, shorten), nil, "kernel is not what was signed: it has"},
		{"ramdisk altered", edit(RamdiskName, flip), nil, "ramdisk.ext2.xz is not what was signed"},
		{"rootfs altered", edit(RootfsName, flip), nil, "rootfs.ext4.xz is not what was signed"},
		{"rootfs truncated", edit(RootfsName, shorten), nil, "rootfs.ext4.xz is not what was signed"},
		{"manifest altered", edit(ManifestName, flip), nil, "not from a known key"},
		{"signature altered", edit(SignatureName, flip), nil, "not from a known key"},
		{"manifest endless", edit(ManifestName, func(b []byte) []byte { return append(b, make([]byte, maxManifest)...) }), nil, "has more than 1048576 bytes"},
		{"unsigned", func(dir string) { os.Remove(filepath.Join(dir, SignatureName)) }, nil, "no such file"},
		{"foreign key", nil, func(p *Platform) { p.Keys = []string{foreignKey} }, "not from a known key"},
		{"no key", nil, func(p *Platform) { p.Keys = nil }, "not from a known key"},
		{"one of two keys", nil, func(p *Platform) { p.Keys = append([]string{foreignKey}, p.Keys...) }, ""},
		{"another board", resign(func(m *Manifest) { m.Board = "arm64" }), nil, "it is for board arm64"},
		{"another architecture", resign(func(m *Manifest) { m.Arch = "armel" }), nil, "(armel)"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			copied := t.TempDir()
			if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			if test.damage != nil {
				test.damage(copied)
			}
			platform := p
			if test.p != nil {
				test.p(&platform)
			}
			set, err := Open(copied, platform)
			if err == nil {
				err = set.Verify(t.Context(), nil)
			}
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("Open and Verify = %v; want %q", err, test.want)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	dir, _, _ := makeSet(t, rawImage()[:PieceSize+5])
	good, err := os.ReadFile(filepath.Join(dir, ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, old, new, want string }{
		{"unknown field", `"board"`, `"colour": "red", "board"`, "unknown field"},
		{"newer format", `"format": 1`, `"format": 2`, "its format is 2"},
		{"path outside the set", `"name": "kernel"`, `"name": "../kernel"`, "entry for kernel"},
		{"piece out of place", `"offset": 0`, `"offset": 1`, "piece 0 is wrong"},
		{"huge piece size", `"piece_size": 4194304`, `"piece_size": 4194304000`, "entry for rootfs.ext4.xz"},
		{"sizes whose sum overflows", `"size": 18`, `"size": 9223372036854775807`, "entry for kernel"},
		{"two lines", `"label": "160001"`, `"label": "160001\nx"`, "cannot be the name"},
		{"no board", `"board": "x86_64"`, `"board": ""`, "cannot be the name"},
		{"sum of pieces", `"raw_size": 4194309`, `"raw_size": 4194310`, "do not add up"},
	} {
		text := strings.Replace(string(good), test.old, test.new, 1)
		if text == string(good) {
			t.Fatalf("%s: the manifest has no %s", test.name, test.old)
		}
		if _, err := Decode([]byte(text)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Decode() = %v; want %q", test.name, err, test.want)
		}
	}
	if _, err := Decode(append(good, "{}"...)); err == nil {
		t.Error("text behind the manifest is accepted")
	}
}

// Packing gives the same bytes with and without parallel work and a cache, and
// the whole is a valid .xz file.
func TestPackIsDeterministic(t *testing.T) {
	raw := rawImage()
	var want bytes.Buffer
	first, err := Packer{Compress: compress, Workers: 1}.Pack(t.Context(), bytes.NewReader(raw), int64(len(raw)), &want)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	cached := func(_ string, pack func() ([]byte, error)) ([]byte, error) { asked++; return pack() }
	var got bytes.Buffer
	second, err := Packer{Compress: compress, Workers: 1, Cached: cached}.Pack(t.Context(), bytes.NewReader(raw), int64(len(raw)), &got)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, second); diff != "" || !bytes.Equal(want.Bytes(), got.Bytes()) {
		t.Errorf("packing twice differs (-first +second):\n%s", diff)
	}
	if asked != len(first.Pieces) {
		t.Errorf("the cache was asked %d times; want once for each of %d pieces", asked, len(first.Pieces))
	}
	cmd := exec.Command(lookPath(t, "xz", "xz-utils"), "-dc")
	cmd.Stdin = &want
	out, err := cmd.Output()
	if err != nil || !bytes.Equal(out, raw) {
		t.Errorf("xz -dc of the packed file does not give the image back: %v", err)
	}
}

func TestPackReportsErrors(t *testing.T) {
	broken := errors.New("out of memory")
	p := Packer{Compress: func(context.Context, []byte) ([]byte, error) { return nil, broken }}
	_, err := p.Pack(t.Context(), bytes.NewReader(make([]byte, 2*PieceSize)), 2*PieceSize, io.Discard)
	if !errors.Is(err, broken) {
		t.Errorf("Pack() = %v; want %v", err, broken)
	}
}

// The stock minisign tool checks our signatures with our public key file.
func TestMinisignAccepts(t *testing.T) {
	dir, _, key := makeSet(t, rawImage()[:PieceSize])
	pub := filepath.Join(t.TempDir(), "key.pub")
	if err := os.WriteFile(pub, key.Public, 0o644); err != nil {
		t.Fatal(err)
	}
	minisign := lookPath(t, "minisign", "minisign")
	check := func() ([]byte, error) {
		return exec.Command(minisign, "-V", "-H", "-p", pub, "-m", filepath.Join(dir, ManifestName)).CombinedOutput()
	}
	out, err := check()
	if err != nil || !strings.Contains(string(out), "x86_64 image 160001") {
		t.Errorf("minisign refuses the signature: %v\n%s", err, out)
	}
	if err := os.WriteFile(filepath.Join(dir, ManifestName), []byte("{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := check(); err == nil {
		t.Errorf("minisign accepts another manifest:\n%s", out)
	}
}

func TestSignIsDeterministic(t *testing.T) {
	dir, _, key := makeSet(t, rawImage()[:PieceSize])
	text, err := os.ReadFile(filepath.Join(dir, ManifestName))
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(dir, SignatureName))
	if err != nil {
		t.Fatal(err)
	}
	got, err := Sign(key.Private, "", text)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("signing again gives another signature, or %v", err)
	}
}

// Piece.zero must know the zeros of the size that is really used.
func TestZero(t *testing.T) {
	if !Zero(hash(make([]byte, PieceSize)), PieceSize) {
		t.Error("a piece of zeros is not recognised")
	}
	if Zero(hash([]byte("x")), PieceSize) {
		t.Error("something else is taken for zeros")
	}
}

func lookPath(t *testing.T, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("cannot judge our files: the program %q is missing (Debian package %s)", name, pkg)
	}
	return path
}
