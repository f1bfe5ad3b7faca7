package vmtest_test

import (
	"testing"

	"appplatform/vmtest"
)

// stay keeps the rescue system up, and shows its menu to root.
func stay(t *testing.T, m *vmtest.Machine) {
	t.Helper()
	expect(t, m, saysCountdown, offWithin+menuWithin+bootWithin)
	send(t, m.Serial, " ")
	expect(t, m, saysStays+`(?s:.*)`+loginPrompt, bootWithin)
	if menu := logIn(t, m, rootPassword); !menu {
		t.Fatal("root gets no menu on the console of the rescue system")
	}
}

// choose types a number or an answer and waits for what comes.
func choose(t *testing.T, m *vmtest.Machine, answer, pattern string) {
	t.Helper()
	send(t, m.Serial, answer+"\n")
	expect(t, m, pattern, commandWithin)
}

const (
	behind    = `(?s:.*)`
	yesPrompt = `\[y/n\] $`
)

// OS-D4, OS-F2: what the menu of the rescue system does, on a disk whose sda3
// is overwritten meanwhile; it ends in a whole system.
func TestRescueMenu(t *testing.T) {
	t.Parallel()
	disk := installedDisk(t)
	patchBoot(t, disk, "\nset default=1\n", "\nset default=0\n")
	m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}})
	testRescueMenu(t, m)
	powerOff(t, m)
	checkInstalled(t, disk)
}

// The same on a card with an MBR and a FAT file system.
func TestRescueMenuGateway(t *testing.T) {
	t.Parallel()
	o := gatewayBoards[0].options(t)
	m := start(t, o)
	expect(t, m, `(?m)^finished`, installWithin)
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	rootLogin(t, m, rootPassword)
	send(t, m.Serial, "apagent boot rescue && reboot\n")
	testRescueMenu(t, m)
	powerOff(t, m)
	checkGateway(t, o.Disks[0].Path)
}

func testRescueMenu(t *testing.T, m *vmtest.Machine) {
	t.Helper()
	stay(t, m)
	choose(t, m, "2", `sda1: clean\n`+behind+`sda2: clean\n`+behind+`sda3: clean, byte for byte`+behind+`finished\n`+behind+menuPrompt)
	choose(t, m, "3", `nothing to do`+behind+menuPrompt)
	choose(t, m, "6", `there is no previous image`+behind+menuPrompt)
	choose(t, m, "12", `"12" is none of 1 to 9`+behind+menuPrompt)

	const address = `\(Enter: back\): $`
	choose(t, m, "4", `settings --dhcp`+behind+address)
	send(t, m.Serial, "\x03") // Ctrl-C
	expect(t, m, `interrupted`+behind+menuPrompt, commandWithin)
	choose(t, m, "4", address)
	choose(t, m, "10.0.2.300/24", `not an IPv4 address`+behind+address)
	choose(t, m, "10.0.2.0/24", `address of the network`+behind+address)
	choose(t, m, "10.0.2.77/24", `Gateway.*: $`)
	choose(t, m, "10.0.3.1", `outside the network`+behind+`Gateway.*: $`)
	choose(t, m, "10.0.2.2", `DNS.*: $`)
	choose(t, m, "10.0.2.3", `The address is set`+behind+menuPrompt)

	choose(t, m, "1", shellPrompt)
	r := rootShell(t, m)
	r.want("ip -4 address show eth0", "10.0.2.77/24")
	r.run("dd if=/dev/zero of=/dev/sda3 bs=1M seek=8 count=16 conv=notrunc && sync")
	send(t, m.Serial, "echo 'slee''ping'; sleep 600; echo 'aw''ake'\n")
	expect(t, m, `sleeping\n`, commandWithin)
	send(t, m.Serial, "\x03") // That of the shell is not that of the menu.
	choose(t, m, "exit", menuPrompt)
	choose(t, m, "2", `checking sda3`+behind+`re-install the root file system`+behind+menuPrompt)
	send(t, m.Serial, "\x04") // Ctrl-D ends the menu, and the login with it.
	expect(t, m, loginPrompt, commandWithin)
	if menu := logIn(t, m, rootPassword); !menu {
		t.Fatal("root gets no menu the second time")
	}
	choose(t, m, "", `image a`+behind+`5  re-install`+behind+menuPrompt)
	choose(t, m, "5", yesPrompt)
	choose(t, m, "n", `nothing was changed`+behind+menuPrompt)
	choose(t, m, "5", yesPrompt)
	choose(t, m, "y", `(?m)^finished`)
	expect(t, m, loginPrompt, offWithin+menuWithin+bootWithin)
	r = rootLogin(t, m, rootPassword)
	r.want(asPostgres+"psql -At -c 'select 6*7'; cd", "42")
	r.want("ip -4 address show eth0", "10.0.2.77/24")
	r.want("apagent status", "install log   finished")
	if out, ok := r.try("apagent rescue reinstall"); ok {
		r.Errorf("apagent rescue reinstall succeeds in the installed system and prints %s", out)
	}
}

// The way back from the rescue system to the image before an update.
func TestRescuePreviousImage(t *testing.T) {
	t.Parallel()
	disk := installedDisk(t)
	m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}, Watchdog: true})
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	r := rootLogin(t, m, rootPassword)
	before := r.run("cat /mnt/sda1/label")
	send(t, m.Serial, "apagent update "+serveFile(t, nextImage(t, "x86_64"))+"\n")
	commits(t, m, nextLabel, rootPassword)
	send(t, m.Serial, "apagent boot rescue && reboot\n")

	stay(t, m)
	choose(t, m, "6", `goes back to App Platform `+before[:6]+behind+yesPrompt)
	choose(t, m, "y", `step \d of \d: restart into the ramdisk of image a`)
	r = commits(t, m, before[:6], rootPassword)
	r.want("apagent status", "image         "+before[:6])
	r.want("apagent status", "last update   from "+nextLabel+" to "+before[:6]+", committed: by hand")
	powerOff(t, m)
	checkInstalled(t, disk)
}
