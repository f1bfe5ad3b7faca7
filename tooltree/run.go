package tooltree

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"appplatform/internal/hint"
	"appplatform/internal/run"
)

// A Cmd is a tool to run in the tree. Besides the tree itself it sees /dev,
// /proc, /sys, an empty /tmp and the folders named here.
type Cmd struct {
	Args []string
	Dir  string   // working folder inside; "/" if empty
	Env  []string // besides PATH, HOME and a UTF-8 locale
	// Stdin, Stdout and Stderr as in exec.Cmd.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// ReadOnly and Writable are host folders, seen at the same path inside.
	ReadOnly, Writable []string
	// Bind maps paths inside to host folders, writable. Paths that go into the
	// result (a kernel's __FILE__) stay the same on every machine this way.
	Bind map[string]string
	// Family ends all that the tool started together with it, even if this
	// process is killed: nothing of a killed make goes on writing objects.
	Family bool
	// Niceness is added to the priority, 0 to 19.
	Niceness int
}

// stage0 is the name under which this program starts itself inside the new
// namespace, to set up the mounts that os/exec cannot.
const stage0 = "apimage-tooltree-stage0"

// A mount is one folder to bind.
type mount struct {
	Host, Inside string
	ReadOnly     bool
}

// A stage is what stage 0 is told, as JSON in an environment variable.
type stage struct {
	Tree     string
	Mounts   []mount
	Dir      string
	Path     string
	Args     []string
	Env      []string
	Niceness int
}

const stageVariable = "APIMAGE_TOOLTREE_STAGE"

// Run runs the tool and waits for it; its last lines go into the error.
func (t *Tree) Run(ctx context.Context, c Cmd) error {
	cmd, err := t.Command(ctx, c)
	if err != nil {
		return err
	}
	err = run.Wait(cmd)
	var exit *run.ExitError
	if errors.As(err, &exit) {
		exit.Name = filepath.Base(c.Args[0]) // and not ours
	}
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EINVAL) {
		return namespaceError(err)
	}
	return err
}

// Output runs the tool and returns what it prints on standard output.
func (t *Tree) Output(ctx context.Context, c Cmd) ([]byte, error) {
	var out writer
	c.Stdout = &out
	err := t.Run(ctx, c)
	return out, err
}

type writer []byte

func (w *writer) Write(p []byte) (int, error) { *w = append(*w, p...); return len(p), nil }

// Command prepares the tool to be started. The terminal, signals, sockets and
// the network are the host's.
func (t *Tree) Command(ctx context.Context, c Cmd) (*exec.Cmd, error) {
	if len(c.Args) == 0 {
		return nil, errors.New("internal error: no tool to run")
	}
	path := c.Args[0]
	if !filepath.IsAbs(path) {
		var err error
		if path, err = t.find(path); err != nil {
			return nil, err
		}
	}
	s := stage{Tree: t.dir, Dir: c.Dir, Path: path, Args: c.Args, Niceness: c.Niceness}
	if s.Dir == "" {
		s.Dir = "/"
	}
	for _, list := range []struct {
		dirs     []string
		readOnly bool
	}{{c.ReadOnly, true}, {c.Writable, false}} {
		for _, d := range list.dirs {
			abs, err := filepath.Abs(d)
			if err != nil {
				return nil, err
			}
			s.Mounts = append(s.Mounts, mount{abs, abs, list.readOnly})
		}
	}
	for inside, host := range c.Bind {
		abs, err := filepath.Abs(host)
		if err != nil {
			return nil, err
		}
		s.Mounts = append(s.Mounts, mount{abs, inside, false})
	}
	for _, m := range s.Mounts {
		for _, taken := range []string{"/usr/", "/etc/"} {
			if strings.HasPrefix(m.Inside+"/", taken) {
				return nil, hint.Errorf("keep checkout, output and cache outside /usr and /etc, which are the build tools' own there",
					"cannot show %s to the build tools", m.Host)
			}
		}
	}
	// Outer folders first, so that an inner mount is not covered.
	slices.SortFunc(s.Mounts, func(x, y mount) int { return len(x.Inside) - len(y.Inside) })
	s.Env = append([]string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LC_ALL=C.UTF-8", "TZ=UTC", "TERM=" + os.Getenv("TERM"),
	}, c.Env...)
	told, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	cmd := run.Command(ctx, "/proc/self/exe")
	cmd.Args = []string{stage0}
	cmd.Env = []string{stageVariable + "=" + string(told)}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, c.Stdout, c.Stderr
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if c.Family {
		attr.Cloneflags |= syscall.CLONE_NEWPID
	}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	return cmd, nil
}

// namespaceError explains what this machine forbids.
func namespaceError(err error) error {
	return hint.Errorf("allow unprivileged user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0, "+
		"kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0), or run as root",
		"cannot make a user namespace for the build tools: %w", err)
}
