package gcore

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"appplatform/internal/run"
	"appplatform/internal/testtools"
	"appplatform/tooltree"
)

// A target is a running testdata/target.
type target struct {
	*testing.T
	program string
	pid     int
	cmd     *exec.Cmd
	in      io.Writer
	out     *bufio.Reader
	layout  struct{ Text, Big, Secret, Shared uint64 }
}

// startTarget compiles the program and starts it.
func startTarget(t *testing.T, arch string, args ...string) *target {
	t.Helper()
	p := &target{T: t, program: filepath.Join(t.TempDir(), "target")}
	build := run.Command(t.Context(), "go", "build", "-o", p.program, "./testdata/target")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
	if err := run.Wait(build); err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(p.program, args...)
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = os.Stderr
	err = p.cmd.Start()
	if errors.Is(err, syscall.ENOEXEC) {
		t.Skip("this machine's kernel runs no programs for " + arch)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill(); _ = p.cmd.Wait() })
	p.pid, p.in, p.out = p.cmd.Process.Pid, in, bufio.NewReader(out)
	line, err := p.out.ReadString('\n')
	if err == nil {
		err = json.Unmarshal([]byte(line), &p.layout)
	}
	if err != nil {
		t.Fatalf("the program says %q, %v", line, err)
	}
	return p
}

// wantRunning finds out that the program answers, counts, and is held by nobody.
func (p *target) wantRunning() {
	p.Helper()
	if line := p.ask(); !strings.HasPrefix(line, "alive the truth is 42 ") {
		p.Errorf("the program answers %q; want that it is alive", line)
	}
	for id, s := range p.threads() {
		if s["TracerPid"] != "0" || strings.HasPrefix(s["State"], "t") || strings.HasPrefix(s["State"], "T") {
			p.Errorf("thread %d is %s, traced by %s; want it to go on", id, s["State"], s["TracerPid"])
		}
	}
}

// ask makes the program answer.
func (p *target) ask() string {
	p.Helper()
	if _, err := fmt.Fprintln(p.in); err != nil {
		p.Fatal(err)
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		p.Fatal(err)
	}
	return line
}

// threads are what /proc tells of the threads.
func (p *target) threads() map[int]status {
	p.Helper()
	ids, err := threadIDs(p.pid)
	if err != nil {
		p.Fatal(err)
	}
	all := map[int]status{}
	for _, id := range ids {
		s, err := readStatus(taskDir(p.pid, id))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			p.Fatal(err)
		}
		all[id] = s
	}
	return all
}

// dump saves the program to a new file.
func (p *target) dump() string {
	p.Helper()
	file := filepath.Join(p.TempDir(), "core")
	if err := Dump(p.Context(), p.pid, file); err != nil {
		p.Fatal(err)
	}
	return file
}

// tool runs a program of the tree of debuggers. It runs without a namespace of its
// own, from which it could not attach to processes of ours.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	tree := testtools.Open(t, tooltree.Debug).Dir()
	cmd := run.Command(t.Context(), filepath.Join(tree, "usr/lib64/ld-linux-x86-64.so.2"), append([]string{
		"--library-path", filepath.Join(tree, "usr/lib/x86_64-linux-gnu"), filepath.Join(tree, "usr/bin", name)}, args...)...)
	cmd.Env = append(os.Environ(), "PYTHONHOME="+filepath.Join(tree, "usr"), "LC_ALL=C.UTF-8", "HOME="+t.TempDir())
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := run.Wait(cmd); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out.String())
	}
	if strings.Contains(strings.ToLower(errs.String()), "corrupt") {
		t.Errorf("%s %q complains: %s", name, args, errs.String())
	}
	return out.String() + errs.String()
}

// gdb lets Debian's debugger look at something, with one command after the other.
func gdb(t *testing.T, what []string, commands ...string) string {
	t.Helper()
	args := append([]string{"--data-directory=" + filepath.Join(testtools.Open(t, tooltree.Debug).Dir(), "usr/share/gdb"), "-nx", "-batch"}, what...)
	for _, c := range commands {
		args = append(args, "-ex", c)
	}
	return tool(t, "gdb-multiarch", args...)
}
