package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"appplatform/internal/atomicfile"
	"appplatform/internal/run"
	"appplatform/manager/internal/appstore"
)

// ExitAgain is the status of a manager that wants to be started again, by the
// program that is there then.
const ExitAgain = 3

// ownPrograms are shipped by the image and run from /apps.
var ownPrograms = []string{"manager", "webserver"}

// A guardian starts the manager again when it has ended. It is the image's own
// program, so that a broken one in /apps keeps nobody from the pages.
type guardian struct {
	o     Options
	disk  appstore.Disk
	args  []string // that say where everything is
	fails int      // of the program in /apps, in a row

	readyWithin time.Duration // a manager answers
	quiet       time.Duration // from then on the guardian only sleeps
	settled     time.Duration // who ran that long was all right
	maxPause    time.Duration
}

// Launch runs the manager until a signal says to end. SIGHUP lets another manager
// take over.
func Launch(ctx context.Context, o Options, signals <-chan os.Signal) error {
	args := o.args()
	o = o.defaults()
	// It sleeps nearly always, and shall not take memory for that.
	debug.SetGCPercent(10)
	g := &guardian{o: o, disk: appstore.Disk(o.path(appsDir)), args: args, readyWithin: 30 * time.Second, quiet: 3 * time.Second, settled: time.Minute, maxPause: 30 * time.Second}
	return g.guard(ctx, signals)
}

