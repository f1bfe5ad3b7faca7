package vmtest_test

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/internal/testtools"
	"appplatform/tooltree"
	"appplatform/vmtest"
)

// OS-A1, OS-A4, OS-C1: a machine starts from each format of the disk that is
// handed out, installs itself on it, and lets people in.
func TestFormats(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		extension, format string // QEMU's name of it
		disk              vmtest.Disk
		nic               string
	}{
		{"qcow2", "qcow2", vmtest.Disk{Controller: vmtest.VirtioSCSI}, ""}, // Proxmox
		{"vhdx", "vhdx", vmtest.Disk{Controller: vmtest.IDE}, ""},          // Hyper-V, generation 1
		{"vhd", "vpc", vmtest.Disk{Controller: vmtest.AHCI}, ""},           // VirtualBox
		{"ova", "vmdk", vmtest.Disk{Controller: vmtest.PVSCSI}, "vmxnet3"}, // VMware
	} {
		t.Run(test.extension, func(t *testing.T) {
			t.Parallel()
			file := strings.TrimSuffix(factoryImage(t), "img") + test.extension
			if test.extension == "ova" {
				file = unpackOVA(t, file)
			}
			disk := filepath.Join(t.TempDir(), "disk."+test.extension)
			copyFile(t, disk, file)
			test.disk.Path, test.disk.Format = disk, test.format
			if test.format == "vmdk" {
				// Nobody writes into a stream: importers unpack it, here an
				// overlay takes the writes.
				test.disk.Path, test.disk.Format = disk+".qcow2", "qcow2"
				qemuImg(t, disk, "create", "-q", "-f", "qcow2", "-F", "vmdk", "-b", disk, test.disk.Path)
			}
			m := start(t, vmtest.Options{Disks: []vmtest.Disk{test.disk}, NIC: test.nic})
			expect(t, m, saysRescue, menuWithin)
			expect(t, m, `(?m)^finished`, installWithin)
			expect(t, m, saysSystem, menuWithin)
			expect(t, m, loginPrompt, bootWithin)
			login(t, m)
			powerOff(t, m)
			raw := disk + ".img"
			qemuImg(t, disk, "convert", "-f", test.disk.Format, "-O", "raw", test.disk.Path, raw)
			checkInstalled(t, raw)
		})
	}
}

// qemuImg works in the folder of the disk.
func qemuImg(t *testing.T, disk string, args ...string) {
	t.Helper()
	err := testtools.Open(t, tooltree.Image).Run(t.Context(), tooltree.Cmd{
		Args: append([]string{"qemu-img"}, args...), Writable: []string{filepath.Dir(disk)},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// unpackOVA returns the path of the disk in it.
func unpackOVA(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err != nil {
			t.Fatalf("there is no disk in %s: %v", file, err)
		}
		if filepath.Ext(h.Name) != ".vmdk" {
			continue
		}
		name := filepath.Join(t.TempDir(), "disk.vmdk")
		out, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		if _, err := io.Copy(out, r); err != nil {
			t.Fatal(err)
		}
		return name
	}
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
