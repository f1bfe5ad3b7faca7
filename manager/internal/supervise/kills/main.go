// kills measures how long a small app is away when it is killed: from kill -9 until
// it answers a request again, started by the supervisor, with its instance given by
// a manager and its path registered at a webserver, which it plays. It prints JSON.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"appplatform/app"
	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/supervise"
)

// killed is the name under which this program is the app.
const killed = "killed"

func main() {
	do := measure
	if filepath.Base(os.Args[0]) == killed {
		do = serve
	}
	if err := do(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kills:", err)
		os.Exit(1)
	}
}

// serve is the app. It answers with its pid.
func serve(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return app.Run(ctx, args, app.Service{Start: func(context.Context, *app.Instance) (http.Handler, error) {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getpid()) }), nil
	}})
}

// A Result in milliseconds.
type Result struct {
	Kills         int
	P50, P99, Max float64
}

func measure(args []string) error {
	flags := flag.NewFlagSet("kills", flag.ExitOnError)
	n := flags.Int("n", 1000, "`number` of kills")
	cgroup := flags.String("cgroup", "", "cgroup v2 `folder` to run the app in")
	flags.Parse(args)

	dir, err := os.MkdirTemp("", "kills")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, killed)
	if err := os.Symlink(self, path); err != nil {
		return err
	}
	manager, web := filepath.Join(dir, "manager"), filepath.Join(dir, "web")
	sockets := make(chan string, 1)
	if err := play(manager, func(c *wire.Conn, m wire.Message) {
		if m.MT == "Hello" {
			c.Send(wire.HelloResult{Head: wire.Head{MT: "HelloResult"}})
			c.Send(wire.StartInstance{Head: wire.Head{MT: "StartInstance"}, Instance: "a@b", Name: "a", Domain: "b", Webserver: web, WebserverPath: "/b/a"})
		}
	}); err != nil {
		return err
	}
	if err := play(web, func(c *wire.Conn, m wire.Message) {
		var r wire.Register
		if m.MT == "Register" && m.Decode(&r) == nil {
			c.Send(wire.RegisterResult{Head: wire.Head{MT: "RegisterResult", ID: r.ID}, Path: r.Path})
			select {
			case sockets <- r.Socket:
			default:
			}
		}
	}); err != nil {
		return err
	}

	s, err := supervise.New(supervise.Options{Run: filepath.Join(dir, "run"), Cgroup: *cgroup, Settled: -1})
	if err != nil {
		return err
	}
	defer s.Close()
	service, err := s.Add(supervise.Spec{Name: killed, Path: path, Args: []string{"--service", killed, "--manager", manager, "--run", dir}, Log: dir}, supervise.Hooks{})
	if err != nil {
		return err
	}
	service.Start()
	defer service.Stop(context.Background())
	socket := <-sockets
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}

	pid := 0
	var away []float64
	for range *n + 1 {
		began := time.Now()
		if pid != 0 {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				return err
			}
		}
		for {
			if now := ask(client); now != 0 && now != pid {
				if pid != 0 {
					away = append(away, float64(time.Since(began))/1e6)
				}
				pid = now
				break
			}
			if time.Since(began) > time.Minute {
				return fmt.Errorf("the app does not come back: %+v", service.Status())
			}
			time.Sleep(200 * time.Microsecond)
		}
		for service.Status().State != model.Running {
			time.Sleep(time.Millisecond)
		}
	}
	slices.Sort(away)
	return json.NewEncoder(os.Stdout).Encode(Result{len(away), away[len(away)/2], away[len(away)*99/100], away[len(away)-1]})
}

// play listens and hands over messages.
func play(socket string, hear func(*wire.Conn, wire.Message)) error {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				conn := wire.NewConn(c)
				defer conn.Close()
				for {
					m, err := conn.Receive()
					if err != nil {
						return
					}
					hear(conn, m)
				}
			}()
		}
	}()
	return nil
}

// ask returns the app's pid, or 0.
func ask(client *http.Client) int {
	resp, err := client.Get("http://app/b/a/")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	pid, _ := strconv.Atoi(string(text))
	return pid
}
