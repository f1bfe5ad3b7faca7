package rootfs

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// coreDump runs the handler of the kernel with data as its /mnt/sda2.
func coreDump(t *testing.T, data string, args ...string) error {
	t.Helper()
	return smallCoreDump(t, data, 6, 1<<40, args...)
}

// smallCoreDump does so for a program with so many bytes of memory on a disk
// with so much room for dumps. All its limits are in KiB instead of MiB.
func smallCoreDump(t *testing.T, data string, memory, room int64, args ...string) error {
	t.Helper()
	text, err := os.ReadFile("overlay/usr/lib/app-platform/core-dump")
	if err != nil {
		t.Fatal(err)
	}
	tools := t.TempDir()
	// The script counts what these say in MiB, and here it is KiB.
	used := fmt.Sprintf(`used=$(find %s -type f -printf '%%s\n' | awk '{ n += $1 } END { print n + 0 }'); `, filepath.Join(data, "log"))
	for name, script := range map[string]string{"mountpoint": "exit 0", "logger": "exit 0",
		"df": used + fmt.Sprintf(`printf 'a\n0 0 0 %%d\n' $((%d - used))`, room), "du": used + "echo $used",
	} {
		if err := os.WriteFile(filepath.Join(tools, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script := strings.NewReplacer("/mnt/sda2", data, "/run/core-dump.lock", filepath.Join(data, "lock"), "bs=1048576", "bs=1024",
		"PATH=/usr/sbin:/usr/bin", "PATH="+tools+":/usr/bin:/bin").Replace(string(text))
	cmd := exec.Command("sh", append([]string{"-c", script, "core-dump"}, args...)...)
	cmd.Stdin = io.LimitReader(zeros{}, memory)
	return cmd.Run()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }

// Number and size of dumps are bounded, and a full disk gets none.
func TestCoreDumpsAreBounded(t *testing.T) {
	const kib = 1024
	type dump struct {
		program string
		size    int64 // in KiB
	}
	many := func(n int, programs int, size int64) (dumps []dump) {
		for i := range n {
			dumps = append(dumps, dump{fmt.Sprintf("p%d", i%programs), size})
		}
		return dumps
	}
	tests := []struct {
		name  string
		room  int64 // in KiB
		dumps []dump
		want  string // their times
	}{
		{"three of a program", 1 << 30, many(5, 1, 1), "2 3 4"},
		{"ten of all", 1 << 30, many(14, 7, 1), "4 5 6 7 8 9 10 11 12 13"},
		{"too large", 1 << 30, []dump{{"a", 1}, {"b", 1025}, {"c", 1}}, "0 2"},
		{"just not too large", 1 << 30, []dump{{"a", 1024}}, "0"},
		{"too many bytes", 1 << 30, []dump{{"a", 600}, {"b", 600}, {"c", 600}, {"d", 600}}, "2 3"},
		{"old ones make room", 1700, []dump{{"a", 100}, {"b", 100}, {"c", 700}}, "1 2"},
		{"as large as there is room", 1024, []dump{{"a", 400}}, "0"},
		{"larger than there is room", 1024, []dump{{"a", 600}}, ""},
		{"hardly any room", 560, []dump{{"a", 1}}, ""},
		{"no room", 100, []dump{{"a", 1}}, ""},
	}
	for _, test := range tests {
		data := t.TempDir()
		all := filepath.Join(data, "log/core_dumps")
		if err := os.MkdirAll(all, 0o750); err != nil {
			t.Fatal(err)
		}
		for i, d := range test.dumps {
			_ = smallCoreDump(t, data, d.size*kib, test.room*kib, d.program, "1", fmt.Sprint(i))
		}
		files, err := filepath.Glob(all + "/*/*")
		if err != nil {
			t.Fatal(err)
		}
		var times []int
		for _, f := range files {
			n, _ := strconv.Atoi(strings.Split(filepath.Base(f), ".")[1])
			times = append(times, n)
		}
		slices.Sort(times)
		if got := strings.Trim(fmt.Sprint(times), "[]"); got != test.want {
			t.Errorf("%s: there are the dumps %q; want %q", test.name, got, test.want)
		}
	}
}

// On a disk that others have filled, old dumps are not removed in vain.
func TestCoreDumpsStayOnFullDisk(t *testing.T) {
	data := t.TempDir()
	all := filepath.Join(data, "log/core_dumps")
	if err := os.MkdirAll(all, 0o750); err != nil {
		t.Fatal(err)
	}
	const kib = 1024
	for i := range 3 {
		if err := smallCoreDump(t, data, 100*kib, 1<<30, "app", "1", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"app", "other"} {
		if err := smallCoreDump(t, data, kib, 500*kib, name, "1", "9"); err == nil {
			t.Errorf("%s is kept on a full disk", name)
		}
	}
	if files, err := filepath.Glob(all + "/*"); err != nil || len(files) != 1 {
		t.Errorf("core_dumps has %q, %v; want app", files, err)
	}
	if files, err := filepath.Glob(all + "/app/core.*"); err != nil || len(files) != 3 {
		t.Errorf("the old dumps are %q, %v; want three", files, err)
	}
}

// While one dump is being kept, another one that dies is not.
func TestCoreDumpOneAtATime(t *testing.T) {
	data := t.TempDir()
	if err := os.MkdirAll(filepath.Join(data, "log/core_dumps"), 0o750); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(data, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := coreDump(t, data, "app", "1", "5"); err == nil {
		t.Error("core-dump succeeds; want a refusal")
	}
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

// OS-F1: the manual's command runs the agent; a mistyped one does nothing.
func TestInstallStep1(t *testing.T) {
	const usage = "usage: ramdisk/home/root/install_step1.sh LOG resize\n"
	for _, test := range []struct {
		args []string
		want string
		exit int
	}{
		{[]string{"log.txt", "resize"}, "apagent resize --reboot --log log.txt\n", 1},
		{[]string{"my log", "resize"}, "apagent resize --reboot --log my log\n", 1},
		{nil, usage, 2},
		{[]string{"log.txt"}, usage, 2},
		{[]string{"", "resize"}, usage, 2},
		{[]string{"log.txt", "Resize"}, usage, 2},
		{[]string{"log.txt", "resize", "now"}, usage, 2},
	} {
		tools := t.TempDir()
		agent := "#!/bin/sh\necho apagent \"$@\"\nexit 1\n"
		if err := os.WriteFile(filepath.Join(tools, "apagent"), []byte(agent), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("sh", append([]string{"ramdisk/home/root/install_step1.sh"}, test.args...)...)
		cmd.Env = []string{"PATH=" + tools}
		out, err := cmd.CombinedOutput()
		if !strings.HasPrefix(string(out), test.want) || cmd.ProcessState.ExitCode() != test.exit {
			t.Errorf("install_step1.sh %q prints %q, %v; want %q and exit status %d", test.args, out, err, test.want, test.exit)
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

// What the machine is told comes before the first packet, and before what asks
// for its name.
func TestFirstBootBeforeNetwork(t *testing.T) {
	for name, order := range map[string][]string{
		"ramdisk/etc/init.d/rcS": {"\napagent mount\n", "\napagent firstboot\n", "\nhostname -F", "\napagent network start"},
		"overlay/etc/init.d/rcS": {"\n/usr/bin/apagent mount\n", "\n/usr/bin/apagent firstboot\n", "\nhostname -F", "\nfor script in /etc/init.d/S"},
	} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := -1
		for _, line := range order {
			next := strings.Index(string(text), line)
			if next <= at {
				t.Errorf("%s: %q is at %d, and what comes before it at %d", name, line, next, at)
			}
			at = next
		}
	}
}

// A8, I7: what S92manager does with the manager's program, and whether it says what
// that says.
func TestManagerScript(t *testing.T) {
	functions, err := os.ReadFile("overlay/etc/init.d/functions")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("overlay/etc/init.d/S92manager")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		verb    string
		runs    bool // the guardian
		answers bool // the manager
		want    string
		exit    int
	}{
		{"start", "start", false, true, "ssd -S -b -m -p RUN/manager.pid -x RUN/program -- launch\n", 0},
		{"start again", "start", true, true, "S92manager: is already running\n", 0},
		{"status", "status", true, true, "program status\n", 0},
		{"status of one that hangs", "status", true, false, "program status\n", 1},
		{"stop", "stop", true, true, "program end\n", 0},
		{"stop without guardian", "stop", false, true, "program end\n", 0},
		{"restart", "restart", true, true, "HUP\n", 0},
		{"restart of none", "restart", false, true, "ssd -S -b -m -p RUN/manager.pid -x RUN/program -- launch\n", 0},
		{"nonsense", "reload", false, true, "", 2},
	} {
		dir := t.TempDir()
		exit := 1
		if test.answers {
			exit = 0
		}
		for name, script := range map[string]string{
			"program":           fmt.Sprintf("echo program $1; [ $1 != status ] || exit %d", exit),
			"start-stop-daemon": "echo ssd $*", "mountpoint": "exit 0", "sleep": "exit 0",
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		out := &strings.Builder{}
		if test.runs {
			// A process of the name that the script looks for.
			guardian := filepath.Join(dir, "manager")
			if err := os.WriteFile(guardian, []byte("#!/bin/sh\ntrap 'echo HUP > "+dir+"/heard' HUP\ntouch "+dir+"/up\nwhile :; do /bin/sleep 0.05; done\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(guardian)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			go func() { _ = cmd.Wait() }()
			defer func() { _ = cmd.Process.Kill() }()
			for range 500 {
				if _, err := os.Stat(dir + "/up"); err == nil {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if err := os.WriteFile(dir+"/manager.pid", []byte(strconv.Itoa(cmd.Process.Pid)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		script := strings.NewReplacer(". /etc/init.d/functions", string(functions), "/usr/lib/app-platform/manager", dir+"/program", "/run/manager.pid", dir+"/manager.pid").Replace(string(text))
		script = strings.Replace(script, "export PATH=", "export PATH="+dir+":", 1)
		cmd := exec.Command("sh", "-c", script, "/etc/init.d/S92manager", test.verb)
		cmd.Stdout, cmd.Stderr = out, out
		_ = cmd.Run()
		if test.name == "restart" {
			for range 500 {
				if heard, err := os.ReadFile(dir + "/heard"); err == nil {
					out.Write(heard)
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
		got := strings.ReplaceAll(out.String(), dir, "RUN")
		if !strings.Contains(got, strings.Replace(test.want, "S92manager:", "manager:", 1)) || cmd.ProcessState.ExitCode() != test.exit {
			t.Errorf("%s: S92manager %s prints %q and ends with %d; want %q and %d", test.name, test.verb, got, cmd.ProcessState.ExitCode(), test.want, test.exit)
		}
	}
}
