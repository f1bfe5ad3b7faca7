package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/boards"
	"appplatform/internal/run"
)

// A file that changes while it is being used must not end up under the key of
// what it was before.
func TestChangedDuringBuild(t *testing.T) {
	for _, test := range []struct{ name, edit, want string }{
		{"agent", "echo '// new' >> agent/agent.go", "was changed during the build\nhint: start the build again"},
		{"overlay", "echo new > rootfs/overlay/etc/motd", "was changed during the build"},
		{"test", "echo '// new' >> agent/agent_test.go", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			bin := t.TempDir()
			put(t, filepath.Join(bin, "go"), "#!/bin/sh\n"+test.edit+"\nwhile [ \"$1\" != -o ]; do shift; done\necho agent > \"$2\"\n")
			if err := os.Chmod(filepath.Join(bin, "go"), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", bin+":/usr/bin:/bin")
			b := &build{Plan: plan(t, Options{Dir: checkout(t), Board: "vm", Archive: testArchive(t)})}
			err := b.buildAgent(t.Context(), nil)
			if test.want == "" {
				if err != nil || !b.cache.Has("agents", b.keys.agent) {
					t.Errorf("buildAgent() = %v, kept = %v; want it kept", err, b.cache.Has("agents", b.keys.agent))
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("buildAgent() = %v; want %q", err, test.want)
			}
			if b.cache.Has("agents", b.keys.agent) {
				t.Error("the agent is kept in the cache")
			}
		})
	}
}

// The agent has 8 MB on the smallest board, where all of it is read from a card
// at every start.
func TestAgentBudget(t *testing.T) {
	board, err := boards.Load(os.DirFS(".."), "armel")
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "apagent")
	if err := run.Wait(agentCommand(t.Context(), "..", board, out)); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	if limit := int64(8_000_000); info.Size() > limit {
		t.Errorf("apagent for armel has %d bytes; want at most %d: see go tool nm -size -sort size", info.Size(), limit)
	}
}
