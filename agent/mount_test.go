package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"appplatform/agent/internal/block"
	"appplatform/agent/internal/boot"
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
	// As earlier images made it.
	must(t, os.Chmod(m.path("content/mnt/sda2/log/core_dumps"), 0o777|os.ModeSticky))
	must(t, Mount(t.Context(), m.Machine))
	want := []string{
		"swapon sda4", // Before a check needs the memory.
		"e2fsck sda1",
		"mount /dev/sda1 /mnt/sda1 ext4 sync",
		"mount /mnt/sda1/boot /boot bind",
		"e2fsck sda2",
		"mount /dev/sda2 /mnt/sda2 ext4",
		"mount overlay /etc overlay lowerdir=/etc,upperdir=/mnt/sda2/etc-overlay/upper,workdir=/mnt/sda2/etc-overlay/work",
		"mount overlay /var/lib overlay lowerdir=/var/lib,upperdir=/mnt/sda2/var-lib-overlay/upper,workdir=/mnt/sda2/var-lib-overlay/work",
		"mount /mnt/sda2/home /home bind",
		"mount /mnt/sda2/apps /apps bind",
		"mount /mnt/sda2/log /var/log bind",
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
	if err != nil || info.Mode().Perm() != 0o750 || info.Mode()&os.ModeSticky != 0 {
		t.Errorf("log/core_dumps: %v, %v; want a folder that only root enters", info, err)
	}
	if info, err := os.Stat(m.path("content/" + updateDir)); err != nil || !info.IsDir() {
		t.Errorf("what an update on a full disk needs: %v", err)
	}
	if !m.sshAllowed() {
		t.Error("SSH is not allowed")
	}
}

