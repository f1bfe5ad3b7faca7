package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"

	"appplatform/image"
	"appplatform/tooltree"
)

var toolCommand = command{
	name: "tool", args: "NAME [ARGUMENT...]", summary: "run a program of the pinned build tools (mke2fs, sfdisk, qemu-img, qemu-system-x86_64, gcc...)",
	help: `
The program sees the current folder, the home folder, /dev, /proc and the host's
network; terminal, signals and sockets pass through. Other folders are named
with --bind.`,
	flags: func(flags *flag.FlagSet) func(context.Context, *app, []string) error {
		kind := flags.String("kind", "", "set of tools to look in: image, vm or kernel; by default all, in this order")
		bind := flags.String("bind", "", "more host `folders` to see, separated by colons")
		return func(ctx context.Context, a *app, args []string) error {
			if len(args) == 0 {
				return usagef("name a tool")
			}
			return a.tool(ctx, *kind, strings.FieldsFunc(*bind, func(r rune) bool { return r == ':' }), args)
		}
	},
}

func (a *app) tool(ctx context.Context, kind string, folders, args []string) error {
	archive, err := a.archive(ctx)
	if err != nil {
		return err
	}
	archive.Log = func(text string) { fmt.Fprintln(a.stderr, text) }
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	folders = append(folders, dir)
	if home, err := os.UserHomeDir(); err == nil && home != "/" {
		folders = append(folders, home)
	}
	for _, k := range tooltree.Kinds {
		if kind != "" && k.Name != kind {
			continue
		}
		tree, err := image.OpenTools(ctx, archive, k, nil)
		if err != nil {
			return err
		}
		if !tree.Has(args[0]) {
			continue
		}
		return toolError(tree.Run(ctx, tooltree.Cmd{
			Args: args, Dir: dir, Writable: folders,
			Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr,
		}))
	}
	return fmt.Errorf("cannot find the tool %q in the build tools", args[0])
}
