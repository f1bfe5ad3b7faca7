package boot

import (
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
func TestSetDefault(t *testing.T) {
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
		if err := g.SetDefault(test.e); err != nil {
			t.Errorf("%s: SetDefault(%v) = %v", test.name, test.e, err)
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

func TestSetDefaultRefuses(t *testing.T) {
	for name, config := range map[string]string{
		"no line":           "set timeout=2\n",
		"another entry":     "set default=7\n",
		"in another sector": strings.Repeat("#", 512) + "\nset default=0\n",
		"empty":             "",
	} {
		g := grubWith(t, config, "")
		if err := g.SetDefault(System); err == nil || !strings.Contains(err.Error(), "no line") {
			t.Errorf("%s: SetDefault() = %v; want an error", name, err)
		}
		if got, _ := os.ReadFile(g.config()); string(got) != config {
			t.Errorf("%s: the file was changed to %q", name, got)
		}
	}
}

func TestCurrentSet(t *testing.T) {
	for env, want := range map[string]string{
		"# GRUB Environment Block\nset=a\n####": "a",
		"# GRUB Environment Block\nset=b\n####": "b",
		"# GRUB Environment Block\n####":        "a",
		"set=../x\n":                            "a",
	} {
		if got, err := grubWith(t, "", env).CurrentSet(); err != nil || got != want {
			t.Errorf("CurrentSet() with %q = %q, %v; want %q", env, got, err, want)
		}
	}
}
