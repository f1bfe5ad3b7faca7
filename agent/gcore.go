package agent

import (
	"context"

	"appplatform/agent/internal/gcore"
)

// Gcore writes a running process to a new core file, while it stands still.
func Gcore(ctx context.Context, pid int, file string) error { return gcore.Dump(ctx, pid, file) }
