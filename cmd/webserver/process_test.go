package main

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"appplatform/internal/wire"
)

// serve makes the test's program a webserver.
const serve = "WEBSERVER_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serve) != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// A process is a webserver of its own, and the manager's connection to it.
type process struct {
	*exec.Cmd
	control *wire.Conn
}

func start(t *testing.T, dir string, listener *os.File, args ...string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0], append([]string{"--https-fd", "3", "--state", filepath.Join(dir, "state"),
		"--socket", filepath.Join(dir, "w.sock"), "--control", filepath.Join(dir, "c.sock")}, args...)...)}
	p.Env = append(os.Environ(), serve+"=1")
	p.Stderr = t.Output()
	p.ExtraFiles = []*os.File{listener}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Process.Kill(); _, _ = p.Process.Wait() })
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := wire.Dial(filepath.Join(dir, "c.sock")); err == nil {
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			var ready wire.Ready
			if m, err := c.Receive(); err == nil && m.Decode(&ready) == nil && ready.PID == p.Process.Pid {
				p.control = c
				break
			}
			c.Close()
		}
		if time.Now().After(end) {
			t.Fatal("the webserver is not ready after 20 s")
		}
	}
	t.Cleanup(func() { p.control.Close() })
	p.tell(t, wire.Grants{Head: wire.Head{MT: "Grants"}, Grants: []wire.Grant{{UID: uint32(os.Getuid())}}})
	return p
}

func (p *process) tell(t *testing.T, m any) {
	t.Helper()
	err := p.control.Send(m)
	if err == nil {
		_, err = p.control.Receive()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestProcesses: a second process takes over from the first while there are
// requests, and each ends by SIGTERM once the last of its clients has.
func TestProcesses(t *testing.T) {
	dir, err := os.MkdirTemp("", "ws") // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	u, err := net.Listen("unix", filepath.Join(dir, "app.sock"))
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan bool)
	waiting := make(chan bool, 1)
	app := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/app/wait" {
			waiting <- true
			<-release
		}
		_, _ = io.WriteString(w, "ok")
	})}
	go func() { _ = app.Serve(u) }()
	defer app.Close()
	var registered atomic.Int64
	go func() { // wherever it is let to, as a real app does
		for t.Context().Err() == nil {
			c, err := wire.Dial(filepath.Join(dir, "w.sock"))
			if err != nil {
				time.Sleep(time.Millisecond)
				continue
			}
			if c.Send(wire.Register{Head: wire.Head{MT: "Register"}, Path: "/app", Kind: wire.KindHTTP, Socket: u.Addr().String()}) == nil {
				if m, err := c.Receive(); err == nil && !strings.Contains(string(m.Line), "error") {
					registered.Add(1)
				}
			}
			_, _ = c.Receive() // until it drains
			c.Close()
		}
	}()
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: not after 20 s", what)
			}
		}
	}
	url := "https://" + l.Addr().String() + "/app"
	first := start(t, dir, file)
	until("the app has registered", func() bool { return registered.Load() == 1 })

	var asked atomic.Int64
	var clients sync.WaitGroup
	stop := make(chan bool)
	for range 2 { // new connections all the time
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, Timeout: 30 * time.Second}
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				answer, err := c.Get(url)
				if err != nil {
					t.Error(err)
					return
				}
				text, _ := io.ReadAll(answer.Body)
				answer.Body.Close()
				if string(text) != "ok" {
					t.Errorf("%s %q", answer.Status, text)
				}
				asked.Add(1)
			}
		})
	}
	until("requests are answered", func() bool { return asked.Load() > 10 })
	// One that is under way at the takeover.
	long, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	_ = long.SetDeadline(time.Now().Add(40 * time.Second))
	fmt.Fprint(long, "GET /app/wait HTTP/1.1\r\nHost: x\r\n\r\n")
	<-waiting

	second := start(t, dir, file, "--takeover")
	first.tell(t, wire.Drain{Head: wire.Head{MT: "Drain"}, Seconds: 3600})
	until("the app has registered with the second", func() bool { return registered.Load() == 2 })
	before := asked.Load()
	until("the second answers", func() bool { return asked.Load() > before+20 })
	close(stop)
	clients.Wait()

	// SIGTERM does not break off what is under way.
	if err := first.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	release <- true
	answer, err := http.ReadResponse(bufio.NewReader(long), nil)
	if err != nil || answer.StatusCode != 200 || !answer.Close {
		t.Fatalf("the request of before the takeover: %+v, %v", answer, err)
	}
	if text, err := io.ReadAll(answer.Body); err != nil || string(text) != "ok" {
		t.Errorf("the request of before the takeover: %q, %v", text, err)
	}
	long.Close()
	if err := first.Wait(); err != nil {
		t.Errorf("the first ended with %v", err)
	}
	// Its end took nothing of the second's away.
	if answer, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}).Get(url); err != nil || answer.StatusCode != 200 {
		t.Errorf("after the end of the first: %+v, %v", answer, err)
	}
	for _, name := range []string{"w.sock", "c.sock"} {
		c, err := net.Dial("unix", filepath.Join(dir, name))
		if err != nil {
			t.Errorf("after the end of the first: %v", err)
			continue
		}
		c.Close()
	}
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("the second ended with %v", err)
	}
}
