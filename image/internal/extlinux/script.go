package extlinux

import (
	"encoding/binary"
	"hash/crc32"
)

// ScriptPath is where U-Boot looks for a script when extlinux.conf has not
// started anything.
const ScriptPath = "boot.scr"

// script helps a U-Boot that does not know where to unpack a kernel: it gives it
// a place behind that of the ramdisk and starts extlinux.conf once more.
const script = `setexpr kernel_comp_addr_r ${ramdisk_addr_r} + 0x4000000
setenv kernel_comp_size 0x4000000
bootmeth order extlinux
bootflow scan -b
`

// Script is boot.scr for an architecture whose kernel does not unpack itself
// (arm64), in the format of U-Boot's legacy images (U-Boot: include/image.h;
// numbers are in big endian).
func Script() []byte {
	const (
		magic      = 0x27051956
		headerSize = 64
		osLinux    = 5
		archARM64  = 22
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
	copy(h[28:], []byte{osLinux, archARM64, typeScript})
	copy(h[32:], "App Platform")
	put(h[4:], crc32.ChecksumIEEE(h))
	return append(h, data...)
}
