// Command apimage builds App Platform images from Debian packages and a kernel
// source.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"

	"appplatform/archive"
	"appplatform/internal/cache"
	"appplatform/internal/hint"
	"appplatform/internal/run"
)

func main() { os.Exit(runMain(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// A command is one verb.
type command struct {
	name    string
	args    string // after the flags, for the usage line
	summary string // one line
	help    string // what the flags do not say; may be empty
	others  bool   // what follows the first argument is another program's
	flags   func(*flag.FlagSet) func(context.Context, *app, []string) error
}

var commands = []command{buildCommand, planCommand, lockCommand, lsCommand, runCommand, convertCommand, releaseCommand, signCommand, verifyCommand, toolCommand}

// An app is where a command runs: what its verbs share.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
}

// A usageError is a command line that makes no sense.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
	exitSignal = 130
)

const exitHelp = `
EXIT STATUS
  0 done, 1 failed, 2 wrong command line, 130 interrupted;
  tool: that of the tool
`

func usage(w io.Writer) {
	fmt.Fprint(w, "apimage builds App Platform images from Debian packages and a kernel source.\n\nUSAGE\n  apimage COMMAND [FLAGS] [ARGUMENTS]      apimage COMMAND --help\n\nCOMMANDS\n")
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range commands {
		fmt.Fprintf(tw, "  %s %s\t%s\n", c.name, c.args, c.summary)
	}
	tw.Flush()
	fmt.Fprint(w, `
ENVIRONMENT
  MIRROR, SECURITY_MIRROR  roots of the Debian archives (http:, https: or file:);
                           by default those of the host's apt
  XDG_CACHE_HOME           where the cache is (in its folder app-platform)
`, exitHelp)
}

func runMain(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(args) == 0 || args[0] == "help" || args[0] == "-h" || args[0] == "--help" {
		if len(args) == 0 {
			usage(stderr)
			return exitUsage
		}
		usage(stdout)
		return exitOK
	}
	for _, c := range commands {
		if c.name == args[0] {
			return c.run(args[1:], &app{stdin, stdout, stderr})
		}
	}
	fmt.Fprintf(stderr, "apimage: no command %q\nhint: apimage --help lists them\n", args[0])
	return exitUsage
}

func (c command) run(args []string, a *app) int {
	flags := flag.NewFlagSet("apimage "+c.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	do := c.flags(flags)
	args, err := c.parse(flags, args)
	if errors.Is(err, flag.ErrHelp) {
		c.usage(a.stdout, flags)
		return exitOK
	}
	if err != nil {
		err = usageError{err}
	} else {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		err = do(ctx, a, args)
		var tool *toolExit
		if err != nil && ctx.Err() != nil && !errors.As(err, &tool) {
			fmt.Fprintln(a.stderr, "apimage: interrupted; what is finished is kept in the cache")
			return exitSignal
		}
	}
	return c.report(err, a)
}

// parse reads the flags, which may stand before and behind the arguments, and
// returns those.
func (c command) parse(flags *flag.FlagSet, args []string) ([]string, error) {
	var words []string
	for {
		if err := flags.Parse(args); err != nil {
			return nil, err
		}
		rest := flags.Args()
		last := len(args) > len(rest) && args[len(args)-len(rest)-1] == "--"
		if len(rest) == 0 || c.others || last {
			return append(words, rest...), nil
		}
		words, args = append(words, rest[0]), rest[1:]
	}
}

func (c command) usage(w io.Writer, flags *flag.FlagSet) {
	fmt.Fprintf(w, "%s\n\nUSAGE\n  apimage %s [FLAGS] %s\n", c.summary, c.name, c.args)
	if c.help != "" {
		fmt.Fprintf(w, "\n%s\n", strings.TrimSpace(c.help))
	}
	fmt.Fprint(w, "\nFLAGS\n")
	flags.SetOutput(w)
	flags.VisitAll(func(f *flag.Flag) {
		name, text := flag.UnquoteUsage(f)
		fmt.Fprintf(w, "  --%s %s\n        %s", f.Name, name, text)
		if f.DefValue != "" && f.DefValue != "false" {
			fmt.Fprintf(w, " (default %s)", f.DefValue)
		}
		fmt.Fprintln(w)
	})
	fmt.Fprint(w, exitHelp)
}

// report prints an error with its way out and turns it into an exit code.
func (c command) report(err error, a *app) int {
	if err == nil {
		return exitOK
	}
	var tool *toolExit
	if errors.As(err, &tool) {
		return tool.code
	}
	if full(err) && !hint.In(err) {
		err = hint.Errorf(hint.NoSpace, "%w", err)
	}
	fmt.Fprintf(a.stderr, "apimage: %v\n", err)
	var wrong usageError
	if errors.As(err, &wrong) {
		fmt.Fprintf(a.stderr, "hint: apimage %s --help\n", c.name)
		return exitUsage
	}
	return exitFailed
}

// full reports whether a disk is full, for us or for a tool.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || strings.Contains(err.Error(), "No space left on device")
}

// archive opens Debian's archive and the cache.
func (a *app) archive(ctx context.Context) (*archive.Archive, error) {
	c, err := cache.Default()
	if err != nil {
		return nil, err
	}
	return archive.Open(ctx, c, os.Getenv("MIRROR"), os.Getenv("SECURITY_MIRROR"))
}

// toolExit is a tool's own exit code, which it has explained itself.
type toolExit struct{ code int }

func (e *toolExit) Error() string { return fmt.Sprintf("exit code %d", e.code) }

func toolError(err error) error {
	var exit *run.ExitError
	if errors.As(err, &exit) && exit.Code >= 0 {
		return &toolExit{exit.Code}
	}
	return err
}
