package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/archive"
	"appplatform/internal/cache"
)

// board is a board.json that Load accepts.
const board = `{"description": "test", "arch": "amd64", "scheme": "gpt", "boot": "grub", "disk": "16 GiB",
 "memory": "512 MiB", "rootfs_limit": "200 MiB", "ramdisk_limit": "40 MiB", "platform": "vm", "devices": ["VM"]}`

// checkout makes a small repository.
func checkout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": module, "go.sum": "", "README.md": "read me",
		"boards/label": "160001\n", "boards/common.config": "CONFIG_A=y\n", "boards/boards.go": "package boards\n",
		"boards/vm/board.json": board, "boards/vm/kernel.config": "CONFIG_B=y\n", "boards/vm/packages": "vim\n",
		"boards/other/board.json": board, "boards/other/kernel.config": "CONFIG_C=y\n", "boards/other/packages": "nano\n",
		"rootfs/rootfs.go": "package rootfs\n", "rootfs/overlay/etc/motd": "hello\n", "rootfs/ramdisk/etc/motd": "rescue\n",
		"rootfs/packages/system": "bash\n", "rootfs/packages/ramdisk": "busybox\n", "rootfs/accounts/passwd": "root\n",
		"agent/agent.go": "package agent\n", "agent/agent_test.go": "package agent\n", "bundle/bundle.go": "package bundle\n",
		"partitions/p.go": "package partitions\n", "internal/run/run.go": "package run\n", "cmd/apagent/main.go": "package main\n",
		"app/app.go": "package app\n", "manager/manager.go": "package manager\n", "manager/page.html": "<p>", "cmd/manager/main.go": "package main\n",
		"webserver/webserver.go": "package webserver\n", "cmd/webserver/main.go": "package main\n",
		"cmd/apimage/main.go": "package main\n", "archive/archive.go": "package archive\n",
		"image/image.go": "package image\n", "tooltree/tooltree.go": "package tooltree\n", "LICENSE": "Apache\n",
	} {
		put(t, filepath.Join(dir, name), text)
	}
	return dir
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func pkg(name string) archive.Package {
	return archive.Package{Name: name, Version: "1", Arch: "amd64", Source: name, SourceVersion: "1", Filename: "pool/main/x/" + name + ".deb",
		Size: 1, SHA256: strings.Repeat("0", 64-2*len(name)) + hexOf(name)}
}

func hexOf(s string) string {
	const digits = "0123456789abcdef"
	var out []byte
	for _, c := range []byte(s) {
		out = append(out, digits[c>>4], digits[c&15])
	}
	return string(out)
}

func testLock() *Lock {
	list := func(name string) []archive.Package { return []archive.Package{pkg(name)} }
	return &Lock{Format: lockFormat, Release: archive.Release, Board: "vm",
		System: list("bash"), Ramdisk: list("busybox"), KernelSource: list("linux"), ImageTools: list("mke2fs"), KernelTools: list("gcc")}
}

func testArchive(t *testing.T) *archive.Archive {
	t.Helper()
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &archive.Archive{Cache: c}
}