func (g *guardian) guard(ctx context.Context, signals <-chan os.Signal) error {
	g.putPrograms(ctx)
	// One whose guardian was killed hands over.
	if err := End(g.o, syscall.SIGHUP, 20*time.Second); err != nil {
		g.o.Log.Warn("a manager that was there does not end", "error", err)
	}
	for {
		program := g.program()
		began := time.Now()
		again, err := g.once(ctx, program, signals)
		if err == nil && !again {
			return nil
		}
		pause := time.Duration(0)
		if err != nil {
			g.o.Log.Error("the manager has ended", "program", program, "error", err)
			if time.Since(began) >= g.settled {
				g.fails = 0
			}
			g.fails++
			pause = min(100*time.Millisecond<<min(g.fails-1, 10), g.maxPause)
		} else {
			g.fails = 0
			g.putPrograms(ctx)
		}
		select {
		case <-time.After(pause):
		case s := <-signals:
			if s == syscall.SIGTERM || s == syscall.SIGINT {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// program is the one in /apps, if there is one that is for this image and has not
// failed three times.
func (g *guardian) program() string {
	image := g.o.path(imageDir, "manager")
	own := g.disk.Program("manager")
	if !exists(own) || g.o.platform().tooNew(g.disk.Current("manager").MinImage) != "" || g.fails%6 >= 3 && exists(image) {
		return image
	}
	return own
}

// errNotReady is a manager that runs and does not answer.
var errNotReady = errors.New("it does not answer")

// once runs a manager until it ends. Again: it was asked to hand over.
func (g *guardian) once(ctx context.Context, program string, signals <-chan os.Signal) (again bool, err error) {
	log, err := g.openLog()
	if err != nil {
		g.o.Log.Warn("the manager has no log", "error", err)
	} else {
		defer log.Close()
	}
	cmd := exec.Command(program, append(slices.Clone(g.args), "run")...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Dir = "/"
	if err := cmd.Start(); err != nil {
		return false, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	notReady := time.NewTimer(g.readyWithin)
	defer notReady.Stop()
	sleep := time.NewTimer(time.Hour)
	defer sleep.Stop()
	looks := time.NewTicker(100 * time.Millisecond)
	defer looks.Stop()
	stopping := false // A manager that has just begun dies of the signal itself.
	for {
		select {
		case err := <-ended:
			var exit *exec.ExitError
			if stopping {
				return false, nil
			}
			if errors.As(err, &exit) && exit.ExitCode() == ExitAgain {
				return true, nil
			}
			return false, err
		case s := <-signals:
			stopping = stopping || s != syscall.SIGHUP
			_ = cmd.Process.Signal(s)
		case <-ctx.Done():
			stopping = true
			_ = cmd.Process.Signal(syscall.SIGTERM)
			ctx = context.Background()
		case <-looks.C:
			if Answers(g.o) == nil {
				looks.Stop()
				notReady.Stop()
				sleep.Reset(g.quiet)
			}
		case <-sleep.C:
			giveBack()
		case <-notReady.C:
			_ = cmd.Process.Kill()
			return false, errors.Join(errNotReady, <-ended)
		}
	}
}

// openLog opens the manager's log to be appended to, so that logrotate may empty
// it.
func (g *guardian) openLog() (*os.File, error) {
	path := g.o.path(logDir, "manager", "manager.log")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
}

// putPrograms puts the image's programs into /apps. What cannot be put there is
// run from the image.
func (g *guardian) putPrograms(ctx context.Context) {
	for _, name := range ownPrograms {
		if err := g.put(ctx, name); err != nil {
			g.o.Log.Warn("the image's own program is used", "program", name, "error", err)
		}
	}
}

// put is done when the program is missing, and once for each image whose program
// is not older. So a newer one of the store stays, and so does an older one that
// somebody has put there since.
func (g *guardian) put(ctx context.Context, name string) error {
	if steps, err := g.disk.PlanRecover(); err != nil || appstore.Apply(steps) != nil {
		return errors.Join(err, errors.New("the folder of the apps is not in order"))
	}
	image, own := g.o.path(imageDir, name), g.disk.Program(name)
	info, err := os.Stat(image)
	if err != nil {
		return err
	}
	mark := g.o.path(stateDir, "put-"+name)
	identity := g.identity(info)
	known, _ := os.ReadFile(mark)
	if exists(own) && (string(known) == identity) {
		return nil
	}
	version := versionOf(ctx, image)
	if !exists(own) || number(versionOf(ctx, own)) <= number(version) {
		dir, err := g.disk.Stage(name)
		if err != nil {
			return err
		}
		if err := copyFile(image, filepath.Join(dir, name)); err != nil {
			return errors.Join(err, os.RemoveAll(dir))
		}
		if err := appstore.Apply(g.disk.PlanInstall(name, appstore.Record{Build: version, Label: "of the image"})); err != nil {
			return err
		}
	}
	// Others than root must get to their own folders beside the manager's.
	if err := errors.Join(os.MkdirAll(g.o.path(dataDir), 0o755), os.MkdirAll(filepath.Dir(mark), 0o700)); err != nil {
		return err
	}
	return atomicfile.Write(mark, []byte(identity), 0o600)
}

// identity tells the program of one image from that of another.
func (g *guardian) identity(info os.FileInfo) string {
	return fmt.Sprintf("%s %d %d\n", g.o.platform().Label, info.Size(), info.ModTime().UnixNano())
}

// versionOf is what a program says of itself, "" if it does not run.
func versionOf(ctx context.Context, program string) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := run.Output(ctx, program, "--version")
	words := strings.Fields(string(out))
	if err != nil || len(words) == 0 {
		return ""
	}
	return words[len(words)-1]
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Main runs a manager until a signal. It returns the exit status.
func Main(o Options, signals <-chan os.Signal) (int, error) {
	m, err := New(o)
	for deadline := time.Now().Add(15 * time.Second); errors.Is(err, errLocked) && time.Now().Before(deadline); {
		// The one before is handing over.
		time.Sleep(50 * time.Millisecond)
		m, err = New(o)
	}
	if err != nil {
		return 1, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stop := make(chan bool, 1)
	go func() {
		s := <-signals
		stop <- s != syscall.SIGHUP
		cancel()
	}()
	stopped := false
	err = m.Run(ctx, func() bool {
		select {
		case stopped = <-stop:
		default:
		}
		return stopped
	})
	if err != nil {
		return 1, err
	}
	if stopped {
		return 0, nil
	}
	return ExitAgain, nil
}
