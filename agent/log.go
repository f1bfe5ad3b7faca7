package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"appplatform/partitions"
)

// finished is the last line of a complete log, the word people look for.
const finished = "finished"

// A Log shows lines on the consoles and keeps them in a file as soon as there
// is a disk to keep them on.
type Log struct {
	mu       sync.Mutex
	out      io.Writer
	file     *os.File
	pending  []byte // until the file is open
	all      []byte // since this system was started, or its end, for the progress page
	now      string // how far a long step is
	progress time.Time
}

// NewLog shows lines on out.
func NewLog(out io.Writer) *Log { return &Log{out: out} }

// Printf adds a line. It is on the disk when Printf returns, if the file is
// open; the consoles are told even when the disk fails.
func (l *Log) Printf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(l.out, text)
	l.keep(time.Now().UTC().Format("2006-01-02 15:04:05 ") + text + "\n")
}

// Keep adds a line that the consoles get in another way.
func (l *Log) Keep(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep(time.Now().UTC().Format("2006-01-02 15:04:05 ") + fmt.Sprintf(format, args...) + "\n")
}

// Finished adds the last line, which has no time in front of it.
func (l *Log) Finished() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(l.out, finished)
	return l.keep(finished + "\n")
}

func (l *Log) keep(line string) error {
	l.all, l.now = tail(append(l.all, line...)), ""
	return l.write(line)
}

// shown is how much of the log the progress page has at least, in bytes; it has
// no more than twice as much, which every request copies.
const shown = 64 << 10

// tail leaves the oldest lines out when there are too many.
func tail(b []byte) []byte {
	if len(b) <= 2*shown {
		return b
	}
	b = b[len(b)-shown:]
	return slices.Clone(b[bytes.IndexByte(b, '\n')+1:])
}

func (l *Log) write(line string) error {
	l.pending = tail(append(l.pending, line...))
	if l.file == nil {
		return nil
	}
	return l.flush()
}

// flush brings to the file what it has not kept yet: lines or nothing, also when
// the disk is full, so that another attempt can follow.
func (l *Log) flush() error {
	if len(l.pending) == 0 {
		return nil
	}
	before, err := l.file.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = l.file.Write(l.pending)
	}
	if err != nil {
		return fmt.Errorf("cannot write the log: %w", errors.Join(err, l.file.Truncate(before)))
	}
	l.pending = nil
	if err := l.file.Sync(); err != nil {
		return fmt.Errorf("cannot write the log: %w", err)
	}
	return nil
}

// Flush tries again to write what could not be written.
func (l *Log) Flush() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	return l.flush()
}

// Progress shows at most every two seconds how far a long step is; the file
// does not need it.
func (l *Log) Progress(what string, done, total int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if time.Since(l.progress) < 2*time.Second || done == total {
		return
	}
	l.progress = time.Now()
	l.now = fmt.Sprintf("  %s: %d of %d MiB\n", what, done/int64(partitions.MiB), total/int64(partitions.MiB))
	fmt.Fprint(l.out, l.now)
}

// Alive shows every ten seconds that a step goes on which cannot tell how far it
// is, until stop is called.
func (l *Log) Alive(what string) (stop func()) {
	done, start := make(chan struct{}), time.Now()
	go func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(10 * time.Second):
			}
			l.mu.Lock()
			fmt.Fprintf(l.out, "  %s: %d s\n", what, int(time.Since(start).Seconds()))
			l.mu.Unlock()
		}
	}()
	return func() { close(done) }
}

// Text is what was said since this system was started, or the end of it, and how
// far a long step is.
func (l *Log) Text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.all) + l.now
}

// Open keeps this and all earlier lines in the file, behind what it holds.
func (l *Log) Open(path string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		return l.flush()
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("cannot keep the log: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("cannot keep the log: %w", err)
	}
	l.file = f
	return l.flush()
}

// Save copies the lines that no file has kept yet to path. It reports whether
// there were any.
func (l *Log) Save(path string) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil || len(l.pending) == 0 {
		return false, nil
	}
	if err := os.WriteFile(path, l.pending, 0o644); err != nil {
		return false, fmt.Errorf("cannot keep the log: %w", err)
	}
	return true, nil
}

// Append brings the lines that no file has kept yet to a log that may be
// complete; then it stays so.
func (l *Log) Append(path string) error {
	l.mu.Lock()
	nothing := l.file != nil || len(l.pending) == 0
	l.mu.Unlock()
	if nothing {
		return nil
	}
	complete := lastLine(path) == finished
	if err := l.Open(path); err != nil {
		return err
	}
	if complete {
		l.mu.Lock()
		err := l.write(finished + "\n")
		l.mu.Unlock()
		if err != nil {
			return errors.Join(err, l.Close())
		}
	}
	return l.Close()
}

// Close ends the use of the file, so that its disk can be unmounted.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
