package boot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func extlinux(t *testing.T, text string) Extlinux {
	t.Helper()
	x := Extlinux{t.TempDir()}
	if err := os.MkdirAll(filepath.Dir(x.config()), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(x.config(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return x
}

// OS-D3: one word says what boots; it changes in place and nothing else does.
func TestExtlinuxSetDefault(t *testing.T) {
	const before = "# What boots.\nDEFAULT rescue-b\r\nTIMEOUT 20\n# DEFAULT rescue-a\n"
	x := extlinux(t, before)
	info, err := os.Stat(x.config())
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		entry Entry
		want  string
	}{{System, strings.Replace(before, "rescue-b", "normal-b", 1)}, {System, strings.Replace(before, "rescue-b", "normal-b", 1)}, {Rescue, before}} {
		if err := x.SetDefault(step.entry); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(x.config())
		if err != nil || string(text) != step.want {
			t.Errorf("SetDefault(%v) makes %q, %v; want %q", step.entry, text, err, step.want)
		}
		if got, err := x.Default(); got != step.entry || err != nil {
			t.Errorf("Default() = %v, %v; want %v", got, err, step.entry)
		}
		if set, err := x.CurrentSet(); set != "b" || err != nil {
			t.Errorf("CurrentSet() = %q, %v; want b", set, err)
		}
	}
	if after, err := os.Stat(x.config()); err != nil || !os.SameFile(info, after) {
		t.Errorf("the file was replaced, %v", err)
	}
}

func TestExtlinuxRefuses(t *testing.T) {
	for _, text := range []string{
		"", "DEFAULT rescue\n", "DEFAULT rescue-c\n", "DEFAULTrescue-a\n", "# DEFAULT rescue-a\n",
		strings.Repeat("#", 505) + "\nDEFAULT rescue-a\n",
	} {
		x := extlinux(t, text)
		if _, err := x.Default(); err == nil || !strings.Contains(err.Error(), "no line \"DEFAULT rescue-a\"") {
			t.Errorf("Default() of %q = %v; want what is missing", text, err)
		}
		if err := x.SetDefault(System); err == nil {
			t.Errorf("SetDefault() of %q = nil; want an error", text)
		}
	}
}
