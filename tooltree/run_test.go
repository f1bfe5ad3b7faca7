package tooltree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"appplatform/archive"
	"appplatform/internal/cache"
	"appplatform/internal/run"
)

// treeVariable names the tree to processes that the tests start: to the same
// tests as an ordinary user, and to runTool.
const treeVariable = "TOOLTREE_TEST_TREE"

// shared is a small tree that every user may read.
var shared string

func TestMain(m *testing.M) {
	if os.Args[0] == "run-tool" {
		os.Exit(runTool(os.Args[1], os.Args[2:]))
	}
	code := m.Run()
	if shared != "" {
		_ = cache.RemoveAll(shared)
	}
	os.Exit(code)
}

// runTool is a process that a test may kill while a tool runs.
func runTool(family string, args []string) int {
	t := &Tree{dir: os.Getenv(treeVariable)}
	err := t.Run(context.Background(), Cmd{Args: args, Stdout: os.Stdout, Stderr: os.Stderr, Family: family == "family"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// openSmall opens a tree of busybox and the C library, from packages that
// every image needs and the pool therefore has.
func openSmall(t *testing.T) *Tree {
	t.Helper()
	if dir := os.Getenv(treeVariable); dir != "" {
		return &Tree{dir: dir}
	}
	if shared == "" {
		dir, err := os.MkdirTemp("", "tooltree-test-")
		if err != nil {
			t.Fatal(err)
		}
		shared = dir
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		c, err := cache.Default()
		if err != nil {
			t.Fatal(err)
		}
		a, err := archive.Open(t.Context(), c, "", "")
		if err != nil {
			t.Fatal(err)
		}
		a.Log = func(line string) { t.Log(line) }
		kind := Kind{"test", []string{"busybox"}}
		pkgs, err := Resolve(t.Context(), a, kind)
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Fetch(t.Context(), pkgs, nil); err != nil {
			t.Fatal(err)
		}
		// Another cache, which borrows the packages of the first.
		if a.Cache, err = cache.Open(filepath.Join(dir, "cache")); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(c.Path("pool"), a.Cache.Path("pool")); err != nil {
			t.Fatal(err)
		}
		tree, err := Open(t.Context(), a, kind, pkgs, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"cat", "env", "ls", "mkdir", "sleep"} {
			if err := os.Symlink("busybox", filepath.Join(tree.dir, "usr/bin", name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(tree.dir, filepath.Join(dir, "tree")); err != nil {
			t.Fatal(err)
		}
	}
	return &Tree{dir: filepath.Join(shared, "tree")}
}

// sh is a command for the tree's shell.
func sh(script string) []string { return []string{"busybox", "sh", "-c", script} }

// TestAsOrdinaryUser runs the tests of tools once more without root's rights.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the other tests are already run by an ordinary user")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestTool", "-test.v")
	cmd.Env = []string{treeVariable + "=" + openSmall(t).dir, "PATH="}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestTool") {
		t.Errorf("as uid 65534: %v\n%s", err, out)
	}
}

func folders(t *testing.T, names ...string) map[string]string {
	t.Helper()
	base, out := t.TempDir(), map[string]string{}
	for _, name := range names {
		out[name] = filepath.Join(base, name)
		if err := os.Mkdir(out[name], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(out[name], "file"), []byte("of "+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestToolSeesOnlyWhatIsBound(t *testing.T) {
	tree := openSmall(t)
	t.Setenv("PATH", "") // None of the host's programs is needed.
	t.Setenv("SECRET", "x")
	dir := folders(t, "readonly", "writable", "bound", "other")
	out, err := tree.Output(t.Context(), Cmd{
		Args:     sh(`cat "$1/file" "$2/file" /inside/file; ls -d "$3" /etc/apt /home /work 2>/dev/null; echo; echo /*; pwd; env; exit 0`),
		ReadOnly: []string{dir["readonly"]}, Writable: []string{dir["writable"]}, Bind: map[string]string{"/inside": dir["bound"]},
		Dir: dir["writable"], Env: []string{"MORE=yes"},
	}.with(dir["readonly"], dir["writable"], dir["other"]))
	if err != nil {
		t.Fatal(err)
	}
	lines := append(strings.Split(strings.TrimSpace(string(out)), "\n"), "", "")
	if want := "of readonlyof writableof bound"; lines[0] != want {
		t.Errorf("the tool reads %q; want %q", lines[0], want)
	}
	// The temporary folder lies in /tmp or wherever TMPDIR says.
	top := "/" + strings.Split(dir["writable"], "/")[1]
	for _, name := range strings.Fields(lines[1]) {
		if !slices.Contains([]string{"/bin", "/dev", "/etc", "/inside", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/tmp", "/usr", "/var", top}, name) {
			t.Errorf("the tool sees %s", name)
		}
	}
	if lines[2] != dir["writable"] {
		t.Errorf("the tool's working folder is %s; want %s", lines[2], dir["writable"])
	}
	env := lines[3:]
	if slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, "SECRET") }) || !slices.Contains(env, "MORE=yes") || !slices.Contains(env, "TZ=UTC") {
		t.Errorf("the tool's environment is %q; want MORE and TZ and nothing of ours", env)
	}
}

// with gives a shell script its arguments.
func (c Cmd) with(args ...string) Cmd {
	c.Args = append(append(c.Args, "sh"), args...)
	return c
}

func TestToolWritesAsUser(t *testing.T) {
	tree := openSmall(t)
	dir := folders(t, "writable")["writable"]
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	err := tree.Run(t.Context(), Cmd{Args: sh("echo made > made && mkdir sub && echo changed > file"), Dir: dir, Writable: []string{dir}})
	if err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"made": 0o644, "sub": 0o755 | os.ModeDir, "file": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if owner := info.Sys().(*syscall.Stat_t); int(owner.Uid) != os.Geteuid() || int(owner.Gid) != os.Getegid() || info.Mode() != mode {
			t.Errorf("%s has owner %d:%d and mode %v; want ours and %v", name, owner.Uid, owner.Gid, info.Mode(), mode)
		}
	}
}

func TestToolCannotWriteReadOnly(t *testing.T) {
	tree := openSmall(t)
	dir := folders(t, "readonly")["readonly"]
	for _, target := range []string{dir, "/usr/bin", "/etc"} {
		err := tree.Run(t.Context(), Cmd{Args: sh("echo x > " + target + "/file"), ReadOnly: []string{dir}})
		if err == nil || !strings.Contains(err.Error(), "Read-only file system") {
			t.Errorf("writing to %s: %v; want that it is read-only", target, err)
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(text) != "of readonly" {
		t.Errorf("the file in the read-only folder is %q, %v", text, err)
	}
}

// A checkout may lie where services keep theirs, but not where the tools are.
func TestToolFoldersOfTheSystem(t *testing.T) {
	tree := openSmall(t)
	dir := folders(t, "service")["service"]
	c := Cmd{Args: sh("cat /var/lib/service/file"), Bind: map[string]string{"/var/lib/service": dir}}
	if out, err := tree.Output(t.Context(), c); err != nil || string(out) != "of service" {
		t.Errorf("a folder below /var/lib: %q, %v", out, err)
	}
	for _, taken := range []string{"/usr/src/checkout", "/etc"} {
		err := tree.Run(t.Context(), Cmd{Args: sh("true"), Bind: map[string]string{taken: dir}})
		if err == nil || !strings.Contains(err.Error(), "hint: keep") {
			t.Errorf("a folder at %s: %v; want a refusal with a hint", taken, err)
		}
	}
}

// A folder to write may lie in one to read, and the other way round.
func TestToolNestedFolders(t *testing.T) {
	tree := openSmall(t)
	dir := folders(t, "outer")["outer"]
	inner := filepath.Join(dir, "inner")
	if err := os.Mkdir(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	err := tree.Run(t.Context(), Cmd{Args: sh("echo x > inner/new && ! echo x > new"), Dir: dir, ReadOnly: []string{dir}, Writable: []string{inner}})
	if err != nil {
		t.Error(err)
	}
	err = tree.Run(t.Context(), Cmd{Args: sh("echo x > new && ! echo y > inner/new"), Dir: dir, ReadOnly: []string{inner}, Writable: []string{dir}})
	if err != nil {
		t.Error(err)
	}
}

func TestToolFails(t *testing.T) {
	tree := openSmall(t)
	var stdout, stderr bytes.Buffer
	err := tree.Run(t.Context(), Cmd{Args: sh("echo said; echo complained >&2; exit 3"), Stdout: &stdout, Stderr: &stderr})
	var exit *run.ExitError
	if !errors.As(err, &exit) || exit.Code != 3 || err.Error() != "busybox: exit status 3: complained" {
		t.Errorf("Run() = %v; want the tool's name, exit status 3 and the complaint", err)
	}
	if stdout.String() != "said\n" || stderr.String() != "complained\n" {
		t.Errorf("stdout is %q and stderr %q; want said and complained", &stdout, &stderr)
	}

	for _, c := range []struct {
		name string
		cmd  Cmd
		want string
	}{
		{"unknown tool", Cmd{Args: []string{"no-such-tool"}}, `cannot find the tool "no-such-tool"`},
		{"unknown path", Cmd{Args: []string{"/opt/no-such-tool"}}, "start /opt/no-such-tool: no such file"},
		{"unknown folder", Cmd{Args: sh("true"), Writable: []string{"/no/such/folder"}}, "/no/such/folder: no such file"},
		{"unknown working folder", Cmd{Args: sh("true"), Dir: "/no/such/folder"}, "/no/such/folder: no such file"},
		{"no tool", Cmd{}, "internal error"},
	} {
		if err := tree.Run(t.Context(), c.cmd); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Run() = %v; want %q", c.name, err, c.want)
		}
	}
}

func TestToolPipes(t *testing.T) {
	tree := openSmall(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var out bytes.Buffer
	if err := tree.Run(t.Context(), Cmd{Args: []string{"busybox", "cat"}, Stdin: bytes.NewReader(data), Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), data) {
		t.Errorf("%d bytes come back; want the %d sent", out.Len(), len(data))
	}
}

func TestToolIsSignalled(t *testing.T) {
	tree := openSmall(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		if signal.Ignored(sig) {
			continue // What nohup started passes it on.
		}
		cmd, err := tree.Command(t.Context(), Cmd{Args: sh("echo here; exec sleep 1000")})
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(stdout, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if state, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !state.Signaled() || state.Signal() != sig {
			t.Errorf("the tool ends with %v; want signal %v", cmd.ProcessState, sig)
		}
	}
}

func TestToolIsCancelled(t *testing.T) {
	tree := openSmall(t)
	for _, family := range []bool{false, true} {
		read, write := io.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, _ = io.ReadFull(read, make([]byte, 5))
			cancel()
			_, _ = io.Copy(io.Discard, read)
		}()
		// It has something to put away, and does.
		dir := folders(t, "writable")["writable"]
		err := tree.Run(ctx, Cmd{
			Args: sh("trap 'echo away > put; exit 9' TERM; echo here; while :; do sleep 0.05; done"),
			Dir:  dir, Writable: []string{dir}, Stdout: write, Family: family,
		})
		write.Close()
		if err == nil {
			t.Error("Run() succeeds although it was cancelled")
		}
		if _, err := os.Stat(filepath.Join(dir, "put")); err != nil {
			t.Errorf("the tool was not asked to end: %v", err)
		}
	}
}

// TestToolEndsWithUs kills a process that runs a tool. The tool, and with
// Family what it started, must not go on: standard output is held by each.
func TestToolEndsWithUs(t *testing.T) {
	tree := openSmall(t)
	for _, c := range []struct{ family, script string }{
		{"alone", "echo here; exec sleep 1000"},
		{"family", "sleep 1000 & echo here; wait"},
	} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Args = append([]string{"run-tool", c.family}, sh(c.script)...)
		cmd.Env = append(os.Environ(), treeVariable+"="+tree.dir)
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = write
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		write.Close()
		if _, err := io.ReadFull(read, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if err := read.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(read); err != nil {
			t.Errorf("%s: something of the tool still runs: %v", c.family, err)
		}
		read.Close()
	}
}

func TestHas(t *testing.T) {
	tree := openSmall(t)
	for name, want := range map[string]bool{"busybox": true, "no-such-tool": false, "": false, "../lib": false} {
		if got := tree.Has(name); got != want {
			t.Errorf("Has(%q) = %v; want %v", name, got, want)
		}
	}
}

func TestMerged(t *testing.T) {
	for in, want := range map[string]string{
		"./": "", "./bin/": "", "./bin/sh": "usr/bin/sh", "./lib64/ld.so": "usr/lib64/ld.so", "./sbin/x": "usr/sbin/x",
		"./usr/bin/sh": "usr/bin/sh", "./library/x": "library/x", "./../../etc/passwd": "etc/passwd", "/etc/x": "etc/x",
	} {
		if got := merged(in); got != want {
			t.Errorf("merged(%q) = %q; want %q", in, got, want)
		}
	}
}
