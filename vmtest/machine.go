package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"appplatform/internal/run"
	"appplatform/tooltree"
)

// A Machine is a running QEMU. It ends with the context it was started with,
// with this process, or by Kill; Wait tells when.
type Machine struct {
	// Serial is the first serial port, unless Options.Terminal is set.
	Serial *Console

	opts    Options
	ports   map[int]int
	sockets string // a folder with a short name: such paths have 108 bytes at most
	cmd     *exec.Cmd
	qmp     *qmp
	agent   net.Conn
	agentMu sync.Mutex

	done chan struct{}
	err  error // valid when done is closed
}

// Start starts a machine. The context is its deadline.
func Start(ctx context.Context, o Options) (*Machine, error) {
	m, err := start(ctx, o.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("cannot start the machine: %w", err)
	}
	return m, nil
}

func start(ctx context.Context, o Options) (_ *Machine, err error) {
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	m := &Machine{opts: o, done: make(chan struct{})}
	defer func() {
		if err != nil {
			m.cleanUp()
		}
	}()
	if err := m.prepare(); err != nil {
		return nil, err
	}
	listeners := map[string]net.Listener{}
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	for _, name := range []string{"serial", "qmp", "agent"} {
		if name == "serial" && o.Terminal {
			continue
		}
		if listeners[name], err = net.Listen("unix", filepath.Join(m.sockets, fmt.Sprintf(socketName, name))); err != nil {
			return nil, err
		}
	}
	args, err := o.args(m.sockets, m.ports)
	if err != nil {
		return nil, err
	}
	words := &watcher{says: "KVM internal error"}
	if m.cmd, err = o.command(ctx, args, m.sockets, words); err != nil {
		return nil, err
	}
	if err := m.run(words); err != nil {
		return nil, err
	}
	if err := m.connect(listeners); err != nil {
		m.Kill()
		return nil, errors.Join(err, m.Wait())
	}
	words.watch(func() {
		if m.Serial != nil {
			m.Serial.fail(errors.New("the processor's virtualization does not work here (KVM internal error)"))
		}
	})
	return m, nil
}

// prepare makes the folders and the files of the machine.
func (m *Machine) prepare() (err error) {
	if err := os.MkdirAll(m.opts.Dir, 0o755); err != nil {
		return err
	}
	if m.sockets, err = os.MkdirTemp("", "vm"); err != nil {
		return err
	}
	for _, d := range m.opts.Disks {
		if d.Log != "" { // QEMU wants it to be there.
			if err := os.WriteFile(d.Log, nil, 0o644); err != nil {
				return err
			}
		}
	}
	if m.opts.Firmware == UEFI {
		// Each machine has variables of its own; they survive its restarts.
		vars := filepath.Join(m.opts.Dir, efiVars)
		if _, err := os.Stat(vars); err != nil {
			b, err := os.ReadFile(filepath.Join(m.opts.Tools.Dir(), ovmfVars))
			if err != nil {
				return err
			}
			if err := os.WriteFile(vars, b, 0o644); err != nil {
				return err
			}
		}
	}
	m.ports, err = choosePorts(m.opts.Forward)
	return err
}

// choosePorts finds free ports of this host for those that are 0.
func choosePorts(forward map[int]int) (map[int]int, error) {
	ports := map[int]int{}
	for guest, host := range forward {
		// Opened all at once, so that no port is given twice.
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", host))
		if err != nil {
			return nil, fmt.Errorf("cannot forward to port %d of the guest: %w", guest, err)
		}
		defer l.Close()
		ports[guest] = l.Addr().(*net.TCPAddr).Port
	}
	return ports, nil
}

// command prepares QEMU with just the folders it needs.
func (o Options) command(ctx context.Context, args []string, sockets string, words io.Writer) (*exec.Cmd, error) {
	c := tooltree.Cmd{Args: args, Stderr: words, Writable: []string{o.Dir, sockets}}
	for _, d := range o.Disks {
		c.Writable = append(c.Writable, filepath.Dir(d.Path))
		if d.Log != "" {
			c.Writable = append(c.Writable, filepath.Dir(d.Log))
		}
	}
	for _, path := range o.Sticks {
		c.Writable = append(c.Writable, filepath.Dir(path))
	}
	if o.Capture != "" {
		c.Writable = append(c.Writable, filepath.Dir(o.Capture))
	}
	for _, f := range append([]string{o.Kernel, o.Initrd}, o.CDs...) {
		if f != "" {
			c.ReadOnly = append(c.ReadOnly, filepath.Dir(f))
		}
	}
	if o.Stderr != nil {
		c.Stderr = io.MultiWriter(words, o.Stderr)
	}
	if o.Terminal {
		c.Stdin, c.Stdout = os.Stdin, os.Stdout
	}
	return o.Tools.Command(ctx, c)
}

