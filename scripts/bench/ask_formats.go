package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"appplatform/internal/run"
	"appplatform/tooltree"
)

// formatBudget is how long all disk formats may take beside qemu-img, which makes
// them one after the other.
const formatBudget = 0.5

// diskFormats are the extensions of ours and how qemu-img is asked for the same.
var diskFormats = []struct{ extension, qemu string }{
	{"qcow2", "-O qcow2 -c"},
	{"vmdk", "-O vmdk -o subformat=streamOptimized"},
	{"vhdx", "-O vhdx"},
	{"vhd", "-O vpc -o force_size=on"},
}

// askFormats converts the image to each disk format alone and to all of them.
func askFormats(ctx context.Context, l *lab, r *report) error {
	dir := filepath.Join(l.work, "formats")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	raw := l.image.file(".img")
	var extensions []string
	for _, f := range diskFormats {
		extensions = append(extensions, f.extension)
	}
	alone := map[string][]pair{}
	var all []pair
	for range l.runs {
		peer, err := l.qemuConvert(ctx, raw, dir)
		if err != nil {
			return err
		}
		var total float64
		for _, f := range diskFormats {
			ours, err := l.convert(ctx, raw, dir, f.extension)
			if err != nil {
				return err
			}
			alone[f.extension] = append(alone[f.extension], pair{ours, peer[f.extension]})
			total += peer[f.extension]
		}
		ours, err := l.convert(ctx, raw, dir, extensions...)
		if err != nil {
			return err
		}
		all = append(all, pair{ours, total})
	}
	r.title("7. The image of board %s in the disk formats of virtual machines", l.board)
	r.note("qemu-img is timed without the start of its namespace, apimage with the start of the process.")
	rows := [][]string{{"", "ours, s", "qemu-img, s", "ratio", "ours, MB", "qemu-img, MB"}}
	larger := map[string]float64{} // than the peer's
	for _, f := range diskFormats {
		p := alone[f.extension]
		sizes, err := fileSizes(filepath.Join(dir, "ours."+f.extension), filepath.Join(dir, "peer."+f.extension))
		if err != nil {
			return err
		}
		rows = append(rows, append(medians(f.extension, p), fmt.Sprintf("%.2f", sizes[0]), fmt.Sprintf("%.2f", sizes[1])))
		larger[f.extension] = sizes[0] / sizes[1]
	}
	rows = append(rows, medians("all at once", all))
	r.remember("image to all disk formats", "qemu-img, four times", "%.2f s", all)
	r.table(rows...)
	r.budget("all formats", "%.3f", median(each(all, pair.ratio)), formatBudget)
	for _, f := range diskFormats {
		r.budget("size of "+f.extension+" beside qemu-img's", "%.3f", larger[f.extension], 1)
	}
	return nil
}

func medians(name string, pairs []pair) []string {
	return []string{name,
		fmt.Sprintf("%.2f", median(each(pairs, func(p pair) float64 { return p.ours }))),
		fmt.Sprintf("%.2f", median(each(pairs, func(p pair) float64 { return p.peer }))),
		fmt.Sprintf("%.3f", median(each(pairs, pair.ratio)))}
}

// fileSizes are in MB.
func fileSizes(names ...string) (sizes []float64, err error) {
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		sizes = append(sizes, float64(info.Size())/1e6)
	}
	return sizes, nil
}

// convert times our writers.
func (l *lab) convert(ctx context.Context, raw, dir string, extensions ...string) (float64, error) {
	args := []string{"convert", raw}
	for _, e := range extensions {
		args = append(args, filepath.Join(dir, "ours."+e))
	}
	return timed(func() error { return run.Wait(run.Command(ctx, l.apimage, args...)) })
}

// qemuConvert times qemu-img for each format, in one namespace for all.
func (l *lab) qemuConvert(ctx context.Context, raw, dir string) (map[string]float64, error) {
	script := "set -e; cd " + dir + "\n"
	for _, f := range diskFormats {
		script += fmt.Sprintf("rm -f peer.%[1]s; a=$EPOCHREALTIME; qemu-img convert -f raw %[2]s %[3]s peer.%[1]s; echo %[1]s $a $EPOCHREALTIME\n", f.extension, f.qemu, raw)
	}
	out, err := l.tools.Output(ctx, tooltree.Cmd{
		Args: []string{"bash", "-c", script}, ReadOnly: []string{filepath.Dir(raw)}, Writable: []string{dir},
	})
	if err != nil {
		return nil, err
	}
	seconds := map[string]float64{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			return nil, fmt.Errorf("internal error: the line %q", line)
		}
		from, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			return nil, err
		}
		to, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			return nil, err
		}
		seconds[f[0]] = to - from
	}
	return seconds, nil
}
