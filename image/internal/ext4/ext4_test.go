package ext4

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
)

var options = Options{
	Type:   Ext4,
	Label:  "rootfs",
	UUID:   "b5a3c1d2-0000-4000-8000-000000000003",
	Size:   100 * partitions.MiB,
	Inodes: 4096,
	Time:   time.Unix(1767225600, 0),
}

// sample is a tar with one entry of each type and many plain files; late is
// the content of the last one.
func sample(t *testing.T, late string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, content string) {
		h.Size = int64(len(content))
		h.ModTime = options.Time
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "usr/", Mode: 0o755}, "")
	add(tar.Header{Typeflag: tar.TypeDir, Name: "usr/bin/", Mode: 0o755}, "")
	random := rand.New(rand.NewPCG(1, 2))
	content := make([]byte, 30000)
	for i := range 400 {
		for j := range content {
			content[j] = byte(random.Uint32())
		}
		add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/bin/tool%03d", i), Mode: 0o755}, string(content))
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "usr/bin/su", Mode: 0o4755}, "su")
	add(tar.Header{Typeflag: tar.TypeLink, Name: "usr/bin/su2", Linkname: "usr/bin/su", Mode: 0o4755}, "")
	add(tar.Header{Typeflag: tar.TypeSymlink, Name: "bin", Linkname: "usr/bin", Mode: 0o777}, "")
	add(tar.Header{Typeflag: tar.TypeChar, Name: "console", Mode: 0o600, Devmajor: 5, Devminor: 1}, "")
	add(tar.Header{Typeflag: tar.TypeFifo, Name: "initctl", Mode: 0o600}, "")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "Überlänge", Mode: 0o640, Uid: 1000, Gid: 42}, "ä")
	add(tar.Header{Typeflag: tar.TypeReg, Name: "late", Mode: 0o644}, late)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(t *testing.T, o Options, stream []byte) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "fs.img")
	if err := Write(t.Context(), testtools.Open(t, tooltree.Image), o, bytes.NewReader(stream), out); err != nil {
		t.Fatal(err)
	}
	return out
}

// judge runs a tool on an image and returns what it says.
func judge(t *testing.T, image string, args ...string) string {
	t.Helper()
	out, err := testtools.Open(t, tooltree.Image).Output(t.Context(), tooltree.Cmd{
		Args:     args,
		ReadOnly: []string{filepath.Dir(image)},
	})
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestWriteSatisfiesE2fsck(t *testing.T) {
	for _, test := range []struct {
		name    string
		change  func(*Options)
		has     []string
		hasNone []string
	}{
		{"ext4", func(*Options) {}, []string{"metadata_csum", "extent"}, []string{"has_journal"}},
		{"ext4 with journal", func(o *Options) { o.Journal = true }, []string{"has_journal"}, nil},
		{"ext2", func(o *Options) { o.Type = Ext2 }, []string{"filetype"}, []string{"has_journal", "metadata_csum", "extent", "64bit", "flex_bg"}},
		{"inside a disk", func(o *Options) { o.Offset = 3 * partitions.MiB }, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := options
			test.change(&o)
			out := write(t, o, sample(t, "late"))
			image := out
			if o.Offset > 0 {
				image = fmt.Sprintf("%s?offset=%d", out, o.Offset)
			}
			judge(t, out, "e2fsck", "-f", "-n", image)
			header := judge(t, out, "debugfs", "-R", "show_super_stats -h", image)
			_, line, _ := strings.Cut(header, "Filesystem features:")
			features, _, _ := strings.Cut(line, "\n")
			for _, f := range test.has {
				if !strings.Contains(features, f) {
					t.Errorf("features are%s; want %s too", features, f)
				}
			}
			for _, f := range test.hasNone {
				if strings.Contains(features, f) {
					t.Errorf("features are%s; want no %s", features, f)
				}
			}
		})
	}
}

func TestWriteKeepsTheTree(t *testing.T) {
	out := write(t, options, sample(t, "late"))
	for _, test := range []struct{ file, want string }{
		{"/usr/bin/su", "Mode:  04755"},
		{"/usr/bin/su2", "Links: 2"},
		{"/bin", `Fast link dest: "usr/bin"`},
		{"/console", "Device major/minor number: 05:01"},
		{"/initctl", "Type: FIFO"},
		{"/Überlänge", "User:  1000   Group:    42"},
		{"/", "User:     0   Group:     0"},
	} {
		if got := judge(t, out, "debugfs", "-R", "stat "+test.file, out); !strings.Contains(got, test.want) {
			t.Errorf("stat %s says\n%s; want %q", test.file, got, test.want)
		}
	}
}

func TestWriteIsReproducible(t *testing.T) {
	stream := sample(t, "late")
	if a, b := pieces(t, write(t, options, stream)), pieces(t, write(t, options, stream)); len(changed(a, b)) != 0 {
		t.Errorf("two images of one tree differ in pieces %v", changed(a, b))
	}
}

// A change of a late file must not touch the pieces of earlier ones: an update
// then loads, and a build compresses, only the pieces that differ.
func TestLateChangeTouchesFewPieces(t *testing.T) {
	a := pieces(t, write(t, options, sample(t, "late")))
	b := pieces(t, write(t, options, sample(t, strings.Repeat("later", 5000))))
	if got := changed(a, b); len(got) == 0 || len(got) > 2 {
		t.Errorf("a changed last file touches pieces %v of %d; want one for the metadata and one for the data", got, len(a))
	}
}

func pieces(t *testing.T, path string) (sums [][32]byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for piece := range slices.Chunk(b, int(4*partitions.MiB)) {
		sums = append(sums, sha256.Sum256(piece))
	}
	return sums
}

func changed(a, b [][32]byte) (numbers []int) {
	for i := range a {
		if a[i] != b[i] {
			numbers = append(numbers, i)
		}
	}
	return numbers
}

func TestErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*Options)
		tar    string
		want   string
	}{
		{"too small", func(o *Options) { o.Size = 8 * partitions.MiB; o.Inodes = 1024 }, "", `cannot make file system "rootfs"`},
		{"not a tar", func(*Options) {}, "no tar at all", `cannot make file system "rootfs"`},
		{"unknown type", func(o *Options) { o.Type = "ext9" }, "", `unknown type "ext9"`},
		{"odd size", func(o *Options) { o.Size++ }, "", "no multiple of 4 KiB"},
	} {
		t.Run(test.name, func(t *testing.T) {
			o := options
			test.change(&o)
			stream := []byte(test.tar)
			if test.tar == "" {
				stream = sample(t, "late")
			}
			err := Write(t.Context(), testtools.Open(t, tooltree.Image), o, bytes.NewReader(stream), filepath.Join(t.TempDir(), "fs.img"))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("Write(...) = %v; want an error with %q", err, test.want)
			}
		})
	}
}
