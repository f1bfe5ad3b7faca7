package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Budgets of a build after a small change, in seconds.
const (
	unchangedBudget = 0.5
	changedBudget   = 15
	draftBudget     = 5
)

// changedFile is a small file in the system's overlay; a comment at its end
// changes nothing else.
const changedFile = "rootfs/overlay/etc/init.d/rcS"

// askRebuild measures what a developer waits for.
func askRebuild(ctx context.Context, l *lab, r *report) error {
	home, err := l.warmCache(ctx)
	if err != nil {
		return err
	}
	// The build that filled the cache may have had a lock; from here on apt has
	// been asked, as on a developer's machine.
	if _, err := l.build(ctx, home, l.copy); err != nil {
		return err
	}
	change := 0
	changed := func(flags ...string) (float64, error) {
		change++
		if err := appendLine(filepath.Join(l.copy, changedFile), fmt.Sprintf("# change %d", change)); err != nil {
			return 0, err
		}
		b, err := l.build(ctx, home, l.copy, flags...)
		if err != nil {
			return 0, err
		}
		if b.UpToDate {
			return 0, fmt.Errorf("the image is called up to date after a change of %s", changedFile)
		}
		return b.took, nil
	}
	var same, full, drafts []float64
	for i := range l.runs {
		l.log(fmt.Sprintf("rebuild %d of %d", i+1, l.runs))
		took, err := changed()
		if err != nil {
			return err
		}
		full = append(full, took)
		for range 3 { // It is short.
			b, err := l.build(ctx, home, l.copy)
			if err != nil {
				return err
			}
			if !b.UpToDate {
				return errors.New("the image is not called up to date although nothing has changed")
			}
			same = append(same, b.took)
		}
	}
	// The first draft also packs the ramdisk anew.
	first, err := changed("--draft")
	if err != nil {
		return err
	}
	for i := range l.runs {
		l.log(fmt.Sprintf("draft %d of %d", i+1, l.runs))
		took, err := changed("--draft")
		if err != nil {
			return err
		}
		drafts = append(drafts, took)
	}
	r.title("3. Building again")
	rows := [][]string{{"", "runs", "min", "median", "max"}}
	for _, row := range []struct {
		name  string
		times []float64
	}{{"nothing changed", same}, {"one overlay file changed", full}, {"the same, first --draft", []float64{first}}, {"the same, --draft", drafts}} {
		t := row.times
		rows = append(rows, []string{row.name, fmt.Sprint(len(t)), fmt.Sprintf("%.2f s", slices.Min(t)), fmt.Sprintf("%.2f s", median(t)), fmt.Sprintf("%.2f s", slices.Max(t))})
	}
	r.table(rows...)
	r.budget("nothing changed, median", "%.2f s", median(same), unchangedBudget)
	r.budget("one overlay file changed, median", "%.2f s", median(full), changedBudget)
	r.budget("one overlay file changed, --draft, median", "%.2f s", median(drafts), draftBudget)
	return nil
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, line)
	return errors.Join(err, f.Close())
}
