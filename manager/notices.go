package manager

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"appplatform/manager/internal/model"
)

// maxNotices bounds what apps can make the manager remember.
const maxNotices = 200

// notices are what the administrator should know, by their codes.
type notices struct {
	changed func()
	mu      sync.Mutex
	list    map[string]model.Notice
}

// set shows an error until it is cleared. Its way out becomes the hint.
func (n *notices) set(code, severity string, err error) {
	text, way, _ := strings.Cut(err.Error(), "\nhint: ")
	n.put(model.Notice{Code: code, Severity: severity, Text: text, Hint: way})
}

// say is set for what the pages have in other languages, too. Of an error among args
// its own way out becomes the hint.
func (n *notices) say(code, severity, way, format string, args ...any) {
	for i, arg := range args {
		if err, ok := arg.(error); ok {
			text, out, _ := strings.Cut(err.Error(), "\nhint: ")
			args[i], way = text, cmp.Or(out, way)
		}
	}
	n.put(model.Notice{Code: code, Severity: severity, Text: fmt.Sprintf(format, args...), Hint: way, Format: format, Args: args})
}

func (n *notices) put(notice model.Notice) {
	code := notice.Code
	n.mu.Lock()
	old, there := n.list[code]
	same := there && old.Text == notice.Text && old.Hint == notice.Hint && old.Severity == notice.Severity
	if !same && (there || len(n.list) < maxNotices || !strings.HasPrefix(code, "alarm-")) {
		notice.Since = time.Now()
		if there {
			notice.Since = old.Since
		}
		n.list[code] = notice
	}
	n.mu.Unlock()
	if !same {
		n.changed()
	}
}

func (n *notices) clear(code string) {
	n.mu.Lock()
	_, there := n.list[code]
	delete(n.list, code)
	n.mu.Unlock()
	if there {
		n.changed()
	}
}

// count is how many others there are with codes that begin so.
func (n *notices) count(prefix, but string) (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for code := range n.list {
		if strings.HasPrefix(code, prefix) && code != but {
			count++
		}
	}
	return count
}

// clearAll clears those with codes that begin so.
func (n *notices) clearAll(prefix string) {
	n.mu.Lock()
	before := len(n.list)
	maps.DeleteFunc(n.list, func(code string, _ model.Notice) bool { return strings.HasPrefix(code, prefix) })
	changed := len(n.list) != before
	n.mu.Unlock()
	if changed {
		n.changed()
	}
}

// severities are the grave ones first.
var severities = []string{model.Error, model.Warning, model.Info}

// Notices are described at model.Platform: the gravest first, then by age.
func (m *Manager) Notices(context.Context) []model.Notice {
	m.notices.mu.Lock()
	defer m.notices.mu.Unlock()
	list := []model.Notice{}
	for _, notice := range m.notices.list {
		list = append(list, notice)
	}
	slices.SortFunc(list, func(a, b model.Notice) int {
		if d := slices.Index(severities, a.Severity) - slices.Index(severities, b.Severity); d != 0 {
			return d
		}
		if d := a.Since.Compare(b.Since); d != 0 {
			return d
		}
		return strings.Compare(a.Code, b.Code)
	})
	return list
}
