package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"

	"appplatform/boards"
	"appplatform/image"
	"appplatform/internal/atomicfile"
)

var planCommand = command{
	name: "plan", args: "BOARD", summary: "print what would be built and why, without building",
	flags: func(flags *flag.FlagSet) func(context.Context, *app, []string) error {
		var f buildFlags
		f.register(flags)
		return func(ctx context.Context, a *app, args []string) error {
			board, err := oneBoard(args)
			if err != nil {
				return err
			}
			show := newProgress(a.stderr)
			plan, err := f.plan(ctx, a, board, show.event)
			show.close()
			if err != nil {
				return err
			}
			if f.json {
				enc := json.NewEncoder(a.stdout)
				enc.SetIndent("", " ")
				return enc.Encode(plan.Lines())
			}
			return printPlan(a, plan)
		}
	},
}

func printPlan(a *app, plan *image.Plan) error {
	fmt.Fprintf(a.stdout, "image %s for %s (%s)\n", plan.Label, plan.Board.Name, plan.Board.Description)
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STEP\tSTATE\tSIZE\tKEY\tWHAT\tMADE FROM")
	for _, l := range plan.Lines() {
		state, size := "to do", ""
		if l.Cached {
			state = "there"
		}
		if l.Size > 0 {
			size = fmt.Sprintf("%.1f MB", float64(l.Size)/1e6)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", l.Step, state, size, l.Key[:12], l.What, l.Why)
	}
	return w.Flush()
}

var lockCommand = command{
	name: "lock", args: "BOARD", summary: "write the exact list of today's packages, for build --locked",
	flags: func(flags *flag.FlagSet) func(context.Context, *app, []string) error {
		var f buildFlags
		f.register(flags)
		var to string
		flags.StringVar(&to, "o", "-", "`file` to write; - is standard output")
		return func(ctx context.Context, a *app, args []string) error {
			board, err := oneBoard(args)
			if err != nil {
				return err
			}
			show := newProgress(a.stderr)
			plan, err := f.plan(ctx, a, board, show.event)
			show.close()
			if err != nil {
				return err
			}
			text, err := plan.Lock.Encode()
			if err != nil {
				return err
			}
			if to == "-" {
				_, err = a.stdout.Write(text)
				return err
			}
			return atomicfile.Write(to, text, 0o644)
		}
	},
}

var lsCommand = command{
	name: "ls", summary: "list the boards",
	flags: func(flags *flag.FlagSet) func(context.Context, *app, []string) error {
		repo := flags.String("repo", ".", "`folder` inside the checkout")
		asJSON := flags.Bool("json", false, "print JSON")
		return func(_ context.Context, a *app, args []string) error {
			if len(args) > 0 {
				return usagef("ls takes no arguments")
			}
			dir, err := image.FindRepository(*repo)
			if err != nil {
				return err
			}
			return list(a, dir, *asJSON)
		}
	},
}

func list(a *app, dir string, asJSON bool) error {
	names, err := boards.List(os.DirFS(dir))
	if err != nil {
		return err
	}
	type row struct {
		Name        string `json:"name"`
		Arch        string `json:"arch"`
		Description string `json:"description"`
		Image       string `json:"image,omitempty"`
	}
	var rows []row
	for _, name := range names {
		b, err := boards.Load(os.DirFS(dir), name)
		if err != nil {
			return err
		}
		r := row{Name: name, Arch: b.Arch, Description: b.Description}
		img := filepath.Join(dir, "out", name, "app-platform-"+name+".img")
		if _, err := os.Stat(img); err == nil {
			r.Image = img
		}
		rows = append(rows, r)
	}
	if asJSON {
		enc := json.NewEncoder(a.stdout)
		enc.SetIndent("", " ")
		return enc.Encode(rows)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BOARD\tARCH\tIMAGE\tWHAT")
	for _, r := range rows {
		if r.Image == "" {
			r.Image = "not built"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Name, r.Arch, r.Image, r.Description)
	}
	return w.Flush()
}
