package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"appplatform/manager/internal/model"
)

// openCgroups makes the folder of the services' cgroups and hands the controllers
// down to it. It names those that the kernel does not have there.
func openCgroups(dir string) (missing []string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, "cgroup.kill")); err != nil {
		return nil, fmt.Errorf("%s is no cgroup v2 of Linux 5.14 or newer", dir)
	}
	for _, name := range []string{"memory", "cpu", "pids"} {
		// One by one: a write of several is refused for one that is missing. The
		// parent may hand it down already.
		os.WriteFile(filepath.Join(filepath.Dir(dir), "cgroup.subtree_control"), []byte("+"+name), 0)
		if os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+name), 0) != nil {
			missing = append(missing, name)
		}
	}
	return missing, nil
}

// A cgroup of a service; "" stands for none.
type cgroup string

func (g cgroup) write(file, value string) error {
	return os.WriteFile(filepath.Join(string(g), file), []byte(value), 0o644)
}

// make prepares the cgroup for a start.
func (g cgroup) make(l model.Limits) error {
	if err := os.MkdirAll(string(g), 0o755); err != nil {
		return err
	}
	return g.limit(l)
}

// limit sets the limits; those of controllers that are not there were named once.
func (g cgroup) limit(l model.Limits) error {
	memory, swap := "max", "max"
	if l.MemoryMiB > 0 {
		bytes := int64(l.MemoryMiB) << 20
		memory = strconv.FormatInt(bytes, 10)
		// What eats without end must not write all of the swap first: meanwhile nobody
		// gets anything done.
		swap = strconv.FormatInt(bytes/4, 10)
	}
	cpu := "max 100000"
	if l.CPUPercent > 0 {
		cpu = fmt.Sprintf("%d 100000", l.CPUPercent*1000)
	}
	pids := "max"
	if l.Processes > 0 {
		pids = strconv.Itoa(l.Processes)
	}
	var errs []error
	for _, f := range []struct{ file, value string }{
		{"memory.max", memory},
		{"memory.swap.max", swap},
		{"memory.oom.group", "1"}, // half an app is of no use
		{"cpu.max", cpu},
		{"pids.max", pids},
	} {
		if err := g.write(f.file, f.value); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// number reads a file that holds a number, or the line that begins with key.
func (g cgroup) number(file, key string) (int64, bool) {
	if g == "" {
		return 0, false
	}
	text, err := os.ReadFile(filepath.Join(string(g), file))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(text)) {
		value := strings.TrimSpace(line)
		if key != "" {
			var found bool
			if value, found = strings.CutPrefix(value, key+" "); !found {
				continue
			}
		}
		n, err := strconv.ParseInt(value, 10, 64)
		return n, err == nil
	}
	return 0, false
}

func (g cgroup) pids() []int {
	text, err := os.ReadFile(filepath.Join(string(g), "cgroup.procs"))
	if err != nil {
		return nil
	}
	var pids []int
	for _, field := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (g cgroup) has(pid int) bool { return slices.Contains(g.pids(), pid) }

// clear ends all processes of the cgroup and waits until they are gone: a second
// start would else find the sockets and ports of the first in use. A cgroup that was
// killed is removed: Linux (seen with 6.18) also kills what is started into it later
// from outside. One whose disk does not answer cannot be killed: ctx ends the
// waiting, and the next manager clears up.
func (g cgroup) clear(ctx context.Context, killed bool) {
	for wait := time.Millisecond; ctx.Err() == nil; wait = min(2*wait, 100*time.Millisecond) {
		if n, ok := g.number("cgroup.events", "populated"); !ok || n == 0 {
			break
		}
		g.write("cgroup.kill", "1")
		killed = true
		time.Sleep(wait)
	}
	if killed {
		os.Remove(string(g))
	}
}
