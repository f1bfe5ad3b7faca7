package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"appplatform/image"
)

// A progress shows what a build does: on a terminal one line that changes,
// elsewhere a line for each step and one every ten seconds of a long one.
type progress struct {
	event func(image.Event)
	close func()
}

func newProgress(w io.Writer) *progress {
	s := &shower{w: w}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		s.terminal = true
	}
	return &progress{event: s.event, close: s.clear}
}

type shower struct {
	w        io.Writer
	terminal bool

	mu     sync.Mutex
	line   bool // a changing line is on the screen
	step   string
	began  time.Time
	shown  time.Time
	slowed bool // the present step has printed a line of its own
}

const (
	redraw  = 100 * time.Millisecond
	replay  = 10 * time.Second
	notable = 300 * time.Millisecond // a faster step is not worth a line
)

func (s *shower) event(e image.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	switch e.State {
	case image.Started:
		s.step, s.began, s.shown, s.slowed = e.Step, now, now, false
		if s.terminal {
			s.draw(e.Text)
		}
	case image.Progress:
		every := replay
		if s.terminal {
			every = redraw
		}
		if now.Sub(s.shown) < every {
			return
		}
		s.shown, s.slowed = now, true
		text := e.Text + ": " + amount(e) + left(e, now.Sub(s.began))
		if s.terminal {
			s.draw(text)
		} else {
			fmt.Fprintln(s.w, text)
		}
	case image.Done:
		s.erase()
		if e.Seconds >= notable.Seconds() || s.slowed {
			fmt.Fprintf(s.w, "%s: %.1f s\n", e.Text, e.Seconds)
		}
	case image.Note:
		s.erase()
		fmt.Fprintln(s.w, e.Text)
	}
}

func (s *shower) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
}

func (s *shower) draw(text string) {
	fmt.Fprintf(s.w, "\r\x1b[K%s", text)
	s.line = true
}

func (s *shower) erase() {
	if s.line {
		fmt.Fprint(s.w, "\r\x1b[K")
		s.line = false
	}
}

// amount is what is done of how much.
func amount(e image.Event) string {
	if e.Unit == "bytes" {
		return fmt.Sprintf("%.1f of %.1f MB", float64(e.Done)/1e6, float64(e.Total)/1e6)
	}
	return fmt.Sprintf("%d of %d %s", e.Done, e.Total, e.Unit)
}

// left guesses the rest of a step from its beginning, once there is enough of
// that.
func left(e image.Event, took time.Duration) string {
	if e.Done < e.Total/50 || e.Done <= 0 || e.Total <= e.Done || took < 2*time.Second {
		return ""
	}
	rest := time.Duration(float64(took) * float64(e.Total-e.Done) / float64(e.Done))
	return ", " + rest.Round(time.Second).String() + " left"
}
