// Package gcore writes memory and registers of a running process to a file for
// debuggers: an ELF core file, as the kernel makes of a program that dies. The
// process stands still meanwhile and goes on afterwards, whatever happens to us.
package gcore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"appplatform/internal/hint"
	"appplatform/partitions"
)

// Dump writes the process to a new file, which only its owner can read.
func Dump(ctx context.Context, pid int, file string) error {
	var err error
	onOwnThread(func() { err = dump(ctx, pid, file) })
	return err
}

// onOwnThread runs f on a thread that ends with it. Tracing belongs to threads:
// when one ends, the kernel lets go of everything that it still holds.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		// A program's first thread stays. While this goroutine has it, the next
		// one gets another.
		defer runtime.UnlockOSThread()
		onOwnThread(f)
	}()
	<-done
}

func dump(ctx context.Context, pid int, file string) (err error) {
	if err := check(pid); err != nil {
		return err
	}
	out, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return hint.Errorf("remove it, or name another one: -o FILE", "cannot write the core file: %w", err)
	}
	if err != nil {
		return fmt.Errorf("cannot write the core file: %w", err)
	}
	defer func() {
		if closing := out.Close(); err == nil {
			err = closing
		}
		if err == nil {
			return
		}
		err = errors.Join(err, os.Remove(file))
		if errors.Is(err, unix.ENOSPC) && !hint.In(err) {
			err = hint.Errorf(moreRoom, "%w", err)
		}
	}()
	return save(ctx, pid, out)
}

// save does all that the process has to stand still for.
func save(ctx context.Context, pid int, out *os.File) error {
	threads, err := attach(ctx, pid)
	defer detach(threads)
	if err != nil {
		return fmt.Errorf("cannot stop process %d: %w", pid, err)
	}
	p, err := inspect(pid, threads)
	if err != nil {
		return fmt.Errorf("cannot look into process %d: %w", pid, err)
	}
	c := plan(p)
	if err := checkRoom(out, c.needs()); err != nil {
		return err
	}
	if err := c.write(ctx, p.dir, out); err != nil {
		return fmt.Errorf("cannot save process %d: %w", pid, err)
	}
	return nil
}

// check finds out what would only fail later, and then less clearly.
func check(pid int) error {
	s, err := readStatus(procDir(pid))
	stat, statErr := readStat(procDir(pid))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return hint.Errorf("ps aux lists the processes", "there is no process %d", pid)
	case err != nil || statErr != nil:
		return fmt.Errorf("cannot look into process %d: %w", pid, errors.Join(err, statErr))
	case stat.flags&kernelThread != 0:
		return fmt.Errorf("process %d belongs to the kernel and has no memory of its own", pid)
	case s.number("Tgid") != pid:
		return hint.Errorf(fmt.Sprintf("save the process: %d", s.number("Tgid")), "%d is a thread of process %d", pid, s.number("Tgid"))
	case s.number("TracerPid") != 0:
		return hint.Errorf("end that one first", "process %d is being debugged by process %d", pid, processOf(s.number("TracerPid")))
	}
	return nil
}

// processOf is the process that a thread belongs to.
func processOf(id int) int {
	if s, err := readStatus(procDir(id)); err == nil {
		return s.number("Tgid")
	}
	return id
}

// kernelThread is Linux's PF_KTHREAD.
const kernelThread = 0x00200000

const moreRoom = "make room, or name a file on another disk: -o FILE"

// checkRoom refuses to fill the file's disk.
func checkRoom(out *os.File, needs uint64) error {
	var disk unix.Statfs_t
	if err := unix.Fstatfs(int(out.Fd()), &disk); err != nil {
		return fmt.Errorf("cannot tell how much room there is: %w", err)
	}
	if free := disk.Bavail * uint64(disk.Bsize); needs > free {
		return hint.Errorf(moreRoom, "a core file of %v does not fit where %v are free",
			partitions.Size(needs).Short(), partitions.Size(free).Short())
	}
	return nil
}
