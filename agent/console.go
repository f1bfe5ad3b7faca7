package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Consoles are all terminals that the kernel writes its messages to: the
// screen of a virtual machine and its serial port.
type Consoles struct {
	fds   []int // Not os.File, which makes descriptors wait again.
	saved []*unix.Termios
}

// OpenConsoles opens what the kernel calls active. A console that cannot be
// opened is left out; with none at all, the lines go to standard output.
func OpenConsoles() *Consoles {
	c := &Consoles{}
	active, _ := os.ReadFile("/sys/class/tty/console/active")
	for _, name := range strings.Fields(string(active)) {
		// A serial line that nobody drains must not hold up anything.
		fd, err := unix.Open("/dev/"+name, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err == nil {
			c.fds = append(c.fds, fd)
		}
	}
	return c
}

// Write shows text on every console.
func (c *Consoles) Write(b []byte) (int, error) {
	if len(c.fds) == 0 {
		return os.Stdout.Write(b)
	}
	text := bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))
	for _, fd := range c.fds {
		writeSoon(fd, text)
	}
	return len(b), nil
}

// writeSoon gives a slow line a second for each message.
func writeSoon(fd int, text []byte) {
	deadline := time.Now().Add(time.Second)
	for len(text) > 0 && time.Now().Before(deadline) {
		n, err := unix.Write(fd, text)
		if n > 0 {
			text = text[n:]
		}
		if err == unix.EAGAIN {
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 100)
		} else if err != nil {
			return
		}
	}
}

// Close gives the consoles back.
func (c *Consoles) Close() {
	for _, fd := range c.fds {
		unix.Close(fd)
	}
}

// Ready makes keys count from now on: one pressed in the boot menu does not, one
// pressed as soon as people are asked to does.
func (c *Consoles) Ready() {
	c.raw()
	for _, fd := range c.fds {
		_ = unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCIFLUSH)
	}
}

// Wait watches for a key on any console, and for a login over SSH, after Ready.
// No getty runs yet: init starts them when the agent is done.
func (c *Consoles) Wait(ctx context.Context, d time.Duration) bool {
	defer c.restore()
	fds := make([]unix.PollFd, len(c.fds))
	for i, fd := range c.fds {
		fds[i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
	}
	end, shown := time.Now().Add(d), int(d.Seconds())
	for left := d; left > 0 && ctx.Err() == nil; left = time.Until(end) {
		// Every ten seconds, also when this process was late for one of them.
		if seconds := (int(left.Round(time.Second).Seconds()) + 9) / 10 * 10; seconds < shown {
			fmt.Fprintf(c, "\r%d seconds ", seconds)
			shown = seconds
		}
		n, _ := unix.Poll(fds, int(min(left, time.Second).Milliseconds())+1)
		if n > 0 && c.key(fds) || loggedIn("/proc") {
			fmt.Fprintln(c)
			return true
		}
		if n > 0 {
			time.Sleep(100 * time.Millisecond) // A line that hung up is always ready.
		}
	}
	fmt.Fprintln(c)
	return false
}

func (c *Consoles) key(fds []unix.PollFd) bool {
	b := make([]byte, 16)
	for _, fd := range fds {
		if fd.Revents&unix.POLLIN != 0 {
			if n, err := unix.Read(int(fd.Fd), b); err == nil && n > 0 {
				return true
			}
		}
	}
	return false
}

// raw makes the terminals deliver single keys.
func (c *Consoles) raw() {
	c.saved = make([]*unix.Termios, len(c.fds))
	for i, fd := range c.fds {
		t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			continue
		}
		saved := *t
		c.saved[i] = &saved
		t.Lflag &^= unix.ICANON | unix.ECHO
		t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
		_ = unix.IoctlSetTermios(fd, unix.TCSETS, t)
	}
}

func (c *Consoles) restore() {
	for i, saved := range c.saved {
		if saved != nil {
			_ = unix.IoctlSetTermios(c.fds[i], unix.TCSETSF, saved)
		}
	}
}

// loggedIn reports whether a dropbear server has started somebody's shell.
// Dropbear itself forks for each connection, so a port scan is not a login.
func loggedIn(proc string) bool {
	stats, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "stat"))
	names, parents := map[string]string{}, map[string]string{}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		pid, name, parent := parseStat(string(b))
		names[pid], parents[pid] = name, parent
	}
	for pid, parent := range parents {
		if names[parent] == "dropbear" && names[pid] != "dropbear" {
			return true
		}
	}
	return false
}

// parseStat reads "12 (name) S 1 ..."; the name may hold blanks and brackets.
func parseStat(stat string) (pid, name, parent string) {
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return "", "", ""
	}
	rest := strings.Fields(stat[end+1:])
	if len(rest) < 2 {
		return "", "", ""
	}
	return strings.TrimSpace(stat[:open]), stat[open+1 : end], rest[1]
}
