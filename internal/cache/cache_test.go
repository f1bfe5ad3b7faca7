package cache

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// helper names what TestMain is to do instead of the tests, in a process that a
// test may kill.
const helper = "CACHE_TEST_HELPER"

func TestMain(m *testing.M) {
	if does := os.Getenv(helper); does != "" {
		if err := help(does, os.Args[1], os.Args[2]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// help fills the entry e of a cache. It says where it stands on standard output
// and goes on when a line or the end of standard input arrives.
func help(does, root, name string) error {
	d, err := Open(root)
	if err != nil {
		return err
	}
	input := bufio.NewReader(os.Stdin)
	stop := func() {
		fmt.Println("filling")
		_, _ = input.ReadString('\n')
	}
	switch does {
	case "folder":
		_, err = d.Folder(name, func() { fmt.Println("waiting") }, func(dir string) error {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("by-%d", os.Getpid())), nil, 0o444); err != nil {
				return err
			}
			stop()
			return os.WriteFile(filepath.Join(dir, "second"), []byte("second"), 0o444)
		})
	case "file":
		_, err = d.File(name, func(w io.Writer) error {
			if _, err := io.WriteString(w, "first and "); err != nil {
				return err
			}
			stop()
			_, err := io.WriteString(w, "second")
			return err
		})
	case "temp":
		var dir string
		if dir, _, err = d.Temp(); err == nil {
			err = os.WriteFile(filepath.Join(dir, "half"), nil, 0o644)
			stop()
		}
	case "remove":
		err = removeReadOnly(d.Path(name))
	}
	fmt.Println("done")
	return err
}

// A process is a helper that a test talks to.
type process struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
}

func start(t *testing.T, does string, d *Dir, name string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command("/proc/self/exe", d.Path(), name)}
	p.cmd.Env = append(os.Environ(), helper+"="+does)
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(stdout)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

