package vmtest_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/boards"
	"appplatform/internal/run"
	"appplatform/internal/testtools"
	"appplatform/tooltree"
	"appplatform/vmtest"
)

// testGcore saves a running program on a gateway, as OS-F5 has it, and looks at
// the file on this machine with Debian's debugger.
func testGcore(t *testing.T, m *vmtest.Machine, r root, name string) {
	t.Helper()
	r.want("gdb --version 2>&1 || true", "This is the platform's small gdb.")
	r.want("gdbserver --version", "GNU gdbserver")

	board, err := boards.Load(os.DirFS(".."), name)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "target")
	build := run.Command(t.Context(), "go", "build", "-o", program, "../agent/internal/gcore/testdata/target")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+board.GOARCH(), "GOARM="+board.GOARM)
	if err := run.Wait(build); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	s := login(t, m)
	device := func(command, input string) string {
		out, err := s.Run(command, input, commandWithin)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	device("mkdir gcore && cat > gcore/target && chmod +x gcore/target", string(text))
	// The second answer shows that the program lives on.
	out := device(`cd gcore && mkfifo in
		wait_for() { for i in $(seq 60); do grep -q "$1" out && return; sleep 1; done; cat out err; exit 1; }
		./target 1 < in > out 2> err &
		pid=$!
		exec 3> in
		wait_for Text
		gdb --pid $pid -ex gcore --batch || exit
		echo >&3
		wait_for alive
		kill $pid
		tar -cSf core.tar core.$pid || exit
		echo "core.$pid $(stat -c %a core.$pid)"
		head -n 1 out`, "")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 {
		t.Fatalf("the device says %q; want what was saved, its name, and where what is in memory", out)
	}
	core, mode, _ := strings.Cut(lines[1], " ")
	if lines[0] != "Saved corefile "+core || mode != "600" {
		t.Errorf("the device says %q", lines[:2])
	}
	var layout struct{ Text, Big, Shared uint64 }
	if err := json.Unmarshal([]byte(lines[2]), &layout); err != nil {
		t.Fatalf("%q: %v", lines[2], err)
	}
	if err := os.WriteFile(filepath.Join(dir, "core.tar"), []byte(device("cat gcore/core.tar && rm -r gcore", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	tree := testtools.Open(t, tooltree.Debug)
	if err := tree.Run(t.Context(), tooltree.Cmd{Args: []string{"tar", "-xf", "core.tar"}, Dir: dir, Writable: []string{dir}}); err != nil {
		t.Fatal(err)
	}
	seen, err := tree.Output(t.Context(), tooltree.Cmd{Dir: dir, ReadOnly: []string{dir}, Args: []string{
		"gdb-multiarch", "-nx", "-batch", "target", core, "-ex", "info threads", "-ex", "bt", "-ex", "thread apply all bt 1",
		"-ex", fmt.Sprintf("x/s %d", layout.Text), "-ex", fmt.Sprintf("x/s %d", layout.Big), "-ex", fmt.Sprintf("x/s %d", layout.Shared)}})
	for _, want := range []string{"* 1    LWP " + strings.TrimPrefix(core, "core."), "\n  4    LWP ", "main.main (", `"the truth is 42"`, `"an island"`, `"for everybody"`} {
		if err != nil || !strings.Contains(string(seen), want) {
			t.Errorf("gdb says %v and does not find %q:\n%s", err, want, seen)
		}
	}
}
