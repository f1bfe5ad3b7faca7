// Package testpg gives tests a PostgreSQL server of their own: the device's
// version with the device's settings, from the pinned tools.
package testpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/cache"
	"appplatform/internal/run"
	"appplatform/internal/testtools"
	"appplatform/tooltree"
)

// bin is where the server's programs are in the tree. The names in /usr/bin
// are wrappers in Perl.
const bin = "/usr/lib/postgresql/17/bin/"

// nobody is the user that the server runs as when root runs the tests, and that
// it believes to run as when somebody else does: it refuses to be root, and who
// started the tool tree is root in there.
const nobody = 65534

// idents lets whoever runs the tests be both superusers of the device.
const idents = `
tests  root    root
tests  root    postgres
tests  nobody  root
tests  nobody  postgres
`

// A Server is a cluster that is started and stopped by a test.
type Server struct {
	Socket string // folder of the Unix socket
	Data   string
	tree   *tooltree.Tree
	cmd    *exec.Cmd
	ended  chan error
}

// Start makes a cluster and starts its server. It ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	s := &Server{tree: testtools.Open(t, tooltree.Database)}
	template, err := s.template()
	if err != nil {
		t.Fatalf("cannot make a database cluster: %v", err)
	}
	// A short name, because that of a socket has at most 107 bytes.
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.Socket, s.Data = filepath.Join(dir, "s"), filepath.Join(dir, "data")
	if err := os.Mkdir(s.Socket, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := give(s.Socket); err != nil {
		t.Fatal(err)
	}
	if err := run.Cmd(t.Context(), "cp", "-a", filepath.Join(template, "data"), s.Data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	s.Restart(t)
	return s
}

// template returns the cache folder of a cluster that no server has used yet.
func (s *Server) template() (string, error) {
	hba, err := deviceFile("pg_hba.conf")
	if err != nil {
		return "", err
	}
	ident, err := deviceFile("pg_ident.conf")
	if err != nil {
		return "", err
	}
	settings, err := deviceFile("platform.conf")
	if err != nil {
		return "", err
	}
	files := map[string]string{
		"pg_hba.conf":          "local all postgres,root peer map=tests\n" + hba,
		"pg_ident.conf":        ident + idents,
		"postgresql.auto.conf": settings,
	}
	c, err := cache.Default()
	if err != nil {
		return "", err
	}
	key := cache.Key("1", s.tree.Key(), files["pg_hba.conf"], files["pg_ident.conf"], settings, strconv.Itoa(os.Geteuid()))
	return c.Folder("clusters/"+key, nil, func(dir string) error {
		if err := give(dir); err != nil {
			return err
		}
		data := filepath.Join(dir, "data")
		for _, step := range []struct{ in, args string }{
			// As the device's init script does it.
			{"", bin + "initdb -D " + data + " -U postgres -E UTF8 --locale-provider=builtin --locale=C.UTF-8 --data-checksums --no-sync --wal-segsize=1"},
			{"CREATE ROLE root SUPERUSER LOGIN\n", bin + "postgres --single -F -c log_checkpoints=off -D " + data + " postgres"},
		} {
			cmd, err := s.command(nil, strings.Fields(step.args), dir)
			if err != nil {
				return err
			}
			cmd.Stdin = strings.NewReader(step.in)
			if err := run.Wait(cmd); err != nil {
				return err
			}
		}
		for name, text := range files {
			path := filepath.Join(data, name)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				return err
			}
			if err := give(path); err != nil {
				return err
			}
		}
		return nil
	})
}

// deviceFile reads a configuration file of the device's server.
func deviceFile(name string) (string, error) {
	dir, err := os.Getwd() // of the tests, somewhere in the checkout
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			text, err := os.ReadFile(filepath.Join(dir, "rootfs/overlay/etc/postgresql", name))
			return string(text), err
		}
		if dir == "/" {
			return "", fmt.Errorf("cannot find %s: not in a checkout", name)
		}
		dir = filepath.Dir(dir)
	}
}

// give makes a file the server's own.
func give(path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Chown(path, nobody, nobody)
}

