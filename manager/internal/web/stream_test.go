package web

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

// follow opens a stream as a browser or, without events, as anybody.
func (c *client) follow(base, path string, events bool) *bufio.Reader {
	c.Helper()
	ctx, cancel := context.WithCancel(c.Context())
	r, err := http.NewRequestWithContext(ctx, "GET", base+path, nil)
	if err != nil {
		c.Fatal(err)
	}
	r.AddCookie(&http.Cookie{Name: sessionCookie, Value: c.cookie})
	if events {
		r.Header.Set("Accept", "text/event-stream")
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { cancel(); answer.Body.Close() })
	if answer.StatusCode != http.StatusOK {
		c.Fatalf("%s: %s", path, answer.Status)
	}
	return bufio.NewReader(answer.Body)
}

// next is the next line that says something.
func next(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("the stream ended: %v", err)
		}
		if line = strings.TrimSpace(line); line != "" && line != ":" {
			return line
		}
	}
}

func TestEvents(t *testing.T) {
	p := newPlatform()
	c := signedIn(t, p)
	base := serve(t, c.site)
	_, page := c.get("/manager/app/notes")
	since := regexp.MustCompile(`data-since="(\d+)"`).FindStringSubmatch(page)
	if since == nil {
		t.Fatal("the page does not say what state it shows")
	}
	stream := c.follow(base, "/manager/events?since="+since[1], true)
	for range 2 {
		if err := p.StopService(t.Context(), "notes", c.by()); err != nil {
			t.Fatal(err)
		}
		if got := next(t, stream); got != "data: changed" {
			t.Fatalf("after a change: %q", got)
		}
	}
	// What has changed before the stream began is told, too.
	if got := next(t, c.follow(base, "/manager/events?since="+since[1], true)); got != "data: changed" {
		t.Fatalf("after a change in between: %q", got)
	}
	// Who has been signed out hears of no more changes.
	c.site.EndSessions()
	if err := p.StartService(t.Context(), "notes", c.by()); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(stream); err != nil || strings.Contains(string(rest), "changed") {
		t.Errorf("after the end of the session: %q %v", rest, err)
	}
}

// TestFollow: of what there was before, the last lines; then all that is written,
// each if the filter lets it through.
func TestFollow(t *testing.T) {
	for _, events := range []bool{true, false} {
		prefix := map[bool]string{true: "data: "}[events]
		p := newPlatform()
		r, w := io.Pipe()
		p.log = func(follow bool) io.ReadCloser {
			if !follow {
				t.Error("the log is not followed")
			}
			return r
		}
		c := signedIn(t, p)
		c.site.settled = 3 * time.Second // on a busy machine, too
		stream := c.follow(serve(t, c.site), "/manager/logs/follow?name=notes&q=LINE", events)
		for i := range 3 * mostLines {
			fmt.Fprintf(w, "line %d\nother %d\n", i, i)
		}
		for i := 2 * mostLines; i < 3*mostLines; i++ {
			if got, want := next(t, stream), fmt.Sprintf("%sline %d", prefix, i); got != want {
				t.Fatalf("%q; want %q", got, want)
			}
		}
		fmt.Fprintf(w, "another one\nLine A %s\nline B\n", strings.Repeat("x", 2*longLine))
		if got := next(t, stream); !strings.HasPrefix(got, prefix+"Line A x") || len(got) > longLine+len(prefix) {
			t.Errorf("a long line: %d bytes: %.40q", len(got), got)
		}
		if got := next(t, stream); got != prefix+"line B" {
			t.Errorf("%q; want line B", got)
		}
		w.Close()
		if rest, err := io.ReadAll(stream); err != nil || strings.Contains(string(rest), "line") {
			t.Errorf("after the end of the log: %q %v", rest, err)
		}
	}
}

func TestLogLines(t *testing.T) {
	p := newPlatform()
	c := signedIn(t, p)
	for text, want := range map[string][]string{
		"a\nb\n":  {"a", "b"},
		"a\nb":    {"a", "b"},
		"":        nil,
		"\n\nx\n": {"", "", "x"},
		strings.Repeat("y", longLine) + "z\nend\n": {strings.Repeat("y", longLine), "end"},
	} {
		kept := newLines("")
		if err := readLines(strings.NewReader(text), func(line []byte) error { kept.add(line); return nil }); err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(kept.text()) != fmt.Sprint(want) {
			t.Errorf("%.20q has the lines %.60q; want %.60q", text, kept.text(), want)
		}
	}
	p.log = func(bool) io.ReadCloser {
		var b strings.Builder
		for i := range 5 * mostLines {
			fmt.Fprintf(&b, "entry-%d.\n", i)
		}
		return io.NopCloser(strings.NewReader(b.String()))
	}
	_, page := c.get("/manager/logs?name=notes")
	if n := strings.Count(page, "entry-"); n != mostLines || !strings.Contains(page, "entry-4999.") || !strings.Contains(page, "Only the last lines") {
		t.Errorf("%d lines are shown; want the last %d", n, mostLines)
	}
	_, page = c.get("/manager/logs?name=notes&q=ENTRY-123.")
	if n := strings.Count(page, "entry-"); n != 1 || strings.Contains(page, "Only the last lines") {
		t.Errorf("%d lines are shown; want 1", n)
	}
	if _, text := c.get("/manager/logs/download?name=notes"); strings.Count(text, "\n") != 5*mostLines {
		t.Errorf("the download has %d lines", strings.Count(text, "\n"))
	}
}
