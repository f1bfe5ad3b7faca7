package vmtest_test

import (
	"path/filepath"
	"testing"
	"time"

	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
	"appplatform/vmtest"
)

// A disk that cannot be used is left as it is. The machine says why and what
// to do, and lets people in; it does not start over and over again.
func TestRefusedDisk(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		size    partitions.Size
		prepare []string // a command for the disk
		want    string
	}{
		{"too small", 2 * partitions.GiB, nil,
			`cannot install on .*the disk is too small: it has 2 GiB and needs at least .*\nhint: .*enlarge the disk`},
		{"foreign", 4 * partitions.GiB, []string{"sgdisk", "-e", "-n", "5:0:0", "-c", "5:theirs"},
			`cannot install on .*partition 5 \("theirs", .*belongs to another system\nhint: nothing was changed`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			disk := newDisk(t, factoryImage(t), test.size)
			if test.prepare != nil {
				change(t, filepath.Dir(disk), append(test.prepare, disk)...)
			}
			before := judge(t, disk, "sha256sum", disk)
			m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}, NoReboot: true})
			expect(t, m, saysRescue, menuWithin)
			expect(t, m, test.want, bootWithin)
			wantRescueLogin(t, m)
			m.Kill()
			if after := judge(t, disk, "sha256sum", disk); after != before {
				t.Error("the disk was written to")
			}
		})
	}
}

// Without any disk the ramdisk, as a network might start it, says so.
func TestNoDisk(t *testing.T) {
	t.Parallel()
	img, dir := factoryImage(t), t.TempDir()
	boot, _ := readTable(t, img).Part(partitions.Boot)
	for _, name := range []string{"kernel", "ramdisk.ext2.xz"} {
		change(t, dir, "debugfs", "-R", "dump /a/"+name+" "+filepath.Join(dir, name), on(img, boot))
	}
	m := start(t, vmtest.Options{
		Kernel:   filepath.Join(dir, "kernel"),
		Initrd:   filepath.Join(dir, "ramdisk.ext2.xz"),
		Append:   "root=/dev/ram0 ramdisk_size=100000 rw quiet console=tty0 console=ttyS0,115200",
		NoReboot: true,
	})
	expect(t, m, `apagent: cannot find the disk .*there is no disk at all\nhint: check the disk and its controller(?s:.*)Log in as root`, bootWithin)
	wantRescueLogin(t, m)
}

// wantRescueLogin wants a login prompt that stays.
func wantRescueLogin(t *testing.T, m *vmtest.Machine) {
	t.Helper()
	expect(t, m, loginPrompt, bootWithin)
	r := rootLogin(t, m, rootPassword)
	r.want("apagent status", "rescue")
	r.want("cat /run/install_step1.log", "cannot ")
	select {
	case <-m.Done():
		t.Error("the machine restarts by itself")
	case <-time.After(5 * time.Second):
	}
}

// change runs a tool of the tool tree that writes to a folder.
func change(t *testing.T, dir string, args ...string) {
	t.Helper()
	out, err := testtools.Open(t, tooltree.Image).Output(t.Context(), tooltree.Cmd{
		Args: args, Writable: []string{dir}, ReadOnly: []string{filepath.Dir(factoryImage(t))},
	})
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}
