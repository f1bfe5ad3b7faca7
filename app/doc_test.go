package app

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/internal/wire"
)

// TestPythonApp runs the app of docs/app-protocol.md as it is there.
func TestPythonApp(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 on this machine")
	}
	text, err := os.ReadFile("../docs/app-protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	_, program, _ := strings.Cut(string(text), "```python\n")
	program, _, found := strings.Cut(program, "```")
	if !found {
		t.Fatal("there is no program in docs/app-protocol.md")
	}
	dir, err := os.MkdirTemp("", "py")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "notes")
	if err := os.WriteFile(path, []byte(program), 0o700); err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, webSocket: filepath.Join(dir, "web")}
	l.manager, l.web = listen(t, filepath.Join(dir, "manager")), listen(t, l.webSocket)
	cmd := exec.Command(python, path, "--service", "notes", "--manager", l.manager.path, "--run", dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })

	hello := func(want int) *wire.Conn {
		c := l.manager.accept()
		if h := get[wire.Hello](t, c, "Hello"); h.Protocol != wire.Version || h.Service != "notes" || len(h.Instances) != want {
			t.Fatalf("Hello = %+v", h)
		}
		put(t, c, wire.HelloResult{Head: wire.Head{MT: "HelloResult"}})
		return c
	}
	c := hello(0)
	web, r := l.run(c, "notes")
	page := func() {
		resp, err := client(r.Socket).Get("http://x/example.com/notes/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if text, _ := io.ReadAll(resp.Body); string(text) != "Hello from Python\n" {
			t.Errorf("the page is %q", text)
		}
	}
	page()
	put(t, c, wire.Status{Head: wire.Head{MT: "Status", ID: 5}})
	if s := get[wire.StatusResult](t, c, "StatusResult"); s.ID != 5 || len(s.Instances) != 1 {
		t.Errorf("StatusResult = %+v", s)
	}
	// Another webserver, another manager.
	web.Close()
	l.register("/example.com/notes")
	c.Close()
	c = hello(1)
	page()
	put(t, c, wire.Stop{Head: wire.Head{MT: "Stop"}})
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ends with %v", err)
	}
}

// TestFirstApp builds the program of docs/first-app.md as it is there.
func TestFirstApp(t *testing.T) {
	text, err := os.ReadFile("../docs/first-app.md")
	if err != nil {
		t.Fatal(err)
	}
	_, program, _ := strings.Cut(string(text), "```go\n")
	program, _, found := strings.Cut(program, "```")
	if !found {
		t.Fatal("there is no program in docs/first-app.md")
	}
	dir := t.TempDir()
	file, overlay, out := filepath.Join(dir, "main.go"), filepath.Join(dir, "overlay"), filepath.Join(dir, "visits")
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	replace, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root, "apps/visits/main.go"): file}})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{file: []byte(program), overlay: replace} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-overlay", overlay, "-o", out, "./apps/visits")
	build.Dir = root
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if text, err := exec.Command(out, "--version").Output(); err != nil || string(text) != "1\n" {
		t.Errorf("visits --version prints %q, %v", text, err)
	}
	// By hand it says where it belongs.
	if text, err := exec.Command(out).CombinedOutput(); err == nil || !strings.Contains(string(text), "hint: install it in the manager's pages") {
		t.Errorf("visits prints %q, %v", text, err)
	}
}
