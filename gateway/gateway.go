package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/atomicfile"
	"appplatform/internal/hint"
	"appplatform/tooltree"
	"appplatform/vmtest"
)

// Options describe a gateway.
type Options struct {
	Preset Preset
	// Dir keeps the disk, the settings and the logs.
	Dir string
	// Tools is a tree of kind tooltree.Gateway.
	Tools *tooltree.Tree
	// Store is the address of a list of versions; empty for none.
	Store string
	// SSH and HTTPS are ports of 127.0.0.1 that lead to the platform; 0 takes
	// free ones.
	SSH, HTTPS int
	// Log is told what happens; it may be nil.
	Log func(string)
}

// A State is what the App Platform on the gateway does.
type State string

// The states, in the words of the page General.
const (
	Off        State = "disabled"
	Empty      State = "no image installed"
	Stopped    State = "stopped"
	Running    State = "running"
	Installing State = "installing"
)

// A Gateway is one gateway with its disk. Its methods may be called from
// anywhere at any time.
type Gateway struct {
	opts Options
	ctx  context.Context // ends everything
	stop context.CancelFunc
	wg   sync.WaitGroup
	lock *os.File

	mu       sync.Mutex
	settings Settings
	run      *machine
	install  *installation
	log      []string
}

// A machine is the platform from Start to Stop, over all its restarts.
type machine struct {
	cancel context.CancelFunc
	done   chan struct{}
	vm     *vmtest.Machine // nil between two starts
	since  time.Time
	plan   bootPlan
}

// uploads are images that arrive; the number is CreateTemp's.
const uploads = "upload*.part"

// Open makes the gateway of a folder, or takes it over as it was left. Close
// ends it.
func Open(ctx context.Context, o Options) (*Gateway, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot open the gateway: %w", err)
	}
	g := &Gateway{opts: o}
	if err := g.take(); err != nil {
		return nil, err
	}
	g.ctx, g.stop = context.WithCancel(ctx)
	return g, nil
}

// take locks the folder, removes what a killed process has left and reads the
// settings.
func (g *Gateway) take() (err error) {
	if g.lock, err = os.Open(g.opts.Dir); err != nil {
		return fmt.Errorf("cannot open the gateway: %w", err)
	}
	defer func() {
		if err != nil {
			g.lock.Close()
		}
	}()
	if err = unix.Flock(int(g.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return hint.Errorf("give this one another folder (--dir)", "cannot open the gateway: %s belongs to one that runs", g.opts.Dir)
	}
	left, err := filepath.Glob(g.path(uploads))
	if err != nil {
		return fmt.Errorf("internal error: %w", err)
	}
	for _, name := range left {
		if err = os.Remove(name); err != nil {
			return fmt.Errorf("cannot open the gateway: %w", err)
		}
	}
	text, err := os.ReadFile(g.path("settings.json"))
	if err == nil {
		err = json.Unmarshal(text, &g.settings)
	} else if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err != nil {
		return hint.Errorf("remove the file to begin with empty settings", "cannot read the gateway's settings: %s: %w", g.path("settings.json"), err)
	}
	return nil
}

// Close cuts the power.
func (g *Gateway) Close() {
	g.stop()
	g.wg.Wait()
	g.lock.Close()
}

func (g *Gateway) path(name string) string { return filepath.Join(g.opts.Dir, name) }

// Disk is the file that stands for the card or SSD.
func (g *Gateway) Disk() string { return g.path("disk.img") }

func (g *Gateway) logf(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if g.opts.Log != nil {
		g.opts.Log(line)
	}
	const most = 500
	g.log = append(g.log, time.Now().Format("2006-01-02 15:04:05 ")+line)
	g.log = g.log[max(0, len(g.log)-most):]
}

// note is logf for those who do not hold the lock.
func (g *Gateway) note(format string, args ...any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.logf(format, args...)
}

// Status is a view of the gateway at one moment.
type Status struct {
	Preset    Preset
	Settings  Settings
	State     State
	Label     string // of the image on the card
	Since     time.Time
	SSH       int // ports of 127.0.0.1 while it runs
	HTTPS     int
	Command   string // what the kernel was started with
	Installed *Progress
	Log       []string
}

// Status looks at everything.
func (g *Gateway) Status() Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := Status{Preset: g.opts.Preset, Settings: g.settings, State: g.state(), Log: append([]string(nil), g.log...)}
	if g.run != nil {
		s.Since, s.Command = g.run.since, g.run.plan.options
		if vm := g.run.vm; vm != nil {
			s.SSH, s.HTTPS = vm.Port(sshPort), vm.Port(httpsPort)
		}
	}
	if g.install != nil {
		p := g.install.progress()
		s.Installed = &p
	}
	return s
}

func (g *Gateway) state() State {
	switch {
	case g.install != nil && !g.install.progress().Done:
		return Installing
	case g.run != nil:
		return Running
	case !g.settings.Enabled:
		return Off
	}
	if !g.HasImage() {
		return Empty
	}
	return Stopped
}

// Save checks and keeps new settings; they count from the next start on.
func (g *Gateway) Save(s Settings) error {
	if err := s.Check(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.save(s)
}

func (g *Gateway) save(s Settings) error {
	text, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return fmt.Errorf("internal error: %w", err)
	}
	if err := atomicfile.Write(g.path("settings.json"), append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("cannot keep the settings: %w", err)
	}
	g.settings = s
	return nil
}

// The platform's ports that are reachable from the gateway's host.
const (
	sshPort   = 22
	httpsPort = 443
)

var errBusy = errors.New("an installation is running")

// Start switches the platform on.
func (g *Gateway) Start() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.start()
}

