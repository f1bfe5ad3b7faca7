package image

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// built makes the output folder look like that of a finished build.
func built(t *testing.T, p *Plan) {
	t.Helper()
	r := record{Key: p.keys.image, Stamps: map[string]stamp{}, Result: &Result{Files: []string{"image"}}}
	for _, ext := range []string{".img", ".lock"} {
		name := p.imageName(ext)
		put(t, filepath.Join(p.Out, name), "content of "+ext)
		s, err := stampOf(filepath.Join(p.Out, name))
		if err != nil {
			t.Fatal(err)
		}
		r.Stamps[name] = s
	}
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	put(t, p.recordPath(), string(text))
}

func TestUpToDate(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, p *Plan)
		want   bool
	}{
		{"nothing", func(*testing.T, *Plan) {}, true},
		{"image gone", func(t *testing.T, p *Plan) { remove(t, filepath.Join(p.Out, p.imageName(".img"))) }, false},
		{"image written to", func(t *testing.T, p *Plan) { put(t, filepath.Join(p.Out, p.imageName(".img")), "content of .iso") }, false},
		{"lock gone", func(t *testing.T, p *Plan) { remove(t, filepath.Join(p.Out, p.imageName(".lock"))) }, false},
		{"record gone", func(t *testing.T, p *Plan) { remove(t, p.recordPath()) }, false},
		{"record cut", func(t *testing.T, p *Plan) { put(t, p.recordPath(), `{"key": "`+p.keys.image) }, false},
		{"record empty", func(t *testing.T, p *Plan) { put(t, p.recordPath(), `{"key": "`+p.keys.image+`"}`) }, false},
		{"other inputs", func(_ *testing.T, p *Plan) { p.keys.image = "other" }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := plan(t, Options{Dir: checkout(t), Board: "vm", Archive: sharedKey})
			if p.upToDate() {
				t.Error("upToDate() before anything is built")
			}
			built(t, p)
			c.change(t, p)
			if got := p.upToDate(); got != c.want {
				t.Errorf("upToDate() = %v; want %v", got, c.want)
			}
			if !c.want {
				return
			}
			if r, err := p.Build(t.Context()); err != nil || !r.UpToDate {
				t.Errorf("Build() = %+v, %v; want that it has nothing to do", r, err)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestLabel(t *testing.T) {
	for _, label := range []string{"160001", "000000"} {
		if err := checkLabel(label); err != nil {
			t.Errorf("checkLabel(%q) = %v", label, err)
		}
	}
	for _, label := range []string{"", "16000", "1600011", "16000a", "16 001", "-16001", "१६०००१", "16000\n"} {
		if err := checkLabel(label); err == nil || !strings.Contains(err.Error(), "six digits") {
			t.Errorf("checkLabel(%q) = %v; want an error about six digits", label, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, dir string, o *Options)
		want   string
	}{
		{"unknown board", func(_ *testing.T, _ string, o *Options) { o.Board = "toaster" }, "boards are: other, vm"},
		{"board outside", func(_ *testing.T, _ string, o *Options) { o.Board = "../boards/vm" }, `no board "../boards/vm"`},
		{"broken board.json", file("boards/vm/board.json", "{"), "boards/vm/board.json"},
		{"label", file("boards/label", "soon\n"), `label "soon"`},
		{"no label", func(t *testing.T, dir string, _ *Options) { remove(t, filepath.Join(dir, "boards/label")) }, "boards/label"},
		{"no kernel options", func(t *testing.T, dir string, _ *Options) { remove(t, filepath.Join(dir, "boards/vm/kernel.config")) }, "boards/vm/kernel.config"},
		{"no key", func(_ *testing.T, dir string, o *Options) { o.Key = filepath.Join(dir, "my.key") }, "my.key"},
		{"no public key", func(t *testing.T, dir string, o *Options) {
			o.Key = filepath.Join(dir, "my.key")
			put(t, o.Key, "x")
		}, "my.pub"},
		{"lock of another board", func(_ *testing.T, _ string, o *Options) { o.Lock.Board = "other" }, "board other, not vm"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := checkout(t)
			o := Options{Dir: dir, Board: "vm", Archive: sharedKey, Lock: testLock()}
			c.change(t, dir, &o)
			if _, err := New(t.Context(), o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("New() = %v; want %q", err, c.want)
			}
		})
	}
}

func TestReadLock(t *testing.T) {
	text, err := testLock().Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "vm.lock")
	put(t, path, string(text))
	l, err := ReadLock(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := l.Encode()
	if err != nil || string(again) != string(text) {
		t.Errorf("the lock comes back as %s, %v; want %s", again, err, text)
	}

	for _, c := range []struct{ name, old, new, want string }{
		{"other format", `"format": 1`, `"format": 2`, "format is 2 and this apimage knows 1"},
		{"other release", `"release": "trixie"`, `"release": "forky"`, "for Debian forky"},
		{"unknown field", `"board"`, `"bored"`, "bored"},
		{"hash cut", hexOf("bash") + `"`, `"`, "bash_1_amd64 has no SHA-256"},
		{"path outside the pool", "pool/main/x/bash.deb", "pool/../../../etc/shadow", "bash_1_amd64 has the file name"},
		{"negative size", `"size": 1`, `"size": -1`, "has no size"},
		{"no version", `"version": "1"`, `"version": ""`, "no name, version or architecture"},
		{"text behind", "\n}\n", "\n}\n{}\n", "text behind"},
		{"cut", "\n}\n", "", "unexpected EOF"},
		{"empty list", `"ramdisk": [`, `"ramdisk": [], "missing_suites": [], "x": [`, "x"},
	} {
		t.Run(c.name, func(t *testing.T) {
			broken := strings.Replace(string(text), c.old, c.new, 1)
			if broken == string(text) {
				t.Fatalf("no %q in the lock", c.old)
			}
			put(t, path, broken)
			_, err := ReadLock(path)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "\nhint: ") {
				t.Errorf("ReadLock() = %v; want the file's name, %q and a hint", err, c.want)
			}
		})
	}
	if _, err := ReadLock(path + ".gone"); err == nil || !strings.Contains(err.Error(), "\nhint: ") {
		t.Errorf("ReadLock() of no file = %v; want an error with a hint", err)
	}
	empty := testLock()
	empty.Ramdisk = nil
	if err := empty.check(); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("check() of a lock without ramdisk packages = %v; want an error", err)
	}
}

// The plan says which steps are done already.
func TestLines(t *testing.T) {
	a := testArchive(t)
	p := plan(t, Options{Dir: checkout(t), Board: "vm", Archive: a})
	states := func() map[string]bool {
		out := map[string]bool{}
		for _, l := range p.Lines() {
			if l.Key == "" || l.What == "" || l.Why == "" {
				t.Errorf("the line %+v says too little", l)
			}
			out[l.Step] = l.Cached
		}
		return out
	}
	for step, cached := range states() {
		if cached {
			t.Errorf("%s is there although nothing was made", step)
		}
	}
	put(t, a.Cache.Path("kernels", p.keys.kernel, "kernel"), "kernel")
	put(t, a.Path(p.Lock.System[0]), "x")
	got := states()
	if !got["kernel"] || !got["system packages"] || got["rootfs"] || got["image"] {
		t.Errorf("states are %v; want kernel and system packages there", got)
	}
	if _, ok := got["kernel source"]; ok {
		t.Error("the plan fetches the kernel source although the kernel is there")
	}
}
