package vdisk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"appplatform/internal/testtools"
	"appplatform/tooltree"
)

// A part is data somewhere on a disk.
type part struct {
	at   int64
	data []byte
}

// writeRaw makes a sparse raw image.
func writeRaw(t testing.TB, size int64, parts ...part) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range parts {
		if _, err := f.WriteAt(p.data, p.at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	_, _ = r.Read(b)
	return b
}

// alternating fills a disk with chunks of random bytes and such that have any share
// of them.
func alternating(size int64) (parts []part) {
	for at, i := int64(0), 0; at < size; at, i = at+ChunkSize, i+1 {
		n := ChunkSize
		if i%2 == 1 {
			n = 1 + i*7919%(ChunkSize-100)
		}
		parts = append(parts, part{at, random(n, uint64(i))})
	}
	return parts
}

func text(n int) []byte {
	return bytes.Repeat([]byte("what compresses well, and what does so, too\n"), n/40+1)[:n]
}

// convert writes all formats beside the raw image and returns the paths.
func convert(t testing.TB, raw string) (ID, map[Format]string) {
	t.Helper()
	in, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	paths := map[Format]string{}
	var outputs []Output
	for _, format := range Formats {
		paths[format] = strings.TrimSuffix(raw, "img") + string(format)
		f, err := os.Create(paths[format])
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		outputs = append(outputs, Output{format, f, "disk.vmdk"})
	}
	id, err := Convert(context.Background(), in, outputs, nil)
	if err != nil {
		t.Fatal(err)
	}
	return id, paths
}

func verify(format Format, path string) (ID, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return ID{}, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ID{}, 0, err
	}
	return format.Verify(f, info.Size())
}

const (
	kiB = 1 << 10
	miB = 1 << 20
	giB = 1 << 30
)

// Sizes that are no multiple of what formats allocate, nothing, everything, and
// content on every border; judged by QEMU's and libyal's readers.
func TestFormats(t *testing.T) {
	tools := testtools.Open(t, tooltree.Formats)
	tests := []struct {
		name string
		size int64
		data []part
	}{
		{"empty", 40 * miB, nil},
		{"one sector", 512, []part{{0, random(512, 1)}}},
		{"one byte", 1, []part{{0, []byte{1}}}},
		{"not a sector", 3*miB + 100, []part{{3*miB - 5, random(105, 2)}}},
		{"random", 5*miB + 512, []part{{0, random(5*miB+512, 3)}}},
		{"text", 9*miB - 512, []part{{0, text(9*miB - 512)}}},
		{"borders", 70*miB + 64*kiB + 512, []part{
			{64*kiB - 1, []byte{1, 2}}, {miB - 1, []byte{1, 2}}, {2*miB - 1, []byte{1, 2}}, {32*miB - 1, []byte{1, 2}},
			{70*miB + 64*kiB, text(512)},
		}},
		{"last grain of a table", 64 * miB, []part{{32*miB - 512, text(512)}, {64*miB - 512, random(512, 4)}}},
		{"mixed", 33 * miB, []part{{10 * kiB, random(300*kiB, 5)}, {miB, text(200 * kiB)}, {20*miB + 7, random(99, 6)}, {30 * miB, text(3 * miB)}}},
		// What compresses little lies between what does not: qcow2 has gaps to fill.
		{"alternating", 20 * miB, alternating(20 * miB)},
		// Behind the first bitmap entry of VHDX's BAT and several L1 entries.
		{"large", 4*giB + 4*miB, []part{{0, random(512, 7)}, {4*giB - 1, []byte{1, 2}}, {4*giB + 5, text(70 * kiB)}, {4*giB + 4*miB - 512, random(512, 8)}}},
	}
	dir := t.TempDir()
	var small []string // without extension
	for i, test := range tests {
		raw := writeRaw(t, test.size, test.data...)
		id, paths := convert(t, raw)
		in, err := os.Open(raw)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		disk, err := OpenRaw(in)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Sum(disk); err != nil || got != id {
			t.Errorf("%s: the raw image's ID is %v, %v; want %v", test.name, got, err, id)
		}
		for _, format := range Formats {
			got, size, err := verify(format, paths[format])
			if err != nil || got != id || size != disk.Size() {
				t.Errorf("%s: the %s has ID %v and %d bytes, %v; want %v and %d", test.name, format, got, size, err, id, disk.Size())
			}
		}
		// The raw image is padded as guests see it.
		if err := os.Truncate(raw, disk.Size()); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, fmt.Sprintf("%d-%s", i, strings.ReplaceAll(test.name, " ", "-")))
		if err := os.Rename(filepath.Dir(raw), name); err != nil {
			t.Fatal(err)
		}
		if test.size < giB {
			small = append(small, name)
		}
	}
	script := `cd "$1" && for d in *; do
			for f in qcow2 vmdk vhdx vhd; do
				format=$f; [ $f != vhd ] || format=vpc
				[ $f = vhd ] || qemu-img check -q -f $format $d/disk.$f || echo "$d/disk.$f is damaged"
				qemu-img compare -q -f raw -F $format $d/disk.img $d/disk.$f || echo "$d/disk.$f has another content"
			done
		done`
	out, err := tools.Output(t.Context(), tooltree.Cmd{Args: []string{"bash", "-c", script, "bash", dir}, Writable: []string{dir}})
	if err != nil || len(out) > 0 {
		t.Errorf("QEMU finds: %s%v", out, err)
	}
	judge(t, tools, small)
}

