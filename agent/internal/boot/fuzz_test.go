package boot

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// differing counts the bytes that differ, and finds the last one. Texts of
// different lengths differ everywhere.
func differing(a, b string) (n, last int) {
	if len(a) != len(b) {
		return max(len(a), len(b)), max(len(a), len(b))
	}
	for i := range a {
		if a[i] != b[i] {
			n, last = n+1, i
		}
	}
	return n, last
}

func put(t *testing.T, path, text string) {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// choices are all that SetBoot can be asked for.
var choices = []struct {
	entry Entry
	set   string
}{{System, "b"}, {System, "a"}, {Rescue, "a"}, {Rescue, "b"}}

// checkLoader asks for every choice and wants it, in a change of some bytes of
// the first sector of the configuration, or an error and no change.
func checkLoader(t *testing.T, l Loader, config string, most int) {
	_, before := l.Default()
	for _, want := range choices {
		old := get(t, config)
		err := l.SetBoot(want.entry, want.set)
		n, last := differing(old, get(t, config))
		if (err == nil) != (before == nil) {
			t.Fatalf("SetBoot() = %v, and Default() = %v of %q", err, before, old)
		}
		if n > most || last >= sector || err != nil && n > 0 {
			t.Fatalf("SetBoot() = %v makes %q of %q", err, get(t, config), old)
		}
		if err != nil {
			continue
		}
		e, err := l.Default()
		set, err2 := l.CurrentSet()
		if e != want.entry || set != want.set || err != nil || err2 != nil {
			t.Fatalf("SetBoot(%v, %s) makes %v of %q boot: %v, %v", want.entry, want.set, e, set, err, err2)
		}
	}
}

// grubDefault is a default that GRUB takes for one of our two entries.
var grubDefault = regexp.MustCompile(`(?m)^[ \t]*set default=["']*([01])(?:["';\s]|$)`)

// Whatever is in grub.cfg and grubenv, what was set is what is read, and a file
// that cannot be understood is kept beside a new one.
func FuzzGRUB(f *testing.F) {
	g := GRUB{f.TempDir()}
	if err := os.MkdirAll(filepath.Dir(g.config()), 0o755); err != nil {
		f.Fatal(err)
	}
	const env = "# GRUB Environment Block\nset=b\n"
	f.Add("set default=0\nset timeout=2\n", env+strings.Repeat("#", environmentSize-len(env)))
	f.Add("# set default=9\n\n  set default=\"1\"\r\n", "set=x\n")
	f.Add(strings.Repeat("#", 498)+"\nset default=0", "")
	f.Add(strings.Repeat("#", 498)+"\nset default=10", "")
	f.Fuzz(func(t *testing.T, config, env string) {
		put(t, g.config(), config)
		put(t, g.environment(), env)
		e, err := g.Default()
		if err == nil && e != Rescue && e != System {
			t.Fatalf("Default() = %d of %q", e, config)
		}
		set, err2 := g.CurrentSet()
		if err2 != nil || set != "a" && set != "b" {
			t.Fatalf("CurrentSet() = %q, %v of %q", set, err2, env)
		}
		if m := grubDefault.FindStringSubmatch(config); err == nil && (m == nil || m[1] != strconv.Itoa(int(e))) {
			t.Fatalf("Default() = %v of %q", e, config)
		}
		if err != nil {
			if err := g.SetBoot(System, set); err != nil || get(t, g.config()+".damaged") != config {
				t.Fatalf("SetBoot() = %v of the damaged %q", err, config)
			}
		}
		checkLoader(t, g, g.config(), 1)
		if n, last := differing(env, get(t, g.environment())); err == nil && n > 1 && len(get(t, g.environment())) < environmentSize {
			t.Errorf("the environment block %q became %q: %d bytes, the last at %d", env, get(t, g.environment()), n, last)
		}
	})
}

// The same for extlinux.conf: and a word that goes on in the second sector is
// not one that ends with the first.
func FuzzExtlinux(f *testing.F) {
	x := Extlinux{Dir: f.TempDir()}
	if err := os.MkdirAll(filepath.Dir(x.config()), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Add("DEFAULT rescue-a\nTIMEOUT 20\n")
	f.Add("# DEFAULT rescue-a\n\t DEFAULT  normal-b \r\nDEFAULT rescue-a")
	f.Add(strings.Repeat("#", 495) + "\nDEFAULT rescue-a\n")
	f.Add(strings.Repeat("#", 495) + "\nDEFAULT rescue-ab\n")
	f.Fuzz(func(t *testing.T, config string) {
		put(t, x.config(), config)
		l, err := x.read()
		if whole, ok := findDefault([]byte(config)); err == nil && (!ok || whole != l) {
			t.Fatalf("read() = %+v; want %+v of %q", l, whole, config)
		}
		set, err2 := x.CurrentSet()
		if err2 != nil || x.Forgotten() != (err != nil) || err != nil && set != "a" {
			t.Fatalf("CurrentSet() = %q, %v, Forgotten() = %v and Default() = %v", set, err2, x.Forgotten(), err)
		}
		if err != nil {
			if err := x.SetBoot(System, set); err != nil || get(t, x.config()+".damaged") != config {
				t.Fatalf("SetBoot() = %v of the damaged %q", err, config)
			}
		}
		checkLoader(t, x, x.config(), len("rescue-a"))
	})
}
