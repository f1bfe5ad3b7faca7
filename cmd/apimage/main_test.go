package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"appplatform/image"
	"appplatform/internal/cache"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"apimage": main})
}

// TestScripts runs the command as users do. The scripts see
//
//	$REPO      this checkout
//	$APIMAGE   the path of the command, for scripts that change PATH
//	$FRESH     a cache that has packages, tools and kernels and nothing else
func TestScripts(t *testing.T) {
	repo, err := image.FindRepository(".")
	if err != nil {
		t.Fatal(err)
	}
	command, err := exec.LookPath("apimage")
	if err != nil {
		t.Fatal(err)
	}
	goEnv := goSettings(t)
	// The cache of who runs the tests.
	own, err := cache.Default()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir) // The go command writes there.
			e.Setenv("REPO", repo)
			e.Setenv("APIMAGE", command)
			e.Setenv("XDG_CACHE_HOME", filepath.Dir(own.Path()))
			for name, value := range goEnv {
				e.Setenv(name, value)
			}
			for _, name := range []string{"MIRROR", "SECURITY_MIRROR", "http_proxy", "https_proxy"} {
				e.Setenv(name, os.Getenv(name))
			}
			fresh, err := freshCache(own)
			e.Defer(func() { _ = cache.RemoveAll(fresh) })
			e.Setenv("FRESH", fresh)
			return err
		},
	})
}

// freshCache makes a cache that borrows from ours what takes long to get. It
// lies beside ours, because entries are made by renaming.
func freshCache(own *cache.Dir) (string, error) {
	dir, err := os.MkdirTemp(filepath.Dir(own.Path()), "app-platform-test-")
	if err != nil {
		return "", err
	}
	c, err := cache.Open(filepath.Join(dir, filepath.Base(own.Path())))
	if err != nil {
		return dir, err
	}
	for _, name := range []string{"apt", "keys", "kernel-objects", "kernels", "kernel-source", "locks", "pieces", "pool", "tmp", "tools"} {
		if err := os.MkdirAll(own.Path(name), 0o755); err != nil {
			return dir, err
		}
		if err := os.Symlink(own.Path(name), c.Path(name)); err != nil {
			return dir, err
		}
	}
	return dir, nil
}

// goSettings are where the go command keeps its things, which does not change
// with the scripts' XDG_CACHE_HOME and HOME.
func goSettings(t *testing.T) map[string]string {
	t.Helper()
	names := []string{"GOCACHE", "GOMODCACHE", "GOPATH", "GOPROXY", "GOTOOLCHAIN"}
	out, err := exec.Command("go", append([]string{"env"}, names...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	lines := strings.Split(string(out), "\n")
	for i, name := range names {
		settings[name] = lines[i]
	}
	return settings
}

// Every command explains itself, and no flag lacks a text.
func TestHelp(t *testing.T) {
	for _, c := range commands {
		var stdout, stderr strings.Builder
		code := runMain([]string{c.name, "--help"}, strings.NewReader(""), &stdout, &stderr)
		text := stdout.String()
		if code != exitOK || stderr.Len() > 0 || !strings.HasPrefix(text, c.summary+"\n") {
			t.Errorf("apimage %s --help = %d, stderr %q, stdout %q; want its summary", c.name, code, &stderr, text)
		}
		for _, want := range []string{"\nUSAGE\n  apimage " + c.name + " ", "\nFLAGS\n", "\nEXIT STATUS\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("apimage %s --help has no %q", c.name, want)
			}
		}
		lines := strings.Split(text, "\n")
		for i, line := range lines {
			if strings.HasPrefix(line, "  --") && (i+1 == len(lines) || strings.TrimSpace(lines[i+1]) == "") {
				t.Errorf("apimage %s --help says nothing about %s", c.name, line)
			}
		}
	}
}

func TestProgress(t *testing.T) {
	var out strings.Builder
	p := newProgress(&out)
	for i := range 3 {
		p.event(image.Event{State: image.Started, Step: "kernel", Text: "build the kernel"})
		p.event(image.Event{State: image.Progress, Step: "kernel", Text: "build the kernel", Done: int64(i), Total: 3, Unit: "objects"})
	}
	p.event(image.Event{State: image.Note, Text: "a note"})
	p.event(image.Event{State: image.Done, Step: "kernel", Text: "build the kernel", Seconds: 61.25})
	p.event(image.Event{State: image.Done, Step: "programs", Text: "compile the programs", Seconds: 0.01})
	p.close()
	if want := "a note\nbuild the kernel: 61.2 s\n"; out.String() != want {
		t.Errorf("without a terminal it prints %q; want %q", out.String(), want)
	}
	for _, c := range []struct {
		event image.Event
		want  string
	}{
		{image.Event{Done: 1_500_000, Total: 3_000_000, Unit: "bytes"}, "1.5 of 3.0 MB"},
		{image.Event{Done: 17, Total: 2150, Unit: "objects"}, "17 of 2150 objects"},
	} {
		if got := amount(c.event); got != c.want {
			t.Errorf("amount(%v) = %q; want %q", fmt.Sprint(c.event), got, c.want)
		}
	}
}
