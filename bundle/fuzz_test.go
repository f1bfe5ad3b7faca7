package bundle

import (
	"bytes"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/ulikunitz/xz"

	"appplatform/internal/fuzzing"
)

// fuzzKey signs for the fuzz targets, always the same.
var fuzzKey = KeyPair{
	Private: []byte("untrusted comment: minisign encrypted secret key\nRWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAD7zZkjAfmMxmARjUhktIo7LSZy22oDDRF2xYEGIWkmqb8gNWz/N7M0R+ewz+tcR7x6tBjRaF3T6r9qio/0+PSwqaOlGVtN1pAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"),
	Public:  []byte("untrusted comment: minisign public key: CC981F3092D9BC0F\nRWQPvNmSMB+YzER+ewz+tcR7x6tBjRaF3T6r9qio/0+PSwqaOlGVtN1p\n"),
}

func fuzzKeys(t testing.TB) []string {
	key, err := PublicKey(fuzzKey.Public)
	if err != nil {
		t.Fatal(err)
	}
	return []string{key}
}

// fuzzSet is a set of a few hundred bytes.
func fuzzSet(t testing.TB) (files map[string]string, m Manifest) {
	t.Helper()
	var rootfs bytes.Buffer
	raw := bytes.Repeat([]byte("a root file system "), 50)
	m = Manifest{Format: Format, Board: "x86_64", Arch: "amd64", Label: "160001"}
	var err error
	if m.Rootfs, err = (Packer{Compress: compress}).Pack(t.Context(), bytes.NewReader(raw), int64(len(raw)), &rootfs); err != nil {
		t.Fatal(err)
	}
	files = map[string]string{KernelName: "this is the kernel", RamdiskName: "this is the ramdisk", RootfsName: rootfs.String()}
	for name, to := range map[string]*File{KernelName: &m.Kernel, RamdiskName: &m.Ramdisk} {
		*to = File{name, int64(len(files[name])), hash([]byte(files[name]))}
	}
	return files, m
}

