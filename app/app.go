// Package app is for programs that run on an App Platform. The manager starts such
// a program and tells it which instances to serve; each has a database, a path on
// the webserver and a password of its own. All that an app needs is
//
//	func main() {
//		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
//		defer stop()
//		err := app.Run(ctx, os.Args[1:], app.Service{Version: "1.0", Start: start})
//		if err != nil {
//			fmt.Fprintln(os.Stderr, err)
//			os.Exit(1)
//		}
//	}
//
//	func start(ctx context.Context, i *app.Instance) (http.Handler, error) {
//		mux := http.NewServeMux()
//		mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
//			fmt.Fprintf(w, "This is %s of %s.\n", i.Name(), i.Domain())
//		})
//		return mux, nil
//	}
//
// The program goes on when the manager or the webserver is restarted, and finds
// the new one by itself. What is said to them is in docs/app-protocol.md.
package app

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"appplatform/internal/hint"
	"appplatform/internal/wire"
)

// A Service is what an app is and does.
type Service struct {
	// Version is shown to people, and printed by --version.
	Version string

	// Start makes an instance work. ctx lives as long as the instance. The handler
	// gets the requests of the instance's path and below; it sees paths without it,
	// from "/" on. An error is shown to the administrator.
	Start func(ctx context.Context, i *Instance) (http.Handler, error)

	// Health, if there is one, says whether an instance works. An error is shown to
	// the administrator; the instance goes on.
	Health func(ctx context.Context, i *Instance) error

	// Log takes the lines of the log; nil is standard error, from where the manager
	// takes them.
	Log io.Writer
}

// Run serves until ctx ends or the manager wants the app to end; then it returns
// nil. Args are those that the manager has given the program.
func Run(ctx context.Context, args []string, s Service) error {
	flags := flag.NewFlagSet("app", flag.ContinueOnError)
	id := flags.String("service", "", "`name` of the app on this platform")
	manager := flags.String("manager", wire.ManagerSocket, "the manager's `socket`")
	dir := flags.String("run", "", "`folder` for the app's own sockets (/run/app-platform/apps/NAME)")
	version := flags.Bool("version", false, "print the version")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return nil
	case err != nil:
		return err
	case *version:
		fmt.Println(s.Version)
		return nil
	case *id == "" || flags.NArg() > 0:
		return hint.Errorf("install it in the manager's pages", "cannot run by itself: the manager starts this program with --service")
	}
	if *dir == "" {
		*dir = filepath.Join("/run/app-platform/apps", *id)
	}
	if s.Log == nil {
		s.Log = os.Stderr
	}
	h := &host{Service: s, id: *id, dir: *dir, instances: map[string]*Instance{}, active: map[string]wire.Alarm{}, log: &logger{out: s.Log}}
	h.flags.Store(uint64(wire.DefaultFlags))
	h.serve(ctx, *manager)
	return nil
}

// pause is longer each time: 50 ms at first, 2 s at most.
func pause(try int) time.Duration { return min(50*time.Millisecond<<min(try, 6), 2*time.Second) }

// backOff waits for a pause. False: ctx has ended.
func backOff(ctx context.Context, try int) bool {
	timer := time.NewTimer(pause(try))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
