package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"appplatform/internal/hint"
	"appplatform/internal/wire"
	"appplatform/webserver"
)

const help = `webserver ends TLS on the ports of an App Platform and relays what comes to the
apps that have registered for it.

USAGE
  webserver --state FOLDER [FLAGS]

FLAGS
`

const exitHelp = `
SIGNALS
  SIGTERM  accept no more connections, finish what there is within 10 seconds, end

EXIT STATUS
  0 ended by a signal or by the manager, 1 failed, 2 wrong command line
`

// gcPercent: what the webserver keeps is small connections and many of them;
// with Go's 100 its memory would be twice what they need.
const gcPercent = 40

func run(args []string, stdout, stderr io.Writer) int {
	o := webserver.Options{Version: version, Log: slog.New(slog.NewTextHandler(stderr, nil))}
	flags := flag.NewFlagSet("webserver", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.IntVar(&o.HTTPFD, "http-fd", -1, "`descriptor` of an inherited listener for HTTP")
	flags.IntVar(&o.HTTPSFD, "https-fd", -1, "`descriptor` of an inherited listener for HTTPS")
	flags.StringVar(&o.HTTP, "http", "", "`address` to listen on for HTTP, as :80")
	flags.StringVar(&o.HTTPS, "https", "", "`address` to listen on for HTTPS, as :443")
	flags.StringVar(&o.State, "state", "", "`folder` of the certificates")
	flags.StringVar(&o.Socket, "socket", wire.WebserverSocket, "Unix `socket` on which apps register")
	flags.StringVar(&o.Control, "control", wire.ControlSocket, "Unix `socket` of the manager")
	flags.BoolVar(&o.Takeover, "takeover", false, "replace the sockets of a webserver that runs")
	showVersion := flags.Bool("version", false, "print the version")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		printHelp(stdout, flags)
		return 0
	case err == nil && *showVersion:
		fmt.Fprintln(stdout, version)
		return 0
	case err == nil:
		err = check(o, flags.Args())
	}
	if err != nil {
		if !hint.In(err) {
			err = hint.Errorf("webserver --help", "%w", err)
		}
		fmt.Fprintf(stderr, "webserver: %v\n", err)
		return 2
	}
	debug.SetGCPercent(gcPercent)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := webserver.Run(ctx, o); err != nil {
		fmt.Fprintf(stderr, "webserver: %v\n", err)
		return 1
	}
	return 0
}

func check(o webserver.Options, rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("too many arguments: %s", strings.Join(rest, " "))
	case o.HTTPFD >= 0 && o.HTTP != "" || o.HTTPSFD >= 0 && o.HTTPS != "":
		return errors.New("a listener is either inherited or made from an address")
	case o.HTTPFD < 0 && o.HTTP == "" && o.HTTPSFD < 0 && o.HTTPS == "":
		return errors.New("nowhere to listen: give --http, --https or inherited descriptors")
	case o.State == "":
		return errors.New("--state is needed")
	}
	return nil
}

func printHelp(w io.Writer, flags *flag.FlagSet) {
	fmt.Fprint(w, help)
	flags.VisitAll(func(f *flag.Flag) {
		name, text := flag.UnquoteUsage(f)
		fmt.Fprintf(w, "  --%s %s\n        %s", f.Name, name, text)
		if f.DefValue != "" && f.DefValue != "-1" && f.DefValue != "false" {
			fmt.Fprintf(w, " (default %s)", f.DefValue)
		}
		fmt.Fprintln(w)
	})
	fmt.Fprint(w, exitHelp)
}
