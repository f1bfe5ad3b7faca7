package agent

import (
	"os"
	"strings"
	"testing"

	"appplatform/agent/internal/netconf"
	"appplatform/partitions"
)

// Without a disk that could keep it the address counts all the same, and it is
// said that it will not stay.
func TestSetNetworkWithoutDisk(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "sda", 4*partitions.GiB)
	must(t, os.RemoveAll(m.path("sys/class/block/sda")))
	err := SetNetwork(t.Context(), m.Machine, NetworkArguments{Addr: "192.168.1.20/24"})
	if err == nil || !strings.Contains(err.Error(), "the settings last until the next start: cannot find the disk") {
		t.Errorf("SetNetwork() = %v; want how long the settings last", err)
	}
	if s, err := netconf.Load(m.Root); err != nil || s.Address.String() != "192.168.1.20/24" {
		t.Errorf("the settings of this start are %v, %v", s, err)
	}
}
