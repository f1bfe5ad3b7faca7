package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"appplatform/image"
	"appplatform/partitions"
)

// buildFlags are shared by the commands that make a plan.
type buildFlags struct {
	repo, out, label, key, locked string
	draft, json, update           bool
}

func (f *buildFlags) register(flags *flag.FlagSet) {
	flags.StringVar(&f.repo, "repo", ".", "`folder` inside the checkout to build from")
	flags.StringVar(&f.out, "out", "", "`folder` for the finished files, by default out/BOARD of the checkout")
	flags.StringVar(&f.label, "label", "", "image `number` of six digits, by default that of boards/label")
	flags.StringVar(&f.key, "key", "", "minisign private key `file` to sign with (its .pub beside it; password in APIMAGE_KEY_PASSWORD); by default a development key")
	flags.StringVar(&f.locked, "locked", "", "build from the packages of a lock `file`, from the pool alone if it has them")
	flags.BoolVar(&f.draft, "draft", false, "compress lightly: seconds faster, a larger image")
	flags.BoolVar(&f.json, "json", false, "print events and the result as JSON, one object a line")
	flags.BoolVar(&f.update, "update", false, "ask the mirror for new package indexes even if the last ones are less than 6 hours old")
}

// plan makes the plan of one board.
func (f *buildFlags) plan(ctx context.Context, a *app, board string, report func(image.Event)) (*image.Plan, error) {
	archive, err := a.archive(ctx)
	if err != nil {
		return nil, err
	}
	archive.Refresh = f.update
	archive.Log = func(text string) { report(image.Event{State: image.Note, Board: board, Text: text}) }
	o := image.Options{
		Dir: f.repo, Board: board, Label: f.label, Key: f.key, Password: os.Getenv("APIMAGE_KEY_PASSWORD"),
		Draft: f.draft, Archive: archive, Report: report,
	}
	if f.out != "" {
		if o.Out, err = filepath.Abs(f.out); err != nil {
			return nil, err
		}
	}
	if f.locked != "" {
		if o.Lock, err = image.ReadLock(f.locked); err != nil {
			return nil, err
		}
	}
	return image.New(ctx, o)
}

// oneBoard is the command's single argument.
func oneBoard(args []string) (string, error) {
	if len(args) != 1 {
		return "", usagef("name one board (apimage ls lists them)")
	}
	return args[0], nil
}

var buildCommand = command{
	name: "build", args: "BOARD...", summary: "build the images of boards",
	help: `
Packages are the newest of the Debian archive unless --locked names them. The
result lies in out/BOARD: the raw disk image, for virtual machines a qcow2 of it,
the signed manifest, the lock that builds the same again, and what is in the image,
its licences and what it was made from (docs/sbom.md).`,
	flags: func(flags *flag.FlagSet) func(context.Context, *app, []string) error {
		var f buildFlags
		f.register(flags)
		return func(ctx context.Context, a *app, boards []string) error {
			if len(boards) == 0 {
				return usagef("name a board (apimage ls lists them)")
			}
			if len(boards) > 1 && (f.locked != "" || f.out != "") {
				return usagef("--locked and --out go with one board")
			}
			for _, board := range boards {
				if err := f.build(ctx, a, board); err != nil {
					return err
				}
			}
			return nil
		}
	},
}

func (f *buildFlags) build(ctx context.Context, a *app, board string) error {
	began := time.Now()
	show := newProgress(a.stderr)
	if f.json {
		enc := json.NewEncoder(a.stdout)
		show = &progress{event: func(e image.Event) { _ = enc.Encode(e) }, close: func() {}}
	}
	defer show.close()
	plan, err := f.plan(ctx, a, board, show.event)
	if err != nil {
		return err
	}
	result, err := plan.Build(ctx)
	show.close()
	if err != nil {
		return err
	}
	if f.json {
		return json.NewEncoder(a.stdout).Encode(struct {
			State string `json:"state"`
			Board string `json:"board"`
			*image.Result
		}{"result", board, result})
	}
	if result.UpToDate {
		fmt.Fprintf(a.stdout, "%s is up to date\n", result.Files[0])
		return nil
	}
	for _, p := range result.Parts {
		fmt.Fprintf(a.stdout, "  %-22s %7.2f MB\n", p.Name, float64(p.Size)/1e6)
	}
	size := plan.Board.Disk
	if info, err := os.Stat(result.Files[0]); err == nil {
		size = partitions.Size(info.Size()) // A gateway's image is cut off.
	}
	fmt.Fprintf(a.stdout, "%s (%s) in %.1f s\n", result.Files[0], size.Short(), time.Since(began).Seconds())
	return nil
}
