package gcore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A tracee is a thread that we have stopped.
type tracee struct {
	id int
	// signal is what it was about to get when it stopped; it gets it when it goes on.
	signal unix.Signal
}

// attach stops all threads of the process, the oldest first. Those that are to be
// let go are returned also if that has failed.
func attach(ctx context.Context, pid int) ([]*tracee, error) {
	var stopped []*tracee
	seen := map[int]bool{}
	for {
		ids, err := threadIDs(pid)
		if err != nil {
			return stopped, err
		}
		// Threads that run can start others: all stand still when a look finds
		// none that is new.
		ids = slices.DeleteFunc(ids, func(id int) bool { return seen[id] })
		if len(ids) == 0 {
			break
		}
		var asked []*tracee
		for _, id := range ids {
			seen[id] = true
			switch ok, err := seize(pid, id); {
			case err != nil:
				return append(stopped, asked...), err
			case ok:
				asked = append(asked, &tracee{id: id})
			}
		}
		for i, t := range asked {
			switch ok, err := t.wait(ctx); {
			case err != nil:
				return append(stopped, asked[i:]...), err
			case ok:
				stopped = append(stopped, t)
			}
		}
	}
	if len(stopped) == 0 {
		return nil, errEnded
	}
	return stopped, nil
}

var errEnded = errors.New("it has ended")

func threadIDs(pid int) ([]int, error) {
	names, err := os.ReadDir(filepath.Join(procDir(pid), "task"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, errEnded
	}
	if err != nil {
		return nil, err
	}
	var ids []int
	for _, n := range names {
		if id, err := strconv.Atoi(n.Name()); err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// seize asks a thread to stop; false if there is nothing left of it to stop. A
// thread that is seized gets no SIGSTOP, which the process or its parent could see,
// and goes on when its tracer dies.
func seize(pid, id int) (bool, error) {
	err := unix.PtraceSeize(id)
	if err == nil {
		err = unix.PtraceInterrupt(id)
	}
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if errors.Is(err, unix.EPERM) {
		s, statErr := readStat(taskDir(pid, id))
		if statErr != nil || s.state == 'Z' || s.state == 'X' {
			return false, nil
		}
	}
	if err != nil {
		return false, fmt.Errorf("ptrace: %w", err)
	}
	return true, nil
}

// wait waits until the thread has stopped; false if it has ended instead. It may
// take long: a thread that waits for a disk cannot be stopped.
func (t *tracee) wait(ctx context.Context) (bool, error) {
	for pause := 20 * time.Microsecond; ; pause = min(2*pause, 10*time.Millisecond) {
		var status unix.WaitStatus
		id, err := unix.Wait4(t.id, &status, unix.WALL|unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil: // nobody to wait for
			return false, nil
		case id == 0:
			select {
			case <-ctx.Done():
				return false, fmt.Errorf("interrupted: %w", context.Cause(ctx))
			case <-time.After(pause):
			}
			continue
		case !status.Stopped():
			return false, nil
		}
		if event := status >> 16; event == 0 {
			t.signal = status.StopSignal()
		}
		return true, nil
	}
}

// detach lets the threads go on. One that a signal has killed meanwhile is gone.
func detach(threads []*tracee) {
	for _, t := range threads {
		_, _, _ = unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_DETACH, uintptr(t.id), 0, uintptr(t.signal), 0, 0)
	}
}

// registers reads one set of a stopped thread's registers.
func registers(id int, set uint32) ([]byte, error) {
	b := make([]byte, 64<<10)
	iov := unix.Iovec{Base: &b[0]}
	iov.SetLen(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GETREGSET, uintptr(id), uintptr(set), uintptr(unsafe.Pointer(&iov)), 0, 0)
	runtime.KeepAlive(b)
	if errno != 0 {
		return nil, errno
	}
	return slices.Clone(b[:iov.Len]), nil
}
