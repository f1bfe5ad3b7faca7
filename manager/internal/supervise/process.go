package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/atomicfile"
)

// A process is one that runs, started here or by a supervisor before.
type process struct {
	pid     int
	cmd     *exec.Cmd // nil: not our child
	cgroup  cgroup
	started time.Time
	ended   chan struct{} // closed when it has ended

	killed    bool     // the cgroup was
	oom, pids int64    // counters of the cgroup when it was started or found
	pidfd     *os.File // readable when it has ended

	others *atomic.Int32 // processes of the service besides the one that counts; nil: none
	until  time.Duration // since the machine started: when it is ended, if it was replaced
}

// shared is whether processes of the same service that must not be ended with this
// one are in the cgroup. One that was replaced, or is to replace another, counts
// itself.
func (p *process) shared() bool { return p.others != nil && p.others.Load() > 0 }

// A pidFile is what the next supervisor needs to find a process again. A pid can
// be that of another process later; with the time of its start it cannot.
type pidFile struct {
	PID   int       `json:"pid"`
	Start uint64    `json:"start"` // ticks since the machine started
	Time  time.Time `json:"time"`

	Until time.Duration `json:"until,omitempty"` // as process.until
}

// start starts a process. Output is the FIFO that it writes to.
func start(spec Spec, g cgroup, pidPath, output string) (*process, error) {
	out, err := os.OpenFile(output, os.O_RDWR, 0) // it is its own reader: no SIGPIPE when the manager is away
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(spec.Path, spec.Args...)
	cmd.Env, cmd.Dir, cmd.ExtraFiles = spec.Env, spec.Dir, spec.ExtraFiles
	cmd.Stdout, cmd.Stderr = out, out
	fd := -1
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, PidFD: &fd}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: spec.UID, Gid: spec.GID, Groups: spec.Groups}
	}
	if g != "" {
		if err := g.make(spec.Limits); err != nil {
			return nil, fmt.Errorf("cannot set the limits: %w", err)
		}
		dir, err := os.Open(string(g))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	p := &process{cmd: cmd, cgroup: g, started: time.Now(), ended: make(chan struct{})}
	p.count()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.pid = cmd.Process.Pid
	// The database and the manager are worth more than an app when the whole machine
	// has no memory left.
	os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.pid), []byte("300"), 0)
	// An app may have filled the file system of the pid files. With a cgroup, the
	// next manager knows whose process it is anyway, and starts a new one.
	if err := p.save(pidPath); err != nil && g == "" {
		p.killSession()
		cmd.Wait()
		unix.Close(fd)
		return nil, err
	}
	if err := p.watch(fd); err != nil {
		p.killSession()
		cmd.Wait()
		return nil, err
	}
	return p, nil
}

// save writes the pid file. A process that is gone needs none.
func (p *process) save(path string) error {
	stat, err := readStat(p.pid)
	if err != nil {
		return nil
	}
	text, _ := json.Marshal(pidFile{p.pid, stat.start, p.started, p.until})
	if err := atomicfile.WriteQuick(path, text, 0o600); err != nil {
		return fmt.Errorf("cannot write the pid file: %w", err)
	}
	return nil
}

// adopt finds the process of a service that an earlier supervisor has started;
// nil if there is none.
func adopt(g cgroup, pidPath string) *process {
	text, err := os.ReadFile(pidPath)
	if err != nil {
		return nil
	}
	var f pidFile
	if json.Unmarshal(text, &f) != nil || f.PID <= 1 {
		return nil
	}
	// The pidfd comes first: what is read behind it is about the process that it
	// holds, or about one that has ended.
	fd, err := unix.PidfdOpen(f.PID, 0)
	if err != nil {
		return nil
	}
	stat, err := readStat(f.PID)
	if err != nil || stat.start != f.Start || stat.state == "Z" || g != "" && !g.has(f.PID) {
		unix.Close(fd)
		return nil
	}
	p := &process{pid: f.PID, cgroup: g, started: f.Time, until: f.Until, ended: make(chan struct{})}
	p.count()
	if p.watch(fd) != nil {
		return nil
	}
	return p
}

// watch closes ended when the pidfd says so. No thread waits for it.
func (p *process) watch(fd int) error {
	if fd < 0 {
		return errors.New("the kernel has no pidfd (Linux 5.4)")
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return err
	}
	p.pidfd = os.NewFile(uintptr(fd), "pidfd")
	conn, err := p.pidfd.SyscallConn()
	if err != nil {
		p.pidfd.Close()
		return err
	}
	go func() {
		err := conn.Read(func(fd uintptr) bool {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, 0)
			return n > 0 || err != nil && err != unix.EINTR
		})
		if err == nil {
			close(p.ended)
		}
	}()
	return nil
}