// command prepares a program of the tree as the server's user. The kernel ends
// it together with the tests.
func (s *Server) command(env, args []string, folders ...string) (*exec.Cmd, error) {
	as := []string{"setpriv", "--pdeathsig", "KILL", "--"}
	id := strconv.Itoa(nobody)
	if os.Geteuid() == 0 {
		as = []string{"setpriv", "--reuid", id, "--regid", id, "--clear-groups", "--pdeathsig", "KILL", "--"}
	} else {
		// In the tree's user namespace we are root, so there is one more in it.
		as = append([]string{"unshare", "--map-user=" + id, "--map-group=" + id, "--"}, as...)
	}
	// No context of a test: that is over before the test's cleanups stop the server.
	return s.tree.Command(context.Background(), tooltree.Cmd{Args: append(as, args...), Writable: folders, Env: env})
}

// Restart starts the server if it does not run, and else stops it before.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Stop(t)
	cmd, err := s.command(nil, []string{bin + "postgres", "-D", s.Data, "-F",
		"-c", "listen_addresses=", "-c", "unix_socket_directories=" + s.Socket, "-c", "unix_socket_permissions=0777",
		"-c", "shared_buffers=16MB", "-c", "log_min_messages=log"}, s.Data, s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(s.log(), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	s.cmd, s.ended = cmd, ended
	for !s.ready() {
		select {
		case err := <-ended:
			s.cmd = nil
			t.Fatalf("cannot start PostgreSQL: %v\n%s", err, s.Log(t))
		case <-t.Context().Done():
			t.Fatal("cannot start PostgreSQL: the test is over")
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// ready reports whether the server answers, which it says in its lock file
// (miscadmin.h, LOCK_FILE_LINE_PM_STATUS).
func (s *Server) ready() bool {
	text, err := os.ReadFile(filepath.Join(s.Data, "postmaster.pid"))
	lines := strings.Split(string(text), "\n")
	return err == nil && len(lines) > 7 && strings.TrimSpace(lines[7]) == "ready" && s.mine(lines[0])
}

// mine tells the server's lock file from one that a killed server left.
func (s *Server) mine(pid string) bool {
	n, err := strconv.Atoi(pid)
	return err == nil && n == s.cmd.Process.Pid
}

// Stop ends the server in an orderly way; connections are closed.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if s.cmd == nil {
		return
	}
	if err := s.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := <-s.ended; err != nil {
		t.Errorf("PostgreSQL: %v\n%s", err, s.Log(t))
	}
	s.cmd = nil
}

// Kill ends the server and all its processes as kill -9 does.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	// Those of connections would live on until they notice, with the shared memory
	// that keeps another server from starting.
	pid := s.cmd.Process.Pid
	list, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	var children []int
	for _, child := range strings.Fields(string(list)) {
		n, _ := strconv.Atoi(child)
		if fd, err := unix.PidfdOpen(n, 0); err == nil {
			children = append(children, fd)
		}
	}
	_ = s.cmd.Process.Kill()
	for _, fd := range children {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		for {
			// Readable when the process has ended.
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
			if err != unix.EINTR {
				break
			}
		}
		_ = unix.Close(fd)
	}
	<-s.ended
	s.cmd = nil
}

func (s *Server) log() string { return filepath.Join(filepath.Dir(s.Data), "log") }

// Log is all that the server has logged.
func (s *Server) Log(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(s.log())
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

// Run runs one of PostgreSQL's programs as somebody who may log in as the
// superuser postgres, and returns what it prints. It sees the folders given.
func (s *Server) Run(t testing.TB, in io.Reader, args []string, folders ...string) string {
	t.Helper()
	out, err := s.Try(in, args, folders...)
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return out
}

// Try is Run for what may fail.
func (s *Server) Try(in io.Reader, args []string, folders ...string) (string, error) {
	env := []string{"PGHOST=" + s.Socket, "PGUSER=postgres", "PAGER=cat"}
	cmd, err := s.command(env, append([]string{bin + args[0]}, args[1:]...), append(folders, s.Socket)...)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout = in, &out
	err = run.Wait(cmd)
	var exit *run.ExitError
	if errors.As(err, &exit) {
		exit.Name = args[0] // and not ours
	}
	return out.String(), err
}
