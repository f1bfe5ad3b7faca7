package grub

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
)

// OS-D2. The device changes the digit in place: the line must be within the
// first sector of the file, so that the change cannot tear.
func TestDefaultLineIsInTheFirstSector(t *testing.T) {
	const line = "\nset default=0\n"
	if n := bytes.Index(Config, []byte(line)); n < 0 || n+len(line) > 512 {
		t.Errorf("%q is at byte %d of grub.cfg; want it within the first 512", line, n)
	}
	if n := bytes.Count(Config, []byte("default=")); n != 1 {
		t.Errorf("grub.cfg sets the default %d times; want once", n)
	}
}

// OS-D1.
func TestMenuEntries(t *testing.T) {
	var got []string
	for line := range strings.Lines(string(menu)) {
		if rest, ok := strings.CutPrefix(line, "menuentry '"); ok {
			title, _, _ := strings.Cut(rest, "'")
			got = append(got, title)
		}
	}
	if len(got) != 2 || got[0] != "rescue/setup" || got[1] != "App Platform" {
		t.Errorf("the menu has %q; want rescue/setup and App Platform", got)
	}
}

// tool runs one of GRUB's programs on a file.
func tool(t *testing.T, content []byte, args ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "FILE", file)
	}
	out, err := testtools.Open(t, tooltree.Image).Output(t.Context(), tooltree.Cmd{Args: args, Writable: []string{dir}})
	return string(out), err
}

func TestConfigSyntax(t *testing.T) {
	for name, text := range map[string][]byte{"grub.cfg": Config, "menu.cfg": menu} {
		if _, err := tool(t, text, "grub-script-check", "FILE"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEnv(t *testing.T) {
	if len(Env()) != 1024 {
		t.Errorf("len(Env()) = %d; want 1024", len(Env()))
	}
	if bytes.ContainsRune(bytes.TrimRight(Env()[:512], "#"), 0) || strings.Trim(string(Env()[512:]), "#") != "" {
		t.Errorf("Env() = %q; want its variables within the first 512 bytes", Env())
	}
	got, err := tool(t, Env(), "grub-editenv", "FILE", "list")
	if err != nil || got != "set=a\n" {
		t.Errorf("grub-editenv list = %q, %v; want set=a", got, err)
	}
}

func TestMake(t *testing.T) {
	table := partitions.Factory(partitions.GPT, 16*partitions.GiB)
	tools := testtools.Open(t, tooltree.Image)
	one, err := Make(t.Context(), tools, table)
	if err != nil {
		t.Fatal(err)
	}
	two, err := Make(t.Context(), tools, table)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Boot, two.Boot) || !bytes.Equal(one.Core, two.Core) || !bytes.Equal(one.EFI, two.EFI) {
		t.Error("Make gives other bytes the second time")
	}
	if len(one.Boot) != 440 || !bytes.HasPrefix(one.EFI, []byte("MZ")) {
		t.Errorf("Make(...) has a boot sector of %d bytes and an EFI program that starts with %q; want 440 and MZ", len(one.Boot), one.EFI[:2])
	}
	t.Logf("core.img has %d bytes, %s %d", len(one.Core), EFIProgram, len(one.EFI))
}

func TestMakeNamesAPartitionThatIsTooSmall(t *testing.T) {
	table := partitions.Factory(partitions.GPT, 16*partitions.GiB)
	for i := range table.Parts {
		if table.Parts[i].Number == partitions.BIOS {
			table.Parts[i].Size = 64 * partitions.KiB
		}
	}
	_, err := Make(t.Context(), testtools.Open(t, tooltree.Image), table)
	if err == nil || !strings.Contains(err.Error(), "partition 14 has room for 64 KiB") {
		t.Errorf("Make(...) = %v; want an error that names partition 14 and its size", err)
	}
}
