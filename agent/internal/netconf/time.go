package netconf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"appplatform/internal/atomicfile"
	"appplatform/internal/run"
)

// timeSources is where chrony.conf looks for the time servers of a lease.
const timeSources = "run/chrony-dhcp/dhcp.sources"

// setTimeServers makes the time servers of a lease effective, also when chronyd
// runs already. Without chronyd, as in the ramdisk, nobody reads the file.
func setTimeServers(root string, servers []netip.Addr) error {
	changed, err := writeTimeServers(root, servers)
	if err != nil || !changed {
		return err
	}
	if _, err := os.Stat(filepath.Join(root, "run/chrony/chronyd.sock")); err != nil {
		return nil // It reads the file when it starts.
	}
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Second)
	defer stop()
	if err := run.Cmd(ctx, "chronyc", "reload", "sources"); err != nil {
		return fmt.Errorf("cannot use the time servers of the lease: %w", err)
	}
	return nil
}

// writeTimeServers reports whether the file says something new.
func writeTimeServers(root string, servers []netip.Addr) (changed bool, err error) {
	var b strings.Builder
	for _, a := range servers {
		fmt.Fprintf(&b, "server %v iburst\n", a)
	}
	path := filepath.Join(root, timeSources)
	old, err := os.ReadFile(path)
	if string(old) == b.String() && (err == nil || errors.Is(err, os.ErrNotExist)) {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("cannot note the time servers: %w", err)
	}
	return true, atomicfile.Write(path, []byte(b.String()), 0o644)
}
