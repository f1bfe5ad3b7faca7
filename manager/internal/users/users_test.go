package users

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// image is a root with the accounts of the image.
func image(t *testing.T) Table {
	t.Helper()
	root := t.TempDir()
	if err := os.Mkdir(root+"/etc", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"passwd", "group", "shadow"} {
		text, err := os.ReadFile("../../../rootfs/accounts/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+"/etc/"+name, text, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return Table{root}
}

func line(t *testing.T, u Table, file, name string) string {
	t.Helper()
	text, err := os.ReadFile(u.path(file))
	if err != nil {
		t.Fatal(err)
	}
	for l := range strings.Lines(string(text)) {
		if strings.HasPrefix(l, name+":") {
			return strings.TrimSpace(l)
		}
	}
	return ""
}

func TestName(t *testing.T) {
	seen := map[string]string{}
	for _, test := range []struct{ app, want string }{
		{"apidemo", "app-apidemo"},
		{"inno-vc", "app-inno-vc"},
		{"Files", "app-files-07a6ce"},
		{"files", "app-files"},
		{strings.Repeat("a", 27), "app-" + strings.Repeat("a", 27)},
		{strings.Repeat("a", 28), ""},
		{strings.Repeat("a", 28) + "b", ""},
	} {
		got := Name(test.app)
		if test.want != "" && !strings.HasPrefix(got, strings.TrimRight(test.want, "0123456789abcdef")) || len(got) > 31 {
			t.Errorf("Name(%s) = %s; want %s", test.app, got, test.want)
		}
		if other, ok := seen[got]; ok {
			t.Errorf("%s and %s are both %s", other, test.app, got)
		}
		seen[got] = test.app
	}
}

// A7, F1: an app's user cannot log in, unless security is off, and then as admin
// can; pwck finds nothing to complain about.
func TestEnsure(t *testing.T) {
	u := image(t)
	hash := strings.Split(line(t, u, "shadow", "admin"), ":")[1]
	for _, test := range []struct {
		login           bool
		shell, password string
	}{{false, "/usr/sbin/nologin", "*"}, {true, "/bin/sh", hash}, {false, "/usr/sbin/nologin", "*"}} {
		if err := u.Ensure(t.Context(), Webserver, App("apidemo", 10000, test.login), App("notes", 10001, false)); err != nil {
			t.Fatal(err)
		}
		for file, want := range map[string]string{
			"passwd": "app-apidemo:x:10000:10000:app apidemo:/apps/apidemo:" + test.shell,
			"group":  "app-apidemo:x:10000:",
			"shadow": "app-apidemo:" + test.password + ":20000:0:99999:7:::",
		} {
			if got := line(t, u, file, "app-apidemo"); got != want {
				t.Errorf("login %t: %s has %q; want %q", test.login, file, got, want)
			}
		}
		if pwck, err := exec.LookPath("pwck"); err == nil {
			out, _ := exec.Command(pwck, "-r", "-q", u.path("passwd"), u.path("shadow")).CombinedOutput()
			if strings.Contains(string(out), "app-") && !strings.Contains(string(out), "directory") {
				t.Errorf("pwck says %s", out)
			}
		}
	}
	if err := u.Ensure(t.Context(), App("other", 10000, false)); err == nil || !strings.Contains(err.Error(), "belongs to app-apidemo") {
		t.Errorf("the same number again: %v; want a refusal", err)
	}
	before := line(t, u, "shadow", "root")
	if err := u.Remove(t.Context(), "app-apidemo"); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"passwd", "group", "shadow"} {
		if got := line(t, u, file, "app-apidemo"); got != "" {
			t.Errorf("%s still has %q", file, got)
		}
		if line(t, u, file, "app-notes") == "" || line(t, u, file, "root") == "" {
			t.Errorf("%s has lost somebody else", file)
		}
	}
	if after := line(t, u, "shadow", "root"); after != before {
		t.Errorf("root's line has become %q", after)
	}
}

// What changes nothing writes nothing: /etc is on the disk.
func TestEnsureTwice(t *testing.T) {
	u := image(t)
	var first, second unix.Stat_t
	for _, s := range []*unix.Stat_t{&first, &second} {
		if err := u.Ensure(t.Context(), App("apidemo", 10000, false)); err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(u.path("passwd"), s); err != nil {
			t.Fatal(err)
		}
	}
	if first.Ino != second.Ino {
		t.Error("passwd was written again")
	}
	if first.Mode&0o777 != 0o640 {
		t.Errorf("passwd has mode %o; want that of before", first.Mode&0o777)
	}
}

// Several at once lose nothing, and one who holds the lock is waited for.
func TestLock(t *testing.T) {
	u := image(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := u.Ensure(t.Context(), App(fmt.Sprintf("app%d", i), uint32(10000+i), false)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 8 {
		if name := Name(fmt.Sprintf("app%d", i)); line(t, u, "passwd", name) == "" {
			t.Errorf("%s is lost", name)
		}
	}
	f, err := os.OpenFile(filepath.Join(u.Root, "etc/.pwd.lock"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 150*time.Millisecond)
	defer cancel()
	if err := u.Ensure(ctx, App("late", 10100, false)); err == nil || line(t, u, "passwd", "app-late") != "" {
		t.Errorf("Ensure() = %v while somebody holds the lock; want a refusal", err)
	}
}

func TestSetPasswordRefuses(t *testing.T) {
	for _, test := range [][2]string{{"postgres", "x"}, {"admin", ""}, {"admin", "a\nroot:b"}, {"root:x\nadmin", "b"}} {
		if err := SetPassword(t.Context(), test[0], test[1]); err == nil {
			t.Errorf("SetPassword(%q, %q) succeeds", test[0], test[1])
		}
	}
}
