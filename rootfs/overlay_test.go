package rootfs

import (
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"

	"appplatform/boards"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\npostgres:x:110:110::/:/bin/sh\n"
	group  = "root:x:0:\npostgres:x:110:\nshadow:x:42:\n"
)

// permissionsTree has one file of each kind that a table has to deal with.
func permissionsTree() *Tree {
	t := newTree()
	t.put("etc/init.d/S50postgresql", &Entry{Mode: 0o644})
	t.put("etc/init.d/functions", &Entry{Mode: 0o644})
	t.put("etc/shadow", &Entry{Mode: 0o644})
	t.put("bin", &Entry{Mode: fs.ModeSymlink | 0o777, Link: "usr/bin"})
	return t
}

func applyTable(t *Tree, table string) error {
	repo := repoWith("rootfs/accounts/passwd", passwd, "rootfs/accounts/group", group, "rootfs/permissions/system", table)
	ids, err := readAccounts(repo)
	if err != nil {
		return err
	}
	return addPermissions(t, repo, "system", ids)
}

func TestPermissions(t *testing.T) {
	tree := permissionsTree()
	err := applyTable(tree, `
		etc/shadow      0640 root:shadow
		etc/init.d/S*   0755 root:root
		mnt/sda2/pgsql/ 2770 postgres:postgres  # made
		etc/init.d/     0750 root:root`)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path     string
		mode     fs.FileMode
		uid, gid int
	}{
		{"etc/shadow", 0o640, 0, 42},
		{"etc/init.d/S50postgresql", 0o755, 0, 0},
		{"etc/init.d/functions", 0o644, 0, 0},
		{"etc/init.d", fs.ModeDir | 0o750, 0, 0},
		{"mnt/sda2", fs.ModeDir | 0o755, 0, 0},
		{"mnt/sda2/pgsql", fs.ModeDir | fs.ModeSetgid | 0o770, 110, 110},
	} {
		e, ok := tree.Get(c.path)
		if !ok || e.Mode != c.mode || e.UID != c.uid || e.GID != c.gid {
			t.Errorf("%s = %+v; want %v %d:%d", c.path, e, c.mode, c.uid, c.gid)
		}
	}
}

func TestPermissionsRefuse(t *testing.T) {
	for _, c := range []struct{ table, want string }{
		{"etc/nothing 0644 root:root", "rootfs/permissions/system:1: nothing in the tree fits etc/nothing"},
		{"bin 0755 root:root", "nothing in the tree fits bin"},
		{"etc/shadow 0640 root:nobody", `unknown group "nobody"`},
		{"etc/shadow 0640 me:root", `unknown user "me"`},
		{"etc/shadow 0980 root:root", `"0980" is not an octal mode`},
		{"etc/shadow 0640", "want a path, a mode and user:group"},
	} {
		if err := applyTable(permissionsTree(), c.table); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("table %q: error %v; want %q", c.table, err, c.want)
		}
	}
}

func TestAccountsRefuseSharedNumbers(t *testing.T) {
	_, err := readAccounts(repoWith("rootfs/accounts/passwd", passwd+"toor:x:0:0::/:/bin/sh\n", "rootfs/accounts/group", group))
	if err == nil || !strings.Contains(err.Error(), "root and toor have the same number 0") {
		t.Errorf("readAccounts() = %v; want an error that names both users", err)
	}
}

func TestOverlay(t *testing.T) {
	repo := repoWith("rootfs/overlay/etc/hosts", "ours")
	repo["rootfs/overlay/etc/hosts"].Mode = 0o600 // as a strict umask leaves it
	tree := newTree()
	tree.put("etc/hosts", &Entry{Mode: 0o755, UID: 7, Content: []byte("theirs")})
	if err := addOverlay(tree, repo, "rootfs/overlay"); err != nil {
		t.Fatal(err)
	}
	if e, _ := tree.Get("etc/hosts"); string(e.Content) != "ours" || e.Mode != 0o644 || e.UID != 0 {
		t.Errorf("etc/hosts = %+v; want the overlay's, 0644, root", e)
	}
	if err := addOverlay(tree, repo, "boards/none/overlay"); err != nil {
		t.Errorf("addOverlay() of a board without overlay = %v; want nil", err)
	}
}

// An overlay that boards share is under the board's own and over the common one.
func TestSharedOverlay(t *testing.T) {
	repo := fstest.MapFS{}
	for name, text := range map[string]string{
		"rootfs/overlay/etc/a": "common", "rootfs/gateway/etc/a": "gateways", "rootfs/gateway/etc/b": "gateways", "boards/gw/overlay/etc/b": "board",
	} {
		repo[name] = &fstest.MapFile{Data: []byte(text)}
	}
	tree := newTree()
	for _, dir := range systemOverlays(boards.Board{Name: "gw", Overlay: "gateway"}) {
		if err := addOverlay(tree, repo, dir); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"etc/a": "gateways", "etc/b": "board"} {
		if e, ok := tree.Get(name); !ok || string(e.Content) != want {
			t.Errorf("%s = %+v; want it from the overlay %q", name, e, want)
		}
	}
}

func TestOverlayRefuses(t *testing.T) {
	for _, name := range []string{"main.go", "go.mod", ".gitignore", ".git/config", "rcS~", "rcS.orig", ".rcS.swp"} {
		err := addOverlay(newTree(), repoWith("rootfs/overlay/etc/"+name, ""), "rootfs/overlay")
		if err == nil || !strings.Contains(err.Error(), "does not belong on a device") {
			t.Errorf("addOverlay() with %s = %v; want an error", name, err)
		}
	}
	link := fstest.MapFS{"rootfs/overlay/etc/mtab": {Data: []byte("/proc/mounts"), Mode: fs.ModeSymlink}}
	if err := addOverlay(newTree(), link, "rootfs/overlay"); err == nil || !strings.Contains(err.Error(), "hint: list it in") {
		t.Errorf("addOverlay() with a link = %v; want a hint where links go", err)
	}
}
