package manager

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"appplatform/manager/internal/appstore"
)

// launch starts the guardian of a lab as S92manager does; the manager is another
// process.
func (l *lab) launch() *exec.Cmd {
	l.t.Helper()
	args := append(Options{Root: l.o.Root, Run: l.o.Run, PostgreSQL: l.o.PostgreSQL, HTTP: l.o.HTTP, HTTPS: l.o.HTTPS}.args(), "launch")
	cmd := exec.Command(filepath.Join(l.o.Root, imageDir, "manager"), args...)
	l.must(cmd.Start())
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	l.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-ended
	})
	return cmd
}

// running is the process of the manager and its program.
func (l *lab) running() (pid int, program string) {
	l.t.Helper()
	l.until("the manager answers", func() bool { return Answers(l.o) == nil })
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	l.must(err)
	for _, p := range processes {
		text, err := os.ReadFile(p)
		if err != nil || !strings.Contains(string(text), l.o.Root) || !strings.HasSuffix(string(text), "\x00run\x00") {
			continue
		}
		program, err = os.Readlink(filepath.Join(filepath.Dir(p), "exe"))
		if err != nil {
			continue
		}
		return number(filepath.Base(filepath.Dir(p))), program
	}
	l.t.Fatal("there is no manager")
	return 0, ""
}

// The guardian puts the image's programs into /apps, starts the manager again
// whatever ends it, hands over, and ends everything.
func TestLaunch(t *testing.T) {
	l := newLab(t)
	l.copy("manager", imageDir+"/manager")
	own := l.o.Root + "/apps/manager/manager"
	guardian := l.launch()
	first, program := l.running()
	if program != own {
		t.Errorf("%s runs; want %s", program, own)
	}
	l.until("the webserver serves", func() bool { status, _ := l.get("/"); return status == 302 })
	web, err := os.ReadFile(l.o.run("supervise/webserver.pid"))
	l.must(err)

	// It sleeps nearly always, and must not take memory for that.
	l.until("the guardian is small", func() bool { return residentKB(guardian.Process.Pid) < 11000 })

	l.must(syscall.Kill(first, syscall.SIGKILL))
	l.until("there is another manager", func() bool { return Answers(l.o) == nil })
	second, _ := l.running()
	if second == first {
		t.Error("it is the same process")
	}
	l.must(guardian.Process.Signal(syscall.SIGHUP))
	l.until("the next one has taken over", func() bool { return syscall.Kill(second, 0) != nil })
	l.running()
	if now, err := os.ReadFile(l.o.run("supervise/webserver.pid")); err != nil || string(now) != string(web) {
		t.Errorf("the webserver was %s and is %s, %v; want the same process", web, now, err)
	}
	if status, _ := l.get("/"); status != 302 {
		t.Errorf("the webserver answers %d", status)
	}

	// The guardian dies: the next one takes over from the manager that is left.
	third, _ := l.running()
	l.must(guardian.Process.Kill())
	l.until("it is gone", func() bool { return syscall.Kill(guardian.Process.Pid, 0) != nil })
	if syscall.Kill(third, 0) != nil {
		t.Error("the manager has died with its guardian")
	}
	again := l.launch()
	l.until("the one before has handed over", func() bool { return syscall.Kill(third, 0) != nil })
	fourth, _ := l.running()
	l.must(again.Process.Signal(syscall.SIGTERM))
	l.until("everything has ended", func() bool { return syscall.Kill(fourth, 0) != nil })
	l.until("the webserver, too", func() bool { status, _ := l.get("/"); return status == 0 })
}

// residentKB is the memory that a process has, in kB.
func residentKB(pid int) int {
	text, _ := os.ReadFile("/proc/" + itoa(pid) + "/status")
	fields := strings.Fields(grep(string(text), "VmRSS:"))
	if len(fields) < 2 {
		return 1 << 30
	}
	return number(fields[1])
}

