package supervise

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func newOutput(t *testing.T, size int64) *output {
	t.Helper()
	dir := t.TempDir()
	o, err := openOutput(filepath.Join(dir, "app.out"), Spec{Name: "app", Log: filepath.Join(dir, "log"), LogSize: size}, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.close)
	return o
}

func TestRotation(t *testing.T) {
	o := newOutput(t, 1000)
	for n := range 1000 {
		o.mu.Lock()
		o.write(fmt.Appendf(nil, "line %d\n", n))
		o.mu.Unlock()
	}
	files, err := os.ReadDir(o.dir)
	if err != nil || len(files) != 5 {
		t.Fatalf("files %v, %v; want 5", files, err)
	}
	// From the oldest to the newest they hold the last lines, whole and in order.
	var all strings.Builder
	for n := 4; n >= 0; n-- {
		text, err := os.ReadFile(o.logFile(n))
		if err != nil || len(text) > 1000 || len(text) < 1 {
			t.Errorf("%s has %d bytes, %v", o.logFile(n), len(text), err)
		}
		all.Write(text)
	}
	lines := strings.Split(strings.TrimSpace(all.String()), "\n")
	for k, line := range lines {
		if want := fmt.Sprintf("line %d", 1000-len(lines)+k); line != want {
			t.Fatalf("line %d from the end is %q; want %q", len(lines)-k, line, want)
		}
	}
	if len(lines) < 400 {
		t.Errorf("there are %d lines; four files hold more", len(lines))
	}
	// A line that fits into no file is not kept together, nor lost.
	o.mu.Lock()
	o.write([]byte(strings.Repeat("x", 2500) + "\n"))
	o.mu.Unlock()
	if text, _ := os.ReadFile(o.logFile(0)); len(text) != 2501 {
		t.Errorf("a long line has become %d bytes", len(text))
	}
}

// A log goes on where an earlier manager has stopped.
func TestLogGoesOn(t *testing.T) {
	o := newOutput(t, 1000)
	o.say("one")
	o.close()
	again, err := openOutput(o.path, Spec{Name: "app", Log: o.dir, LogSize: 1000}, 1<<40)
	if err != nil {
		t.Fatal(err)
	}
	again.say("two")
	again.close()
	o.done = make(chan struct{})
	close(o.done)
	if text, _ := os.ReadFile(o.logFile(0)); strings.Count(string(text), "\n") != 2 {
		t.Errorf("the log is %q", text)
	}
}

// While the log cannot be written, the app goes on; later the log says what it lost.
func TestLogCannotBeWritten(t *testing.T) {
	o := newOutput(t, 1000)
	if err := os.WriteFile(o.dir, nil, 0o600); err != nil { // a file where the folder should be
		t.Fatal(err)
	}
	write := func(s string) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.write([]byte(s))
	}
	write("lost\n")
	write("lost\n")
	if err := os.Remove(o.dir); err != nil {
		t.Fatal(err)
	}
	write("kept\n")
	if text, _ := os.ReadFile(o.logFile(0)); !strings.Contains(string(text), " 10 bytes could not be written here\nkept\n") {
		t.Errorf("the log is %q", text)
	}
}

// A disk that refuses the names of older files costs these, not the log's bound.
func TestRotationRefused(t *testing.T) {
	o := newOutput(t, 1000)
	for n := 1; n < logFiles; n++ {
		if err := os.MkdirAll(filepath.Join(o.logFile(n), "in the way"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 200 {
		o.say("line %d", n)
	}
	text, err := os.ReadFile(o.logFile(0))
	if err != nil || len(text) > 1000 || !strings.HasSuffix(string(text), "line 199\n") {
		t.Errorf("the log has %d bytes, %v, and ends in %.80q", len(text), err, text[max(0, len(text)-80):])
	}
}

// A link in the place of the log would let an app write as root.
func TestLogFollowsNoLink(t *testing.T) {
	o := newOutput(t, 1000)
	if err := os.Mkdir(o.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(t.TempDir(), "passwd")
	if err := os.Symlink(target, o.logFile(0)); err != nil {
		t.Fatal(err)
	}
	o.say("root::0:0::/:")
	if _, err := os.Stat(target); !os.IsNotExist(err) {
		t.Errorf("the link was followed: %v", err)
	}
}

// An app that floods its log waits for it, and everything else does not.
func TestFlood(t *testing.T) {
	l := newLab(t, Options{LogRate: 20_000})
	spec := l.spec("flood")
	spec.LogSize = 10_000
	flood := l.add(spec, Hooks{})
	flood.Start()
	quiet := l.add(l.spec("quiet"), Hooks{})
	quiet.Start()
	l.running(quiet)
	l.await("it is slowed", func() bool {
		all := ""
		for n := range logFiles {
			text, _ := os.ReadFile(flood.out.logFile(n))
			all += string(text)
		}
		return strings.Contains(all, "SUPERVISOR logs more than 20 KiB a second: it was held up for ")
	})
	if err := flood.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for n := range logFiles {
		if info, err := os.Stat(flood.out.logFile(n)); err == nil {
			total += info.Size()
		}
	}
	if total > 5*10_000+5*200 {
		t.Errorf("the log has %d bytes", total)
	}
}
