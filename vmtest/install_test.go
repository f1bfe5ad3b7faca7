package vmtest_test

import (
	"fmt"
	"testing"

	"appplatform/partitions"
	"appplatform/vmtest"
)

// OS-A4, OS-B2, OS-B4, OS-C1, OS-C2: each size of disk, each firmware and each
// controller installs itself, starts, and can be switched off.
func TestInstall(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		firmware   vmtest.Firmware
		controller vmtest.Controller
		size       partitions.Size
	}{
		{vmtest.BIOS, vmtest.VirtioSCSI, 16 * partitions.GiB},
		{vmtest.UEFI, vmtest.VirtioBlk, 4 * partitions.GiB},
		{vmtest.BIOS, vmtest.AHCI, 64 * partitions.GiB},
		{vmtest.UEFI, vmtest.NVMe, 16 * partitions.GiB},
		{vmtest.BIOS, vmtest.PVSCSI, 4 * partitions.GiB},
		{vmtest.UEFI, vmtest.IDE, 64 * partitions.GiB},
	} {
		t.Run(fmt.Sprintf("%s %s %v", test.firmware, test.controller, test.size), func(t *testing.T) {
			t.Parallel()
			disk := newDisk(t, factoryImage(t), test.size)
			m := start(t, vmtest.Options{
				Firmware: test.firmware,
				Disks:    []vmtest.Disk{{Path: disk, Controller: test.controller}},
			})
			expect(t, m, saysRescue, menuWithin)
			expect(t, m, `(?m)^finished`, installWithin)
			expect(t, m, saysSystem, menuWithin)
			expect(t, m, loginPrompt, bootWithin)
			login(t, m)
			powerOff(t, m)
			checkInstalled(t, disk)
		})
	}
}

// cards are the network cards that stand beside a controller in a virtual
// machine, where that is not virtio's: VMware's on top, its older ones below.
var cards = map[vmtest.Controller]string{
	vmtest.PVSCSI: "vmxnet3",
	vmtest.MPTSAS: "e1000",
	vmtest.AHCI:   "e1000e",
}

// OS-A5, OS-B4: an installed disk starts from either firmware on any
// controller, and with any network card, as after a change of the virtual
// machine.
func TestStart(t *testing.T) {
	t.Parallel()
	for _, firmware := range []vmtest.Firmware{vmtest.BIOS, vmtest.UEFI} {
		for _, controller := range vmtest.Controllers {
			t.Run(fmt.Sprintf("%s %s", firmware, controller), func(t *testing.T) {
				if firmware == vmtest.UEFI && (controller == vmtest.PVSCSI || controller == vmtest.MPTSAS) {
					t.Skipf("Debian's OVMF does not start from %s disks", controller)
				}
				t.Parallel()
				m := start(t, vmtest.Options{
					Firmware: firmware,
					Disks:    []vmtest.Disk{{Path: installedDisk(t), Controller: controller}},
					NIC:      cards[controller],
				})
				expect(t, m, saysSystem, menuWithin)
				expect(t, m, loginPrompt, bootWithin)
				if cards[controller] != "" {
					login(t, m) // also shows that the card works
				}
				powerOff(t, m)
			})
		}
	}
}

// With an installed disk and a new one in a machine, the one that the firmware
// starts is the one that runs, and the other one is not touched.
func TestSecondDiskIsLeftAlone(t *testing.T) {
	t.Parallel()
	for _, firmware := range []vmtest.Firmware{vmtest.BIOS, vmtest.UEFI} {
		t.Run(string(firmware), func(t *testing.T) {
			first, second := installedDisk(t), newDisk(t, factoryImage(t), 4*partitions.GiB)
			before := judge(t, second, "sha256sum", second)
			m := start(t, vmtest.Options{Firmware: firmware, Disks: []vmtest.Disk{
				{Path: first, Controller: vmtest.VirtioBlk}, {Path: second, Controller: vmtest.VirtioBlk},
			}})
			expect(t, m, saysSystem, menuWithin)
			expect(t, m, loginPrompt, bootWithin)
			powerOff(t, m)
			if after := judge(t, second, "sha256sum", second); after != before {
				t.Error("the second disk was written to")
			}
		})
	}
}
