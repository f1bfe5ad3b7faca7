package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"appplatform/partitions"
)

// OS-B1, OS-C3: a gateway's disk, on which the boot loader passes nothing on.
func TestInstallGateway(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"sda", "nvme0n1"} {
		m := newGateway(t, name, 4*partitions.GiB)
		must(t, Start(t.Context(), m.Machine, nobody{}))
		m.checkInstalled(name)
		if !m.ran("mke2fs") {
			t.Errorf("%s: sda2 was not formatted", name)
		}
		if _, fat := m.mounted["/"+bootDir]; fat {
			t.Errorf("%s: sda1 is still mounted", name)
		}
		if !strings.Contains(strings.Join(m.events, "\n"), "vfat umask=022 sync ro") {
			t.Errorf("%s: sda1 was not mounted as FAT, read-only:\n%s", name, strings.Join(m.events, "\n"))
		}
	}
}

// OS-E4: the power fails after each event of the installation in turn.
func TestInstallGatewaySurvivesPowerCut(t *testing.T) {
	t.Parallel()
	whole := newGateway(t, "sda", 4*partitions.GiB)
	must(t, Start(t.Context(), whole.Machine, nobody{}))
	for cut := 1; cut <= len(whole.events); cut++ {
		m := newGateway(t, "sda", 4*partitions.GiB)
		m.powerCut = cut
		_ = Start(t.Context(), m.Machine, nobody{})
		m.start()
		m.Cmdline = "root=/dev/ram0"
		if e, err := m.loader().Default(); err == nil && e.String() == "system" {
			continue // The firmware starts the system.
		}
		must(t, Start(t.Context(), m.Machine, nobody{}))
		m.checkInstalled(fmt.Sprintf("after event %d, %s", cut, whole.events[cut-1]))
	}
}

// What fsck.fat keeps of a file that was being written does not fill sda1.
func TestMountGatewayDropsChains(t *testing.T) {
	t.Parallel()
	m := newGateway(t, "sda", 4*partitions.GiB)
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.start()
	sda1 := map[string]string{"FSCK0000.REC": "half a kernel", "FSCK0017.REC": "", "FSCK.REC": "mine", "label": "160001\n"}
	writeFiles(t, m.path("content/mnt/sda1"), sda1)
	must(t, Mount(t.Context(), m.Machine))
	for name := range sda1 {
		_, err := os.Stat(m.path("mnt/sda1/" + name))
		if gone := errors.Is(err, os.ErrNotExist); gone != strings.HasPrefix(name, "FSCK0") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An image that is written over an installed one leaves the data alone.
func TestInstallGatewayAgain(t *testing.T) {
	t.Parallel()
	m := newGateway(t, "sda", 4*partitions.GiB)
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.start()
	writes, err := partitions.Factory(partitions.MBR, 4*partitions.GiB).Writes(nil)
	must(t, err)
	m.writeDisk(0, writes[0].Data)
	writeFiles(t, m.path("content/mnt/sda1"), map[string]string{"extlinux/extlinux.conf": "DEFAULT rescue-a\nTIMEOUT 20\n"})
	m.start()
	m.Cmdline = "root=/dev/ram0"
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.checkInstalled("again")
	if m.ran("mke2fs") {
		t.Errorf("sda2 was formatted:\n%s", strings.Join(m.events, "\n"))
	}
}