// A folder that is new in an image and cannot be made does not keep /etc from
// being the changed one.
func TestMountWithoutAFolder(t *testing.T) {
	m := installedMachine(t)
	must(t, os.Rename(m.path("content/mnt/sda2/log"), m.path("content/mnt/sda2/log.away")))
	must(t, os.WriteFile(m.path("content/mnt/sda2/log"), nil, 0o644)) // in the way
	if err := Mount(t.Context(), m.Machine); err == nil || !strings.Contains(err.Error(), "cannot make the folders of the data partition") {
		t.Errorf("Mount() = %v; want which folder is missing", err)
	}
	for _, want := range []string{"mount overlay /etc", "mount /mnt/sda2/home /home"} {
		if !m.ran(want) {
			t.Errorf("no %q:\n%s", want, strings.Join(m.events, "\n"))
		}
	}
	if !m.sshAllowed() {
		t.Error("SSH is not allowed")
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
	m.Kernel = m
	must(t, Mount(t.Context(), m.Machine)) // By hand; /etc is still in memory.
	if m.sshAllowed() {
		t.Error("SSH is allowed with the passwords of the image")
	}
}

// sshAllowed is what the start scripts look at.
func (m *testMachine) sshAllowed() bool {
	_, err := os.Stat(m.path(passwordsFile))
	return err == nil
}

// Changed passwords that cannot be read must not be replaced by those of the
// image while SSH is open.
func TestPasswordsDecideOverSSH(t *testing.T) {
	fails := func(target string) func(*testMachine) {
		return func(m *testMachine) { m.Kernel = failingMount{m, target, errors.New("broken")} }
	}
	tests := []struct {
		name    string
		ramdisk bool
		prepare func(m *testMachine)
		want    bool // SSH
		wantErr bool
	}{
		{"system", false, func(*testMachine) {}, true, false},
		{"system without sda1", false, fails("/" + bootDir), true, true},
		{"system without sda2", false, fails("/" + dataDir), false, true},
		{"system without /etc", false, fails("/etc"), false, true},
		{"system without disk", false, func(m *testMachine) { must(m.t, os.RemoveAll(m.path("sys/class/block/sda"))) }, false, true},
		{"rescue", true, func(*testMachine) {}, true, false},
		{"rescue without sda1", true, fails("/" + bootDir), true, true},
		{"rescue without /boot", true, fails("/boot"), true, true},
		{"rescue without sda2", true, fails("/" + dataDir), false, true},
		{"rescue, unreadable passwords", true, func(m *testMachine) {
			shadow := m.path("content/mnt/sda2/" + etcUpper + "/shadow")
			must(m.t, errors.Join(os.Remove(shadow), os.Mkdir(shadow, 0o755)))
		}, false, true},
		{"rescue without disk", true, func(m *testMachine) { must(m.t, os.RemoveAll(m.path("sys/class/block/sda"))) }, false, false},
		{"image written over data", true, func(m *testMachine) {
			writes, err := partitions.Factory(partitions.GPT, 16*partitions.GiB).GPTWrites(nil)
			must(m.t, err)
			for _, w := range writes {
				if w.Offset < partitions.HeadSize {
					m.writeDisk(int64(w.Offset), w.Data)
				}
			}
			m.start()
			m.Ramdisk = true
		}, false, false},
	}
	for _, test := range tests {
		m := installedMachine(t)
		must(t, os.RemoveAll(m.path("run/app-platform")))
		writeFiles(t, m.path("content/mnt/sda2/"+etcUpper), map[string]string{"shadow": "root:changed:"})
		m.Ramdisk = test.ramdisk
		test.prepare(m)
		err := Mount(t.Context(), m.Machine)
		if m.sshAllowed() != test.want || (err != nil) != test.wantErr {
			t.Errorf("%s: SSH allowed = %v, Mount() = %v; want %v, error %v", test.name, m.sshAllowed(), err, test.want, test.wantErr)
		}
		text, _ := os.ReadFile(m.path("etc/shadow"))
		if test.ramdisk && test.want && string(text) != "root:changed:" {
			t.Errorf("%s: etc/shadow is %q; want that of the system", test.name, text)
		}
	}
}

// What e2fsck cannot repair is not written to: sda2 is missing then, sda1 is
// read-only.
func TestMountNeverWritesToBroken(t *testing.T) {
	for _, broken := range []string{"sda1", "sda2"} {
		m := installedMachine(t)
		m.Run = func(ctx context.Context, name string, args ...string) error {
			if filepath.Base(args[len(args)-1]) == broken {
				return fmt.Errorf("wrapped: %w", &run.ExitError{Name: "e2fsck", Code: 4})
			}
			return m.runTool(ctx, name, args...)
		}
		err := Mount(t.Context(), m.Machine)
		if broken == "sda1" && (err != nil || !m.ran("mount /dev/sda1 /mnt/sda1 ext4 sync ro")) {
			t.Errorf("sda1 is broken: Mount() = %v, %q; want it read-only", err, m.events)
		}
		if broken == "sda1" && !strings.Contains(m.out.String(), "cannot repair sda1") {
			t.Errorf("the console does not name sda1:\n%s", m.out.String())
		}
		if broken == "sda1" {
			// What boots can be chosen all the same, and that is all.
			must(t, m.setDefault(boot.Rescue))
			if last := m.events[len(m.events)-1]; !strings.HasSuffix(last, "remount 0x401 sync") {
				t.Errorf("after that sda1 stays writable: %q", m.events)
			}
		}
		if broken == "sda2" {
			if err == nil || !strings.Contains(Explain(err), "cannot repair sda2") || !strings.Contains(Explain(err), "\nhint: ") {
				t.Errorf("sda2 is broken: Mount() = %v; want a message with a hint", err)
			}
			if m.Mounted("/"+dataDir) || !m.Mounted("/etc") || m.sshAllowed() {
				t.Errorf("sda2 is broken: mounted %v, SSH %v; want /etc in memory and no SSH", m.mounted, m.sshAllowed())
			}
		}
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

// Without a disk, the ramdisk waits for it once and says so once, on all
// consoles; who looks by hand is told too.
func TestMountRescueWithoutDisk(t *testing.T) {
	m := newMachine(t, "sda", 4*partitions.GiB)
	must(t, os.RemoveAll(m.path("sys/class/block/sda")))
	must(t, Mount(t.Context(), m.Machine))
	m.Patience = time.Hour
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := Start(ctx, m.Machine, nobody{}); !errors.Is(err, errNoDisk) {
		t.Errorf("Start() = %v; want %v at once", err, errNoDisk)
	}
	m.Patience = 0
	if err := Mount(t.Context(), m.Machine); !errors.Is(err, errNoDisk) {
		t.Errorf("second Mount() = %v; want %v", err, errNoDisk)
	}
}

// Before the installation, nothing is touched.
func TestMountBeforeInstall(t *testing.T) {
	m := newMachine(t, "sda", 4*partitions.GiB)
	must(t, Mount(t.Context(), m.Machine))
	if len(m.events) > 0 {
		t.Errorf("Mount() did %v", m.events)
	}
	if !m.sshAllowed() {
		t.Error("SSH is not allowed, though the passwords of the image count")
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
		name    string
		careful int
		force   []int // the statuses with every repair allowed
		wantErr bool
	}{
		{"clean", 0, nil, false},
		{"repaired", 1, nil, false},
		{"repaired, reboot", 3, nil, false},
		{"left errors, then repaired", 4, []int{1}, false},
		{"left errors always", 4, []int{4, 4}, true},
		{"superblock from a copy", 8, []int{1}, false},
		{"superblock from a copy that the kernel wrote", 8, []int{12, 1}, false},
		{"unreadable", 8, []int{8, 8}, true},
	}
	for _, test := range tests {
		m := newMachine(t, "sda", 4*partitions.GiB)
		forced := 0
		m.Run = func(_ context.Context, _ string, args ...string) error {
			code := test.careful
			if strings.Contains(strings.Join(args, " "), "-y") {
				code = test.force[forced]
				forced++
			}
			if code == 0 {
				return nil
			}
			return fmt.Errorf("wrapped: %w", &run.ExitError{Name: "e2fsck", Code: code})
		}
		err := m.checkFS(t.Context(), disk{Disk: block.Disk{Name: "sda"}}, partitions.Data)
		if (err != nil) != test.wantErr || forced != len(test.force) {
			t.Errorf("%s: checkFS() = %v, every repair allowed %d times; want error %v, %d", test.name, err, forced, test.wantErr, len(test.force))
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
