package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"appplatform/internal/run"
)

// How large programs may be, stripped, in MB: the agent on the smallest board, and
// manager and webserver together on each.
const (
	agentBudget   = 8
	managerBudget = 25
)

// askSize prints what the image consists of.
func askSize(ctx context.Context, l *lab, r *report) error {
	agent, err := l.programSize(ctx, "armel", "apagent")
	if err != nil {
		return err
	}
	manager, err := l.programSize(ctx, l.board, "manager")
	if err != nil {
		return err
	}
	webserver, err := l.programSize(ctx, l.board, "webserver")
	if err != nil {
		return err
	}
	r.title("4. Sizes of board %s", l.board)
	rows := [][]string{{"", "MB"}}
	for _, p := range l.image.Parts {
		rows = append(rows, []string{p.Name, fmt.Sprintf("%.2f", float64(p.Size)/1e6)})
	}
	rows = append(rows,
		[]string{"apagent for armel, stripped", fmt.Sprintf("%.2f", agent)},
		[]string{"manager, stripped", fmt.Sprintf("%.2f", manager)},
		[]string{"webserver, stripped", fmt.Sprintf("%.2f", webserver)},
	)
	r.table(rows...)
	r.budget("apagent for armel", "%.2f MB", agent, agentBudget)
	r.budget("manager and webserver", "%.2f MB", manager+webserver, managerBudget)
	return nil
}

// programSize is that of a program of an image, in MB.
func (l *lab) programSize(ctx context.Context, board, name string) (float64, error) {
	out := filepath.Join(l.work, name)
	cmd, err := l.program(ctx, board, name, out)
	if err == nil {
		err = run.Wait(cmd)
	}
	if err != nil {
		return 0, fmt.Errorf("cannot compile %s for %s: %w", name, board, err)
	}
	info, err := os.Stat(out)
	if err != nil {
		return 0, err
	}
	return float64(info.Size()) / 1e6, nil
}
