package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A report prints tables and remembers the budgets that were missed.
type report struct {
	w       io.Writer
	missed  []string
	summary [][]string
}

// A pair is one run of both sides.
type pair struct{ ours, peer float64 }

func (p pair) ratio() float64 { return p.ours / p.peer }

// title begins a table.
func (r *report) title(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintf(r.w, "\n%s\n%s\n", text, strings.Repeat("-", len(text)))
}

// table prints rows of cells.
func (r *report) table(rows ...[]string) {
	w := tabwriter.NewWriter(r.w, 0, 0, 3, ' ', tabwriter.AlignRight)
	for _, row := range rows {
		fmt.Fprintln(w, strings.Join(row, "\t")+"\t")
	}
	w.Flush()
}

// remember puts the medians into the table that ends the report.
func (r *report) remember(what, peer, format string, pairs []pair) {
	r.summary = append(r.summary, []string{what,
		fmt.Sprintf(format, median(each(pairs, func(p pair) float64 { return p.ours }))),
		fmt.Sprintf(format, median(each(pairs, func(p pair) float64 { return p.peer }))),
		fmt.Sprintf("%.3f", median(each(pairs, pair.ratio))), peer})
}

// pairs prints what the runs gave, their minimum and their median.
func (r *report) pairs(what, peer, format string, pairs []pair) {
	r.remember(what, peer, format, pairs)
	rows := [][]string{{"", "ours", peer, "ratio"}}
	row := func(name string, ours, peer, ratio float64) {
		rows = append(rows, []string{name, fmt.Sprintf(format, ours), fmt.Sprintf(format, peer), fmt.Sprintf("%.3f", ratio)})
	}
	for i, p := range pairs {
		row(fmt.Sprintf("run %d", i+1), p.ours, p.peer, p.ratio())
	}
	if len(pairs) > 1 {
		for _, f := range []struct {
			name string
			of   func([]float64) float64
		}{{"min", slices.Min[[]float64]}, {"median", median}} {
			row(f.name, f.of(each(pairs, func(p pair) float64 { return p.ours })),
				f.of(each(pairs, func(p pair) float64 { return p.peer })), f.of(each(pairs, pair.ratio)))
		}
	}
	r.table(rows...)
}

// budget compares a value with what the design allows.
func (r *report) budget(name, format string, value, limit float64) {
	verdict := "kept"
	if value > limit {
		verdict = "MISSED"
		r.missed = append(r.missed, fmt.Sprintf("%s: "+format+", budget "+format, name, value, limit))
	}
	fmt.Fprintf(r.w, "budget: %s at most "+format+": "+format+", %s\n", name, limit, value, verdict)
}

func (r *report) note(format string, args ...any) { fmt.Fprintf(r.w, format+"\n", args...) }

// verdict ends the report; it returns the exit code.
func (r *report) verdict() int {
	if len(r.summary) > 0 {
		r.title("All of it: medians")
		r.table(append([][]string{{"", "ours", "peer", "ratio", "the peer is"}}, r.summary...)...)
	}
	if len(r.missed) == 0 {
		fmt.Fprintln(r.w, "\nEvery budget is kept.")
		return 0
	}
	fmt.Fprintf(r.w, "\nMissed budgets:\n  %s\n", strings.Join(r.missed, "\n  "))
	return 1
}

func each[T any](list []T, value func(T) float64) []float64 {
	out := make([]float64, len(list))
	for i, v := range list {
		out[i] = value(v)
	}
	return out
}

// median is the middle value, or the mean of the two in the middle.
func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// timed is how long an action takes, in seconds.
func timed(do func() error) (float64, error) {
	began := time.Now()
	err := do()
	return time.Since(began).Seconds(), err
}
