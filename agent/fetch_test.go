package agent

import (
	"bytes"
	"context"
	"fmt"
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
		fmt.Fprintf(&b, "%s %x\n", path, bytes.TrimSpace(text))
		return err
	})
	must(t, err)
	return b.String()
}

// OS-E6: what cannot be used is refused before anything has changed.
func TestUpdateRefuses(t *testing.T) {
	u := newUpdatable(t, false)
	u.up()
	good, err := os.ReadFile(u.file)
	must(t, err)
	dir := t.TempDir()
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, b, 0o644))
		return path
	}
	flipped := bytes.Clone(good)
	flipped[len(flipped)-3000] ^= 1
	for _, test := range []struct {
		name, source string
		change       func(m *Machine)
		force        bool
		want         string
	}{
		{"missing", filepath.Join(dir, "none"), nil, false, "no such file"},
		{"text", file("text", bytes.Repeat([]byte("hello\n"), 1000)), nil, true, bundle.ErrUpdate.Error()},
		{"truncated", file("cut", good[:len(good)/2]), nil, true, "it ends in the middle of"},
		{"altered", file("flip", flipped), nil, true, "its SHA-256 differs"},
		{"foreign key", u.file, func(m *Machine) { m.Platform.Keys = m.Platform.Keys[:1] }, true, bundle.ErrSignature.Error()},
		{"other board", u.file, func(m *Machine) { m.Platform.Board = "armel" }, true, "is for board x86_64 (amd64), and this is armel"},
		{"same", u.writeUpdate(u.old), nil, false, "image 160001 is installed and the update is 160001, which is not newer\nhint: --force"},
		{"in the rescue system", u.file, func(m *Machine) { m.Ramdisk = true }, true, "cannot do this in the rescue system"},
	} {
		before := tree(t, u.path("content"))
		m := u.Machine
		if test.change != nil {
			test.change(&m)
		}
		err := Update(t.Context(), m, UpdateOptions{Source: test.source, Force: test.force})
		if err == nil || !strings.Contains(Explain(err), test.want) {
			t.Errorf("%s: Update() = %v; want %q", test.name, err, test.want)
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
	if err := u.makeRoom(int64(400 * partitions.MiB)); err == nil || !strings.Contains(Explain(err), "the update needs 656 MiB on the data partition") || !strings.Contains(Explain(err), "hint: run apagent diskfree") {
		t.Errorf("makeRoom() of too much = %v", err)
	}
}
