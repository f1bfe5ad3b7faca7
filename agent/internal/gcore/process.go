package gcore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// A process is all that is saved but the contents of memory.
type process struct {
	machine
	dir      string // of a thread below /proc
	pid      int
	uid, gid uint64
	name     string
	command  string
	auxv     []byte
	page     uint64
	filter   uint64 // which memory is saved, see core(5)
	threads  []thread
	maps     []mapping
}

type thread struct {
	id               int
	stat             stat
	pending, blocked uint64
	regs             []byte
	sets             []setContent
}

type setContent struct {
	registerSet
	content []byte
}

func procDir(pid int) string     { return filepath.Join("/proc", strconv.Itoa(pid)) }
func taskDir(pid, id int) string { return filepath.Join(procDir(pid), "task", strconv.Itoa(id)) }

// inspect looks into a process whose threads stand still. It goes by the first of
// them: a process may live on when the thread that it is named after has ended.
func inspect(pid int, threads []*tracee) (process, error) {
	p := process{pid: pid, dir: taskDir(pid, threads[0].id), page: uint64(os.Getpagesize())}
	var err error
	if p.machine, err = machineOf(p.dir); errors.Is(err, fs.ErrNotExist) {
		return p, errEnded
	} else if err != nil {
		return p, err
	}
	s, err := readStatus(p.dir)
	if err != nil {
		return p, err
	}
	p.uid, p.gid = s.first("Uid"), s.first("Gid")
	if p.auxv, err = os.ReadFile(filepath.Join(p.dir, "auxv")); err != nil {
		return p, err
	}
	command, err := os.ReadFile(filepath.Join(p.dir, "cmdline"))
	if err != nil {
		return p, err
	}
	p.command = strings.TrimSpace(string(bytes.ReplaceAll(command, []byte{0}, []byte(" "))))
	if p.filter, err = readFilter(procDir(pid)); err != nil {
		return p, err
	}
	if p.maps, err = readMaps(p.dir); err != nil {
		return p, err
	}
	for _, t := range threads {
		got, err := p.inspectThread(t.id)
		if err != nil {
			return p, err
		}
		p.threads = append(p.threads, got)
	}
	p.name = p.threads[0].stat.name
	return p, nil
}

func (p process) inspectThread(id int) (thread, error) {
	t := thread{id: id}
	s, err := readStatus(taskDir(p.pid, id))
	if err != nil {
		return t, err
	}
	t.pending, t.blocked = s.bits("SigPnd"), s.bits("SigBlk")
	if t.stat, err = readStat(taskDir(p.pid, id)); err != nil {
		return t, err
	}
	if t.regs, err = registers(id, ntPrstatus); err != nil {
		return t, fmt.Errorf("registers of thread %d: %w", id, err)
	}
	if len(t.regs) != p.regs {
		return t, fmt.Errorf("thread %d runs code of another processor: its registers have %d bytes, those of %s %d", id, len(t.regs), p.machine.name, p.regs)
	}
	for _, set := range p.sets {
		// Processors differ in which of them they have.
		if b, err := registers(id, set.note); err == nil {
			t.sets = append(t.sets, setContent{set, b})
		}
	}
	return t, nil
}

// stat is what /proc/PID/stat says, see proc(5).
type stat struct {
	name                   string
	state                  byte
	parent, group, session int
	flags                  uint64
	times                  [4]uint64 // user, system, children's user and system, in ticks
	nice                   int
}

func readStat(dir string) (stat, error) {
	text, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return stat{}, err
	}
	return parseStat(string(text))
}

func parseStat(text string) (stat, error) {
	// The name may have brackets and spaces in it.
	from, to := strings.Index(text, "("), strings.LastIndex(text, ")")
	if from < 0 || to < from {
		return stat{}, fmt.Errorf("no name in %q", text)
	}
	f := strings.Fields(text[to+1:])
	if len(f) < 17 {
		return stat{}, fmt.Errorf("too few fields in %q", text)
	}
	s := stat{name: text[from+1 : to], state: f[0][0]}
	var errs []error
	number := func(i int) int64 {
		n, err := strconv.ParseInt(f[i], 10, 64)
		errs = append(errs, err)
		return n
	}
	s.parent, s.group, s.session, s.flags = int(number(1)), int(number(2)), int(number(3)), uint64(number(6))
	for i := range s.times {
		s.times[i] = uint64(number(11 + i))
	}
	s.nice = int(number(16))
	return s, errors.Join(errs...)
}

// status is what /proc/PID/status says.
type status map[string]string

func readStatus(dir string) (status, error) {
	text, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return nil, err
	}
	s := status{}
	for l := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(l, ":")
		s[name] = strings.TrimSpace(value)
	}
	return s, nil
}

func (s status) first(name string) uint64 {
	word, _, _ := strings.Cut(s[name], "\t")
	n, _ := strconv.ParseUint(word, 10, 64)
	return n
}

func (s status) number(name string) int { return int(s.first(name)) }

func (s status) bits(name string) uint64 {
	n, _ := strconv.ParseUint(s[name], 16, 64)
	return n
}