// expect waits for the helper's next line.
func (p *process) expect(want string) {
	p.t.Helper()
	if p.lines.Scan(); p.lines.Text() != want {
		p.t.Fatalf("the helper says %q; want %q", p.lines.Text(), want)
	}
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

func (p *process) goOn() { p.stdin.Close() }

func open(t *testing.T) *Dir {
	t.Helper()
	d, err := Open(filepath.Join(t.TempDir(), "cache"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFolderKilled(t *testing.T) {
	d := open(t)
	p := start(t, "folder", d, "things/one")
	p.expect("filling")
	p.kill()
	if d.Has("things", "one") {
		t.Fatal("a half-filled folder has the entry's name")
	}
	again := start(t, "folder", d, "things/one")
	again.expect("filling")
	again.goOn()
	again.expect("done")
	if got := content(t, d.Path("things/one/second")); got != "second" {
		t.Errorf("the entry holds %q; want second", got)
	}
	// Nothing of the killed process is in the entry or beside it.
	for dir, want := range map[string]int{"things/one": 2, "things": 1} {
		names, err := os.ReadDir(d.Path(dir))
		if err != nil || len(names) != want {
			t.Errorf("%s holds %v, %v; want %d names", dir, names, err, want)
		}
	}
}

func TestFileKilled(t *testing.T) {
	d := open(t)
	p := start(t, "file", d, "things/one")
	p.expect("filling")
	p.kill()
	if d.Has("things", "one") {
		t.Fatal("a half-written file has the entry's name")
	}
	again := start(t, "file", d, "things/one")
	again.expect("filling")
	again.goOn()
	again.expect("done")
	if got, want := content(t, d.Path("things/one")), "first and second"; got != want {
		t.Errorf("the entry holds %q; want %q", got, want)
	}
	for _, dir := range []string{"things", "tmp"} {
		names, err := os.ReadDir(d.Path(dir))
		if want := map[string]int{"things": 1}[dir]; err != nil || len(names) != want {
			t.Errorf("%s holds %v, %v; want %d names", dir, names, err, want)
		}
	}
}

// Another process that works is left alone, one that was killed is swept up.
func TestTemp(t *testing.T) {
	d := open(t)
	alive, dead := start(t, "temp", d, ""), start(t, "temp", d, "")
	alive.expect("filling")
	dead.expect("filling")
	dead.kill()
	dir, remove, err := d.Temp()
	if err != nil {
		t.Fatal(err)
	}
	if found, _ := filepath.Glob(d.Path("tmp/*/half")); len(found) != 1 {
		t.Errorf("tmp has %q; want what the living process wrote and nothing else", found)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o644); err != nil {
		t.Error(err)
	}
	remove()
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat(%s) = %v after remove; want that it is gone", dir, err)
	}
}

func TestTwoProcessesOneFolder(t *testing.T) {
	d := open(t)
	first := start(t, "folder", d, "things/one")
	first.expect("filling")
	second := start(t, "folder", d, "things/one")
	second.expect("waiting")
	other := start(t, "folder", d, "things/two")
	other.expect("filling") // Nobody waits for another entry.
	first.goOn()
	first.expect("done")
	second.expect("done") // without filling anything
}

// A process that waits takes over from one that is killed.
func TestWaitingForTheKilled(t *testing.T) {
	d := open(t)
	first := start(t, "folder", d, "things/one")
	first.expect("filling")
	second := start(t, "folder", d, "things/one")
	second.expect("waiting")
	first.kill()
	second.expect("filling")
	second.goOn()
	second.expect("done")
	if got := content(t, d.Path("things/one/second")); got != "second" {
		t.Errorf("the entry holds %q; want second", got)
	}
}

func TestTwoProcessesOneFile(t *testing.T) {
	d := open(t)
	first, second := start(t, "file", d, "one"), start(t, "file", d, "one")
	first.expect("filling")
	second.expect("filling")
	for _, p := range []*process{first, second} {
		p.goOn()
		p.expect("done")
		if got, want := content(t, d.Path("one")), "first and second"; got != want {
			t.Errorf("the entry holds %q; want %q", got, want)
		}
	}
}

func TestFailedFill(t *testing.T) {
	d := open(t)
	full := errors.New("disk full")
	_, err := d.File("a/file", func(w io.Writer) error {
		_, _ = io.WriteString(w, "half")
		return full
	})
	if !errors.Is(err, full) {
		t.Errorf("File() = %v; want %v", err, full)
	}
	_, err = d.Folder("a/folder", nil, func(dir string) error {
		if err := os.Mkdir(filepath.Join(dir, "locked"), 0o555); err != nil {
			return err
		}
		return full
	})
	if !errors.Is(err, full) {
		t.Errorf("Folder() = %v; want %v", err, full)
	}
	for _, dir := range []string{"a", "tmp"} {
		if names, err := os.ReadDir(d.Path(dir)); err != nil || len(names) != 0 {
			t.Errorf("%s holds %v, %v; want nothing", dir, names, err)
		}
	}
	path, err := d.File("a/file", func(w io.Writer) error { _, err := io.WriteString(w, "whole"); return err })
	if err != nil || content(t, path) != "whole" {
		t.Errorf("File() after a failure = %v", err)
	}
	never := func(io.Writer) error { return errors.New("filled a second time") }
	if _, err := d.File("a/file", never); err != nil {
		t.Error(err)
	}
}

func TestKeep(t *testing.T) {
	d := open(t)
	for i := range 5 {
		name := fmt.Sprintf("things/%d", i)
		if _, err := d.Folder(name, nil, func(string) error { return nil }); err != nil {
			t.Fatal(err)
		}
		made := time.Now().Add(time.Duration(i-60) * time.Minute)
		if err := os.Chtimes(d.Path(name), made, made); err != nil {
			t.Fatal(err)
		}
	}
	// Asking for an entry makes it the newest; a folder being filled stays.
	if _, err := d.Folder("things/1", nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.Path("things", "9"+part), 0o755); err != nil {
		t.Fatal(err)
	}
	d.Keep("things", 3)
	d.Keep("no such folder", 3)
	var left []string
	entries, err := os.ReadDir(d.Path("things"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{"1", "3", "4", "9.part"}; !slices.Equal(left, want) {
		t.Errorf("Keep(3) leaves %v; want %v", left, want)
	}
}

// Only an ordinary user is stopped by a folder without write permission.
func TestRemoveAll(t *testing.T) {
	dir, err := os.MkdirTemp("", "cache-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", dir, "tree")
	cmd.Env = append(os.Environ(), helper+"=remove")
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 0 {
		t.Errorf("RemoveAll() leaves %v, %v", names, err)
	}
}

// removeReadOnly makes a tree that may not be written and removes it.
func removeReadOnly(dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "a/b"), 0o755); err != nil {
		return err
	}
	for _, f := range []string{"a/b/file", "a/file"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o400); err != nil {
			return err
		}
	}
	for _, d := range []string{"a/b", "a", ""} {
		if err := os.Chmod(filepath.Join(dir, d), 0o500); err != nil {
			return err
		}
	}
	if os.RemoveAll(dir) == nil {
		return errors.New("os.RemoveAll can do it alone")
	}
	return RemoveAll(dir)
}

func TestKey(t *testing.T) {
	seen := map[string][]string{}
	for _, parts := range [][]string{{}, {""}, {"", ""}, {"a"}, {"a", ""}, {"", "a"}, {"a", "b"}, {"ab"}, {"a,1:b"}, {"1:a,"}} {
		k := Key(parts...)
		if before, ok := seen[k]; ok {
			t.Errorf("Key(%q) = Key(%q)", parts, before)
		}
		if strings.Trim(k, "0123456789abcdef") != "" || len(k) != 32 {
			t.Errorf("Key(%q) = %q; want 32 hexadecimal digits", parts, k)
		}
		seen[k] = parts
	}
}

func TestOpenRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := Open(filepath.Join(file, "cache"))
	if err == nil || !strings.Contains(err.Error(), "XDG_CACHE_HOME") {
		t.Errorf("Open below a file = %v; want an error that names XDG_CACHE_HOME", err)
	}
	t.Setenv("HOME", "")
	t.Setenv("XDG_CACHE_HOME", "")
	if _, err := Default(); err == nil || !strings.Contains(err.Error(), "XDG_CACHE_HOME") {
		t.Errorf("Default() without HOME = %v; want an error that names XDG_CACHE_HOME", err)
	}
}
