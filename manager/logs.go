package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"appplatform/manager/internal/model"
)

// systemLogs are logs of others, by the names that pages show.
var systemLogs = map[string]string{"system": "var/log/messages", "postgresql": "var/log/postgresql/postgresql.log", "installation": "apps/install_step1.log"}

// Logs are described at model.Platform.
func (m *Manager) Logs(context.Context) ([]string, error) {
	var names []string
	dirs, err := os.ReadDir(m.o.path(logDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list the logs: %w", err)
	}
	for _, d := range dirs {
		if d.IsDir() && exists(m.o.path(logDir, d.Name(), d.Name()+".log")) {
			names = append(names, d.Name())
		}
	}
	for name, path := range systemLogs {
		if exists(m.o.path(path)) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Log is described at model.Platform. It begins with what the last parts hold.
func (m *Manager) Log(ctx context.Context, name string, follow bool) (io.ReadCloser, error) {
	names, err := m.Logs(ctx)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(names, name) {
		return nil, fmt.Errorf("the log %.63q is %w", name, model.ErrNotFound)
	}
	l := &logReader{ctx: ctx, follow: follow}
	if path, ok := systemLogs[name]; ok {
		l.current = m.o.path(path)
	} else {
		l.current = m.o.path(logDir, name, name+".log")
		for n := 4; n >= 1; n-- {
			l.parts = append(l.parts, m.o.path(logDir, name, fmt.Sprintf("%s.%d.log", name, n)))
		}
	}
	l.parts = append(l.parts, l.current)
	return l, nil
}

// A logReader reads the parts of a log one after the other, and then what comes.
type logReader struct {
	ctx     context.Context
	parts   []string
	current string
	follow  bool
	file    *os.File
	at      int64
}

// followEvery is how often a followed log is looked at.
const followEvery = 300 * time.Millisecond

func (l *logReader) Read(p []byte) (int, error) {
	for {
		if l.ctx.Err() != nil {
			return 0, io.EOF
		}
		if l.file == nil {
			if len(l.parts) == 0 {
				return 0, io.EOF
			}
			f, err := os.Open(l.parts[0])
			l.parts = l.parts[1:]
			if err != nil {
				continue
			}
			l.file, l.at = f, 0
		}
		n, err := l.file.Read(p)
		if l.at += int64(n); n > 0 {
			return n, nil
		}
		if err != io.EOF {
			return 0, err
		}
		if len(l.parts) > 0 || !l.follow {
			l.file.Close()
			l.file = nil
			continue
		}
		select {
		case <-l.ctx.Done():
			return 0, io.EOF
		case <-time.After(followEvery):
		}
		l.turned()
	}
}

// turned notices that a log was begun anew, or emptied.
func (l *logReader) turned() {
	now, err := os.Stat(l.current)
	if err != nil {
		return
	}
	if old, err := l.file.Stat(); err == nil && os.SameFile(now, old) && now.Size() >= l.at {
		return
	}
	l.file.Close()
	l.file, l.parts = nil, []string{l.current}
}

func (l *logReader) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// dumpNames are those of the kernel's handler, which are made of a program's own
// name.
var dumpNames = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.+-]*$`)

// CoreDumps are described at model.Platform.
func (m *Manager) CoreDumps(context.Context) ([]model.CoreDump, error) {
	dumps := []model.CoreDump{}
	err := filepath.WalkDir(m.o.path(dumpDir), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			return nil
		}
		dumps = append(dumps, model.CoreDump{Program: filepath.Base(filepath.Dir(path)), Name: e.Name(), Size: info.Size(), Time: info.ModTime()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list the core dumps: %w", err)
	}
	slices.SortFunc(dumps, func(a, b model.CoreDump) int { return b.Time.Compare(a.Time) })
	return dumps, nil
}

// dumps opens the folder of the dumps, which no link leads out of.
func (m *Manager) dumps(program, name string) (*os.Root, string, error) {
	if !dumpNames.MatchString(program) || !dumpNames.MatchString(name) {
		return nil, "", fmt.Errorf("the core dump is %w", model.ErrNotFound)
	}
	root, err := os.OpenRoot(m.o.path(dumpDir))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("the core dump is %w", model.ErrNotFound)
	}
	return root, filepath.Join(program, name), err
}

// CoreDump is described at model.Platform.
func (m *Manager) CoreDump(_ context.Context, program, name string) (io.ReadCloser, int64, error) {
	root, path, err := m.dumps(program, name)
	if err != nil {
		return nil, 0, err
	}
	defer root.Close()
	f, err := root.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("the core dump is %w", model.ErrNotFound)
	}
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, 0, fmt.Errorf("the core dump is %w", model.ErrNotFound)
	}
	return f, info.Size(), nil
}

// DeleteCoreDump is described at model.Platform.
func (m *Manager) DeleteCoreDump(ctx context.Context, program, name string, by model.Actor) error {
	root, path, err := m.dumps(program, name)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("the core dump is %w", model.ErrNotFound)
		}
		return err
	}
	return m.audit(ctx, by, "delete core dump", path)
}

// InstallLog is described at model.Platform.
func (m *Manager) InstallLog(context.Context) (string, error) {
	text, err := readTail(m.o.path("apps/install_step1.log"), 128<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return strings.ToValidUTF8(string(text), "?"), err
}
