package web

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	sign = 20 * time.Second       // how often a silent stream shows that it is there
	rest = 500 * time.Millisecond // between two changes
)

// A stream goes on until the browser leaves.
type stream struct {
	w      io.Writer
	flush  func() error
	events bool
}

// stream begins an answer that does not end.
func (v *visit) stream() stream {
	s := stream{w: v.w, flush: http.NewResponseController(v.w).Flush, events: strings.Contains(v.r.Header.Get("Accept"), "text/event-stream")}
	// The limits of other answers are not for this one; tests have none.
	_ = http.NewResponseController(v.w).SetWriteDeadline(time.Time{})
	kind := "text/plain; charset=utf-8"
	if s.events {
		kind = "text/event-stream"
	}
	v.w.Header().Set("Content-Type", kind)
	v.w.Header().Set("X-Accel-Buffering", "no")
	_ = s.flush()
	return s
}

func (s stream) write(text []byte) error {
	if _, err := s.w.Write(text); err != nil {
		return err
	}
	return s.flush()
}

// lines are one event together, or as they are.
func (s stream) lines(list []string) error {
	var b bytes.Buffer
	for _, line := range list {
		if s.events {
			b.WriteString("data: ")
			line = strings.ReplaceAll(line, "\r", "")
		}
		b.WriteString(line + "\n")
	}
	if s.events && len(list) > 0 {
		b.WriteString("\n")
	}
	return s.write(b.Bytes())
}

// alive keeps what is between from closing a silent stream.
func (s stream) alive() error {
	if s.events {
		return s.write([]byte(":\n\n"))
	}
	return s.flush()
}

// events tell the script that something has changed since the state of the page; it
// gets the page anew and replaces the parts that differ.
func (v *visit) events() error {
	out := v.stream()
	state, changed := v.p.Changed()
	if v.r.URL.Query().Get("since") != strconv.FormatUint(state, 10) {
		if err := out.lines([]string{"changed"}); err != nil {
			return nil
		}
	}
	alive := time.NewTicker(sign)
	defer alive.Stop()
	for {
		var err error
		select {
		case <-v.r.Context().Done():
			return nil
		case <-alive.C:
			err = out.alive()
		case <-changed:
			_, changed = v.p.Changed()
			if !v.sessions.isOpen(v.session) {
				return nil
			}
			err = out.lines([]string{"changed"})
			select {
			case <-v.r.Context().Done():
			case <-time.After(rest):
			}
		}
		if err != nil {
			return nil // The browser has gone.
		}
	}
}
