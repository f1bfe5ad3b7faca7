package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"

	"appplatform/image"
)

var convertCommand = command{
	name: "convert", args: "FILE.img OUT...", summary: "write a raw disk image in formats of virtual machines",
	help: `
The ends of the output files' names say the formats: .qcow2, .vmdk (streamOptimized),
.vhdx and .vhd (both dynamic), .ova (a machine with 512 MB of memory around the disk).
The raw image is read once; holes are not read at all. The same image gives the same
bytes. Files that are there are replaced when the new ones are whole.`,
	flags: func(flags *flag.FlagSet) func(context.Context, *app, []string) error {
		return func(ctx context.Context, a *app, files []string) error {
			if len(files) < 2 {
				return usagef("name the raw image and the files to write")
			}
			show := newProgress(a.stderr)
			defer show.close()
			text := "convert " + files[0]
			show.event(image.Event{State: image.Started, Step: "formats", Text: text})
			err := image.Convert(ctx, files[0], files[1:], func(done, total int64) {
				show.event(image.Event{State: image.Progress, Step: "formats", Text: text, Done: done, Total: total, Unit: "bytes"})
			})
			show.close()
			if err != nil {
				return err
			}
			for _, f := range files[1:] {
				info, err := os.Stat(f)
				if err != nil {
					return err
				}
				fmt.Fprintf(a.stdout, "  %-40s %8.2f MB\n", strings.TrimPrefix(f, "./"), float64(info.Size())/1e6)
			}
			return nil
		}
	},
}
