package vmtest_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"appplatform/partitions"
	"appplatform/vmtest"
)

// What the rescue system says.
const (
	saysCountdown = "Press a key here or log in over SSH"
	saysStays     = "The rescue system stays"
)

// OS-D1, OS-D4, OS-E3: people choose the rescue system from the menu and log in
// as they do in the installed system, which keeps it up; what they make
// grub.cfg say is what starts next.
func TestRescue(t *testing.T) {
	t.Parallel()
	const password = "Changed-4-us"
	disk := installedDisk(t)
	m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}})
	expect(t, m, saysSystem, menuWithin)
	expect(t, m, loginPrompt, bootWithin)
	changePassword(rootLogin(t, m, rootPassword), password)
	send(t, m.Serial, "reboot\n")
	expect(t, m, `rescue/setup(?s:.*)App Platform`, offWithin+menuWithin)
	send(t, m.Serial, "\x1b[A\r")

	expect(t, m, saysCountdown, bootWithin)
	testRescueSSH(t, m, password)
	r := rootLogin(t, m, password)
	for _, number := range []int{partitions.Data, partitions.Rootfs} {
		r.run(fmt.Sprintf("e2fsck -p -f /dev/sda%d || { cat /proc/mounts; false; }", number))
	}
	for _, tool := range []string{"vi", "mount", "dd", "wget", "ip", "resize2fs", "scp", "less", "ps", "dmesg"} {
		r.run("command -v " + tool)
	}
	send(t, m.Serial, "reboot\n")
	expect(t, m, saysRescue, offWithin+menuWithin)

	expect(t, m, saysCountdown+`(?s:.*)50 seconds`, bootWithin) // keys pressed in the menu do not count
	send(t, m.Serial, " ")
	expect(t, m, saysStays+`(?s:.*)`+loginPrompt, bootWithin)
	r = rootLogin(t, m, password)
	r.run("sed -i 's/^set default=0/set default=1/' /boot/grub/grub.cfg")
	send(t, m.Serial, "reboot\n")
	expect(t, m, saysSystem, offWithin+menuWithin)
	expect(t, m, loginPrompt, bootWithin)
	rootLogin(t, m, password)
	send(t, m.Serial, "poweroff\n")
	if err := m.WaitFor(offWithin); err != nil {
		t.Fatal(err)
	}
	checkDisk(t, disk) // e2fsck has noted the time of its run on sda3
}

// changePassword changes root's password as people do.
func changePassword(r root, password string) {
	r.Helper()
	send(r.T, r.m.Serial, "passwd; echo 'e''nd' $?\n")
	for range 2 {
		expect(r.T, r.m, `password: ?$`, commandWithin)
		send(r.T, r.m.Serial, password+"\n")
	}
	expect(r.T, r.m, `end 0\n`, commandWithin)
}

// testRescueSSH logs in during the countdown, changes to root and lets
// grub.cfg start the rescue system again.
func testRescueSSH(t *testing.T, m *vmtest.Machine, password string) {
	t.Helper()
	s := login(t, m)
	shell, err := s.Shell()
	if err != nil {
		t.Fatal(err)
	}
	expect(t, m, saysStays+`(?s:.*)`+loginPrompt, bootWithin)
	wantRootRefused(t, m, password)
	become(t, shell, "su - root", password)
	send(t, shell, "vi /boot/grub/grub.cfg\n")
	listen(t, shell, `set timeout`)
	send(t, shell, ":%s/set default=1/set default=0/\r:wq\r")
	listen(t, shell, `# $`)
	if out, err := s.Run("grep default= /boot/grub/grub.cfg", "", commandWithin); err != nil || !strings.Contains(out, "set default=0\n") {
		t.Errorf("grub.cfg has\n%s, %v after vi; want set default=0", out, err)
	}
}

// OS-D2, OS-E3: the rescue system that nobody uses starts the installed one
// after 60 seconds, now and from then on.
func TestRescueReturns(t *testing.T) {
	t.Parallel()
	disk := installedDisk(t)
	patchBoot(t, disk, "\nset default=1\n", "\nset default=0\n")
	m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}})
	expect(t, m, saysRescue, menuWithin)
	expect(t, m, saysCountdown, bootWithin)
	expect(t, m, `10 seconds(?s:.*)starting the installed system`, bootWithin)
	expect(t, m, saysSystem, offWithin+menuWithin)
	expect(t, m, loginPrompt, bootWithin)
	powerOff(t, m)
	checkInstalled(t, disk)
}

// patchBoot changes a text that stands in one block of a file on sda1.
func patchBoot(t *testing.T, disk, from, to string) {
	t.Helper()
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	boot, _ := readTable(t, disk).Part(partitions.Boot)
	b := make([]byte, partitions.MiB)
	for at := boot.Start; at < boot.End(); at += partitions.MiB {
		if _, err := f.ReadAt(b, int64(at)); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if n := bytes.Index(b, []byte(from)); n >= 0 {
			if _, err := f.WriteAt([]byte(to), int64(at)+int64(n)); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("cannot find %q on sda1", from)
}
