package manager

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// giveBack lets the kernel have the memory of a process that will sleep for long:
// what it has freed, and the parts of its program, which were needed once, for the
// start. What is needed again is read again.
func giveBack() {
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(text)) {
		var from, to uintptr
		fields := strings.Fields(line)
		// Only what cannot have been changed: address, rights, offset, device,
		// inode, file.
		if len(fields) < 6 || fields[1][1] != '-' || !strings.HasPrefix(fields[5], "/") {
			continue
		}
		if _, err := fmt.Sscanf(fields[0], "%x-%x", &from, &to); err != nil {
			continue
		}
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED)
	}
}
