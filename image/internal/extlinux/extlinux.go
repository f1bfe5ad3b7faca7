// Package extlinux makes the file by which U-Boot's distro boot starts an image
// (U-Boot: doc/develop/distro.rst; the format is SYSLINUX's).
package extlinux

import (
	"fmt"
	"strings"
)

// ConfigPath is the file's place on sda1.
const ConfigPath = "extlinux/extlinux.conf"

// Config is extlinux.conf for a disk whose sda1 and sda3 have these PARTUUIDs.
// No console is named: the device tree knows it.
func Config(boot, rootfs string) []byte {
	var b strings.Builder
	b.WriteString(`# What boots: "rescue" or "normal", the installed system, of image a or b.
DEFAULT rescue-a
# The device changes that word, where it stands, and nothing else in this file.
# You may change it as well. When an entry cannot start, U-Boot tries the next.
PROMPT 0
TIMEOUT 20
MENU TITLE App Platform
`)
	for _, set := range []string{"a", "b"} {
		options := fmt.Sprintf("quiet panic=10 watchdog.stop_on_reboot=0 ap.boot=%s ap.set=%s", boot, set)
		fmt.Fprintf(&b, `
LABEL rescue-%[1]s
MENU LABEL rescue/setup (%[1]s)
LINUX /%[1]s/kernel
INITRD /%[1]s/ramdisk.ext2.xz
APPEND root=/dev/ram0 ramdisk_size=100000 rw %[2]s

LABEL normal-%[1]s
MENU LABEL App Platform (%[1]s)
LINUX /%[1]s/kernel
APPEND root=PARTUUID=%[3]s ro rootwait=30 %[2]s
`, set, options, rootfs)
	}
	return []byte(b.String())
}
