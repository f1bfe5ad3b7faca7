package rootfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"appplatform/archive"
	"appplatform/boards"
	"appplatform/internal/cache"
)

// packageSet is what the archive has today for the seeds, from the pool of the
// cache where it is there already.
func packageSet(t *testing.T, b boards.Board, seeds func(fs.FS, boards.Board) ([]string, error)) []Deb {
	t.Helper()
	if testing.Short() {
		t.Skip("needs the packages of the archive")
	}
	names, err := seeds(os.DirFS(".."), b)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	dir, err := cache.Default()
	if err != nil {
		t.Fatal(err)
	}
	a, err := archive.Open(ctx, dir, os.Getenv("MIRROR"), os.Getenv("SECURITY_MIRROR"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := a.Resolve(ctx, archive.Request{Arch: b.Arch, Names: names, Optional: b.OptionalSuites})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Fetch(ctx, res.Packages, func(int64) {}); err != nil {
		t.Fatal(err)
	}
	debs := make([]Deb, len(res.Packages))
	for i, p := range res.Packages {
		debs[i] = Deb{p, a.Path(p)}
	}
	return debs
}

func realInput(t *testing.T, board string, seeds func(fs.FS, boards.Board) ([]string, error)) Input {
	t.Helper()
	repo := os.DirFS("..")
	b, err := boards.Load(repo, board)
	if err != nil {
		t.Fatal(err)
	}
	return Input{
		Repo: repo, Board: b, Debs: packageSet(t, b, seeds),
		Files: []File{{Path: "usr/bin/apagent", Mode: 0o755, Content: []byte("#!/bin/sh\n"), From: "cmd/apagent"}},
		Log: func(s string) {
			if t.Log(s); strings.Contains(s, "fits nothing") {
				t.Errorf("%s; want no such rule", s)
			}
		},
	}
}

// buildReal makes a tree of real packages, which includes the proof that every
// program finds its libraries and every script its interpreter, and writes it
// to the folder in KEEP_TREES, if that is set, for looking at it.
func buildReal(t *testing.T, name string, in Input, build func(context.Context, Input) (*Tree, error)) *Tree {
	t.Helper()
	start := time.Now()
	tree, err := build(context.Background(), in)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("made in %v", time.Since(start).Round(time.Millisecond))
	if dir := os.Getenv("KEEP_TREES"); dir != "" {
		f, err := os.Create(path.Join(dir, name+".tar"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(tree.WriteTar(f), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// TestSystem is OS-F5 and OS-A5 as far as files go.
func TestSystem(t *testing.T) {
	in := realInput(t, "x86_64", SystemPackages)
	tree := buildReal(t, "system", in, System)
	checkTools(t, tree, `su sudo psql createdb pg_restore pg_dump reindexdb vacuumdb df du ps gdb tar xz wget
		chown scp e2fsck ip loadkeys tcpdump sshd chronyd udhcpc logrotate vmtoolsd qemu-ga hv_kvp_daemon
		hv_vss_daemon openssl less nano vi mount init getty login setpriv sysctl resize2fs mkfs.ext4 fdisk
		poweroff reboot shutdown syslogd crond watchdog acpid start-stop-daemon ssh-keygen visudo`)
	for _, name := range []string{"ps", "tar", "ip", "less"} { // not busybox's
		if e, ok := tree.Get("usr/bin/" + name); ok && e.Link == "busybox" {
			t.Errorf("%s is busybox's; want the real one", name)
		}
	}
	checkRoot(t, tree, "usr/bin/passwd usr/bin/su usr/bin/sudo", "usr/sbin/unix_chkpwd")
	checkOrigins(t, in, tree)
	if icu := "usr/lib/x86_64-linux-gnu/libicudata.so.76.1"; tree.entries[icu] == nil || tree.entries[icu].Origin() != (Origin{Package: "libicu76", Made: true}) {
		t.Errorf("/%s is not known as a file that the builder has changed", icu)
	}
	zones := zoneNames(t, tree)
	if !slices.Contains(zones, "Europe/Berlin") {
		t.Errorf("the time zones are %q", zones)
	}
	for _, zone := range append(zones, "UTC", "Etc/UTC") {
		if _, ok := tree.resolve("usr/share/zoneinfo/" + zone); !ok {
			t.Errorf("zone.tab names %s, which is not there", zone)
		}
	}
}

// zoneNames are the time zones that a first-boot configuration may name: both
// systems check it, and only one has the zones themselves.
func zoneNames(t *testing.T, tree *Tree) (names []string) {
	t.Helper()
	e, ok := tree.Get("usr/share/zoneinfo/zone.tab")
	if !ok {
		t.Fatal("no names of time zones in the tree")
	}
	for l := range strings.Lines(string(e.Content)) {
		if f := strings.Split(strings.TrimSpace(l), "\t"); len(f) > 2 && !strings.HasPrefix(l, "#") {
			names = append(names, f[2])
		}
	}
	return names
}

// TestRamdisk is OS-D4 as far as files go.
func TestRamdisk(t *testing.T) {
	in := realInput(t, "x86_64", RamdiskPackages)
	in.Describe = func(t *Tree) ([]File, error) {
		return []File{{Path: "usr/share/doc/list", Mode: 0o644, Content: []byte(strings.Join(t.Paths(), "\n")), From: "rootfs"}}, nil
	}
	tree := buildReal(t, "ramdisk", in, Ramdisk)
	if e, ok := tree.Get("usr/share/doc/list"); !ok || !strings.Contains(string(e.Content), "usr/bin/apagent\n") || e.Origin() != (Origin{Source: "rootfs"}) {
		t.Error("what Describe says of the tree, the other files included, is not in it")
	}
	checkTools(t, tree, `su login e2fsck mke2fs resize2fs tune2fs vi mount dd wget ip scp less ps dmesg
		loadkeys dropbear init getty udhcpc`)
	if e, ok := tree.Get("usr/lib/openssh/sftp-server"); !ok || e.Mode&0o111 == 0 {
		t.Error("no SFTP server in the ramdisk")
	}
	if e, ok := tree.Get("home/root/install_step1.sh"); !ok || e.Mode.Perm() != 0o755 {
		t.Error("no /home/root/install_step1.sh in the ramdisk that can be run (OS-F1)")
	}
	checkRoot(t, tree, "usr/bin/busybox", "")
	checkOrigins(t, in, tree)
	if zones := zoneNames(t, tree); len(zones) < 300 {
		t.Errorf("the ramdisk knows the time zones %q", zones)
	}

	again := buildReal(t, "ramdisk", in, Ramdisk)
	if a, b := tarSum(t, tree), tarSum(t, again); !bytes.Equal(a, b) {
		t.Error("the same input gives another tar the second time")
	}
}

// checkTools looks for programs where a shell would.
func checkTools(t *testing.T, tree *Tree, names string) {
	t.Helper()
	for _, name := range strings.Fields(names) {
		found := false
		for _, dir := range []string{"usr/bin", "usr/sbin"} {
			if file, ok := tree.resolve(path.Join(dir, name)); ok {
				found = found || tree.entries[file].Mode&0o111 != 0
			}
		}
		if !found {
			t.Errorf("no %s in the tree", name)
		}
	}
}

// checkRoot compares the files that give rights away with the few that may.
func checkRoot(t *testing.T, tree *Tree, setuid, setgid string) {
	t.Helper()
	var uid, gid []string
	for _, name := range tree.Paths() {
		e, _ := tree.Get(name)
		if e.Mode&fs.ModeSetuid != 0 {
			uid = append(uid, name)
		}
		if e.Mode&fs.ModeSetgid != 0 {
			gid = append(gid, name)
		}
		if e.Mode.IsRegular() && e.Mode&0o022 != 0 {
			t.Errorf("%s is writable for others: %v", name, e.Mode)
		}
	}
	if got := strings.Join(uid, " "); got != setuid {
		t.Errorf("setuid files are %s; want %s", got, setuid)
	}
	if got := strings.Join(gid, " "); got != setgid {
		t.Errorf("setgid files are %s; want %s", got, setgid)
	}
}

// checkOrigins proves that every file and link is from one of the packages, a
// file of the repository, or what the caller gave.
func checkOrigins(t *testing.T, in Input, tree *Tree) {
	t.Helper()
	for _, name := range tree.Paths() {
		e, _ := tree.Get(name)
		if e.Mode.IsDir() {
			continue
		}
		from := e.Origin()
		known := slices.ContainsFunc(in.Debs, func(d Deb) bool { return d.Name == from.Package })
		if from.Source != "" {
			_, err := fs.Stat(in.Repo, from.Source)
			known = err == nil && from.Package == ""
		}
		if !known {
			t.Errorf("/%s is from %+v; want a package or something in the repository", name, from)
		}
	}
}

func tarSum(t *testing.T, tree *Tree) []byte {
	t.Helper()
	sum := sha256.New()
	if err := tree.WriteTar(sum); err != nil {
		t.Fatal(err)
	}
	return sum.Sum(nil)
}

// TestAccounts proves OS-C5's users, and that nobody else has a password.
func TestAccounts(t *testing.T) {
	repo := os.DirFS("..")
	shadow, err := fs.ReadFile(repo, "rootfs/accounts/shadow")
	if err != nil {
		t.Fatal(err)
	}
	passwd, err := fs.ReadFile(repo, "rootfs/accounts/passwd")
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for l := range strings.Lines(string(shadow)) {
		if f := strings.Split(l, ":"); strings.HasPrefix(f[1], "$6$") {
			open = append(open, f[0])
		}
	}
	if want := []string{"root", "admin"}; !slices.Equal(open, want) {
		t.Errorf("users with a password: %v; want %v", open, want)
	}
	for l := range strings.Lines(string(passwd)) {
		if name, _, _ := strings.Cut(l, ":"); !strings.Contains("\n"+string(shadow), "\n"+name+":") {
			t.Errorf("%s has no line in shadow", name)
		}
	}
}