// run starts QEMU and watches over it.
func (m *Machine) run(words *watcher) error {
	started := make(chan error)
	go func() {
		// QEMU dies with the thread that started it, so this one must stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := m.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		err = m.cmd.Wait()
		m.err = run.Explain(m.cmd, err, &words.tail)
		m.cleanUp()
		close(m.done)
	}()
	return <-started
}

// connect waits for QEMU to open its ends of the sockets.
func (m *Machine) connect(listeners map[string]net.Listener) error {
	conns := map[string]net.Conn{}
	for name, l := range listeners {
		conn, err := m.accept(l)
		if err != nil {
			return fmt.Errorf("cannot reach QEMU's %s: %w", name, err)
		}
		conns[name] = conn
	}
	m.agent = conns["agent"]
	if serial := conns["serial"]; serial != nil {
		log, err := os.OpenFile(m.SerialLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		m.Serial = NewConsole("serial console", serial, serial, log)
	}
	var err error
	m.qmp, err = newQMP(conns["qmp"])
	return err
}

func (m *Machine) accept(l net.Listener) (net.Conn, error) {
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-m.done:
		case <-time.After(30 * time.Second):
		case <-stop:
			return
		}
		l.Close()
	}()
	return l.Accept()
}

func (m *Machine) cleanUp() {
	if m.agent != nil {
		m.agent.Close()
	}
	if m.sockets != "" {
		os.RemoveAll(m.sockets)
	}
}

// SerialLog is the file with everything that was said on the serial console,
// byte for byte. A machine that is started again appends to it.
func (m *Machine) SerialLog() string { return filepath.Join(m.opts.Dir, serialLog) }

// Port is the port of 127.0.0.1 that leads to a port of the guest.
func (m *Machine) Port(guest int) int { return m.ports[guest] }

// Addr is Port as an address.
func (m *Machine) Addr(guest int) string { return fmt.Sprintf("127.0.0.1:%d", m.ports[guest]) }

// Kill is a power cut.
func (m *Machine) Kill() {
	_ = m.cmd.Process.Kill()
	<-m.done
}

// Wait waits for the machine to end. The error is nil if it was switched off.
func (m *Machine) Wait() error {
	<-m.done
	return m.err
}

// WaitFor is Wait with a limit.
func (m *Machine) WaitFor(within time.Duration) error {
	select {
	case <-m.done:
		return m.err
	case <-time.After(within):
		err := fmt.Errorf("the machine still runs after %v", within)
		if m.Serial != nil {
			err = m.Serial.explain(err)
		}
		return err
	}
}

// Done is closed when the machine has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

// PowerButton presses the power button.
func (m *Machine) PowerButton() error { return m.qmp.execute("system_powerdown", nil, nil) }

// Reset presses the reset button.
func (m *Machine) Reset() error { return m.qmp.execute("system_reset", nil, nil) }

// Snapshot copies a raw disk as it is at this moment: what the machine has
// written and no more, the same as after Kill.
func (m *Machine) Snapshot(to, disk string) error {
	if err := m.qmp.execute("stop", nil, nil); err != nil {
		return err
	}
	err := CopyDisk(to, disk, 0)
	return errors.Join(err, m.qmp.execute("cont", nil, nil))
}

// PressKeys presses keys of the keyboard, one after the other, by QEMU's names
// (qcodes): "down", "ret".
func (m *Machine) PressKeys(keys ...string) error {
	for _, k := range keys {
		args := map[string]any{"keys": []map[string]string{{"type": "qcode", "data": k}}}
		if err := m.qmp.execute("send-key", args, nil); err != nil {
			return err
		}
	}
	return nil
}

// watcher keeps what QEMU says and looks out for one sentence: QEMU stays
// there, stopped, when the host's virtualization fails.
type watcher struct {
	says string

	mu   sync.Mutex
	tail run.Tail
	text []byte
	seen bool
	call func()
}

func (w *watcher) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _ = w.tail.Write(p)
	if w.text = append(w.text, p...); !w.seen && bytes.Contains(w.text, []byte(w.says)) {
		w.seen = true
		if w.call != nil {
			w.call()
		}
	}
	if over := len(w.text) - 4096; over > 0 {
		w.text = w.text[over:]
	}
	return len(p), nil
}

func (w *watcher) watch(call func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.call = call
	if w.seen {
		call()
	}
}

func sortedKeys[V any](m map[int]V) []int { return slices.Sorted(maps.Keys(m)) }