// fuzzUpdate is an update file of fuzzSet.
func fuzzUpdate(t testing.TB) (update []byte, files map[string]string) {
	t.Helper()
	files, m := fuzzSet(t)
	dir, paths := t.TempDir(), map[string]string{}
	for name, text := range files {
		paths[name] = filepath.Join(dir, name)
		if err := os.WriteFile(paths[name], []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	signature, err := Sign(fuzzKey.Private, "", text)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := WriteUpdate(&b, text, signature, paths); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), files
}

// updateMemory is what reading an update file may take, whatever it says: a
// manifest, and a buffer for each file.
const updateMemory = 16 << 20

// Whatever was done to an update file, nothing gets out of it that was not
// signed, it takes little memory, and signing it again changes nothing but the
// signature.
func FuzzUpdate(f *testing.F) {
	whole, files := fuzzUpdate(f)
	keys := fuzzKeys(f)
	f.Add([]byte(nil), uint16(0), []byte(nil))
	f.Add([]byte(nil), uint16(600), []byte(nil))
	f.Add([]byte(nil), uint16(0), []byte("x"))
	f.Add([]byte(nil), uint16(len(whole)), bytes.Repeat([]byte("hello\n"), 200))
	f.Add(fuzzing.Edit(0, "../manifest.json"), uint16(0), []byte(nil))
	f.Add(fuzzing.Edit(124, "77777777777\x00"), uint16(0), []byte(nil))
	f.Add(fuzzing.Edit(bytes.Index(whole, []byte("this is the kernel")), "That"), uint16(0), []byte(nil))
	f.Fuzz(func(t *testing.T, edits []byte, cut uint16, more []byte) {
		b := fuzzing.Edited(whole, edits)
		b = append(b[:max(0, len(b)-int(cut))], more...)
		var got map[string]string
		var err error
		if n := fuzzing.Allocated(func() { got, err = extract(t.Context(), b, keys) }); n > updateMemory {
			t.Errorf("reading %d bytes took %d", len(b), n)
		}
		if err == nil && !maps.Equal(got, files) {
			t.Errorf("the files that were accepted are %.200q", got)
		}
		if _, err := extract(t.Context(), b, nil); err == nil {
			t.Error("a file was accepted that no key has signed")
		}
		var signed bytes.Buffer
		err = Resign(&signed, bytes.NewReader(b), func(m []byte) ([]byte, error) { return Sign(fuzzKey.Private, "", m) })
		if err != nil {
			return
		}
		if got, err = extract(t.Context(), signed.Bytes(), keys); err != nil {
			t.Errorf("what was signed again cannot be read: %v", err)
		}
		if u, err := OpenUpdate(&signed, keys); err != nil || u.Size() != int64(len(got[KernelName])+len(got[RamdiskName])+len(got[RootfsName])) {
			t.Errorf("the sizes do not add up, %v", err)
		}
	})
}

// A manifest that is accepted says the same when it is written again, can be
// signed, names no other files than it should, and its sums do not overflow.
func FuzzManifest(f *testing.F) {
	_, m := fuzzSet(f)
	text, err := m.Encode()
	if err != nil {
		f.Fatal(err)
	}
	keys := fuzzKeys(f)
	f.Add(text)
	for old, new := range map[string]string{
		`"size": 18`: `"size": 9223372036854775807`, `"name": "kernel"`: `"name": "../kernel"`, `"label": "160001"`: `"label": "160001\nx"`,
		`"raw_size": 950`: `"raw_size": -950`, `"board"`: `"Board"`, `x86_64`: `\u2028/../x`,
	} {
		f.Add(bytes.ReplaceAll(text, []byte(old), []byte(new)))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := Decode(text)
		if err != nil {
			return
		}
		u := Update{Manifest: m}
		var raw, packed int64
		for _, p := range m.Rootfs.Pieces {
			raw, packed = raw+p.RawSize, packed+p.Size
		}
		if raw != m.Rootfs.RawSize || packed != m.Rootfs.Size {
			t.Errorf("the pieces have %d bytes, packed %d; the manifest says %d and %d", raw, packed, m.Rootfs.RawSize, m.Rootfs.Size)
		}
		for i, f := range m.Files() {
			if f.Size <= 0 || f.Size > m.Size() || m.Size() > u.FileSize() {
				t.Errorf("%s has %d bytes of %d in %d", f.Name, f.Size, m.Size(), u.FileSize())
			}
			if want := []string{KernelName, RamdiskName, RootfsName}[i]; f.Name != want {
				t.Errorf("file %d is %q; want %s", i, f.Name, want)
			}
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if m2, err := Decode(again); err != nil || !reflect.DeepEqual(m2, m) {
			t.Errorf("written and read again: %+v, %v; want %+v", m2, err, m)
		}
		signature, err := Sign(fuzzKey.Private, "", text)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckSignature(keys, text, signature); err != nil {
			t.Errorf("what was signed is refused: %v", err)
		}
	})
}

// Whatever the signature file holds, only the signature of this text by this key
// is accepted.
func FuzzSignature(f *testing.F) {
	_, m := fuzzSet(f)
	text, err := m.Encode()
	if err != nil {
		f.Fatal(err)
	}
	good, err := Sign(fuzzKey.Private, "", text)
	if err != nil {
		f.Fatal(err)
	}
	keys := fuzzKeys(f)
	lines := bytes.Split(good, []byte("\n"))
	f.Add(good)
	f.Add(bytes.Join(lines[:3], []byte("\n")))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, signature []byte) {
		if CheckSignature(keys, append(text, ' '), signature) == nil {
			t.Error("a signature of another text was accepted")
		}
		if CheckSignature(keys, text, signature) != nil {
			return
		}
		for i, line := range lines[1:] { // The first is an untrusted comment.
			if !bytes.Contains(signature, line) {
				t.Errorf("a signature was accepted without its line %d: %q", i+2, signature)
			}
		}
	})
}

// Whatever a piece of the root file system holds, it unpacks to as many bytes as
// the manifest says or not at all, in little memory, and to what another reader
// of the format makes of it.
func FuzzPiece(f *testing.F) {
	raw := bytes.Repeat([]byte("a root file system "), 50)
	packed, err := compress(f.Context(), raw)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(nil), uint16(len(raw)))
	f.Add([]byte(nil), uint16(len(raw)+1))
	f.Add(fuzzing.Edit(14, "\x28"), uint16(5)) // a dictionary of 4 GiB
	f.Add(fuzzing.Edit(0, "no xz"), uint16(5))
	f.Fuzz(func(t *testing.T, edits []byte, size uint16) {
		b := fuzzing.Edited(packed, edits)
		p := Piece{Size: int64(len(b)), SHA256: hash(b), RawSize: int64(size)}
		var got []byte
		var err error
		if n := fuzzing.Allocated(func() { got, err = unpackPiece(bytes.NewReader(b), p) }); n > maxDict+1<<20 {
			t.Errorf("unpacking %d bytes took %d", len(b), n)
		}
		if err != nil {
			return
		}
		if len(got) != int(size) {
			t.Errorf("%d bytes were unpacked; want %d", len(got), size)
		}
		other, err := xz.NewReader(bytes.NewReader(b))
		if err != nil {
			return // It knows fewer filters.
		}
		want := make([]byte, size)
		if _, err := io.ReadFull(other, want); err == nil && !bytes.Equal(got, want) {
			t.Errorf("%q was unpacked; another reader says %q", got, want)
		}
		p.SHA256 = hash([]byte("something else"))
		if _, err := unpackPiece(bytes.NewReader(b), p); err == nil {
			t.Error("a piece was unpacked that was not signed")
		}
	})
}
