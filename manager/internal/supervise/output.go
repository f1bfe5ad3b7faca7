package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// logFiles is how many files a log has: name.log is written to, name.1.log is the
// newest of the others.
const logFiles = 5

// An output takes what a process prints from a FIFO, which the process holds open
// itself, and writes it to the log. While nobody reads, what is printed waits in
// the FIFO, and then the process does.
type output struct {
	path string // of the FIFO
	name string
	fifo *os.File
	done chan struct{}

	mu        sync.Mutex
	dir       string
	size      int64 // of a file
	file      *os.File
	written   int64
	midline   bool
	lost      int64 // bytes that could not be written
	rate      float64
	budget    float64 // bytes that may be read now
	budgeted  time.Time
	slowed    time.Duration // since it was last told
	slowedSay time.Time
}

func openOutput(path string, spec Spec, rate int64) (*output, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("cannot make %s: %w", path, err)
	}
	if os.Geteuid() == 0 {
		// So that scripts can open /dev/stderr.
		if err := os.Lchown(path, int(spec.UID), int(spec.GID)); err != nil {
			return nil, err
		}
	}
	// For writing as well: it has no end, however many processes come and go.
	fifo, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if conn, err := fifo.SyscallConn(); err == nil {
		// Room for what is printed while the manager is away. Less will do.
		conn.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 256<<10) })
	}
	o := &output{path: path, name: spec.Name, fifo: fifo, done: make(chan struct{}), rate: float64(rate), budget: float64(rate) * 4, budgeted: time.Now()}
	o.set(spec)
	go o.read()
	return o, nil
}

func (o *output) set(spec Spec) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.dir != spec.Log && o.file != nil {
		o.file.Close()
		o.file = nil
	}
	o.dir, o.size = spec.Log, spec.LogSize
	if o.size <= 0 {
		o.size = 1 << 20
	}
}

// close leaves what is in the FIFO to the next manager.
func (o *output) close() {
	o.fifo.Close()
	<-o.done
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.file != nil {
		o.file.Close()
	}
}

// read copies to the log, no faster than the process may log.
func (o *output) read() {
	defer close(o.done)
	buffer := make([]byte, 32<<10)
	for {
		n, err := o.fifo.Read(buffer)
		if err != nil {
			return
		}
		o.mu.Lock()
		o.write(buffer[:n])
		pause := o.spend(n)
		o.mu.Unlock()
		time.Sleep(pause)
	}
}

// spend takes n bytes from the budget, which holds what four seconds allow, and
// says how long to wait when there is none left.
func (o *output) spend(n int) time.Duration {
	now := time.Now()
	o.budget = min(o.budget+now.Sub(o.budgeted).Seconds()*o.rate, 4*o.rate)
	o.budgeted = now
	o.budget -= float64(n)
	if o.budget >= 0 {
		return 0
	}
	pause := time.Duration(-o.budget / o.rate * float64(time.Second))
	o.slowed += pause
	if now.Sub(o.slowedSay) > 10*time.Second {
		o.line("logs more than %.0f KiB a second: it was held up for %.1f s", o.rate/1024, o.slowed.Seconds())
		o.slowedSay, o.slowed = now, 0
	}
	return pause
}

// say writes a line of the supervisor's own.
func (o *output) say(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.line(format, args...)
}

func (o *output) line(format string, args ...any) {
	start := ""
	if o.midline {
		start = "\n"
	}
	o.write(fmt.Appendf(nil, "%s%s %s SUPERVISOR %s\n", start, time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), o.name, fmt.Sprintf(format, args...)))
}

// write appends to the log. A disk that is full must not stop the process: what
// cannot be written is counted.
func (o *output) write(p []byte) {
	for len(p) > 0 {
		if err := o.open(0); err != nil {
			o.lost += int64(len(p))
			return
		}
		part := p
		if o.written+int64(len(p)) > o.size {
			// Files end with a line, if there is one that ends in time.
			fits := bytes.LastIndexByte(p[:max(0, min(int64(len(p)), o.size-o.written))], '\n') + 1
			switch {
			case fits > 0:
				part = p[:fits]
			case o.written > 0:
				if err := o.rotate(); err != nil {
					o.lost += int64(len(p))
					return
				}
				continue
			default:
				if end := bytes.IndexByte(p, '\n'); end >= 0 {
					part = p[:end+1]
				}
			}
		}
		if o.lost > 0 {
			notice := fmt.Appendf(nil, "%s %s SUPERVISOR %d bytes could not be written here\n", time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), o.name, o.lost)
			n, err := o.file.Write(notice)
			o.written += int64(n)
			if err == nil {
				o.lost = 0
			}
		}
		n, err := o.file.Write(part)
		o.written += int64(n)
		if n > 0 {
			o.midline = part[n-1] != '\n'
		}
		if err != nil {
			o.lost += int64(len(p) - n)
			return
		}
		p = p[len(part):]
	}
}

func (o *output) open(flags int) error {
	if o.file != nil {
		return nil
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	// No link of the app's may lead root's writing elsewhere.
	f, err := os.OpenFile(o.logFile(0), os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|flags, 0o640)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	o.file, o.written = f, info.Size()
	return nil
}

func (o *output) logFile(n int) string {
	if n == 0 {
		return filepath.Join(o.dir, o.name+".log")
	}
	return filepath.Join(o.dir, fmt.Sprintf("%s.%d.log", o.name, n))
}

// rotate begins a new file. The oldest goes. If the disk refuses another name, the
// file is emptied: a log has a bound.
func (o *output) rotate() error {
	o.file.Close()
	o.file, o.written = nil, 0
	for n := logFiles - 1; n > 0; n-- {
		os.Rename(o.logFile(n-1), o.logFile(n))
	}
	return o.open(os.O_TRUNC)
}
