package extlinux

import (
	"encoding/binary"
	"hash/crc32"
	"strings"
)

// ScriptPath is where U-Boot looks for a script when extlinux.conf has not
// started anything.
const ScriptPath = "boot.scr"

// unpacked helps a U-Boot that does not know where to unpack a kernel: it gives it
// a place behind that of the ramdisk and starts extlinux.conf once more.
const unpacked = `setexpr kernel_comp_addr_r ${ramdisk_addr_r} + 0x4000000
setenv kernel_comp_size 0x4000000
bootmeth order extlinux
bootflow scan -b
`

// rescue starts a rescue system when extlinux.conf is damaged or gone; that makes
// the file anew. An image has its manifest.json last. The words in capitals are filled in.
const rescue = `if test -z "${fdt_addr}"; then setenv fdt_addr ${fdtcontroladdr}; fi
for set in a b; do
	if test -e ${devtype} ${devnum}:${distro_bootpart} /${set}/manifest.json &&
		load ${devtype} ${devnum}:${distro_bootpart} ${kernel_addr_r} /${set}/kernel &&
		load ${devtype} ${devnum}:${distro_bootpart} ${ramdisk_addr_r} /${set}/ramdisk.ext2.xz; then
		setenv bootargs "ARGUMENTS"
		BOOT ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdt_addr}
	fi
done
`

// Script is boot.scr for a board's architecture and disk, in the format of
// U-Boot's legacy images (U-Boot: include/image.h; numbers are in big endian).
func Script(arch, signature string) []byte {
	start, code, script := "bootz", archARM, ""
	if arch == "arm64" { // Its kernel does not unpack itself.
		start, code, script = "booti", archARM64, unpacked
	}
	script += strings.NewReplacer("ARGUMENTS", rescueArguments(signature, "${set}"), "BOOT", start).Replace(rescue)
	return scriptImage(script, code)
}

// What legacy images call the architectures.
const (
	archARM   byte = 2
	archARM64 byte = 22
)

func scriptImage(script string, arch byte) []byte {
	const (
		magic      = 0x27051956
		headerSize = 64
		osLinux    = 5
		typeScript = 6
	)
	put := binary.BigEndian.PutUint32
	data := make([]byte, 8) // the script's length, and the end of the list
	put(data, uint32(len(script)))
	data = append(data, script...)
	h := make([]byte, headerSize)
	put(h, magic)
	put(h[8:], 1767225600) // 2026-01-01, as everything in an image
	put(h[12:], uint32(len(data)))
	put(h[24:], crc32.ChecksumIEEE(data))
	copy(h[28:], []byte{osLinux, arch, typeScript})
	copy(h[32:], "App Platform")
	put(h[4:], crc32.ChecksumIEEE(h))
	return append(h, data...)
}
