// Command apgateway plays a telephony gateway with an App Platform, in a
// browser and in QEMU.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"appplatform/archive"
	"appplatform/gateway"
	"appplatform/image"
	"appplatform/internal/cache"
	"appplatform/internal/hint"
	"appplatform/tooltree"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

const help = `apgateway plays a telephony gateway: its App Platform menu in a browser, and
the platform itself in QEMU, which it sets up in the cache.

USAGE
  apgateway [FLAGS]

Open the address that it prints. General switches the App Platform on and off
and says what its kernel is started with, IP hands it an address, Installation
writes an app-platform-*.img to its disk. Ctrl-C cuts the power; disk and
settings are kept in the folder for the next time.

FLAGS
`

const exitHelp = `
ENVIRONMENT
  APGATEWAY_PASSWORD  asked for by the web server, with any user name; needed to
                      listen beyond this machine
  MIRROR, SECURITY_MIRROR, XDG_CACHE_HOME  as for apimage

EXIT STATUS
  0 ended by a signal, 1 failed, 2 wrong command line
`

type options struct {
	model, dir, listen, store, install string
	ssh, https                         int
}

func run(args []string, stdout, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("apgateway", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.model, "model", gateway.Presets[0].Name, "`gateway` to play: IPx10, IPx11 or IPx13")
	flags.StringVar(&o.dir, "dir", "", "`folder` of disk and settings; by default out/gateway-MODEL")
	flags.StringVar(&o.listen, "listen", "127.0.0.1:8088", "`address` of the web server")
	flags.StringVar(&o.store, "store", "", "`file or URL` with the list of versions to install, a release's linux.json")
	flags.StringVar(&o.install, "install", "", "`image` to enable and install at once, unless the disk holds one")
	flags.IntVar(&o.ssh, "ssh", 2222, "`port` of 127.0.0.1 that leads to SSH; 0 takes a free one")
	flags.IntVar(&o.https, "https", 8443, "`port` of 127.0.0.1 that leads to HTTPS; 0 takes a free one")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		printHelp(stdout, flags)
		return 0
	}
	if err == nil && flags.NArg() > 0 {
		err = fmt.Errorf("too many arguments: %s", strings.Join(flags.Args(), " "))
	}
	preset, e := gateway.FindPreset(o.model)
	if err = errors.Join(err, e, checkListen(o.listen, os.Getenv("APGATEWAY_PASSWORD"))); err != nil {
		fmt.Fprintf(stderr, "apgateway: %v\nhint: apgateway --help\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := serve(ctx, o, preset, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "apgateway: %v\n", err)
		return 1
	}
	return 0
}

func printHelp(w io.Writer, flags *flag.FlagSet) {
	fmt.Fprint(w, help)
	flags.VisitAll(func(f *flag.Flag) {
		name, text := flag.UnquoteUsage(f)
		fmt.Fprintf(w, "  --%s %s\n        %s", f.Name, name, text)
		if f.DefValue != "" {
			fmt.Fprintf(w, " (default %s)", f.DefValue)
		}
		fmt.Fprintln(w)
	})
	fmt.Fprint(w, exitHelp)
}

// checkListen wants a password from whoever lets others in.
func checkListen(address, password string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("--listen %s: %v", address, err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) && password == "" {
		return fmt.Errorf("--listen %s lets others in: set APGATEWAY_PASSWORD", address)
	}
	return nil
}

func serve(ctx context.Context, o options, preset gateway.Preset, stdout, stderr io.Writer) error {
	c, err := cache.Default()
	if err != nil {
		return err
	}
	packages, err := archive.Open(ctx, c, os.Getenv("MIRROR"), os.Getenv("SECURITY_MIRROR"))
	if err != nil {
		return err
	}
	packages.Log = func(text string) { fmt.Fprintln(stderr, text) }
	tools, err := image.OpenTools(ctx, packages, tooltree.Gateway, nil)
	if err != nil {
		return err
	}
	if o.dir == "" {
		o.dir = filepath.Join("out", "gateway-"+preset.Name)
	}
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	g, err := gateway.Open(ctx, gateway.Options{
		Preset: preset, Dir: o.dir, Tools: tools, Store: o.store, SSH: o.ssh, HTTPS: o.https,
		Log: func(line string) { fmt.Fprintln(stderr, line) },
	})
	if err != nil {
		return err
	}
	defer g.Close()
	listener, err := net.Listen("tcp", o.listen)
	if errors.Is(err, syscall.EADDRINUSE) {
		err = hint.Errorf("give another address with --listen; 127.0.0.1:0 takes a free port", "%w", err)
	}
	if err != nil {
		return err
	}
	server := &http.Server{Handler: g.Handler(os.Getenv("APGATEWAY_PASSWORD")), ReadHeaderTimeout: 10 * time.Second}
	fmt.Fprintf(stdout, "%s on http://%s/\n", preset.Name, listener.Addr())
	if err := begin(g, o.install); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return server.Close()
	}
}

// begin enables and installs an image on a gateway that has none.
func begin(g *gateway.Gateway, image string) error {
	if image == "" || g.HasImage() {
		return nil
	}
	s := g.Status().Settings
	s.Enabled = true
	if err := g.Save(s); err != nil {
		return err
	}
	return g.Install(image)
}
