// Package run is the one way this project starts another program: the
// program's last words go into the error, and a cancelled context ends it.
package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// tailLines is how many of a failed program's last lines its error repeats.
const tailLines = 5

// Cmd starts name with args and waits for it. Its output is read only for the
// error: use Output to keep it.
func Cmd(ctx context.Context, name string, args ...string) error {
	return Wait(Command(ctx, name, args...))
}

// Output is like Cmd and returns what the program printed on standard output.
func Output(ctx context.Context, name string, args ...string) ([]byte, error) {
	var out bytes.Buffer
	cmd := Command(ctx, name, args...)
	cmd.Stdout = &out
	err := Wait(cmd)
	return out.Bytes(), err
}

// Command prepares name with args. A cancelled ctx asks the program to end and
// kills it five seconds later.
func Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Wait runs a prepared command. Output that nobody asked for is kept in short
// form and becomes part of the error.
func Wait(cmd *exec.Cmd) error {
	tail := &Tail{}
	if cmd.Stdout == nil {
		cmd.Stdout = tail
	}
	if cmd.Stderr == nil {
		cmd.Stderr = tail
	} else if _, ok := cmd.Stderr.(*os.File); !ok {
		// A file goes to the program as it is: it may be a terminal.
		cmd.Stderr = io.MultiWriter(cmd.Stderr, tail)
	}
	return Explain(cmd, cmd.Run(), tail)
}

// Explain turns what a program's Run or Wait returned into an error that names
// the program and repeats its last lines.
func Explain(cmd *exec.Cmd, err error, tail *Tail) error {
	if err == nil {
		return nil
	}
	name := filepath.Base(cmd.Args[0])
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		if words := tail.String(); words != "" {
			return &ExitError{Name: name, Code: exit.ExitCode(), words: exit.String() + ": " + words}
		}
		return &ExitError{Name: name, Code: exit.ExitCode(), words: exit.String()}
	default:
		return fmt.Errorf("cannot run %s: %w", name, err)
	}
}

// An ExitError is a program that ran and reported failure. e2fsck's exit codes
// are bits that callers look at.
type ExitError struct {
	Name  string
	Code  int // as from wait(2); -1 when a signal ended it
	words string
}

func (e *ExitError) Error() string { return e.Name + ": " + e.words }

// A Tail keeps the last few lines written to it.
type Tail struct{ buf []byte }

// Write never fails.
func (t *Tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - 8192; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

// String is the last lines, joined by "; ".
func (t *Tail) String() string {
	lines := strings.FieldsFunc(string(t.buf), func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) > tailLines {
		lines = lines[len(lines)-tailLines:]
	}
	for i := range lines {
		lines[i] = strings.TrimSpace(lines[i])
	}
	return strings.Join(lines, "; ")
}
