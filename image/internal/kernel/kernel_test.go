package kernel

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"appplatform/archive"
	"appplatform/internal/cache"
	"appplatform/internal/testtools"
	"appplatform/tooltree"
)

func TestMerge(t *testing.T) {
	options, err := merge([]Fragment{
		{"common", "# Networks.\nCONFIG_NET=y\n\n  # CONFIG_WIRELESS is not set\n"},
		{"board", "CONFIG_CMDLINE=\"a=b c\"\nCONFIG_HZ=250"},
	})
	want := []option{
		{"CONFIG_NET", "y", "common:2"},
		{"CONFIG_WIRELESS", "n", "common:4"},
		{"CONFIG_CMDLINE", `"a=b c"`, "board:1"},
		{"CONFIG_HZ", "250", "board:2"},
	}
	if err != nil || !slices.Equal(options, want) {
		t.Errorf("merge() = %v, %v; want %v", options, err, want)
	}
}

func TestMergeRefuses(t *testing.T) {
	for _, c := range []struct {
		name, board, want string
	}{
		{"set in another file", "\nCONFIG_NET=y", "board:2: CONFIG_NET is already set in common:1"},
		{"set otherwise in another file", "# CONFIG_NET is not set", "board:1: CONFIG_NET is already set in common:1"},
		{"set twice in a file", "CONFIG_A=y\nCONFIG_B=y\nCONFIG_A=n", "board:3: CONFIG_A is already set in board:1"},
		{"no name", "NET=y", `board:1: "NET=y" is not a kernel option`},
		{"no value", "CONFIG_A=", `board:1: "CONFIG_A=" is not a kernel option`},
		{"text", "CONFIG_A=y\nenable the network", `board:2: "enable the network" is not a kernel option`},
		{"no mark of a comment", "CONFIG_A is not set", `board:1: "CONFIG_A is not set" is not a kernel option`},
	} {
		if options, err := merge([]Fragment{{"common", "CONFIG_NET=y"}, {"board", c.board}}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: merge() = %v, %v; want %q", c.name, options, err, c.want)
		}
	}
}

func TestDropped(t *testing.T) {
	asked, err := merge([]Fragment{{"f", "CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_D=n\n# CONFIG_E is not set\nCONFIG_F=\"x\"\nCONFIG_G=64"}})
	if err != nil {
		t.Fatal(err)
	}
	config := "#\n# Automatically generated\n#\nCONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_C is not set\nCONFIG_E=y\nCONFIG_F=\"y\"\nCONFIG_G=64\n"
	want := []string{"f:2: CONFIG_B=y (is n)", "f:5: CONFIG_E=n (is y)", `f:6: CONFIG_F="x" (is "y")`}
	if got := dropped(asked, config); !slices.Equal(got, want) {
		t.Errorf("dropped() = %q; want %q", got, want)
	}
}

func TestDropUnfinished(t *testing.T) {
	dir := t.TempDir()
	start := time.Now().Add(-time.Hour)
	write := func(name string, minute int) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		at := start.Add(time.Duration(minute) * time.Minute)
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	write("net/whole.o", 1)
	write("net/.whole.o.cmd", 1)
	write("net/half.o", 3)
	write("net/.half.o.cmd", 1)
	write("net/new.o", 3) // without a note it is made again anyway
	write("net/.gone.o.cmd", 1)
	write(".config", 5)
	write("vmlinux", 4)
	write(".vmlinux.cmd", 2)
	if err := dropUnfinished(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"net/whole.o": true, "net/half.o": false, "net/new.o": true, "net/.gone.o.cmd": true, ".config": true, "vmlinux": false} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: %v; want it there: %v", name, err, want)
		}
	}
}

func TestKey(t *testing.T) {
	spec := Spec{Source: archive.Package{SHA256: "s"}, Arch: "x86_64", Target: "bzImage", Fragments: []Fragment{{"a", "CONFIG_A=y\n"}}}
	base := spec.Key("tools")
	same := spec
	same.Objects, same.Fragments = 5, []Fragment{{"renamed", "CONFIG_A=y\n"}}
	if got := same.Key("tools"); got != base {
		t.Errorf("Key() = %s for a guess of the objects and another file name; want %s", got, base)
	}
	if spec.Key("other tools") == base {
		t.Error("another compiler does not change the key")
	}
	for name, change := range map[string]func(*Spec){
		"source":   func(s *Spec) { s.Source.SHA256 = "t" },
		"arch":     func(s *Spec) { s.Arch = "arm" },
		"compiler": func(s *Spec) { s.Cross = "arm-" },
		"target":   func(s *Spec) { s.Target = "zImage" },
		"fragment": func(s *Spec) { s.Fragments = []Fragment{{"a", "CONFIG_A=n\n"}} },
		"order":    func(s *Spec) { s.Fragments = []Fragment{{"a", "CONFIG_A"}, {"b", "=y\n"}} },
	} {
		s := spec
		change(&s)
		if s.Key("tools") == base {
			t.Errorf("another %s does not change the key", name)
		}
	}
}

// TestRealConfiguration lets the kernel's own kconfig judge options: those of
// the repository's boards take, one that does not exist is named.
func TestRealConfiguration(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles kconfig")
	}
	c, err := cache.Default()
	if err != nil {
		t.Fatal(err)
	}
	a, err := archive.Open(t.Context(), c, "", "")
	if err != nil {
		t.Fatal(err)
	}
	res, err := a.Resolve(t.Context(), archive.Request{Arch: tooltree.Arch, Names: []string{SourcePackage}, Alone: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Fetch(t.Context(), res.Packages, nil); err != nil {
		t.Fatal(err)
	}
	b := &Builder{Cache: c, Tools: testtools.Open(t, tooltree.Kernel), SourceDeb: a.Path(res.Packages[0]), Log: func(line string) { t.Log(line) }}
	source, err := b.source(t.Context(), res.Packages[0])
	if err != nil {
		t.Fatal(err)
	}
	var fragments []Fragment
	for _, name := range []string{"boards/common.config", "boards/x86_64/kernel.config"} {
		text, err := os.ReadFile(filepath.Join("../../..", name))
		if err != nil {
			t.Fatal(err)
		}
		fragments = append(fragments, Fragment{name, string(text)})
	}
	objects := t.TempDir()
	configure := func(fragments []Fragment) error {
		asked, err := merge(fragments)
		if err != nil {
			t.Fatal(err)
		}
		m := &maker{b: b, spec: Spec{Arch: "x86_64", Fragments: fragments}, bind: map[string]string{sourceDir: source, objectDir: objects}}
		return m.configure(t.Context(), asked, objects)
	}
	if err := configure(fragments); err != nil {
		t.Errorf("the options of the repository: %v", err)
	}
	// A base of "all no" leaves out what nobody thinks of: no protection from
	// faults of processors may be among it.
	config, err := os.ReadFile(filepath.Join(objects, ".config"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(config)) {
		if strings.HasPrefix(line, "# CONFIG_MITIGATION_") {
			t.Errorf("the kernel is built without a protection: %s", line)
		}
	}
	// The second exists, but only for processors of 32 bits.
	err = configure(append(fragments, Fragment{"extra.config", "# An extra.\nCONFIG_NO_SUCH_THING=y\nCONFIG_X86_PAE=y\n"}))
	if err == nil {
		t.Fatal("an option that does not exist takes")
	}
	for _, want := range []string{"2 kernel options did not take", "extra.config:2: CONFIG_NO_SUCH_THING=y (is n)", "extra.config:3: CONFIG_X86_PAE=y (is n)", "\nhint: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("configure() = %v\nwant %q in it", err, want)
		}
	}
}
