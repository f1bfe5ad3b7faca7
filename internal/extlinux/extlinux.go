// Package extlinux makes the files by which U-Boot's distro boot starts an image
// (U-Boot: doc/develop/distro.rst; the format of extlinux.conf is SYSLINUX's).
package extlinux

import (
	"fmt"
	"strings"

	"appplatform/partitions"
)

// ConfigPath is the file's place on sda1.
const ConfigPath = "extlinux/extlinux.conf"

// Default is what an image boots first: the rescue system of its only set.
const Default = "rescue-a"

// Config is extlinux.conf for a disk with this signature in its MBR, which the
// kernel makes the PARTUUIDs of its partitions of. No console is named: the
// device tree knows it.
func Config(signature string) []byte {
	var b strings.Builder
	b.WriteString(`# What boots: "rescue" or "normal", the installed system, of image a or b.
DEFAULT ` + Default + `
# The device changes that word, where it stands, and nothing else in this file.
# You may change it as well. When an entry cannot start, U-Boot tries the next.
PROMPT 0
TIMEOUT 20
MENU TITLE App Platform
`)
	for _, set := range []string{"a", "b"} {
		fmt.Fprintf(&b, `
LABEL rescue-%[1]s
MENU LABEL rescue/setup (%[1]s)
LINUX /%[1]s/kernel
INITRD /%[1]s/ramdisk.ext2.xz
APPEND %[2]s

LABEL normal-%[1]s
MENU LABEL App Platform (%[1]s)
LINUX /%[1]s/kernel
APPEND root=PARTUUID=%[3]s ro rootwait=30 %[4]s
`, set, rescueArguments(signature, set), partitions.MBRUUID(signature, partitions.Rootfs), arguments(signature, set))
	}
	return []byte(b.String())
}

func arguments(signature, set string) string {
	return fmt.Sprintf("quiet panic=10 watchdog.stop_on_reboot=0 ap.boot=%s ap.set=%s", partitions.MBRUUID(signature, partitions.Boot), set)
}

func rescueArguments(signature, set string) string {
	return "root=/dev/ram0 ramdisk_size=100000 rw " + arguments(signature, set)
}
