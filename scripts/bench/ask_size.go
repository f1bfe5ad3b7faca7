package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"appplatform/internal/run"
)

// agentBudget is how large the agent may be on the smallest board, in MB.
const agentBudget = 8

// askSize prints what the image consists of.
func askSize(ctx context.Context, l *lab, r *report) error {
	agent := filepath.Join(l.work, "apagent")
	if err := run.Wait(l.agentCommand(ctx, agent, "GOOS=linux", "GOARCH=arm", "GOARM=5")); err != nil {
		return fmt.Errorf("cannot compile the agent for armel: %w", err)
	}
	info, err := os.Stat(agent)
	if err != nil {
		return err
	}
	r.title("4. Sizes of board %s", l.board)
	rows := [][]string{{"", "MB"}}
	for _, p := range l.image.Parts {
		rows = append(rows, []string{p.Name, fmt.Sprintf("%.2f", float64(p.Size)/1e6)})
	}
	rows = append(rows, []string{"apagent for armel, stripped", fmt.Sprintf("%.2f", float64(info.Size())/1e6)})
	r.table(rows...)
	r.budget("apagent for armel", "%.2f MB", float64(info.Size())/1e6, agentBudget)
	return nil
}
