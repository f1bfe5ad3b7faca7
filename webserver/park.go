package webserver

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A lot is where idle connections are parked. What the runtime needs for a
// goroutine that waits for bytes is more than everything else about such a
// connection; here it is an entry of a map.
type lot struct {
	epoll *os.File // itself watched by the runtime's poller
	raw   syscall.RawConn
	fd    int

	mu     sync.Mutex
	next   uint64
	parked map[uint64]place
	timed  map[uint64]place // of these, those with an end
	ended  bool
	done   chan struct{}
}

// A place says who is woken: whoever has parked, even if the spot has changed
// hands since.
type place struct {
	*spot
	waker
}

// A spot is one descriptor's place in the lot. It is part of what is woken.
type spot struct {
	raw   syscall.RawConn
	id    uint64
	until time.Time // zero: as long as it likes
	known bool      // to epoll
}

// A waker is called in a goroutine of the lot and must not block.
type waker interface {
	ready() // there are bytes, or the end
	late()  // there were none until the time was over
}

func newLot() (*lot, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err == nil {
		err = unix.SetNonblock(fd, true) // os.NewFile wants it of a file to poll
	}
	if err != nil {
		return nil, fmt.Errorf("cannot wait for connections: %w", err)
	}
	l := &lot{epoll: os.NewFile(uintptr(fd), "epoll"), fd: fd, parked: map[uint64]place{}, timed: map[uint64]place{}, done: make(chan struct{})}
	if l.raw, err = l.epoll.SyscallConn(); err != nil {
		return nil, fmt.Errorf("cannot wait for connections: %w", err)
	}
	go l.run()
	go l.sweep()
	return l, nil
}

// park waits for bytes at the spot's descriptor. Whoever parks must not touch
// what the spot belongs to afterwards: it may be awake again.
func (l *lot) park(sp *spot, w waker, until time.Time) error {
	return l.watch(sp, w, unix.EPOLLIN|unix.EPOLLRDHUP, until)
}

// watchEnd waits for the other side to go away.
func (l *lot) watchEnd(sp *spot, w waker) error { return l.watch(sp, w, unix.EPOLLRDHUP, time.Time{}) }

func (l *lot) watch(sp *spot, w waker, events uint32, until time.Time) error {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return errors.New("internal error: the lot is closed")
	}
	l.next++
	id := l.next
	sp.id, sp.until = id, until
	l.parked[id] = place{sp, w}
	if !until.IsZero() {
		l.timed[id] = place{sp, w}
	}
	op := unix.EPOLL_CTL_ADD
	if sp.known {
		op = unix.EPOLL_CTL_MOD
	}
	sp.known = true
	raw := sp.raw
	l.mu.Unlock()
	event := unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
	var failed error
	err := raw.Control(func(fd uintptr) { failed = unix.EpollCtl(l.fd, op, int(fd), &event) })
	if err = errors.Join(err, failed); err != nil && l.take(id) == nil {
		return nil // the sweeper has it
	}
	return err
}

// take ends the waiting; it returns nil if somebody else did.
func (l *lot) take(id uint64) waker {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.parked[id].waker
	delete(l.parked, id)
	delete(l.timed, id)
	return w
}

// leave takes a spot back.
func (l *lot) leave(sp *spot) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.parked, sp.id)
	delete(l.timed, sp.id)
}

// bound gives somebody an end who has parked without one.
func (l *lot) bound(sp *spot, until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p, ok := l.parked[sp.id]; ok && p.spot == sp {
		sp.until = until
		l.timed[sp.id] = p
	}
}

// hurry lets nobody with an end stay longer than until.
func (l *lot) hurry(until time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, sp := range l.timed {
		if sp.until.After(until) {
			sp.until = until
		}
	}
}

func (l *lot) run() {
	events := make([]unix.EpollEvent, 256)
	for {
		n := 0
		var failed error
		err := l.raw.Read(func(uintptr) bool {
			n, failed = unix.EpollWait(l.fd, events, 0)
			return n > 0 || failed != nil && failed != unix.EINTR
		})
		if err != nil || failed != nil {
			return // closed
		}
		for _, e := range events[:n] {
			if w := l.take(uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32); w != nil {
				w.ready()
			}
		}
	}
}

func (l *lot) sweep() {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	var late []waker
	for {
		select {
		case <-l.done:
			return
		case now := <-tick.C:
			late = late[:0]
			l.mu.Lock()
			for id, p := range l.timed {
				if now.After(p.until) {
					late = append(late, p.waker)
					delete(l.parked, id)
					delete(l.timed, id)
				}
			}
			l.mu.Unlock()
			for _, w := range late {
				w.late()
			}
			clear(late)
		}
	}
}

func (l *lot) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.ended {
		l.ended = true
		close(l.done)
		l.epoll.Close()
	}
}
