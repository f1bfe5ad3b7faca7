// badapp is an app that misbehaves in the way that the bytes behind its program, or
// the name of an instance, say.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"appplatform/app"
	"appplatform/internal/wire"
)

func main() {
	// What is behind the end of the program says how it misbehaves from its start.
	how := ""
	if self, err := os.ReadFile("/proc/self/exe"); err == nil {
		if _, rest, ok := strings.Cut(string(self[max(0, len(self)-64):]), "HOW="); ok {
			how = rest
		}
	}
	switch how {
	case "crash":
		os.Exit(7)
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "hang":
		time.Sleep(time.Hour)
	case "garbage":
		garbage()
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := app.Run(ctx, os.Args[1:], app.Service{Version: "1", Start: start}); err != nil {
		fmt.Fprintln(os.Stderr, "badapp:", err)
		os.Exit(1)
	}
}

// garbage says Hello and then things that nobody understands.
func garbage() {
	socket := wire.ManagerSocket
	for i, arg := range os.Args {
		if arg == "--manager" && i+1 < len(os.Args) {
			socket = os.Args[i+1]
		}
	}
	c, err := wire.Dial(socket)
	if err != nil {
		os.Exit(1)
	}
	_ = c.Send(wire.Hello{Head: wire.Head{MT: "Hello"}, Protocol: wire.Version, Service: "badapp"})
	_, _ = fmt.Fprintln(c, `{"mt":"StartInstanceResult","id":99999}`)
	_, _ = fmt.Fprintln(c, `{"mt":"Alarm","code":7}`)
	_, _ = fmt.Fprintln(c, strings.Repeat("x", 100)+`{"mt":`)
	time.Sleep(time.Hour)
}

func start(ctx context.Context, i *app.Instance) (http.Handler, error) {
	switch i.Name() {
	case "refuse":
		return nil, errors.New("this instance does not want to")
	case "flood":
		go func() {
			for ctx.Err() == nil {
				fmt.Println(strings.Repeat("flood ", 100))
			}
		}()
	case "eat":
		go func() {
			for kept := [][]byte{}; ctx.Err() == nil; {
				kept = append(kept, bytes.Repeat([]byte("eat"), 1<<20))
			}
		}()
	case "fork":
		go func() {
			for ctx.Err() == nil {
				// Those that there are go on when there is no room for more.
				_ = exec.Command("sleep", "3600").Start()
			}
		}()
	}
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "badapp", i.Name()) }), nil
}
