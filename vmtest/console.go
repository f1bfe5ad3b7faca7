package vmtest

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
)

// A Console is a terminal line with somebody or something at its other end. It
// remembers what was said, without the codes that move the cursor, so that
// words can be waited for.
type Console struct {
	name string
	w    io.Writer

	mu      sync.Mutex
	text    []byte // printable text since the beginning
	seen    int    // what Expect has gone past
	escape  []byte // an unfinished control sequence
	err     error  // why there will be no more text
	changed chan struct{}
}

// NewConsole reads r until it ends; copy, if any, gets every byte as it was and
// is closed then.
func NewConsole(name string, r io.Reader, w io.Writer, copy io.WriteCloser) *Console {
	c := &Console{name: name, w: w, changed: make(chan struct{})}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := r.Read(b)
			if n > 0 {
				if copy != nil {
					_, _ = copy.Write(b[:n])
				}
				c.add(b[:n])
			}
			if err != nil {
				if copy != nil {
					copy.Close()
				}
				c.fail(fmt.Errorf("the %s has ended", c.name))
				return
			}
		}
	}()
	return c
}

func (c *Console) add(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range b {
		c.addByte(ch)
	}
	c.wake()
}

// sequenceEnd tells whether a control sequence that began with ESC is complete:
// ESC [ ends with a letter, other ones have one more character (two after a
// parenthesis).
func sequenceEnd(s []byte) bool {
	switch {
	case len(s) < 2:
		return false
	case s[1] == '[':
		return len(s) > 2 && s[len(s)-1] >= 0x40
	case s[1] == '(' || s[1] == ')':
		return len(s) > 2
	}
	return true
}

func (c *Console) addByte(b byte) {
	switch {
	case len(c.escape) > 0:
		if c.escape = append(c.escape, b); sequenceEnd(c.escape) {
			// A moved cursor separates words.
			if b == 'H' || b == 'f' {
				c.text = append(c.text, '\n')
			}
			c.escape = nil
		}
	case b == 0x1b:
		c.escape = []byte{b}
	case b == '\n' || b == '\t' || b >= 0x20:
		c.text = append(c.text, b)
	}
}

// wake is called with mu held.
func (c *Console) wake() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// fail ends all waiting, now and later, once what was said is used up.
func (c *Console) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	c.wake()
}

// Expect waits until the text that it has not yet gone past matches, and
// returns the match and its groups. A nil error means that it did.
func (c *Console) Expect(pattern string, within time.Duration) ([]string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("internal error: %w", err)
	}
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	for {
		c.mu.Lock()
		if at := re.FindSubmatchIndex(c.text[c.seen:]); at != nil {
			groups := make([]string, len(at)/2)
			for i := range groups {
				if at[2*i] >= 0 {
					groups[i] = string(c.text[c.seen+at[2*i] : c.seen+at[2*i+1]])
				}
			}
			c.seen += at[1]
			c.mu.Unlock()
			return groups, nil
		}
		err, changed := c.err, c.changed
		c.mu.Unlock()
		if err != nil {
			return nil, c.explain(fmt.Errorf("cannot see %q: %w", pattern, err))
		}
		select {
		case <-changed:
		case <-deadline.C:
			return nil, c.explain(fmt.Errorf("cannot see %q on the %s within %v", pattern, c.name, within))
		}
	}
}

// explain adds the last lines to an error.
func (c *Console) explain(err error) error {
	tail := c.Tail(25)
	if tail == "" {
		return fmt.Errorf("%w; nothing was said", err)
	}
	return fmt.Errorf("%w; the last words were:\n%s", err, tail)
}

// Send types text.
func (c *Console) Send(text string) error {
	if c.w == nil {
		return errors.New("internal error: this console cannot be written to")
	}
	if _, err := io.WriteString(c.w, text); err != nil {
		return c.explain(fmt.Errorf("cannot type on the %s: %w", c.name, err))
	}
	return nil
}

// Text is all that was said.
func (c *Console) Text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

// Tail is the last lines that were said, without the lines and the frame that a
// drawn menu leaves.
func (c *Console) Tail(lines int) string {
	const width = 200
	c.mu.Lock()
	text := string(c.text[max(0, len(c.text)-100*width):])
	c.mu.Unlock()
	var tail []string
	for line := range strings.Lines(text) {
		line = strings.Trim(line, " \n|+-")
		if len(line) > width {
			line = line[:width] + "..."
		}
		if line != "" {
			tail = append(tail, line)
		}
	}
	return strings.Join(tail[max(0, len(tail)-lines):], "\n")
}
