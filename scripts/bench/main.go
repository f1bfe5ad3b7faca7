// Command bench measures this project's builder and image beside the tools that
// Debian offers for the same work: mmdebstrap for the build, a stock Debian for
// the boot. Ours and the peer take turns in the same run on the same machine,
// so that a busy or slow one is fair to both.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

func main() { os.Exit(benchMain(os.Args[1:], os.Stdout, os.Stderr)) }

// A question is one table, or two that come from the same runs.
type question struct {
	name, summary string
	ask           func(context.Context, *lab, *report) error
	alone         bool // needs no image
}

var questions = []question{
	{"build", "packages to root file system and to image, beside mmdebstrap, mke2fs and xz", askBuild, false},
	{"rebuild", "builds after small changes", askRebuild, false},
	{"size", "sizes by part", askSize, false},
	{"formats", "disk formats of virtual machines, beside qemu-img", askFormats, false},
	{"boot", "boot and memory, beside a stock Debian", askBoot, false},
	{"update", "how long an update takes the services away, beside a plain restart", askUpdate, false},
	{"webserver", "idle WebSockets, connections and requests, beside nginx and Go's ReverseProxy", askWebserver, true},
	{"supervise", "how long an app is away that was killed", askSupervise, true},
	{"restart", "requests refused and WebSockets dropped while webserver and manager are restarted", askRestart, true},
}

func usage(w io.Writer, flags *flag.FlagSet) {
	fmt.Fprint(w, "bench measures the builder and the image, beside mmdebstrap and a stock Debian.\n\nUSAGE\n  go run ./scripts/bench [FLAGS] [QUESTION...]\n\nQUESTIONS (by default all)\n")
	for _, q := range questions {
		fmt.Fprintf(w, "  %-10s %s\n", q.name, q.summary)
	}
	fmt.Fprint(w, "\nFLAGS\n")
	flags.SetOutput(w)
	flags.VisitAll(func(f *flag.Flag) {
		name, text := flag.UnquoteUsage(f)
		fmt.Fprintf(w, "  --%s %s\n        %s (default %s)\n", f.Name, name, text, f.DefValue)
	})
	fmt.Fprint(w, `
ENVIRONMENT
  TMPDIR   where the work is done: needs about 6 GB, better not in memory
  and those of apimage: MIRROR, SECURITY_MIRROR, XDG_CACHE_HOME

EXIT STATUS
  0 every budget is kept, 1 failed or a budget is missed, 2 wrong command line
`)
}

func benchMain(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	board := flags.String("board", "x86_64", "`board` to build")
	runs := flags.Int("runs", 3, "`number` of times that each side is measured")
	packs := flags.Int("packs", 0, "`number` of these builds whose root file system is also packed, which takes the peer most of its time; 0 for all")
	connections := flags.Int("connections", 5000, "`number` of idle WebSockets, as far as the limit of open files lets them")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		usage(stdout, flags)
		return 0
	}
	asked, wrong := choose(flags.Args())
	if err = errors.Join(err, wrong); err == nil && *runs < 1 {
		err = errors.New("--runs must be at least 1")
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v\nhint: go run ./scripts/bench --help\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	r := &report{w: stdout}
	if err := measure(ctx, *board, *runs, *packs, *connections, asked, r, stderr); err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 1
	}
	return r.verdict()
}

// choose finds the questions by name.
func choose(names []string) ([]question, error) {
	if len(names) == 0 {
		return questions, nil
	}
	var chosen []question
	for _, name := range names {
		i := slices.IndexFunc(questions, func(q question) bool { return q.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no question %q", name)
		}
		chosen = append(chosen, questions[i])
	}
	return chosen, nil
}

func measure(ctx context.Context, board string, runs, packs, connections int, asked []question, r *report, stderr io.Writer) error {
	log := func(text string) { fmt.Fprintln(stderr, strings.TrimSpace(text)) }
	l := &lab{log: log}
	if slices.ContainsFunc(asked, func(q question) bool { return !q.alone }) {
		var err error
		if l, err = newLab(ctx, board, runs, log); err != nil {
			return err
		}
	}
	defer l.close()
	l.connections = connections
	if l.packs = packs; packs <= 0 {
		l.packs = runs
	}
	for _, q := range asked {
		if err := q.ask(ctx, l, r); err != nil {
			return fmt.Errorf("cannot measure %s: %w", q.name, err)
		}
	}
	return nil
}
