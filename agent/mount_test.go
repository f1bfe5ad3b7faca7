package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"appplatform/internal/run"
	"appplatform/partitions"
)

// installedMachine has been installed and is about to start the system.
func installedMachine(t *testing.T) *testMachine {
	t.Helper()
	m := newMachine(t, "sda", 4*partitions.GiB)
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.start()
	m.Ramdisk = false
	writeFiles(t, m.Root, map[string]string{"var/lib/.empty": "", "boot/.empty": ""})
	return m
}

// OS-B5, OS-F4.
func TestMountSystem(t *testing.T) {
	m := installedMachine(t)
	must(t, Mount(t.Context(), m.Machine))
	want := []string{
		"e2fsck sda1",
		"mount /dev/sda1 /mnt/sda1 ext4",
		"mount /mnt/sda1/boot /boot bind",
		"e2fsck sda2",
		"mount /dev/sda2 /mnt/sda2 ext4",
		"mount overlay /etc overlay lowerdir=/etc,upperdir=/mnt/sda2/etc-overlay/upper,workdir=/mnt/sda2/etc-overlay/work",
		"mount overlay /var/lib overlay lowerdir=/var/lib,upperdir=/mnt/sda2/var-lib-overlay/upper,workdir=/mnt/sda2/var-lib-overlay/work",
		"mount /mnt/sda2/home /home bind",
		"mount /mnt/sda2/apps /apps bind",
		"mount /mnt/sda2/log /var/log bind",
		"swapon sda4",
	}
	var got []string
	for _, e := range m.events {
		if !strings.HasPrefix(e, "add ") {
			got = append(got, e)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Mount differs (-want +got):\n%s", diff)
	}
	if _, err := os.Stat(m.path("content/mnt/sda2/home/admin/.profile")); err != nil {
		t.Errorf("the image's home folders are not on sda2: %v", err)
	}
	info, err := os.Stat(m.path("content/mnt/sda2/log/core_dumps"))
	if err != nil || info.Mode()&os.ModeSticky == 0 {
		t.Errorf("log/core_dumps: %v, %v; want a folder everybody may write", info, err)
	}
}

// Without sda2 the system still comes up to a login, and says why.
func TestMountWithoutData(t *testing.T) {
	m := installedMachine(t)
	broken := errors.New("the disk is broken")
	m.Kernel = failingMount{m, "/" + dataDir, broken}
	err := Mount(t.Context(), m.Machine)
	if !errors.Is(err, broken) {
		t.Errorf("Mount() = %v; want %v", err, broken)
	}
	for _, target := range []string{"/etc", "/var/lib", "/home", "/apps", "/var/log"} {
		if !m.Mounted(target) {
			t.Errorf("%s is not writable", target)
		}
	}
	text, err := os.ReadFile(m.path(noDataFile))
	if err != nil || !strings.Contains(string(text), broken.Error()) {
		t.Errorf("/%s is %q, %v; want the reason", noDataFile, text, err)
	}
	if !strings.Contains(m.out.String(), "hint: start the rescue entry") {
		t.Errorf("the console does not say what to do:\n%s", m.out.String())
	}
}

type failingMount struct {
	Kernel
	target string
	err    error
}

func (f failingMount) Mount(source, target, fstype string, flags uintptr, data string) error {
	if target == f.target {
		return f.err
	}
	return f.Kernel.Mount(source, target, fstype, flags, data)
}

// OS-D4: the settings of the installed system count in the ramdisk.
func TestMountRescue(t *testing.T) {
	m := installedMachine(t)
	m.Ramdisk = true
	upper := m.path("content/mnt/sda2/" + etcUpper)
	writeFiles(t, upper, map[string]string{"shadow": "root:changed:", "network.json": "{}\n", "passwd": "not taken"})
	must(t, os.Chmod(filepath.Join(upper, "shadow"), 0o640))
	must(t, Mount(t.Context(), m.Machine))
	text, err := os.ReadFile(m.path("etc/shadow"))
	must(t, err)
	info, err := os.Stat(m.path("etc/shadow"))
	must(t, err)
	if string(text) != "root:changed:" || info.Mode().Perm() != 0o640 {
		t.Errorf("etc/shadow is %q with mode %v", text, info.Mode())
	}
	if _, err := os.Stat(m.path("etc/passwd")); err == nil {
		t.Error("etc/passwd was taken over too")
	}
	if m.Mounted("/"+dataDir) || !m.Mounted("/"+bootDir) || !m.Mounted("/boot") {
		t.Errorf("mounted: %v; want sda1 and /boot, and not sda2", m.mounted)
	}
}

// Before the installation, nothing is touched.
func TestMountBeforeInstall(t *testing.T) {
	m := newMachine(t, "sda", 4*partitions.GiB)
	must(t, Mount(t.Context(), m.Machine))
	if len(m.events) > 0 {
		t.Errorf("Mount() did %v", m.events)
	}
}

// A power cut between the switch and the end of the installation.
func TestMountEndsInstall(t *testing.T) {
	for entry, ended := range map[string]bool{"1": true, "0": false} {
		m := installedMachine(t)
		writeFiles(t, m.path("content/mnt"), map[string]string{
			"sda2/.installing": "", "sda1/boot/grub/grub.cfg": "set default=" + entry + "\n"})
		must(t, Mount(t.Context(), m.Machine))
		_, err := os.Stat(m.path("content/mnt/sda2/.installing"))
		if os.IsNotExist(err) != ended {
			t.Errorf("default=%s: ended = %v; want %v", entry, os.IsNotExist(err), ended)
		}
	}
}

// OS-F2: e2fsck's exit statuses, as its manual lists them.
func TestCheckFS(t *testing.T) {
	tests := []struct {
		name           string
		careful, force int
		wantForce      bool
		wantErr        bool
	}{
		{"clean", 0, 0, false, false},
		{"repaired", 1, 0, false, false},
		{"repaired, reboot", 3, 0, false, false},
		{"left errors, then repaired", 4, 1, true, false},
		{"left errors twice", 4, 4, true, true},
		{"superblock from a copy", 8, 1, true, false},
		{"unreadable", 8, 8, true, true},
	}
	for _, test := range tests {
		m := newMachine(t, "sda", 4*partitions.GiB)
		forced := false
		m.Run = func(_ context.Context, _ string, args ...string) error {
			code := test.careful
			if strings.Contains(strings.Join(args, " "), "-y") {
				forced, code = true, test.force
			}
			if code == 0 {
				return nil
			}
			return fmt.Errorf("wrapped: %w", &run.ExitError{Name: "e2fsck", Code: code})
		}
		err := m.checkFS(t.Context(), "/dev/sda2")
		if (err != nil) != test.wantErr || forced != test.wantForce {
			t.Errorf("%s: checkFS() = %v, every repair allowed: %v; want error %v, %v", test.name, err, forced, test.wantErr, test.wantForce)
		}
	}
}

// An entry that a power cut left half copied is copied again; one that exists
// is left alone.
func TestCopyMissing(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	writeFiles(t, from, map[string]string{"admin/.profile": "new", "root/x": "new"})
	must(t, os.Symlink("root/x", filepath.Join(from, "link")))
	must(t, os.Chmod(filepath.Join(from, "root"), 0o700))
	writeFiles(t, to, map[string]string{"admin/mine": "kept", ".root.part/half": ""})
	must(t, copyMissing(from, to))
	must(t, copyMissing(from, to))
	var got []string
	must(t, filepath.WalkDir(to, func(path string, e os.DirEntry, err error) error {
		must(t, err)
		info, err := e.Info()
		must(t, err)
		if rel, _ := filepath.Rel(to, path); rel != "." {
			got = append(got, fmt.Sprintf("%s %v", rel, info.Mode()))
		}
		return nil
	}))
	want := []string{"admin drwxr-xr-x", "admin/mine -rw-r--r--", "link Lrwxrwxrwx", "root drwx------", "root/x -rw-r--r--"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("copyMissing differs (-want +got):\n%s", diff)
	}
}

func TestLoggedIn(t *testing.T) {
	tests := []struct {
		name  string
		stats []string
		want  bool
	}{
		{"server only", []string{"1 (init) S 0 1", "90 (dropbear) S 1 90"}, false},
		{"connection without login", []string{"90 (dropbear) S 1 90", "95 (dropbear) S 90 95"}, false},
		{"login", []string{"90 (dropbear) S 1 90", "95 (dropbear) S 90 95", "96 (-sh) S 95 96"}, true},
		{"odd name", []string{"90 (dropbear) S 1 90", "95 (a) S 90 (b) S 1 1"}, false},
		{"none", nil, false},
	}
	for _, test := range tests {
		proc := t.TempDir()
		for _, stat := range test.stats {
			pid, _, _ := strings.Cut(stat, " ")
			writeFiles(t, proc, map[string]string{pid + "/stat": stat + " 0 0\n"})
		}
		if got := loggedIn(proc); got != test.want {
			t.Errorf("%s: loggedIn() = %v; want %v", test.name, got, test.want)
		}
	}
}

func TestStatus(t *testing.T) {
	m := installedMachine(t)
	must(t, Mount(t.Context(), m.Machine))
	s := GetStatus(t.Context(), m.Machine)
	if s.BootDefault != "system" || s.Trial != "committed" || s.InstallLog != finished || s.Disk != "/dev/sda" || len(s.Partitions) != 6 {
		t.Errorf("GetStatus() = %+v", s)
	}
	if diff := cmp.Diff([]SetStatus{{"a", "160001", true}}, s.Sets); diff != "" {
		t.Errorf("the sets differ (-want +got):\n%s", diff)
	}
	if len(s.Problems) > 0 {
		t.Errorf("problems: %q", s.Problems)
	}
	var b strings.Builder
	s.Print(&b)
	for _, want := range []string{"image         160001", "set a         160001 (current)", "boot default  system", "2 /dev/sda2        data"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the text lacks %q:\n%s", want, b.String())
		}
	}
}
