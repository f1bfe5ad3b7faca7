package boot

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func grubWith(t *testing.T, config, env string) GRUB {
	t.Helper()
	g := GRUB{t.TempDir()}
	dir := filepath.Dir(g.config())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"grub.cfg": config, "grubenv": env} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// OS-D2: the line may have been edited by hand.
func TestSetBoot(t *testing.T) {
	tests := []struct {
		name, config, want string
		e                  Entry
	}{
		{"rescue to system", "set default=0\nset timeout=2\n", "set default=1\nset timeout=2\n", System},
		{"system to rescue", "set default=1\n", "set default=0\n", Rescue},
		{"already so", "set default=1\n", "set default=1\n", System},
		{"behind comments", "# set default=9\n\n  set default=0\n", "# set default=9\n\n  set default=1\n", System},
		{"quoted", "set default=\"0\"\n", "set default=\"1\"\n", System},
		{"only the first", "set default=0\nset default=0\n", "set default=1\nset default=0\n", System},
		{"no line end", "set default=0", "set default=1", System},
	}
	for _, test := range tests {
		g := grubWith(t, test.config, "")
		var before, after syscall.Stat_t
		if err := syscall.Stat(g.config(), &before); err != nil {
			t.Fatal(err)
		}
		if err := g.SetBoot(test.e, "a"); err != nil {
			t.Errorf("%s: SetBoot(%v) = %v", test.name, test.e, err)
		}
		got, err := os.ReadFile(g.config())
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != test.want {
			t.Errorf("%s: the file is %q; want %q", test.name, got, test.want)
		}
		if e, err := g.Default(); err != nil || e != test.e {
			t.Errorf("%s: Default() = %v, %v; want %v", test.name, e, err, test.e)
		}
		if err := syscall.Stat(g.config(), &after); err != nil {
			t.Fatal(err)
		}
		if before.Ino != after.Ino || before.Size != after.Size {
			t.Errorf("%s: the file was replaced or has another size", test.name)
		}
	}
}

// GRUB starts the rescue system when its file is damaged or gone. The file is
// made anew; what somebody may have written there stays beside it.
func TestSetBootMendsTheConfig(t *testing.T) {
	for name, config := range map[string]string{
		"no line":           "set timeout=2\n",
		"another entry":     "set default=7\n",
		"in another sector": strings.Repeat("#", 512) + "\nset default=0\n",
		"empty":             "",
		"zeros":             strings.Repeat("\x00", 600),
	} {
		g := grubWith(t, config, "")
		if _, err := g.Default(); err == nil || !strings.Contains(err.Error(), "no line") {
			t.Errorf("%s: Default() = %v; want an error", name, err)
		}
		if err := g.SetBoot(System, "a"); err != nil {
			t.Errorf("%s: SetBoot() = %v", name, err)
		}
		if e, err := g.Default(); e != System || err != nil {
			t.Errorf("%s: Default() = %v, %v; want the system", name, e, err)
		}
		if got, _ := os.ReadFile(g.config() + ".damaged"); string(got) != config {
			t.Errorf("%s: the file was kept as %q", name, got)
		}
	}
	g := GRUB{t.TempDir()}
	if err := g.SetBoot(System, "b"); err != nil {
		t.Errorf("no files: SetBoot() = %v", err)
	}
	e, err := g.Default()
	set, err2 := g.CurrentSet()
	if e != System || set != "b" || err != nil || err2 != nil {
		t.Errorf("no files: %v of set %s, %v, %v", e, set, err, err2)
	}
}

func TestCurrentSet(t *testing.T) {
	for env, want := range map[string]string{
		"# GRUB Environment Block\nset=a\n####": "a",
		"# GRUB Environment Block\nset=b\n####": "b",
		"# GRUB Environment Block\n####":        "a",
		"set=../x\n":                            "a",
	} {
		g := grubWith(t, "", env)
		if got, err := g.CurrentSet(); err != nil || got != want {
			t.Errorf("CurrentSet() with %q = %q, %v; want %q", env, got, err, want)
		}
		if got, want := g.Forgotten(), !strings.Contains(env, "set="+want+"\n"); got != want {
			t.Errorf("Forgotten() with %q = %v; want %v", env, got, want)
		}
	}
}

// An image's system becomes the default after its set, and stops to be it
// before: in between, a rescue system boots.
func TestSetBootChangesTheSet(t *testing.T) {
	const env = "# GRUB Environment Block\nset=a\n###"
	g := grubWith(t, "set default=0\n", env)
	for _, step := range []struct {
		entry Entry
		set   string
	}{{System, "a"}, {Rescue, "a"}, {System, "b"}, {System, "b"}, {Rescue, "b"}, {Rescue, "a"}} {
		if err := g.SetBoot(step.entry, step.set); err != nil {
			t.Fatal(err)
		}
		e, err := g.Default()
		set, err2 := g.CurrentSet()
		if e != step.entry || set != step.set || err != nil || err2 != nil {
			t.Errorf("SetBoot(%v, %s) makes %v of %s boot (%v, %v)", step.entry, step.set, e, set, err, err2)
		}
		if got, err := os.ReadFile(g.environment()); err != nil || string(got) != strings.Replace(env, "set=a", "set="+step.set, 1) {
			t.Errorf("the environment block is %q, %v", got, err)
		}
	}
	// When one of the two writes fails, the system of the other set does not boot.
	for _, entry := range []Entry{System, Rescue} {
		g := grubWith(t, fmt.Sprintf("set default=%d\n", System-entry), env)
		broken := map[Entry]string{System: g.config(), Rescue: g.environment()}[entry]
		if err := os.Remove(broken); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(broken, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := g.SetBoot(entry, "b"); err == nil {
			t.Errorf("SetBoot(%v, b) = nil although %s cannot be written", entry, broken)
		}
		if e, err := g.Default(); entry == Rescue && (e != Rescue || err != nil) {
			t.Errorf("SetBoot(%v, b) left %v as the default, %v", entry, e, err)
		}
		if set, err := g.CurrentSet(); entry == System && (set != "b" || err != nil) {
			t.Errorf("SetBoot(%v, b) left set %s, %v", entry, set, err)
		}
	}
}

// A damaged environment block means set a to GRUB; it is made anew.
func TestSetBootMendsTheEnvironment(t *testing.T) {
	for _, env := range []string{"", strings.Repeat("\x00", environmentSize), "set=x\n"} {
		g := grubWith(t, "set default=0\n", env)
		if err := g.SetBoot(System, "b"); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(g.environment())
		if want := "# GRUB Environment Block\nset=b\n#####"; err != nil || len(got) != environmentSize || !strings.HasPrefix(string(got), want) {
			t.Errorf("%q became %.40q (%d bytes), %v", env, got, len(got), err)
		}
	}
}
