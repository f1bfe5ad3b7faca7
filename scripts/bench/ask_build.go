package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"appplatform/boards"
	"appplatform/image"
	"appplatform/internal/run"
)

// Budgets of a build from cached packages, as parts of the peer's time.
const (
	rootfsBudget = 1.0 / 4
	imageBudget  = 3.0 / 4
)

// askBuild answers two questions with the same runs: how long until there is a
// root file system, and how long until there is an image.
func askBuild(ctx context.Context, l *lab, r *report) error {
	p, err := newPeer(ctx, l)
	if err != nil {
		return err
	}
	var rootfs, images, unpacked []pair
	var last *built
	for i := range l.runs {
		l.log(fmt.Sprintf("build %d of %d: ours", i+1, l.runs))
		b, err := l.coldBuild(ctx)
		if err != nil {
			return err
		}
		ours, err := b.rootfs()
		if err != nil {
			return err
		}
		l.log(fmt.Sprintf("build %d of %d: mmdebstrap", i+1, l.runs))
		extracted, err := p.rootfs(ctx, "extract")
		if err != nil {
			return err
		}
		made, err := p.rootfs(ctx, "essential")
		if err != nil {
			return err
		}
		if i < l.packs {
			packed, err := p.pack(ctx)
			if err != nil {
				return err
			}
			images = append(images, pair{b.took, made + packed})
		}
		rootfs = append(rootfs, pair{ours, made})
		unpacked = append(unpacked, pair{ours, extracted})
		last = b
	}
	programs, err := l.coldPrograms(ctx)
	if err != nil {
		return err
	}
	plan, err := l.coldPlan(ctx)
	if err != nil {
		return err
	}
	const seconds = "%.1f s"
	r.title("1. Cached packages to root file system (%d packages; %d more that only dpkg needs are the peer's)", len(p.names), p.added)
	r.pairs("packages to root file system", "mmdebstrap + mke2fs", seconds, rootfs)
	r.budget("median ratio, root file system", "%.3f", median(each(rootfs, pair.ratio)), rootfsBudget)
	r.note("For the record: mmdebstrap --variant=extract, which unpacks and configures nothing, with mke2fs takes "+seconds+" (median; ratio %.3f).",
		median(each(unpacked, func(p pair) float64 { return p.peer })), median(each(unpacked, pair.ratio)))
	r.note("Both sides are told the exact packages (ours by the lock). Without, apt searches the whole index for ours: "+seconds+" more the first time.", plan)
	r.note("Ours contains linking the programs. With Go's own cache empty, compiling them takes up to "+seconds+" more.", programs)

	r.title("2. Cached packages and kernel to finished image")
	r.pairs("packages and kernel to image", "mmdebstrap + mke2fs + xz -6 -T2", seconds, images)
	r.budget("median ratio, image", "%.3f", median(each(images, pair.ratio)), imageBudget)
	r.note("Ours by step in the last run: %s.", last.steps())
	l.noteContents(r, p)
	return nil
}

// noteContents says what the two sides carry: ours leaves out what no device
// needs.
func (l *lab) noteContents(r *report, p *peer) {
	var ours int64
	for _, part := range l.image.Parts {
		if part.Name == "packed rootfs" {
			ours = part.Size
		}
	}
	r.note("Packed root file system: ours %.1f MB (rules drop what no device needs), the peer's %.1f MB (of %.0f MB).",
		float64(ours)/1e6, float64(p.packedSize)/1e6, float64(p.rawSize)/1e6)
}

// coldPrograms is how long Go takes to compile the programs of an image with an
// empty cache.
func (l *lab) coldPrograms(ctx context.Context) (float64, error) {
	dir := filepath.Join(l.work, "go-cache")
	defer os.RemoveAll(dir)
	return timed(func() error {
		for _, name := range []string{"apagent", "manager", "webserver"} {
			cmd, err := l.program(ctx, l.board, name, os.DevNull)
			if err != nil {
				return err
			}
			cmd.Env = append(cmd.Env, "GOCACHE="+dir)
			if err := run.Wait(cmd); err != nil {
				return err
			}
		}
		return nil
	})
}

// program compiles one for a board as the builder does.
func (l *lab) program(ctx context.Context, board, name, out string) (*exec.Cmd, error) {
	b, err := boards.Load(os.DirFS(l.copy), board)
	if err != nil {
		return nil, err
	}
	return image.ProgramCommand(ctx, l.copy, b, name, "160001", out)
}