// judge reads small disks with libyal.
func judge(t *testing.T, tools *tooltree.Tree, folders []string) {
	t.Helper()
	program, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"python3", filepath.Join(program, "judge.py")}
	var want strings.Builder
	for _, dir := range folders {
		content, err := os.ReadFile(filepath.Join(dir, "disk.img"))
		if err != nil {
			t.Fatal(err)
		}
		for _, format := range Formats {
			path := filepath.Join(dir, "disk."+string(format))
			args = append(args, path)
			fmt.Fprintf(&want, "%s %d %x 0\n", path, len(content), sha256.Sum256(content))
		}
	}
	got, err := tools.Output(t.Context(), tooltree.Cmd{Args: args, ReadOnly: []string{program, filepath.Dir(folders[0])}})
	if diff := cmp.Diff(want.String(), string(got)); err != nil || diff != "" {
		t.Errorf("libyal reads something else: %v\n%s", err, diff)
	}
}

// The same content gives the same bytes, on one processor or more, whichever
// zeros are holes.
func TestReproducible(t *testing.T) {
	data := []part{{10 * kiB, random(900*kiB, 1)}, {5 * miB, text(2 * miB)}}
	_, first := convert(t, writeRaw(t, 20*miB, data...))
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	filled := append([]part{{0, make([]byte, 20*miB)}}, data...)
	_, second := convert(t, writeRaw(t, 20*miB, filled...))
	_, other := convert(t, writeRaw(t, 20*miB, append(data, part{miB * 15, []byte{1}})...))
	for _, format := range Formats {
		a, err := os.ReadFile(first[format])
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(second[format])
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("two %s files of the same content differ (%v)", format, err)
		}
		c, err := os.ReadFile(other[format])
		if err != nil {
			t.Fatal(err)
		}
		// Their IDs, too: importers take disks with the same ID for the same.
		if n := min(len(c), 4<<20, len(a)); bytes.Equal(a[:n], c[:n]) {
			t.Errorf("the %s of another disk begins like this one", format)
		}
	}
}

// A bit that has changed anywhere, and an end that is missing, is found in the file
// alone.
func TestDamage(t *testing.T) {
	raw := writeRaw(t, 35*miB+512, part{3 * kiB, random(100*kiB, 1)}, part{9 * miB, text(miB)}, part{35 * miB, text(512)})
	id, paths := convert(t, raw)
	for _, format := range Formats {
		t.Run(string(format), func(t *testing.T) {
			whole, err := os.ReadFile(paths[format])
			if err != nil {
				t.Fatal(err)
			}
			check := func(what string, b []byte) {
				t.Helper()
				if got, _, err := format.Verify(bytes.NewReader(b), int64(len(b))); err == nil {
					t.Errorf("%s is not noticed: the content is %v, was %v", what, got, id)
				}
			}
			check("an end that is missing", whole[:len(whole)-512])
			check("an end that is missing", whole[:len(whole)-64*kiB])
			check("something at the end", append(bytes.Clone(whole), make([]byte, 64*kiB)...))
			check("nothing", nil)
			r, tried := rand.New(rand.NewPCG(1, 2)), 0
			for tried < 300 {
				at := r.IntN(len(whole))
				if tried%2 == 0 { // where there is most to go wrong
					at = r.IntN(min(len(whole), 4*miB+64*kiB))
				}
				bit := byte(1) << r.IntN(8)
				b := bytes.Clone(whole)
				b[at] ^= bit
				tried++
				check(fmt.Sprintf("bit %#x of byte %#x", bit, at), b)
			}
		})
	}
}

// An output that cannot be written ends the conversion, and so does a context.
func TestConvertFails(t *testing.T) {
	raw, err := os.Open(writeRaw(t, 20*miB, part{0, random(20*miB, 1)}))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	for _, format := range Formats {
		if _, err := Convert(t.Context(), raw, []Output{{format, fullDisk{}, "x"}}, nil); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("a %s on a full disk: %v", format, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Convert(ctx, raw, []Output{{QCOW2, discard{}, "x"}}, func(done, _ int64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled conversion: %v", err)
	}
	empty, err := os.Open(writeRaw(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	if _, err := Convert(t.Context(), empty, nil, nil); err == nil {
		t.Error("an empty file is converted")
	}
}

type fullDisk struct{}

func (fullDisk) WriteAt(p []byte, off int64) (int, error) { return 0, syscall.ENOSPC }

type discard struct{}

func (discard) WriteAt(p []byte, off int64) (int, error) { return len(p), nil }

// memory is a file.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(m.b) {
		m.b = append(m.b, make([]byte, need-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

// Disks of any size and with data anywhere come back as they were.
func FuzzConvert(f *testing.F) {
	f.Add(uint32(512), []byte("a"), uint32(0), uint32(511))
	f.Add(uint32(33<<20), []byte("some bytes"), uint32(32<<20-1), uint32(5))
	f.Add(uint32(3<<20+1), random(4000, 9), uint32(1<<20-7), uint32(3<<20))
	f.Fuzz(func(t *testing.T, size uint32, data []byte, at, again uint32) {
		if size %= 100 * miB; size == 0 {
			return
		}
		var parts []part
		for _, at := range []uint32{at % size, again % size} {
			if n := min(len(data), int(size-at)); n > 0 {
				parts = append(parts, part{int64(at), data[:n]})
			}
		}
		raw, err := os.Open(writeRaw(t, int64(size), parts...))
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		var outputs []Output
		for _, format := range Formats {
			outputs = append(outputs, Output{format, &memory{}, "disk.vmdk"})
		}
		id, err := Convert(context.Background(), raw, outputs, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range outputs {
			b := o.File.(*memory).b
			if got, _, err := o.Format.Verify(bytes.NewReader(b), int64(len(b))); err != nil || got != id {
				t.Errorf("the %s has ID %v, %v; want %v", o.Format, got, err, id)
			}
		}
	})
}