func (g *Gateway) start() error {
	switch g.state() {
	case Off:
		return hint.Errorf("tick Enable Linux Support and save", "the App Platform is not enabled")
	case Empty:
		return hint.Errorf("install one on the page Installation", "there is no image")
	case Installing:
		return errBusy
	case Running:
		return nil
	}
	plan, err := g.load()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(g.ctx)
	run := &machine{cancel: cancel, done: make(chan struct{}), since: time.Now(), plan: plan}
	g.run = run
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		g.powered(ctx, run)
	}()
	return nil
}

// load reads from the card what is to be started, and writes to it which entry
// that is, so that a change the platform makes is seen.
func (g *Gateway) load() (bootPlan, error) {
	card, err := openCard(g.Disk())
	if err != nil {
		return bootPlan{}, err
	}
	defer card.Close()
	plan, err := g.settings.plan(card.config, card.exists)
	if err != nil {
		return plan, err
	}
	if plan.kernel, err = card.extract(plan.kernel, g.opts.Dir); err != nil {
		return plan, err
	}
	if plan.initrd != "" {
		if plan.initrd, err = card.extract(plan.initrd, g.opts.Dir); err != nil {
			return plan, err
		}
	}
	return plan, card.setDefault(plan.label)
}

// powered runs the platform until it is switched off, by whomever.
func (g *Gateway) powered(ctx context.Context, run *machine) {
	defer func() {
		run.cancel()
		g.mu.Lock()
		g.run = nil
		g.mu.Unlock()
		close(run.done)
	}()
	for {
		again, err := g.once(ctx, run)
		if ctx.Err() != nil {
			g.note("switched off")
			return
		}
		if err != nil {
			g.note("the App Platform has stopped: %v", err)
			return
		}
		if !again {
			g.note("the App Platform has shut down")
			return
		}
		g.mu.Lock()
		err = g.follow()
		if err == nil {
			run.plan, err = g.load()
		}
		g.mu.Unlock()
		if err != nil {
			g.note("cannot restart the App Platform: %v", err)
			return
		}
	}
}

// once starts the machine and waits for its end.
func (g *Gateway) once(ctx context.Context, run *machine) (again bool, err error) {
	p := g.opts.Preset
	g.note("starting %s", run.plan.options)
	vm, err := vmtest.Start(ctx, vmtest.Options{
		Tools: g.opts.Tools, Arch: p.Arch, Dir: g.opts.Dir, Memory: p.Memory,
		Disks:  []vmtest.Disk{{Path: g.Disk(), Controller: p.Controller}},
		Kernel: run.plan.kernel, Initrd: run.plan.initrd, Append: run.plan.options,
		Forward:  map[int]int{sshPort: g.opts.SSH, httpsPort: g.opts.HTTPS},
		NoReboot: true,
	})
	if errors.Is(err, unix.EADDRINUSE) {
		err = hint.Errorf("another gateway may use it: --ssh 0 --https 0 take free ports", "%w", err)
	}
	if err != nil {
		return false, err
	}
	g.mu.Lock()
	run.vm = vm
	g.mu.Unlock()
	err = vm.Wait()
	g.mu.Lock()
	run.vm = nil
	g.mu.Unlock()
	return vm.WantsRestart(), err
}

// follow takes over what the platform has written to boot next.
func (g *Gateway) follow() error {
	card, err := openCard(g.Disk())
	if err != nil {
		return err
	}
	defer card.Close()
	entry, _ := card.config.entry(card.config.def)
	if g.run != nil && entry.label == g.run.plan.label {
		return nil
	}
	s := g.settings
	s.setEntry(entry.rescue(), g.opts.Preset)
	g.logf("the App Platform sets the Kernel command line to %s", s.Cmdline)
	return g.save(s)
}

// Stop cuts the platform's power and waits until it is off.
func (g *Gateway) Stop() {
	g.mu.Lock()
	run := g.run
	g.mu.Unlock()
	if run != nil {
		run.cancel()
		<-run.done
	}
}

// A platform that has just started does not listen to the button yet.
const (
	pressEvery = 5 * time.Second
	pressFor   = 2 * time.Minute
)

// Shutdown presses the power button until the platform hears it and ends by
// itself.
func (g *Gateway) Shutdown() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.run == nil || g.run.vm == nil {
		return errors.New("the App Platform does not run")
	}
	g.logf("asking the App Platform to shut down")
	vm := g.run.vm
	if err := vm.PowerButton(); err != nil {
		return err
	}
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		for range pressFor / pressEvery {
			select {
			case <-vm.Done():
				return
			case <-time.After(pressEvery):
			}
			_ = vm.PowerButton() // It may be ending.
		}
		g.note("the App Platform does not shut down; Stop cuts its power")
	}()
	return nil
}

// Type sends a line to the serial console.
func (g *Gateway) Type(line string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.run == nil || g.run.vm == nil || g.run.vm.Serial == nil {
		return errors.New("the App Platform does not run")
	}
	return g.run.vm.Serial.Send(line + "\n")
}

// Console is the last lines of the serial console, also those of earlier runs.
func (g *Gateway) Console() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.run != nil && g.run.vm != nil && g.run.vm.Serial != nil {
		return lastLines(g.run.vm.Serial.Text())
	}
	b, err := os.ReadFile(g.path("serial.log"))
	if err != nil {
		return ""
	}
	return lastLines(plain(string(b)))
}

// consoleLines is how much of the console a page shows.
const consoleLines = 200

func lastLines(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-consoleLines):], "\n")
}

// plain drops what moves the cursor.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || r >= 0x20 && r != 0x7f {
			return r
		}
		return -1
	}, text)
}
