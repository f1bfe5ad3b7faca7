package agent

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appplatform/bundle"
	"appplatform/partitions"
)

// tree is every file below a folder with its content.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %x\n", path, text)
		return err
	})
	must(t, err)
	return b.String()
}

// An item is an entry of an update file.
type item struct {
	tar.Header
	text []byte
}

func untar(t *testing.T, file []byte) (items []item) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(file))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return items
		}
		must(t, err)
		text, err := io.ReadAll(r)
		must(t, err)
		items = append(items, item{*h, text})
	}
}

func retar(t *testing.T, items []item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		i.Size = int64(len(i.text))
		must(t, w.WriteHeader(&i.Header))
		_, err := w.Write(i.text)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// OS-E6: what cannot be used is refused before anything has changed on sda1 or
// sda2, whether --force is given or not, and the error names the way out.
func TestUpdateRefuses(t *testing.T) {
	u := newUpdatable(t, false)
	older := u.set("160000", 3)
	u.up()
	u.Platform.Keys = append(u.Platform.Keys, older.key)
	good, err := os.ReadFile(u.file)
	must(t, err)
	dir := t.TempDir()
	files := 0
	file := func(b []byte) string {
		files++
		path := filepath.Join(dir, fmt.Sprint(files))
		must(t, os.WriteFile(path, b, 0o644))
		return path
	}
	change := func(do func([]item) []item) string { return file(retar(t, do(untar(t, good)))) }
	// signed is the update with another manifest, which the right key has signed.
	signed := func(do func(*bundle.Manifest)) string {
		return change(func(i []item) []item {
			m, err := bundle.Decode(i[0].text)
			must(t, err)
			do(&m)
			i[0].text, err = m.Encode()
			must(t, err)
			i[1].text, err = bundle.Sign(u.new.pair.Private, "", i[0].text)
			must(t, err)
			return i
		})
	}
	type test struct {
		name, source string
		change       func(m *Machine)
		force        bool
		want         string
	}
	tests := []test{
		{"missing", filepath.Join(dir, "none"), nil, false, "no such file"},
		{"text", file(bytes.Repeat([]byte("hello\n"), 1000)), nil, true, bundle.ErrUpdate.Error()},
		{"foreign key", u.file, func(m *Machine) { m.Platform.Keys = m.Platform.Keys[:1] }, true, bundle.ErrSignature.Error()},
		{"unsigned", change(func(i []item) []item { return append(i[:1:1], i[2:]...) }), nil, true, `where manifest.json.minisig should be there is "kernel"`},
		{"empty signature", change(func(i []item) []item { i[1].text = nil; return i }), nil, true, bundle.ErrSignature.Error()},
		{"other board", u.file, func(m *Machine) { m.Platform.Board = "armel" }, true, "is for board x86_64 (amd64), and this is armel"},
		{"other architecture", signed(func(m *bundle.Manifest) { m.Arch = "arm64" }), nil, true, "is for board x86_64 (arm64), and this is x86_64 (amd64)"},
		{"same", u.writeUpdate(u.old), nil, false, "image 160001 is installed and the update is 160001, which is not newer\nhint: --force"},
		{"older", u.writeUpdate(older), nil, false, "image 160001 is installed and the update is 160000, which is not newer\nhint: --force"},
		{"too large for sda1", signed(func(m *bundle.Manifest) { m.Kernel.Size = 400 << 20 }), nil, true, "on the boot partition, and there are"},
		{"too large for sda3", signed(func(m *bundle.Manifest) {
			p := m.Rootfs.Pieces[0]
			m.Rootfs.Pieces, m.Rootfs.Size, m.Rootfs.RawSize = nil, 0, 0
			for range 126 {
				p.Offset = m.Rootfs.Size
				m.Rootfs.Pieces = append(m.Rootfs.Pieces, p)
				m.Rootfs.Size, m.Rootfs.RawSize = m.Rootfs.Size+p.Size, m.Rootfs.RawSize+p.RawSize
			}
		}), nil, true, "the system of the update has 504 MiB, and sda3 has 500 MiB"},
		{"kernel larger than it is", signed(func(m *bundle.Manifest) { m.Kernel.Size++ }), nil, true, "kernel has 6 bytes, and the manifest says 7"},
		{"ramdisk smaller than it is", signed(func(m *bundle.Manifest) { m.Ramdisk.Size-- }), nil, true, "ramdisk.ext2.xz has 7 bytes, and the manifest says 6"},
		{"folder above", change(func(i []item) []item { i[2].Name = "../../etc/shadow"; return i }), nil, true, `there is "../../etc/shadow"`},
		{"absolute path", change(func(i []item) []item { i[3].Name = "/mnt/sda1/a/kernel"; return i }), nil, true, `there is "/mnt/sda1/a/kernel"`},
		{"link", change(func(i []item) []item {
			i[2].Typeflag, i[2].Linkname, i[2].text = tar.TypeSymlink, "/etc/shadow", nil
			return i
		}), nil, true, "where kernel should be"},
		{"more files", change(func(i []item) []item { return append(i, i[2]) }), nil, true, "something follows the last file"},
		{"in the rescue system", u.file, func(m *Machine) { m.Ramdisk = true }, true, "cannot do this in the rescue system"},
	}
	for n, i := range untar(t, good) {
		want := i.Name + " is not what was signed: its SHA-256 differs"
		if n < 2 {
			want = bundle.ErrSignature.Error()
		}
		flip := func(i []item) []item { i[n].text[len(i[n].text)/2] ^= 1; return i }
		cut := bytes.Index(good, i.text) + len(i.text)/2
		tests = append(tests, test{"a bit of " + i.Name, change(flip), nil, true, want},
			test{"cut in " + i.Name, file(good[:cut]), nil, true, bundle.ErrUpdate.Error()})
	}
	for _, test := range tests {
		before := tree(t, u.path("content"))
		m := u.Machine
		if test.change != nil {
			test.change(&m)
		}
		err := Update(t.Context(), m, UpdateOptions{Source: test.source, Force: test.force})
		if err == nil || !strings.Contains(Explain(err), test.want) {
			t.Errorf("%s: Update() = %v; want %q", test.name, err, test.want)
		} else if !strings.Contains(Explain(err), "\nhint: ") {
			t.Errorf("%s: no way out of %q", test.name, Explain(err))
		}
		if after := tree(t, u.path("content")); after != before {
			t.Errorf("%s: something has changed", test.name)
		}
		if u.loaded != nil || u.rebooted {
			t.Errorf("%s: the machine restarts", test.name)
		}
	}
	// OS-E2: a lower number written by hand allows it.
	must(t, os.WriteFile(u.path(labelFile), []byte("130006\n"), 0o644))
	must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.writeUpdate(u.old)}))
	if err := Update(t.Context(), u.Machine, UpdateOptions{Source: u.file}); err == nil || !strings.Contains(err.Error(), "an update to 160001 is under way") {
		t.Errorf("a second update = %v", err)
	}
	// --force allows an older one.
	must(t, u.forgetTransition())
	must(t, os.WriteFile(u.path(labelFile), []byte("160001\n"), 0o644))
	must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.writeUpdate(older), Force: true}))
	if s := GetUpdateStatus(u.Machine); s.UnderWay == nil || s.UnderWay.To.Label != "160000" {
		t.Errorf("under way is %v; want an update to 160000", s)
	}
}

