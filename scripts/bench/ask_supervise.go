package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"appplatform/internal/run"
)

// awayBudget is how long a small app that was killed may be away, in milliseconds:
// what systemd waits by default (RestartSec) before it begins.
const awayBudget = 100

// askSupervise kills an app a thousand times.
func askSupervise(ctx context.Context, _ *lab, r *report) error {
	dir, err := os.MkdirTemp("", "app-platform-kills")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "kills")
	build := run.Command(ctx, "go", "build", "-o", program, "./manager/internal/supervise/kills")
	if err := run.Wait(build); err != nil {
		return fmt.Errorf("cannot compile kills: %w", err)
	}
	out, err := run.Output(ctx, program)
	if err != nil {
		return err
	}
	var result struct {
		Kills         int
		P50, P99, Max float64
	}
	if err := json.Unmarshal(out, &result); err != nil {
		return fmt.Errorf("internal error: kills: %w", err)
	}
	r.title("An app from kill -9 to its next answer, %d times", result.Kills)
	r.table([]string{"", "ms"},
		[]string{"median", fmt.Sprintf("%.1f", result.P50)},
		[]string{"99 %", fmt.Sprintf("%.1f", result.P99)},
		[]string{"longest", fmt.Sprintf("%.1f", result.Max)})
	r.note("systemd, as it comes, waits 100 ms before it starts anything again.")
	r.budget("an app is away (99 %)", "%.1f ms", result.P99, awayBudget)
	return nil
}
