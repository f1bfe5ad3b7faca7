package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
