// Package gateway plays a telephony gateway around an App Platform image: the
// three pages of its App Platform menu, and the firmware that starts the kernel
// with what these pages and the boot partition say. QEMU plays the hardware.
package gateway

import (
	"fmt"
	"strings"

	"appplatform/partitions"
	"appplatform/vmtest"
)

// A Preset is a model of gateway.
type Preset struct {
	Name       string
	Board      string // whose image it takes
	Arch       vmtest.Arch
	Memory     partitions.Size
	Disk       partitions.Size // of a new card or SSD
	Controller vmtest.Controller
	Rootfs     string // what its manual calls sda3
}

// Presets are the gateways that take an App Platform (OS-A2), the default first.
var Presets = []Preset{
	{"IPx11", "armel", vmtest.ARM, 1536 * partitions.MiB, 16 * partitions.GiB, vmtest.AHCI, "/dev/sda3"},
	{"IPx10", "armel", vmtest.ARM, 256 * partitions.MiB, 4 * partitions.GiB, vmtest.AHCI, "/dev/sda3"},
	{"IPx13", "arm64", vmtest.ARM64, 1536 * partitions.MiB, 16 * partitions.GiB, vmtest.NVMe, "/dev/nvme0n1p3"},
}

// FindPreset finds a model by its name.
func FindPreset(name string) (Preset, error) {
	var names []string
	for _, p := range Presets {
		if strings.EqualFold(p.Name, name) {
			return p, nil
		}
		names = append(names, p.Name)
	}
	return Preset{}, fmt.Errorf("no gateway %q; there are %s", name, strings.Join(names, ", "))
}
