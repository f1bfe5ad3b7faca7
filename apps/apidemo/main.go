// apidemo is an app of the App Platform: notes that everybody who knows the
// instance's password sees change as they are written. It is there to be read and
// copied, and to test the platform with.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"appplatform/app"
)

// version is set by the linker.
var version = "development"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := app.Run(ctx, os.Args[1:], app.Service{Version: version, Start: start, Health: health}); err != nil {
		fmt.Fprintln(os.Stderr, "apidemo:", err)
		os.Exit(1)
	}
}

// start begins an instance: its notes are in its database, its pages below its path.
func start(ctx context.Context, i *app.Instance) (http.Handler, error) {
	n, err := openNotes(ctx, i)
	if err != nil {
		return nil, err
	}
	i.OnStop(n.close)
	stores.Store(i.Key(), n)
	i.OnStop(func() { stores.CompareAndDelete(i.Key(), n) })
	return newPages(i, n), nil
}

func health(ctx context.Context, i *app.Instance) error {
	if n, ok := stores.Load(i.Key()); ok {
		return n.(*notes).pool.Ping(ctx)
	}
	return nil
}
