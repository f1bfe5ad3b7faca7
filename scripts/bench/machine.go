package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"appplatform/vmtest"
)

// Limits; everything takes a fraction of them unless it hangs.
const (
	installWithin = 15 * time.Minute
	startWithin   = 5 * time.Minute
	offWithin     = 3 * time.Minute
)

// idleAfter is how long after the login the memory is looked at.
const idleAfter = 20 * time.Second

// The ports of the guest that are knocked at.
const (
	sshPort      = 22
	postgresPort = 5432
)

// The logins that both systems have.
const (
	user         = "admin"
	password     = "ipapps"
	rootPassword = "iplinux" // not over SSH
)

// A system is a disk that has been started once and shut down, and how to start
// it.
type system struct {
	name                   string
	disk                   string
	kernel, initrd, append string // for one without a boot loader
}

// A start is what a machine does after it is switched on: seconds and MB.
type start struct {
	ssh, postgres float64
	used, taken   float64
}

// options describe the machine that every system gets.
func (l *lab) options(dir, disk string, s system) vmtest.Options {
	return vmtest.Options{
		Tools: l.vm, Dir: dir, Disks: []vmtest.Disk{{Path: disk}}, NoReboot: s.kernel != "",
		Kernel: s.kernel, Initrd: s.initrd, Append: s.append,
		Forward: map[int]int{sshPort: 0, postgresPort: 0},
	}
}

// switchOn starts a copy of the system's disk and measures.
func (l *lab) switchOn(ctx context.Context, s system) (start, error) {
	var st start
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	dir := filepath.Join(l.work, "machine")
	if err := os.RemoveAll(dir); err != nil {
		return st, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return st, err
	}
	disk := filepath.Join(dir, "disk.img")
	if err := vmtest.CopyDisk(disk, s.disk, 0); err != nil {
		return st, err
	}
	began := time.Now()
	m, err := vmtest.Start(ctx, l.options(dir, disk, s))
	if err != nil {
		return st, err
	}
	defer m.Kill()
	if err := awaitBoth(ctx, m, began, &st); err != nil {
		return st, fmt.Errorf("cannot start %s: %w; its console ends with:\n%s", s.name, err, m.Serial.Tail(20))
	}
	return st, readMemory(ctx, m, &st)
}

// awaitBoth knocks at both ports at once.
func awaitBoth(ctx context.Context, m *vmtest.Machine, began time.Time, st *start) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		to  *float64
		at  time.Duration
		err error
	}
	answers := make(chan answer, 2)
	for _, port := range []struct {
		number int
		to     *float64
		ask    func(net.Conn) error
	}{{sshPort, &st.ssh, banner}, {postgresPort, &st.postgres, selectOne}} {
		go func() {
			err := await(ctx, m.Addr(port.number), port.ask)
			answers <- answer{port.to, time.Since(began), err}
		}()
	}
	for range 2 {
		select {
		case a := <-answers:
			if a.err != nil {
				return a.err
			}
			*a.to = a.at.Seconds()
		case <-m.Done():
			return fmt.Errorf("the machine has ended: %v", m.Wait())
		}
	}
	return nil
}

// banner reads the first words of an SSH server.
func banner(conn net.Conn) error {
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && !strings.HasPrefix(line, "SSH-") {
		err = fmt.Errorf("an SSH server says %q", line)
	}
	return err
}

// knock is how often a port is tried. A closed port costs the guest next to
// nothing, and QEMU may hold a connection back for long when the guest has no
// address yet, so that no try waits for the one before.
const knock = 250 * time.Millisecond

// await asks until there is an answer.
func await(ctx context.Context, addr string, ask func(net.Conn) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	answered := make(chan struct{}, 1)
	again := time.NewTicker(knock)
	defer again.Stop()
	var last error
	failed := make(chan error, 1)
	for {
		go func() {
			if err := askOnce(ctx, addr, ask); err != nil {
				select {
				case failed <- err:
				default:
				}
				return
			}
			select {
			case answered <- struct{}{}:
			default:
			}
		}()
		select {
		case <-answered:
			return nil
		case <-again.C:
		}
		select {
		case last = <-failed:
		case <-ctx.Done():
			return fmt.Errorf("no answer (%v): %w", last, ctx.Err())
		default:
		}
	}
}

func askOnce(ctx context.Context, addr string, ask func(net.Conn) error) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	return ask(conn)
}

// readMemory logs in, lets the machine become quiet and asks its kernel.
func readMemory(ctx context.Context, m *vmtest.Machine, st *start) error {
	s, err := vmtest.DialSSH(ctx, m.Addr(sshPort), user, password)
	if err != nil {
		return err
	}
	defer s.Close()
	select {
	case <-time.After(idleAfter):
	case <-ctx.Done():
		return ctx.Err()
	}
	text, err := s.Run("cat /proc/meminfo", "", time.Minute)
	if err != nil {
		return err
	}
	kib := map[string]float64{}
	for line := range strings.Lines(text) {
		var name string
		var n float64
		if _, err := fmt.Sscanf(line, "%s %f kB", &name, &n); err == nil {
			kib[strings.TrimSuffix(name, ":")] = n
		}
	}
	total, available := kib["MemTotal"]*1024, kib["MemAvailable"]*1024
	if total == 0 || available == 0 {
		return fmt.Errorf("cannot read the machine's memory: it says %q", text)
	}
	const installed = 512 << 20 // vmtest's default
	st.used, st.taken = (total-available)/1e6, (installed-available)/1e6
	return nil
}

// shutDown ends the machine in good order. Debian's cloud kernel does not hear
// the power button.
func shutDown(m *vmtest.Machine, ssh *vmtest.SSH) error {
	if err := asRoot(ssh, "setsid sh -c 'sleep 2; /usr/sbin/poweroff' > /dev/null 2>&1 < /dev/null &"); err != nil {
		return err
	}
	return m.WaitFor(offWithin)
}
