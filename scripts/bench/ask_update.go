package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"appplatform/vmtest"
)

// updateWithin is how long a machine may be away, or may take to update.
const updateWithin = 15 * time.Minute

// pollEvery is how often the service is asked while it may be away.
const pollEvery = 100 * time.Millisecond

// nextLabel is the image to update to, newer than any.
const nextLabel = "999999"

// askUpdate takes a machine to the next image, and restarts one, and compares how
// long PostgreSQL does not answer.
func askUpdate(ctx context.Context, l *lab, r *report) error {
	l.log("building the next image")
	next, err := l.build(ctx, "", l.repo, "--label", nextLabel, "--out", filepath.Join(l.work, "next"))
	if err != nil {
		return err
	}
	url, stop, err := serve(next.file(".update"))
	if err != nil {
		return err
	}
	defer stop()
	l.log("our image installs itself")
	ours, err := l.installed(ctx)
	if err != nil {
		return err
	}
	var pairs []pair
	var budgets []float64 // what it may take: two starts, and writing sda3
	for i := range l.runs {
		l.log(fmt.Sprintf("update %d of %d", i+1, l.runs))
		updated, steps, err := l.gap(ctx, ours, "apagent update "+url, "writing App Platform", "record the stage trial", "the update is committed")
		if err != nil {
			return err
		}
		l.log(fmt.Sprintf("restart %d of %d", i+1, l.runs))
		restarted, _, err := l.gap(ctx, ours, "reboot", "Booting `App Platform'")
		if err != nil {
			return err
		}
		writing := steps[1].Sub(steps[0]).Seconds()
		r.note("run %d: writing and comparing sda3 took %.1f s", i+1, writing)
		pairs = append(pairs, pair{updated, restarted})
		budgets = append(budgets, updated/(2*restarted+writing))
	}
	r.title("6. Update to another image: longest time without an answer of PostgreSQL, asked every %v, beside a plain restart", pollEvery)
	r.pairs("update, PostgreSQL away", "restart", "%.1f s", pairs)
	r.budget("median ratio to two restarts and writing sda3", "%.3f", median(budgets), 1)
	return nil
}

// serve offers a file to virtual machines.
func serve(file string) (url string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	s := &http.Server{Handler: http.FileServer(http.Dir(filepath.Dir(file))), ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }()
	// QEMU's user network shows the host's loopback there.
	url = fmt.Sprintf("http://10.0.2.2:%d/%s", l.Addr().(*net.TCPAddr).Port, filepath.Base(file))
	return url, func() { s.Close() }, nil
}

// gap starts a copy of the system's disk, runs a command that takes the services
// away, waits until the console has said everything in said, the last of it when
// they are on their way back, and returns the longest time without an answer, in
// seconds, and when the console said it.
func (l *lab) gap(ctx context.Context, s system, command string, said ...string) (longest float64, at []time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, updateWithin)
	defer cancel()
	dir := filepath.Join(l.work, "machine")
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
		return 0, nil, err
	}
	disk := filepath.Join(dir, "disk.img")
	if err := vmtest.CopyDisk(disk, s.disk, 0); err != nil {
		return 0, nil, err
	}
	m, err := vmtest.Start(ctx, l.options(dir, disk, s))
	if err != nil {
		return 0, nil, err
	}
	defer m.Kill()
	if longest, at, err = gapOf(ctx, m, command, said); err != nil {
		return 0, nil, fmt.Errorf("cannot measure %q: %w; the console ends with:\n%s", command, err, m.Serial.Tail(20))
	}
	return longest, at, nil
}

func gapOf(ctx context.Context, m *vmtest.Machine, command string, said []string) (longest float64, at []time.Time, err error) {
	var st start
	if err := awaitBoth(ctx, m, time.Now(), &st); err != nil {
		return 0, nil, err
	}
	if _, err := m.Serial.Expect("Booting `App Platform'", updateWithin); err != nil {
		return 0, nil, err
	}
	ssh, err := vmtest.DialSSH(ctx, m.Addr(sshPort), user, password)
	if err != nil {
		return 0, nil, err
	}
	defer ssh.Close()
	answers := poll(ctx, m.Addr(postgresPort))
	if err := asRoot(ssh, "setsid sh -c 'sleep 2; "+command+"' > /dev/null 2>&1 < /dev/null &"); err != nil {
		return 0, nil, err
	}
	for _, line := range said {
		if _, err := m.Serial.Expect(line, updateWithin); err != nil {
			return 0, nil, err
		}
		at = append(at, time.Now())
	}
	// It has gone away by now; the next answer ends the gap.
	if err := await(ctx, m.Addr(postgresPort), selectOne); err != nil {
		return 0, nil, err
	}
	times := answers()
	for i := 1; i < len(times); i++ {
		longest = max(longest, times[i].Sub(times[i-1]).Seconds())
	}
	return longest, at, nil
}

// poll asks PostgreSQL until its result is called, which returns when there were
// answers. No try waits for the one before.
func poll(ctx context.Context, addr string) (answers func() []time.Time) {
	ctx, cancel := context.WithCancel(ctx)
	var mu sync.Mutex
	var times []time.Time
	var tries sync.WaitGroup
	try := func() {
		if askOnce(ctx, addr, selectOne) == nil {
			mu.Lock()
			defer mu.Unlock()
			times = append(times, time.Now())
		}
	}
	tries.Go(func() {
		again := time.NewTicker(pollEvery)
		defer again.Stop()
		for ctx.Err() == nil {
			tries.Go(try)
			select {
			case <-again.C:
			case <-ctx.Done():
			}
		}
	})
	return func() []time.Time {
		cancel()
		tries.Wait()
		slices.SortFunc(times, time.Time.Compare)
		return times
	}
}
