package manager

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"appplatform/manager/internal/model"
)

// F8: which image can be gone back to, by what `apagent status --json` says.
func TestPreviousImage(t *testing.T) {
	for _, test := range []struct{ name, status, want string }{
		{"first", `{"label": "160001", "sets": [{"label": "160001", "current": true}]}`, ""},
		{"updated", `{"label": "160002", "sets": [{"label": "160001"}, {"label": "160002", "current": true}]}`, "160001"},
		{"on trial", `{"label": "160002", "sets": [{"label": "160001", "current": true}, {"label": "160002"}]}`, "160001"},
		{"the same number twice", `{"label": "160001", "sets": [{"label": "160001", "current": true}, {"label": "160001"}]}`, "160001"},
		{"unknown", `{}`, ""},
	} {
		var s agentStatus
		if err := json.Unmarshal([]byte(test.status), &s); err != nil {
			t.Fatal(err)
		}
		if got := s.previous(); got != test.want {
			t.Errorf("%s: previous() = %q; want %q", test.name, got, test.want)
		}
	}
}

// A listener that was handed to a program is still non-blocking for everybody.
func TestListenerDoesNotBlock(t *testing.T) {
	f, err := openListener("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0) // Fd is what starting a program calls
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("its flags are %#o, %v; want O_NONBLOCK", flags, err)
	}
}

// An app for which nobody has set limits has some, those that its page names.
func TestDefaultLimits(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "proc/meminfo"), []byte("MemTotal:         524288 kB\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := &Manager{o: Options{Root: root}}
	own := model.Limits{MemoryMiB: 100, CPUPercent: 20, Processes: 30}
	for set, want := range map[model.Limits]model.Limits{{}: {MemoryMiB: 256, Processes: defaultProcesses}, own: own} {
		if got := m.limits(set); got != want {
			t.Errorf("limits(%+v) = %+v; want %+v", set, got, want)
		}
	}
	page, err := os.ReadFile("internal/web/templates/apps.html")
	if err != nil || !strings.Contains(string(page), fmt.Sprintf("half of the machine's memory, all processors and %d processes", defaultProcesses)) {
		t.Errorf("the page of an app's settings names other limits, %v", err)
	}
}
