package main

import (
	"context"
	"fmt"
)

// Budgets of a start: a part of the peer's time, and MB.
const (
	bootBudget   = 1.0 / 3
	memoryBudget = 140
)

// askBoot starts both systems in turn, each for the second time in its life.
func askBoot(ctx context.Context, l *lab, r *report) error {
	stock, err := l.stock(ctx)
	if err != nil {
		return err
	}
	l.log("our image installs itself")
	ours, err := l.installed(ctx)
	if err != nil {
		return err
	}
	var a, b []start
	for i := range l.runs {
		for _, side := range []struct {
			system
			to *[]start
		}{{ours, &a}, {stock, &b}} {
			l.log(fmt.Sprintf("start %d of %d: %s", i+1, l.runs, side.name))
			st, err := l.switchOn(ctx, side.system)
			if err != nil {
				return err
			}
			*side.to = append(*side.to, st)
		}
	}
	column := func(value func(start) float64) []pair {
		pairs := make([]pair, len(a))
		for i := range a {
			pairs[i] = pair{value(a[i]), value(b[i])}
		}
		return pairs
	}
	const peer = "stock Debian"
	r.title("5. Second start in QEMU (TCG, 1 CPU, 512 MiB; ours from BIOS through GRUB and its 2 s menu, the stock Debian of %s from its kernel)", l.stockAge())
	ssh := column(func(s start) float64 { return s.ssh })
	postgres := column(func(s start) float64 { return s.postgres })
	used := column(func(s start) float64 { return s.used })
	r.note("to the SSH banner")
	r.pairs("second start to SSH", peer, "%.1f s", ssh)
	r.note("to PostgreSQL's answer")
	r.pairs("second start to PostgreSQL", peer, "%.1f s", postgres)
	r.note("memory in use %v after login (MemTotal - MemAvailable)", idleAfter)
	r.pairs("memory in use", peer, "%.1f MB", used)
	r.note("memory not available, the kernel's own included (512 MiB - MemAvailable)")
	r.pairs("memory taken", peer, "%.1f MB", column(func(s start) float64 { return s.taken }))
	r.budget("median ratio, SSH banner", "%.3f", median(each(ssh, pair.ratio)), bootBudget)
	r.budget("median ratio, PostgreSQL", "%.3f", median(each(postgres, pair.ratio)), bootBudget)
	r.budget("median ratio, memory in use", "%.3f", median(each(used, pair.ratio)), 1)
	r.budget("idle memory, median", "%.1f MB", median(each(used, func(p pair) float64 { return p.ours })), memoryBudget)
	return nil
}
