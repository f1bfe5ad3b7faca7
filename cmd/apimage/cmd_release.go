package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"appplatform/boards"
	"appplatform/image"
	"appplatform/internal/cache"
)

var releaseCommand = command{
	name: "release", args: "[BOARD...]", summary: "build all that is handed out of a version, into one folder",
	help: `
Builds the boards (all of them if none is named) and puts what people fetch into
out/release/LABEL: images and disk formats, update files, app-platform-ova.zip, lists
of what is in them (SPDX, CycloneDX), licences, provenance, linux.json, and the signed
SHA256SUMS. Any web server that serves this folder is a store and an update server.
The same source, packages and key give the same bytes: --locks takes the packages of
an earlier release (its folder, or any with the BOARDs' .lock files).`,
	flags: func(flags *flag.FlagSet) func(context.Context, *app, []string) error {
		var f buildFlags
		f.register(flags)
		flags.Lookup("out").Usage = "`folder` for the release, by default out/release/LABEL; an older release there is replaced"
		locks := flags.String("locks", "", "`folder` with app-platform-BOARD.lock files to build from")
		return func(ctx context.Context, a *app, names []string) error {
			if f.locked != "" {
				return usagef("--locked is for one board; name a folder with --locks")
			}
			repo, err := image.FindRepository(f.repo)
			if err != nil {
				return err
			}
			if len(names) == 0 {
				if names, err = boards.List(os.DirFS(repo)); err != nil {
					return err
				}
			}
			return f.release(ctx, a, repo, *locks, names)
		}
	},
}

// release builds the boards one after the other and collects what they have made.
// The builds lie below out/release, so that they do not replace those of out/BOARD
// and the next release has what is left of them; one release at a time uses them.
func (f *buildFlags) release(ctx context.Context, a *app, repo, locks string, names []string) error {
	folder, out := filepath.Join(repo, "out", "release"), f.out
	c, err := cache.Default()
	if err != nil {
		return err
	}
	unlock, err := c.Lock("release-"+cache.Key(folder), func() { fmt.Fprintln(a.stderr, "waiting for another release of this checkout") })
	if err != nil {
		return err
	}
	defer unlock()
	var built []image.Built
	for _, name := range names {
		one := *f
		if locks != "" {
			one.locked = filepath.Join(locks, "app-platform-"+name+".lock")
		}
		one.out = filepath.Join(folder, ".builds", name)
		plan, result, err := one.make(ctx, a, name)
		if err != nil {
			return err
		}
		if out == "" {
			out = filepath.Join(folder, plan.Label)
		}
		built = append(built, image.Built{Plan: plan, Result: result})
	}
	files, err := image.Release(ctx, out, built)
	if err != nil || f.json {
		return err
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "  %-44s %8.2f MB\n", filepath.Base(file), float64(info.Size())/1e6)
	}
	fmt.Fprintln(a.stdout, out)
	return nil
}