// release lets a process go on without being watched.
func (p *process) release() { p.pidfd.Close() }

// signal is for the process itself, never for another that has its number now.
func (p *process) signal(sig unix.Signal) {
	if conn, err := p.pidfd.SyscallConn(); err == nil {
		conn.Control(func(fd uintptr) { unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	}
}

// killAll ends the process and all that it has started. Without a cgroup these are
// those that did not leave its session, as they are if the cgroup is shared.
func (p *process) killAll() {
	if p.cgroup != "" && !p.shared() {
		p.cgroup.write("cgroup.kill", "1")
		p.killed = true
		return
	}
	p.killSession()
}

func (p *process) killSession() {
	if p.pid > 1 {
		syscall.Kill(-p.pid, syscall.SIGKILL)
	}
}

// count remembers where the counters of the cgroup stand.
func (p *process) count() {
	p.oom, _ = p.cgroup.number("memory.events", "oom_kill")
	p.pids, _ = p.cgroup.number("pids.events", "max")
}

// finish clears up behind a process that has ended and says how it did.
func (p *process) finish(ctx context.Context) End {
	end := End{PID: p.pid, Time: time.Now(), Ran: time.Since(p.started), Code: -1}
	if p.cgroup == "" || p.shared() && p.cmd != nil {
		p.killSession() // before the process is reaped: its number still belongs to it
	}
	if p.cmd != nil {
		p.cmd.Wait()
		if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok {
			switch {
			case ws.Exited():
				end.Code = ws.ExitStatus()
			case ws.Signaled():
				end.Signal, end.Core = ws.Signal(), ws.CoreDump()
			}
		}
	}
	p.pidfd.Close()
	if p.cgroup != "" {
		oom, _ := p.cgroup.number("memory.events", "oom_kill")
		pids, _ := p.cgroup.number("pids.events", "max")
		end.OutOfMemory, end.ProcessLimit = oom > p.oom, pids > p.pids
		if !p.shared() {
			p.cgroup.clear(ctx, p.killed)
		}
	}
	return end
}

// An End of a process.
type End struct {
	Service      string
	PID          int
	Time         time.Time
	Ran          time.Duration
	Code         int            // exit status; -1: killed, or not known
	Signal       syscall.Signal // that killed it; 0: none, or not known
	Core         bool           // it left a core dump
	OutOfMemory  bool           // the kernel killed it for its memory limit
	ProcessLimit bool           // it was refused processes while it ran
	Asked        bool           // somebody wanted it to end
	Replaced     bool           // another process had taken its place before
	Reason       string         // why the supervisor ended it: it hung
}

// String is what the administrator reads.
func (e End) String() string {
	var parts []string
	if e.Reason != "" {
		parts = append(parts, e.Reason)
	}
	switch {
	case e.OutOfMemory:
		parts = append(parts, "killed: it has used up its memory")
	case e.Signal != 0:
		parts = append(parts, fmt.Sprintf("killed by signal %d (%v)", int(e.Signal), e.Signal))
	case e.Code >= 0:
		parts = append(parts, fmt.Sprintf("ended with status %d", e.Code))
	default:
		parts = append(parts, "ended")
	}
	if e.Core {
		parts = append(parts, "core dumped")
	}
	if e.ProcessLimit {
		parts = append(parts, "it has reached its limit of processes")
	}
	return strings.Join(parts, ", ")
}

// A stat is what is needed of /proc/PID/stat.
type stat struct {
	state string
	start uint64        // ticks since the machine started
	cpu   time.Duration // user and system
	rss   int64         // bytes
}

func readStat(pid int) (stat, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return stat{}, err
	}
	// The name, in parentheses, can hold anything. Fields are numbered as in
	// proc(5), from the third on.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 22 {
		return stat{}, errors.New("cannot read /proc/PID/stat")
	}
	number := func(n int) uint64 {
		v, _ := strconv.ParseUint(fields[n-3], 10, 64)
		return v
	}
	const tick = time.Second / 100 // USER_HZ of all Linux architectures
	return stat{
		state: fields[0],
		start: number(22),
		cpu:   time.Duration(number(14)+number(15)) * tick,
		rss:   int64(number(24)) * int64(os.Getpagesize()),
	}, nil
}
