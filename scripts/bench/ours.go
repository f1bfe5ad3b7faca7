package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"appplatform/image"
	"appplatform/internal/cache"
	"appplatform/internal/run"
)

// A built is what a run of apimage said and how long it took, in seconds.
type built struct {
	took  float64
	done  map[string]float64 // from the start to the end of a step
	step  map[string]float64 // a step alone
	order []string
	image.Result
}

// file is the finished file with this extension.
func (b *built) file(extension string) string {
	for _, f := range b.Files {
		if filepath.Ext(f) == extension {
			return f
		}
	}
	return ""
}

// build runs apimage as a user does, with the cache in a folder of its own
// unless home is empty. Go's own cache stays: the compiler is a tool like the
// others.
func (l *lab) build(ctx context.Context, home, repo string, flags ...string) (*built, error) {
	cmd := run.Command(ctx, l.apimage, append(append([]string{"build", "--json", "--repo", repo}, flags...), l.board)...)
	cmd.Env = append(os.Environ(), "GOCACHE="+l.gocache)
	if home != "" {
		cmd.Env = append(cmd.Env, "XDG_CACHE_HOME="+home)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	tail := &run.Tail{}
	cmd.Stderr = tail
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b := &built{done: map[string]float64{}, step: map[string]float64{}}
	finished := false
	lines := bufio.NewScanner(stdout)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e image.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			continue // Wait tells what went wrong.
		}
		switch e.State {
		case image.Done:
			b.done[e.Step], b.step[e.Step] = time.Since(began).Seconds(), e.Seconds
			b.order = append(b.order, e.Step)
		case "result":
			finished = json.Unmarshal(lines.Bytes(), &b.Result) == nil
		case image.Note:
			if strings.HasPrefix(e.Text, "WARNING") {
				l.log(e.Text)
			}
		}
	}
	err = run.Explain(cmd, cmd.Wait(), tail)
	b.took = time.Since(began).Seconds()
	if err == nil && !finished {
		err = errors.New("apimage named no result")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot build the image: %w", err)
	}
	return b, nil
}

// coldBuild builds the image with nothing in the cache but packages, tools and
// kernel.
func (l *lab) coldBuild(ctx context.Context) (*built, error) {
	if err := l.dropCache(); err != nil {
		return nil, err
	}
	home, err := l.freshCache()
	if err != nil {
		return nil, err
	}
	// The lock tells it the exact packages, as the peer is told them.
	b, err := l.build(ctx, home, l.copy, "--locked", l.image.file(".lock"))
	if err != nil {
		return nil, err
	}
	l.warmed = home
	return b, nil
}

// coldPlan is how long it takes to ask apt for the packages when it has never
// been asked before, but has its index.
func (l *lab) coldPlan(ctx context.Context) (float64, error) {
	home, err := l.freshCache()
	if err != nil {
		return 0, err
	}
	cmd := run.Command(ctx, l.apimage, "plan", "--repo", l.copy, l.board)
	cmd.Env = append(os.Environ(), "XDG_CACHE_HOME="+home)
	took, err := timed(func() error { return run.Wait(cmd) })
	return took, errors.Join(err, cache.RemoveAll(home))
}

// rootfs is how long it took to have the root file system. The ramdisk is made
// before it and is no part of it.
func (b *built) rootfs() (float64, error) {
	end, ok := b.done["rootfs"]
	if !ok {
		return 0, errors.New("apimage did not say when the root file system was made")
	}
	return end - b.step["ramdisk"] - b.step["kernel"], nil
}

// steps says what took how long; the plan is what comes before the first step.
func (b *built) steps() string {
	first := b.order[0]
	text := fmt.Sprintf("plan %.1f s", b.done[first]-b.step[first])
	for _, name := range b.order {
		text += fmt.Sprintf(", %s %.1f s", name, b.step[name])
	}
	return text
}
