// Package supervise runs processes and watches them: each in a cgroup of its own
// with its limits, as a user of its own, its output in log files of bounded size.
// One that ends is started again, after a delay that grows, for ever; one that
// hangs is ended. The processes do not depend on the supervisor: they go on when
// it dies, and the next one finds and watches them.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"appplatform/internal/hint"
	"appplatform/manager/internal/model"
)

// A Spec says how a process is started.
type Spec struct {
	Name       string // of its cgroup, log and pid file
	Path       string
	Args       []string // without the program's name
	Env        []string
	Dir        string
	UID, GID   uint32 // who it runs as, if the supervisor is root
	Groups     []uint32
	ExtraFiles []*os.File // its file descriptors from 3 on
	Limits     model.Limits
	Log        string // folder of its log files
	LogSize    int64  // bytes of one of five files; 0 is 1 MiB
}

// Hooks are how the supervisor asks and tells the manager. None of them is called
// with a lock held. Nil ones are left out.
type Hooks struct {
	// Ready waits until a process that was just started, or found running, does its
	// work. An error ends the process.
	Ready func(ctx context.Context, pid int) error
	// Alive asks whether a process still works. An error, ctx's included, is a
	// process that hangs: it is ended with a core dump and started anew.
	Alive func(ctx context.Context) error
	// Stop asks a process to end by itself. It need not wait for that.
	Stop func(ctx context.Context) error
	// Ended is told each end, wanted or not.
	Ended func(End)
	// Changed is told that Status gives something else.
	Changed func()
}

// Options say where a Supervisor works and how patient it is. Zero durations
// become the defaults that are named here.
type Options struct {
	Run    string // folder for lock, pid files and FIFOs
	Cgroup string // cgroup v2 folder in which each process gets its own; empty: none
	Log    func(format string, args ...any)

	ReadyTimeout  time.Duration // 60 s
	StatusEvery   time.Duration // 10 s
	StatusTimeout time.Duration // 30 s
	PoliteTimeout time.Duration // 10 s from asking to SIGTERM
	TermTimeout   time.Duration // 5 s from SIGTERM to SIGKILL
	AbortTimeout  time.Duration // 10 s for a core dump
	Settled       time.Duration // 1 min: who ran that long starts at once again; negative: everybody
	MaxDelay      time.Duration // 60 s
	LogRate       int64         // bytes a second that a process may log for long; 256 KiB
}

func (o *Options) defaults() {
	for _, d := range []struct {
		of *time.Duration
		is time.Duration
	}{
		{&o.ReadyTimeout, time.Minute},
		{&o.StatusEvery, 10 * time.Second},
		{&o.StatusTimeout, 30 * time.Second},
		{&o.PoliteTimeout, 10 * time.Second},
		{&o.TermTimeout, 5 * time.Second},
		{&o.AbortTimeout, 10 * time.Second},
		{&o.Settled, time.Minute},
		{&o.MaxDelay, time.Minute},
	} {
		if *d.of == 0 {
			*d.of = d.is
		}
	}
	if o.LogRate == 0 {
		o.LogRate = 256 << 10
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
}

// ErrLocked is what New returns while another supervisor works in the folder.
var ErrLocked = errors.New("another manager is running")

// A Supervisor runs services. There is one at a time for a run folder.
type Supervisor struct {
	o      Options
	lock   *os.File
	cgroup string // empty: none
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	services map[string]*Service
}

// New takes the run folder.
func New(o Options) (*Supervisor, error) {
	o.defaults()
	if err := os.MkdirAll(o.Run, 0o700); err != nil {
		return nil, fmt.Errorf("cannot supervise: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(o.Run, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot supervise: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, hint.Errorf("/etc/init.d/S92manager restart", "cannot supervise: %w", ErrLocked)
		}
		return nil, fmt.Errorf("cannot lock %s: %w", o.Run, err)
	}
	s := &Supervisor{o: o, lock: lock, services: map[string]*Service{}}
	if o.Cgroup != "" {
		missing, err := openCgroups(o.Cgroup)
		if err != nil {
			o.Log("no cgroups, so no limits: %v", err)
		} else {
			s.cgroup = o.Cgroup
			if len(missing) > 0 {
				o.Log("the kernel does not limit here: %v", missing)
			}
		}
	}
	if os.Geteuid() != 0 {
		o.Log("not root: all apps run as this user")
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Add begins to supervise a service. A process of it that a supervisor before this
// one has started is watched from now on; without one the service is stopped.
func (s *Supervisor) Add(spec Spec, hooks Hooks) (*Service, error) {
	if spec.Name == "" || filepath.Base(spec.Name) != spec.Name || spec.Name == "lock" {
		return nil, fmt.Errorf("internal error: a service cannot be called %q", spec.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.services[spec.Name] != nil {
		return nil, fmt.Errorf("internal error: %s is supervised already", spec.Name)
	}
	service, err := newService(s, spec, hooks)
	if err != nil {
		return nil, fmt.Errorf("cannot supervise %s: %w", spec.Name, err)
	}
	s.services[spec.Name] = service
	go service.loop()
	return service, nil
}

// Remove forgets a service, which must be stopped.
func (s *Supervisor) Remove(service *Service) error {
	if err := service.remove(); err != nil {
		return err
	}
	// The name is free for another when nothing of this one is left.
	defer func() {
		s.mu.Lock()
		delete(s.services, service.name)
		s.mu.Unlock()
	}()
	service.cancel()
	<-service.done
	service.out.close()
	os.Remove(s.file(service.name, ".pid"))
	os.Remove(s.file(service.name, ".out"))
	if s.cgroup != "" {
		os.Remove(filepath.Join(s.cgroup, service.name))
	}
	return nil
}

// Detach leaves all processes to themselves: that a hook fails from now on, because
// what it asks is being closed, ends none of them. Close has to follow.
func (s *Supervisor) Detach() { s.cancel() }

// Close ends the supervision. The processes go on, for the next supervisor.
func (s *Supervisor) Close() {
	s.cancel()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, service := range s.services {
		<-service.done
		service.out.close()
	}
	s.lock.Close()
}

func (s *Supervisor) file(name, suffix string) string { return filepath.Join(s.o.Run, name+suffix) }