// plan makes a plan from a lock, so that no archive is asked.
func plan(t *testing.T, o Options) *Plan {
	t.Helper()
	if o.Lock == nil {
		o.Lock = testLock()
	}
	p, err := New(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestKeys changes one thing each and looks at what would be made anew. The
// system lists what kernel and ramdisk are made from, and the statement about the
// image tells the whole source.
func TestKeys(t *testing.T) {
	const all = "apagent manager webserver kernel ramdisk rootfs image"
	for _, c := range []struct {
		name    string
		change  func(t *testing.T, dir string, o *Options)
		changed string // of all
	}{
		{"nothing", func(*testing.T, string, *Options) {}, ""},
		{"file of the overlay", file("rootfs/overlay/etc/motd", "good day\n"), "rootfs image"},
		{"new file of the overlay", file("rootfs/overlay/etc/issue", "new\n"), "rootfs image"},
		{"hidden file of the overlay", file("rootfs/overlay/etc/skel/.profile", "new\n"), "rootfs image"},
		{"hidden folder of the overlay", file("rootfs/overlay/root/.config/x", "new\n"), "rootfs image"},
		{"overlay of the board", file("boards/vm/overlay/etc/motd", "vm\n"), "rootfs image"},
		{"overlay that boards share", file("rootfs/gateway/etc/motd", "gateway\n"), "rootfs image"},
		{"file of the ramdisk", file("rootfs/ramdisk/etc/motd", "rescue!\n"), "ramdisk rootfs image"},
		{"file of both systems", file("rootfs/accounts/passwd", "root admin\n"), "ramdisk rootfs image"},
		{"packages of the system", file("rootfs/packages/system", "zsh\n"), "rootfs image"},
		{"packages of the ramdisk", file("rootfs/packages/ramdisk", "toybox\n"), "ramdisk rootfs image"},
		{"rules of the board", file("boards/vm/rules", "drop usr/games/** # no\n"), "rootfs image"},
		{"packages of the board", file("boards/vm/packages", "emacs\n"), "rootfs image"},
		{"agent", file("agent/agent.go", "package agent // new\n"), "apagent ramdisk rootfs image"},
		{"new file of the agent", file("agent/internal/x/x.go", "package x\n"), "apagent ramdisk rootfs image"},
		{"what programs are made with", file("go.sum", "x\n"), "apagent manager webserver ramdisk rootfs image"},
		{"what all programs share", file("internal/run/run.go", "package run // new\n"), "apagent manager webserver ramdisk rootfs image"},
		{"page of the manager", file("manager/page.html", "<b>"), "manager rootfs image"},
		{"webserver", file("webserver/webserver.go", "package webserver // new\n"), "webserver rootfs image"},
		{"test of the agent", file("agent/agent_test.go", "package agent // new\n"), ""},
		{"options of all kernels", file("boards/common.config", "CONFIG_A=n\n"), "kernel rootfs image"},
		{"options of the board's kernel", file("boards/vm/kernel.config", "CONFIG_B=n\n"), "kernel rootfs image"},
		{"another board", file("boards/other/kernel.config", "CONFIG_C=n\n"), "image"},
		{"another board's packages", file("boards/other/packages", "ed\n"), "image"},
		{"another board's overlay", file("boards/other/overlay/etc/x", "x\n"), "image"},
		{"licence", file("LICENSE", "x\n"), "rootfs image"},
		{"README", file("README.md", "x\n"), ""},
		{"code of the builder", file("rootfs/rootfs.go", "package rootfs // new\n"), "image"}, // For the rest it counts once it is compiled.
		{"label", func(_ *testing.T, _ string, o *Options) { o.Label = "160002" }, "apagent manager webserver ramdisk rootfs image"},
		{"draft", func(_ *testing.T, _ string, o *Options) { o.Draft = true }, "ramdisk image"},
		{"package of the system", func(_ *testing.T, _ string, o *Options) { o.Lock.System = append(o.Lock.System, pkg("vim")) }, "rootfs image"},
		{"package of the ramdisk", func(_ *testing.T, _ string, o *Options) { o.Lock.Ramdisk[0] = pkg("other") }, "ramdisk rootfs image"},
		{"compiler", func(_ *testing.T, _ string, o *Options) { o.Lock.KernelTools[0] = pkg("other") }, "kernel rootfs image"},
		{"kernel source", func(_ *testing.T, _ string, o *Options) { o.Lock.KernelSource[0] = pkg("other") }, "kernel rootfs image"},
		{"image tools", func(_ *testing.T, _ string, o *Options) { o.Lock.ImageTools[0] = pkg("other") }, "ramdisk rootfs image"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := checkout(t)
			o := Options{Dir: dir, Board: "vm", Archive: sharedKey}
			before := plan(t, o).keys
			o.Lock = testLock()
			c.change(t, dir, &o)
			after := plan(t, o).keys
			var changed []string
			for i, prog := range programs {
				if before.programs[i] != after.programs[i] {
					changed = append(changed, prog.Name)
				}
			}
			for _, k := range []struct{ name, before, after string }{
				{"kernel", before.kernel, after.kernel},
				{"ramdisk", before.ramdisk, after.ramdisk}, {"rootfs", before.rootfs, after.rootfs}, {"image", before.image, after.image},
			} {
				if k.before != k.after {
					changed = append(changed, k.name)
				}
			}
			if got := strings.Join(changed, " "); got != c.changed {
				t.Errorf("makes %q anew; want %q of %s", got, c.changed, all)
			}
		})
	}
}

// sharedKey is an archive whose cache keeps one signing key for all the plans.
var sharedKey *archive.Archive

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "image-test-")
	if err == nil {
		var c *cache.Dir
		if c, err = cache.Open(dir); err == nil {
			sharedKey = &archive.Archive{Cache: c}
		}
	}
	if err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

func file(name, text string) func(*testing.T, string, *Options) {
	return func(t *testing.T, dir string, _ *Options) { put(t, filepath.Join(dir, name), text) }
}

// A plan is the same wherever the checkout lies and whoever makes it.
func TestKeysElsewhere(t *testing.T) {
	here := plan(t, Options{Dir: checkout(t), Board: "vm", Archive: sharedKey})
	dir := checkout(t)
	put(t, filepath.Join(dir, ".git/config"), "x")
	if err := os.Chmod(filepath.Join(dir, "rootfs/overlay/etc/motd"), 0o600); err != nil {
		t.Fatal(err)
	}
	there := plan(t, Options{Dir: filepath.Join(dir, "agent"), Board: "vm", Archive: sharedKey})
	if here.keys != there.keys {
		t.Errorf("keys are %+v in one checkout and %+v in another", here.keys, there.keys)
	}
}

func TestOpenRepositoryRefuses(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "go.mod"), "module appplatformer\n")
	if _, err := openRepository(dir); err == nil || !strings.Contains(err.Error(), "\nhint: ") {
		t.Errorf("openRepository() of another project = %v; want an error with a hint", err)
	}
}
