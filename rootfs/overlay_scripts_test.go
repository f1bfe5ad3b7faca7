package rootfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// coreDump runs the handler of the kernel with data as its /mnt/sda2.
func coreDump(t *testing.T, data string, args ...string) error {
	t.Helper()
	text, err := os.ReadFile("overlay/usr/lib/app-platform/core-dump")
	if err != nil {
		t.Fatal(err)
	}
	tools := t.TempDir()
	for name, script := range map[string]string{"mountpoint": "exit 0", "logger": "exit 0", "df": `printf 'a\n0 0 0 9999999\n'`} {
		if err := os.WriteFile(filepath.Join(tools, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := strings.NewReplacer("/mnt/sda2", data, "PATH=/usr/sbin:/usr/bin", "PATH="+tools+":/usr/bin:/bin").Replace(string(text))
	cmd := exec.Command("sh", append([]string{"-c", script, "core-dump"}, args...)...)
	cmd.Stdin = strings.NewReader("memory")
	return cmd.Run()
}

// A program chooses its own name, and its dump is written by root.
func TestCoreDump(t *testing.T) {
	data := t.TempDir()
	all := filepath.Join(data, "log/core_dumps")
	victim := filepath.Join(data, "victim")
	if err := os.MkdirAll(all, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := coreDump(t, data, "my app", "12", "1700000000"); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(all, "my_app/core.1700000000.12")
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() != 6 {
		t.Errorf("%s: %v, %v; want 6 bytes that only root reads", file, info, err)
	}
	if err := os.Mkdir(filepath.Join(all, "app"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"app/core.5.1": victim, "linked": data} {
		if err := os.Symlink(target, filepath.Join(all, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"", "1", "5"}, {".", "1", "5"}, {"..", "1", "5"}, {".profile", "1", "5"}, {"-rf", "1", "5"},
		{"app", "1", "5"}, {"app", "../1", "5"}, {"app", "", ""}, {"linked", "1", "5"},
	} {
		if err := coreDump(t, data, args...); err == nil {
			t.Errorf("core-dump %q succeeds; want a refusal", args)
		}
	}
	for _, path := range []string{victim, filepath.Join(data, "core.5.1"), filepath.Join(data, "log/core.5.1"), filepath.Join(all, "core.5.1")} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s was written", path)
		}
	}
}

// As root a script writes only where nobody else can put a link, and SSH waits
// for the passwords that count.
func TestStartScripts(t *testing.T) {
	for file, want := range map[string][2]string{
		"overlay/etc/init.d/S50postgresql":     {"memory=/run/app-platform/", "> /run/postgresql/"},
		"overlay/etc/postgresql/platform.conf": {"/run/app-platform/postgresql.conf", "/run/postgresql/memory.conf"},
		"overlay/etc/init.d/S40sshd":           {"need_data\n\tneed_passwords\n", "PermitEmptyPasswords"},
		"ramdisk/etc/init.d/rcS":               {"if [ -e /run/app-platform/passwords ]; then\n\tdropbear", "\ndropbear"},
		"overlay/etc/sysctl.conf":              {"kernel.unprivileged_bpf_disabled = 1", "kptr_restrict = 0"},
	} {
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), want[0]) || strings.Contains(string(text), want[1]) {
			t.Errorf("%s: %v; want %q and not %q in it", file, err, want[0], want[1])
		}
	}
}