// A manager in /apps that does not run, or does not answer, is replaced by the
// image's for as long as that takes.
func TestLaunchBroken(t *testing.T) {
	for name, script := range map[string]string{
		"ends":       "#!/bin/sh\n[ $1 = --version ] && echo manager 999999\nexit 1\n",
		"no program": "nonsense",
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.copy("manager", imageDir+"/manager")
			l.file("apps/manager/manager", script)
			l.must(os.Chmod(l.o.Root+"/apps/manager/manager", 0o755))
			// It was put there by hand, behind the image's first start.
			g := &guardian{o: l.o.defaults(), disk: appstore.Disk(l.o.Root + "/apps")}
			info, err := os.Stat(l.o.Root + "/" + imageDir + "/manager")
			l.must(err)
			l.file(stateDir+"/put-manager", g.identity(info))
			l.launch()
			if _, program := l.running(); program != l.o.Root+"/"+imageDir+"/manager" {
				t.Errorf("%s runs; want the image's", program)
			}
		})
	}
}

// Which program is put into /apps, and which is run.
func TestPut(t *testing.T) {
	const theirs = "#!/bin/sh\necho manager "
	for _, test := range []struct {
		name     string
		own      string // version in /apps; "" none
		minImage int
		marked   bool // the image's was put there before
		want     string
		runs     string // from apps or image
	}{
		{"missing", "", 0, false, "160001", "apps"},
		{"older", "150000", 0, false, "160001", "apps"},
		{"the same, of another build", "160001", 0, false, "160001", "apps"},
		{"newer", "170000", 0, false, "170000", "apps"},
		{"newer, for a newer image", "170000", 165000, false, "170000", "image"},
		{"an older one that somebody put there since", "150000", 0, true, "150000", "apps"},
		{"missing again", "", 0, true, "160001", "apps"},
	} {
		root := t.TempDir()
		l := &lab{t: t, o: Options{Root: root}}
		l.file("etc/platform.json", `{"label": "160001"}`)
		l.file(imageDir+"/manager", theirs+"160001\n")
		l.must(os.Chmod(root+"/"+imageDir+"/manager", 0o755))
		g := &guardian{o: l.o.defaults(), disk: appstore.Disk(root + "/apps")}
		if test.own != "" {
			l.file("apps/manager/manager", theirs+test.own+"\n")
			l.must(os.Chmod(root+"/apps/manager/manager", 0o755))
			l.must(appstore.Record{Build: test.own, MinImage: test.minImage}.Write(root + "/apps/manager"))
		}
		if test.marked {
			info, err := os.Stat(root + "/" + imageDir + "/manager")
			l.must(err)
			l.file(stateDir+"/put-manager", g.identity(info))
		}
		for range 2 {
			l.must(g.put(t.Context(), "manager"))
		}
		if got := versionOf(t.Context(), root+"/apps/manager/manager"); got != test.want {
			t.Errorf("%s: %s is in /apps; want %s", test.name, got, test.want)
		}
		if got := g.program(); !strings.HasPrefix(got, root+"/"+map[string]string{"apps": "apps/", "image": imageDir}[test.runs]) {
			t.Errorf("%s: %s runs; want that of %s", test.name, got, test.runs)
		}
	}
}

// A manager that has just been started dies of the signal that is handed on to it,
// before it can catch it. That is the end, and not a reason for another one.
func TestLaunchStopsAtOnce(t *testing.T) {
	l := newLab(t)
	l.file("etc/platform.json", `{"label": "160001"}`)
	g := &guardian{o: l.o.defaults(), disk: appstore.Disk(l.o.Root + "/apps"), readyWithin: time.Minute, settled: time.Minute, maxPause: time.Minute, quiet: time.Hour}
	l.file(imageDir+"/manager", "#!/bin/sh\n[ $1 = --version ] && echo manager 160001 && exit\necho started >> "+l.o.Root+"/starts\nexec sleep 1000\n")
	l.must(os.Chmod(l.o.Root+"/"+imageDir+"/manager", 0o755))
	signals, ended := make(chan os.Signal, 1), make(chan error, 1)
	go func() {
		ended <- g.guard(t.Context(), signals)
	}()
	l.until("it has started", func() bool { _, err := os.Stat(l.o.Root + "/starts"); return err == nil })
	signals <- syscall.SIGTERM
	select {
	case err := <-ended:
		l.must(err)
	case <-time.After(20 * time.Second):
		t.Fatal("the guardian goes on")
	}
	if starts, err := os.ReadFile(l.o.Root + "/starts"); err != nil || string(starts) != "started\n" {
		t.Errorf("the manager was started %q, %v; want once", starts, err)
	}
}
