package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/term"

	"appplatform/archive"
	"appplatform/image"
	"appplatform/internal/hint"
	"appplatform/tooltree"
)

var toolCommand = command{
	name: "tool", args: "NAME [ARGUMENT...]", summary: "run a program of the pinned build tools (mke2fs, sfdisk, qemu-img, qemu-system-x86_64, gcc...)",
	others: true,
	help: `
The program sees the current folder, the home folder, /dev, /proc and the host's
network; terminal, signals and sockets pass through. Other folders are named
with --bind. With --where it prints the folder that holds the set of tools.`,
	flags: func(flags *flag.FlagSet) func(context.Context, *app, []string) error {
		kind := flags.String("kind", "", "set of tools to look in: image, vm, kernel, gateway, kernel-arm, kernel-arm64, browser, formats, database, web or debug; by default all, in this order")
		bind := flags.String("bind", "", "more host `folders` to see, separated by colons")
		where := flags.Bool("where", false, "print the folder of the set of tools that --kind names")
		return func(ctx context.Context, a *app, args []string) error {
			switch {
			case *where && (*kind == "" || len(args) > 0):
				return usagef("--where takes --kind and nothing else")
			case *where:
				return a.whereTools(ctx, *kind)
			case len(args) == 0:
				return usagef("name a tool")
			}
			return a.tool(ctx, *kind, strings.FieldsFunc(*bind, func(r rune) bool { return r == ':' }), args)
		}
	},
}

// whereTools fetches a set of tools if it is not there yet.
func (a *app) whereTools(ctx context.Context, kind string) error {
	at := slices.IndexFunc(tooltree.Kinds, func(k tooltree.Kind) bool { return k.Name == kind })
	if at < 0 {
		return usagef("no set of tools %q", kind)
	}
	archive, err := a.toolArchive(ctx)
	if err != nil {
		return err
	}
	tree, err := image.OpenTools(ctx, archive, tooltree.Kinds[at], nil)
	if err == nil {
		fmt.Fprintln(a.stdout, tree.Dir())
	}
	return err
}

// toolArchive says on standard error what it does.
func (a *app) toolArchive(ctx context.Context) (*archive.Archive, error) {
	archive, err := a.archive(ctx)
	if err == nil {
		archive.Log = func(text string) { fmt.Fprintln(a.stderr, text) }
	}
	return archive, err
}

func (a *app) tool(ctx context.Context, kind string, folders, args []string) error {
	archive, err := a.toolArchive(ctx)
	if err != nil {
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	folders = append(folders, dir)
	if home, err := os.UserHomeDir(); err == nil && home != "/" {
		if _, err := os.Stat(home); err == nil { // A service's user has none.
			folders = append(folders, home)
		}
	}
	known := false
	for _, k := range tooltree.Kinds {
		if kind != "" && k.Name != kind {
			continue
		}
		known = true
		tree, err := image.OpenTools(ctx, archive, k, nil)
		if err != nil {
			return err
		}
		if !tree.Has(args[0]) {
			continue
		}
		return a.use(ctx, tree, tooltree.Cmd{
			Args: args, Dir: dir, Writable: folders,
			Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr,
		})
	}
	if !known {
		return usagef("no set of tools %q", kind)
	}
	return hint.Errorf("apimage tool --kind KIND ls /usr/bin /usr/sbin lists a set of tools", "cannot find the tool %q in the build tools", args[0])
}

// use runs a tool in our place. An interrupt from a terminal reaches it without
// us, and what it means is for the tool to say.
func (a *app) use(ctx context.Context, tree *tooltree.Tree, c tooltree.Cmd) error {
	ends := []os.Signal{syscall.SIGTERM, syscall.SIGHUP}
	if f, ok := a.stdin.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		ends = append(ends, os.Interrupt)
	}
	ctx, stop := signal.NotifyContext(context.WithoutCancel(ctx), ends...)
	defer stop()
	return toolError(tree.Run(ctx, c))
}
