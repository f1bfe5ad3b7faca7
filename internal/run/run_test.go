package run

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestCmd(t *testing.T) {
	for _, c := range []struct {
		name, script string
		code         int
		want         string
	}{
		{"code and words", "echo out; echo wrong >&2; exit 3", 3, "sh: exit status 3: out; wrong"},
		{"the last words", "seq 1 9; exit 1", 1, "sh: exit status 1: 5; 6; 7; 8; 9"},
		{"no words", "exit 4", 4, "sh: exit status 4"},
		{"a progress line", `printf '10%%\r20%%\r'; exit 1`, 1, "sh: exit status 1: 10%; 20%"},
		{"much output", "seq 1 100000; exit 1", 1, "99999; 100000"},
		{"signal", "kill -TERM $$", -1, "sh: signal: terminated"},
	} {
		err := Cmd(t.Context(), "sh", "-c", c.script)
		var exit *ExitError
		if !errors.As(err, &exit) || exit.Code != c.code || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%s: Cmd() = %v; want code %d and %q", c.name, err, c.code, c.want)
		}
	}
	if err := Cmd(t.Context(), "sh", "-c", "echo fine"); err != nil {
		t.Errorf("Cmd() = %v", err)
	}
}

func TestOutput(t *testing.T) {
	out, err := Output(t.Context(), "sh", "-c", "echo out; echo noise >&2")
	if err != nil || string(out) != "out\n" {
		t.Errorf("Output() = %q, %v; want out", out, err)
	}
}

func TestMissingProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := Cmd(t.Context(), "mke2fs")
	if !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "mke2fs") {
		t.Errorf("Cmd() = %v; want that mke2fs is not found", err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := Cmd(ctx, "sleep", "1000"); err == nil {
		t.Error("Cmd() succeeds although it was cancelled")
	}
}
