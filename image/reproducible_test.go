package image_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"appplatform/bundle"
	"appplatform/internal/cache"
)

// other is the user that the second build runs as when the test may choose.
const other = 65534

// TestReproducible builds every image twice from one lock and key: as two
// users, in two folders, with two caches, umasks, time zones and numbers of
// processors, the second time without a network. Packages and kernels, which take
// a quarter of an hour each, are shared; everything else is made anew.
func TestReproducible(t *testing.T) {
	if testing.Short() {
		t.Skip("builds whole images: make test runs it")
	}
	repo, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "reproducible") // t.TempDir is closed to other users.
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cache.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	apimage := filepath.Join(dir, "apimage")
	run(t, exec.Command("go", "build", "-trimpath", "-o", apimage, "../cmd/apimage"))
	key := writeKey(t, dir)
	open(t, dir)
	home := filepath.Join(dir, "home")
	checkout := filepath.Join(home, "another checkout")
	copyCheckout(t, repo, checkout)
	shareCache(t, filepath.Join(home, ".cache", "app-platform"))
	if os.Geteuid() == 0 {
		chown(t, home)
	}
	// The Go modules are all that the second build cannot take from the pool.
	env := []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "TZ=Asia/Tokyo", "LC_ALL=C.UTF-8",
		"GOPROXY=" + goenv(t, "GOPROXY"), "GOSUMDB=" + goenv(t, "GOSUMDB"), "GOFLAGS=-modcacherw"}
	modules := exec.Command("go", "build", "-o", os.DevNull, "./cmd/apagent", "./cmd/manager", "./cmd/webserver")
	modules.Dir, modules.Env, modules.SysProcAttr = checkout, env, alone(t)
	modules.SysProcAttr.Cloneflags &^= syscall.CLONE_NEWNET
	run(t, modules)
	for _, board := range boardNames(t, repo) {
		t.Run(board, func(t *testing.T) {
			lock := filepath.Join(dir, board+".lock")
			run(t, exec.Command(apimage, "lock", "-o", lock, "--repo", repo, "--key", key, board))
			if err := os.Chmod(lock, 0o644); err != nil {
				t.Fatal(err)
			}
			first := filepath.Join(dir, "first-"+board)
			build := exec.Command(apimage, "build", "--repo", repo, "--out", first, "--locked", lock, "--key", key, board)
			build.Env = append(os.Environ(), "TZ=America/New_York", "LC_ALL=C")
			run(t, build)

			second := filepath.Join(checkout, "out", board)
			build = exec.Command("/bin/sh", "-c", `umask 077 && exec "$@"`, "sh",
				apimage, "build", "--out", second, "--locked", lock, "--key", key, board)
			build.Dir = checkout
			build.Env = append(env, "GOMAXPROCS=1")
			build.SysProcAttr = alone(t)
			run(t, build)

			files, err := filepath.Glob(filepath.Join(first, "app-platform-*"))
			if err != nil || len(files) < 4 {
				t.Fatalf("the first build made %v, %v", files, err)
			}
			for _, a := range files {
				b := filepath.Join(second, filepath.Base(a))
				if x, y := sum(t, a), sum(t, b); x != y {
					t.Errorf("%s of the two builds differ: %x and %x", filepath.Base(a), x, y)
				}
			}
			checkDescribed(t, first, board, strings.TrimSuffix(key, ".key")+".pub")
		})
	}
}

// alone makes a process that has no network and, if the test may choose, is
// another user's.
func alone(t *testing.T) *syscall.SysProcAttr {
	t.Helper()
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		return &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}},
		}
	}
	return &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Credential: &syscall.Credential{Uid: other, Gid: other}}
}

// boardNames are those of the checkout.
func boardNames(t *testing.T, repo string) (names []string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(repo, "boards", "*", "board.json"))
	if err != nil || len(found) == 0 {
		t.Fatalf("there are no boards in %s (%v)", repo, err)
	}
	for _, f := range found {
		names = append(names, filepath.Base(filepath.Dir(f)))
	}
	return names
}

func run(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
}

func goenv(t *testing.T, name string) string {
	t.Helper()
	out, err := exec.Command("go", "env", name).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimSpace(out))
}

func writeKey(t *testing.T, dir string) string {
	t.Helper()
	pair, err := bundle.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "release.key")
	for name, text := range map[string][]byte{path: pair.Private, filepath.Join(dir, "release.pub"): pair.Public} {
		if err := os.WriteFile(name, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// open lets the other user into the folder.
func open(t *testing.T, dir string) {
	t.Helper()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
}

// copyCheckout copies the files that git knows or would, with times of now.
func copyCheckout(t *testing.T, from, to string) {
	t.Helper()
	list := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	list.Dir = from
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00") {
		copyFile(t, filepath.Join(from, name), filepath.Join(to, name))
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	info, err := os.Stat(from)
	if os.IsNotExist(err) {
		return // deleted, but git still lists it
	}
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, text, info.Mode().Perm()&0o700); err != nil {
		t.Fatal(err)
	}
}

// shareCache gives the second build the first one's packages and kernels.
func shareCache(t *testing.T, to string) {
	t.Helper()
	c, err := cache.Default()
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"pool", "kernels"} {
		from := c.Path(dir)
		err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			rel, err := filepath.Rel(from, path)
			if err != nil {
				return err
			}
			target := filepath.Join(to, dir, rel)
			if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
				return err
			}
			copyFile(t, path, target)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func chown(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, other, other)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sum names the content of a sparse file: the data that is not zero and where
// it lies. Which zeros are holes does not count.
func sum(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	fmt.Fprintln(h, info.Size())
	block, zero := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); at < info.Size(); at += int64(len(block)) {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // Only a hole is left.
		}
		if err != nil {
			t.Fatal(err)
		}
		at = data / int64(len(block)) * int64(len(block))
		n, err := f.ReadAt(block, at)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if !bytes.Equal(block[:n], zero[:n]) {
			fmt.Fprintln(h, at)
			h.Write(block[:n])
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}