// A system that is larger than sda3, whatever is signed.
func TestUpdateTooLarge(t *testing.T) {
	u := newUpdatable(t, false)
	u.up()
	d, err := u.findDisk(t.Context())
	must(t, err)
	man := bundle.Manifest{Board: "x86_64", Arch: "amd64", Label: "160002"}
	man.Rootfs.RawSize = int64(501 * partitions.MiB)
	if err := u.accept(d, man, false); err == nil || !strings.Contains(err.Error(), "the system of the update has 501 MiB, and sda3 has 500 MiB") {
		t.Errorf("accept() of a large system = %v", err)
	}
	man.Rootfs.RawSize = 1
	man.Kernel.Size = 1 << 50
	if err := u.accept(d, man, false); err == nil || !strings.Contains(err.Error(), "on the boot partition, and there are") {
		t.Errorf("accept() of large files = %v", err)
	}
}

// A download goes on where it stopped, also in another process, and begins anew
// when the server has another file.
func TestUpdateFromServer(t *testing.T) {
	u := newUpdatable(t, false)
	u.up()
	good, err := os.ReadFile(u.file)
	must(t, err)
	version, stall := `"1"`, int64(280<<10)
	var ranges []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ranges = append(ranges, r.Header.Get("Range"))
		w.Header().Set("ETag", version)
		if stall > 0 {
			w.Header().Set("Content-Length", fmt.Sprint(len(good)))
			_, _ = w.Write(good[:stall])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		}
		http.ServeContent(w, r, "x", time.Time{}, bytes.NewReader(good))
	}))
	defer server.Close()
	o := UpdateOptions{Source: server.URL + "/x.update"}
	interrupt := func() error {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for {
				if info, err := os.Stat(u.path(incomingFile)); err == nil && info.Size() >= stall {
					cancel()
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		}()
		return Update(ctx, u.Machine, o)
	}
	if err := interrupt(); err == nil || !strings.Contains(Explain(err), "interrupted\nhint: run it again: it goes on where it stopped") {
		t.Fatalf("an interrupted download = %v", err)
	}
	stall = 0
	must(t, Update(t.Context(), u.Machine, o))
	if want := fmt.Sprintf("bytes=%d-", 280<<10); len(ranges) != 2 || ranges[1] != want {
		t.Errorf("asked for %q; want everything and then %s", ranges, want)
	}
	if left, _ := filepath.Glob(u.path(updateDir + "/incoming*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	u.settle(t.Context())
	u.checkSettled("from a server", "160002")

	stall = 280 << 10
	o.Force = true
	if err := interrupt(); err == nil {
		t.Fatal("the download is not interrupted")
	}
	version, stall, ranges = `"2"`, 0, nil
	must(t, Update(t.Context(), u.Machine, o))
	if len(ranges) < 2 || ranges[len(ranges)-1] != "" || !strings.Contains(u.out.String(), "the file on the server has changed") {
		t.Errorf("asked for %q; want everything at last:\n%s", ranges, u.out.String())
	}
}

// A speed limit holds.
func TestLimited(t *testing.T) {
	began := time.Now()
	in := &limited{Reader: bytes.NewReader(make([]byte, 100<<10)), perSecond: 200 << 10, began: began}
	n, err := bytes.NewBuffer(nil).ReadFrom(in)
	if took := time.Since(began); n != 100<<10 || err != nil || took < 400*time.Millisecond {
		t.Errorf("%d bytes in %v, %v; want 102400 in half a second", n, took, err)
	}
}

// The room that is kept for a full disk is there for updates, too.
func TestMakeRoom(t *testing.T) {
	u := newUpdatable(t, false)
	u.up()
	must(t, makeReserve{}.Do(t.Context(), u.Machine))
	u.size = reserveSize + 50*partitions.MiB
	must(t, u.makeRoom(int64(100*partitions.MiB)))
	if _, err := os.Stat(u.path(reserveFile)); err == nil {
		t.Error("the reserve was not taken")
	}
	// What is left of another download is room for this one.
	must(t, makeReserve{}.Do(t.Context(), u.Machine))
	server := httptest.NewServer(http.FileServer(http.Dir(filepath.Dir(u.file))))
	defer server.Close()
	must(t, os.MkdirAll(u.path(updateDir), 0o755))
	must(t, os.WriteFile(u.path(incomingFile), nil, 0o644))
	must(t, os.Truncate(u.path(incomingFile), int64(200*partitions.MiB)))
	must(t, u.writeState(incomingInfo, incoming{"http://another", "1"}))
	u.size = reserveSize + 300*partitions.MiB
	must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: server.URL + "/" + filepath.Base(u.file)}))
	if _, err := os.Stat(u.path(reserveFile)); err != nil {
		t.Errorf("the rest of another download has cost the reserve: %v", err)
	}
	must(t, u.forgetTransition())
	u.size = reserveSize + 50*partitions.MiB
	// A file that is refused takes nothing.
	u.Platform.Board = "armel"
	err := Update(t.Context(), u.Machine, UpdateOptions{Source: server.URL + "/" + filepath.Base(u.file)})
	if err == nil || !strings.Contains(err.Error(), "is for board x86_64") {
		t.Errorf("an update for another board = %v", err)
	}
	if _, err := os.Stat(u.path(reserveFile)); err != nil {
		t.Errorf("an update that was refused has taken the reserve: %v", err)
	}
	if err := u.makeRoom(int64(400 * partitions.MiB)); err == nil || !strings.Contains(Explain(err), "the update needs 656 MiB on the data partition") || !strings.Contains(Explain(err), "hint: run apagent diskfree --need='656 MiB', then this again") {
		t.Errorf("makeRoom() of too much = %v", err)
	}
}
