package vmtest_test

import (
	"os"
	"strings"
	"testing"

	"appplatform/partitions"
	"appplatform/vmtest"
)

// A gateway board as the specification has it (OS-A2), with the least memory
// and the smallest disk that is sold for it.
type gatewayBoard struct {
	name       string
	arch       vmtest.Arch
	controller vmtest.Controller
	memory     partitions.Size
	disk       partitions.Size
}

var gatewayBoards = []gatewayBoard{
	{"armel", vmtest.ARM, vmtest.AHCI, 256 * partitions.MiB, 4 * partitions.GiB},
	{"arm64", vmtest.ARM64, vmtest.NVMe, 1536 * partitions.MiB, 16 * partitions.GiB},
}

// options are a machine with a new card that holds the built image.
func (b gatewayBoard) options(t *testing.T) vmtest.Options {
	t.Helper()
	return vmtest.Options{Arch: b.arch, Memory: b.memory,
		Watchdog: true,
		Disks:    []vmtest.Disk{{Path: newDisk(t, builtImage(t, b.name), b.disk), Controller: b.controller}}}
}

// startsKernel is what U-Boot says last.
const startsKernel = "Starting kernel"

// OS-A2, OS-B1, OS-C3, OS-C4: U-Boot starts the image as it is, the image
// installs itself, and the system runs with everything in it.
func TestGateway(t *testing.T) {
	t.Parallel()
	for _, b := range gatewayBoards {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			o := b.options(t)
			m := start(t, o)
			expect(t, m, `rescue/setup \(a\)(?s:.*)`+startsKernel, menuWithin)
			expect(t, m, `(?m)^finished`, installWithin)
			expect(t, m, `App Platform \(a\)(?s:.*)`+startsKernel, menuWithin)
			expect(t, m, loginPrompt, bootWithin)
			testSSH(t, m)
			r := rootLogin(t, m, rootPassword)
			testServices(r)
			testTools(r)
			testCopies(t, m)
			testDatabase(r)
			testGcore(t, m, r, b.name)
			r.want("apagent status", "boot default  system")
			r.want("uname -m", map[vmtest.Arch]string{vmtest.ARM: "armv7l", vmtest.ARM64: "aarch64"}[b.arch])
			password := rootPassword
			t.Run("update", func(t *testing.T) {
				testUpdate(t, m, root{t, m}, b.name)
				password = changedPassword
			})
			if t.Failed() {
				return
			}
			t.Run("damaged extlinux", func(t *testing.T) { testDamagedExtlinux(t, m, root{t, m}, b, password) })
			powerOff(t, m)
			checkGateway(t, o.Disks[0].Path)
		})
	}
}

// testDamagedExtlinux damages what U-Boot reads first. It starts the rescue
// system then, which makes the file anew and starts the installed system.
func testDamagedExtlinux(t *testing.T, m *vmtest.Machine, r root, b gatewayBoard, password string) {
	t.Helper()
	how := map[string]string{"armel": "rm /mnt/sda1/extlinux/extlinux.conf", "arm64": "tr -c x '\\0' < /etc/passwd > /mnt/sda1/extlinux/extlinux.conf"}
	r.run("cp /mnt/sda1/extlinux/extlinux.conf /home/admin/conf && sync && " + how[b.name])
	send(t, m.Serial, "reboot\n")
	expect(t, m, `the boot loader had forgotten which image is the current one: it is a`, offWithin+menuWithin+bootWithin)
	expect(t, m, `App Platform \(a\)(?s:.*)`+startsKernel, healWithin)
	expect(t, m, loginPrompt, bootWithin)
	r = rootLogin(t, m, password)
	r.run("cmp /mnt/sda1/extlinux/extlinux.conf /home/admin/conf")
	wantHealed(r, "extlinux.conf")
}

// checkGateway judges the card of a gateway that was switched off after an
// installation.
func checkGateway(t *testing.T, disk string) {
	t.Helper()
	got := checkParts(t, disk, partitions.MBR)
	boot, _ := got.Part(partitions.Boot)
	data, _ := got.Part(partitions.Data)
	if label := readBoot(t, disk, boot, "/label"); !isLabel(label) {
		t.Errorf("/label of sda1 is %q; want six digits", label)
	}
	if conf := readBoot(t, disk, boot, "/extlinux/extlinux.conf"); !strings.Contains(conf, "\nDEFAULT normal-a\n") {
		t.Errorf("extlinux.conf does not start the installed system:\n%s", conf)
	}
	checkLog(t, disk, data)
	checkRootfs(t, disk, got)
}

func copyPart(to, disk string, p partitions.Partition) error {
	f, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, p.Size)
	if _, err := f.ReadAt(b, int64(p.Start)); err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// OS-C3, OS-E4: the power fails at random moments of a gateway's first
// installation.
func TestPowerCutDuringGatewayInstall(t *testing.T) {
	t.Parallel()
	for _, b := range gatewayBoards {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			o := b.options(t)
			o.NoReboot = true
			cutInstall(t, o, startsKernel, (*cuts+1)/2, checkGateway)
		})
	}
}
