package web

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"appplatform/manager/internal/model"
)

const (
	mostLines = 1000     // of a log, on a page
	longLine  = 16 << 10 // bytes; what is behind them is cut off
	perPage   = 50       // entries of the audit log
)

// A lines keeps the last lines that a filter lets through.
type lines struct {
	filter []byte
	last   []string
	left   bool // some are left out
}

func newLines(filter string) *lines {
	return &lines{filter: bytes.ToLower([]byte(strings.TrimSpace(filter)))}
}

func (l *lines) matches(line []byte) bool { return bytes.Contains(bytes.ToLower(line), l.filter) }

func (l *lines) add(line []byte) {
	if !l.matches(line) {
		return
	}
	l.last = append(l.last, string(line))
	// Half of the room is cleared at a time.
	if len(l.last) >= 2*mostLines {
		l.last = append(l.last[:0], l.last[mostLines:]...)
		l.left = true
	}
}

func (l *lines) text() []string {
	if len(l.last) > mostLines {
		l.left = true
		return l.last[len(l.last)-mostLines:]
	}
	return l.last
}

// readLines hands on each line without its end.
func readLines(r io.Reader, each func([]byte) error) error {
	b := bufio.NewReaderSize(r, longLine)
	for {
		line, more, err := b.ReadLine()
		if more {
			line = bytes.Clone(line) // The next call overwrites it.
		}
		for more && err == nil {
			_, more, err = b.ReadLine()
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := each(line); err != nil {
			return err
		}
	}
}

// logName is the log that the address names; only those that there are.
func (v *visit) logName() (name string, names []string, err error) {
	names, err = v.p.Logs(v.r.Context())
	name = v.r.URL.Query().Get("name")
	if err == nil && name != "" && !slices.Contains(names, name) {
		err = fmt.Errorf("the log %q: %w", name, model.ErrNotFound)
	}
	return name, names, err
}

func (v *visit) logs() error {
	name, names, err := v.logName()
	if err != nil {
		return err
	}
	q := v.r.URL.Query().Get("q")
	data := map[string]any{"Name": name, "Names": names, "Q": q, "Follow": v.r.URL.Query().Has("follow"),
		"Query": "name=" + url.QueryEscape(name) + "&q=" + url.QueryEscape(q)}
	title := v.t("Logs")
	if name != "" {
		title = v.t("Log of %s", name)
		kept := newLines(q)
		if !v.r.URL.Query().Has("follow") {
			err = v.eachLine(name, kept)
		}
		data["Lines"], data["Left"] = kept.text(), kept.left
		if err != nil {
			data["Trouble"] = newMessage(err)
		}
	}
	p := v.newPage("", "logs", data)
	p.Title, p.Section, p.Live = title, "logs", livePath
	return v.showPage(p)
}

func (v *visit) eachLine(name string, kept *lines) error {
	log, err := v.p.Log(v.r.Context(), name, false)
	if err != nil {
		return err
	}
	defer log.Close()
	return readLines(log, func(line []byte) error { kept.add(line); return nil })
}

// followLog streams a log: as events to the script, as text to anybody else.
func (v *visit) followLog() error {
	name, _, err := v.logName()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(v.r.Context())
	defer cancel()
	log, err := v.p.Log(ctx, name, true)
	if err != nil {
		return err
	}
	read := make(chan []byte)
	// The log is closed when nobody reads it any more.
	defer func() {
		cancel()
		for range read {
		}
		log.Close()
	}()
	go func() {
		defer close(read)
		_ = readLines(log, func(line []byte) error {
			select {
			case read <- bytes.Clone(line):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()

	out := v.stream()
	kept := newLines(v.r.URL.Query().Get("q"))
	begun := time.NewTimer(v.settled)
	alive := time.NewTicker(sign)
	defer alive.Stop()
	for started := false; ; {
		select {
		case line, ok := <-read:
			switch {
			case !ok && !started:
				return out.lines(kept.text())
			case !ok:
				return nil
			case started && kept.matches(line):
				err = out.lines([]string{string(line)})
			case !started:
				kept.add(line)
				begun.Reset(v.settled)
			}
		case <-begun.C:
			started = true
			err = out.lines(kept.text())
		case <-alive.C:
			if !v.sessions.isOpen(v.session) {
				return nil
			}
			err = out.alive()
		case <-ctx.Done():
			return nil
		}
		if err != nil {
			return nil // The browser has gone.
		}
	}
}

func (v *visit) downloadLog() error {
	name, _, err := v.logName()
	if err != nil {
		return err
	}
	log, err := v.p.Log(v.r.Context(), name, false)
	if err != nil {
		return err
	}
	defer log.Close()
	v.attach("text/plain; charset=utf-8", strings.ReplaceAll(name, "/", "-")+".log")
	_, _ = io.Copy(v.w, log)
	return nil
}

// attach has the browser save what follows. Names are of files of ours; the quoting
// is for those that are not.
func (v *visit) attach(kind, name string) {
	v.w.Header().Set("Content-Type", kind)
	v.w.Header().Set("Content-Disposition", "attachment; filename*=UTF-8''"+url.PathEscape(name))
}

func (v *visit) dumps() error {
	ctx := v.r.Context()
	dumps, err := v.p.CoreDumps(ctx)
	data := map[string]any{"Dumps": dumps}
	if err != nil {
		data["Trouble"] = newMessage(err)
	}
	crashes, _ := v.p.Crashes(ctx, 50)
	data["Crashes"] = crashes
	p := v.newPage(v.t("Crashes and core dumps"), "dumps", data)
	p.Section = "dumps"
	return v.showPage(p)
}

func (v *visit) downloadDump() error {
	program, name := v.r.PathValue("program"), v.r.PathValue("name")
	dump, bytes, err := v.p.CoreDump(v.r.Context(), program, name)
	if err != nil {
		return err
	}
	defer dump.Close()
	v.attach("application/octet-stream", name)
	if bytes > 0 {
		v.w.Header().Set("Content-Length", strconv.FormatInt(bytes, 10))
	}
	_, _ = io.Copy(v.w, dump)
	return nil
}

func (v *visit) confirmDeleteDump() error {
	return v.confirm(v.t("Delete the core dump %s?", v.r.PathValue("name")), confirmation{
		Text:   v.t("It is what a developer needs to find the reason of a crash."),
		Button: v.t("Delete the core dump"), Danger: true,
		Back: Base + "/dumps",
	})
}

func (v *visit) deleteDump() error {
	err := v.p.DeleteCoreDump(v.r.Context(), v.r.PathValue("program"), v.r.PathValue("name"), v.by)
	return v.done(err, v.t("The core dump was deleted."), Base+"/dumps")
}

func (v *visit) confirmDeleteDumps() error {
	return v.confirm(v.t("Delete all core dumps?"), confirmation{
		Text:   v.t("They are what a developer needs to find the reason of a crash."),
		Button: v.t("Delete all core dumps"), Danger: true,
		Back: Base + "/dumps",
	})
}

func (v *visit) deleteDumps() error {
	dumps, err := v.p.CoreDumps(v.r.Context())
	for _, d := range dumps {
		err = errors.Join(err, v.p.DeleteCoreDump(v.r.Context(), d.Program, d.Name, v.by))
	}
	return v.done(err, v.t("All core dumps were deleted."), Base+"/dumps")
}

func (v *visit) audit() error {
	before := time.Time{}
	if text := v.r.URL.Query().Get("before"); text != "" {
		var err error
		if before, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return fmt.Errorf("the time %q: %w", text, model.ErrNotFound)
		}
	}
	entries, err := v.p.Audit(v.r.Context(), before, perPage+1)
	if err != nil {
		return err
	}
	older := ""
	if len(entries) > perPage {
		entries = entries[:perPage]
		older = "?before=" + url.QueryEscape(entries[perPage-1].Time.UTC().Format(time.RFC3339Nano))
	}
	p := v.newPage(v.t("Audit log"), "audit", map[string]any{"Entries": entries, "Older": older, "Later": !before.IsZero()})
	p.Section = "audit"
	return v.showPage(p)
}
