package boot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/internal/extlinux"
)

func extlinuxConf(t *testing.T, text string) Extlinux {
	t.Helper()
	x := Extlinux{Dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Dir(x.config()), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(x.config(), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return x
}

// OS-D3: one word says what boots; it changes in place and nothing else does.
func TestExtlinuxSetBoot(t *testing.T) {
	const before = "# What boots.\nDEFAULT rescue-b\r\nTIMEOUT 20\n# DEFAULT rescue-a\n"
	x := extlinuxConf(t, before)
	info, err := os.Stat(x.config())
	if err != nil {
		t.Fatal(err)
	}
	as := func(word string) string { return strings.Replace(before, "rescue-b", word, 1) }
	for _, step := range []struct {
		entry Entry
		set   string
		want  string
	}{{System, "b", "normal-b"}, {System, "b", "normal-b"}, {Rescue, "a", "rescue-a"}, {System, "a", "normal-a"}, {Rescue, "b", "rescue-b"}} {
		if err := x.SetBoot(step.entry, step.set); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(x.config())
		if err != nil || string(text) != as(step.want) {
			t.Errorf("SetBoot(%v, %s) makes %q, %v; want %q", step.entry, step.set, text, err, as(step.want))
		}
		if got, err := x.Default(); got != step.entry || err != nil {
			t.Errorf("Default() = %v, %v; want %v", got, err, step.entry)
		}
		if set, err := x.CurrentSet(); set != step.set || err != nil {
			t.Errorf("CurrentSet() = %q, %v; want %s", set, err, step.set)
		}
	}
	if after, err := os.Stat(x.config()); err != nil || !os.SameFile(info, after) {
		t.Errorf("the file was replaced, %v", err)
	}
}

// Without that word the file is damaged, and made anew as images have it.
func TestExtlinuxDamaged(t *testing.T) {
	const signature = "01234567"
	for _, text := range []string{
		"", "DEFAULT rescue\n", "DEFAULT rescue-c\n", "DEFAULTrescue-a\n", "# DEFAULT rescue-a\n",
		strings.Repeat("#", 505) + "\nDEFAULT rescue-a\n",
	} {
		x := extlinuxConf(t, text)
		x.Signature = signature
		if _, err := x.Default(); err == nil || !strings.Contains(err.Error(), "no line \"DEFAULT rescue-a\"") {
			t.Errorf("Default() of %q = %v; want what is missing", text, err)
		}
		if set, err := x.CurrentSet(); set != "a" || err != nil || !x.Forgotten() {
			t.Errorf("CurrentSet() of %q = %q, %v, Forgotten() = %v; want a, and true", text, set, err, x.Forgotten())
		}
		if err := x.SetBoot(System, "b"); err != nil || get(t, x.config()+".damaged") != text {
			t.Errorf("SetBoot() of %q = %v; want it to be kept", text, err)
		}
		want := strings.Replace(string(extlinux.Config(signature)), "rescue-a", "normal-b", 1)
		if got := get(t, x.config()); got != want {
			t.Errorf("SetBoot() of %q makes\n%s\nwant\n%s", text, got, want)
		}
	}
	x := Extlinux{t.TempDir(), signature}
	if err := x.SetBoot(Rescue, "a"); err != nil || get(t, x.config()) != string(extlinux.Config(signature)) || x.Forgotten() {
		t.Errorf("SetBoot() = %v without a file and makes\n%s", err, get(t, x.config()))
	}
}
