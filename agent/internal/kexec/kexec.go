// Package kexec starts a kernel from the running one. The firmware has no part
// in it, so that a new image can be tried while the firmware still starts the
// old one after a reset.
package kexec

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrNot is a kernel that cannot start another.
var ErrNot = errors.New("this kernel cannot start another one (kexec)")

// Load puts a kernel, a ramdisk (a path or "") and its command line where Start
// finds them. What was loaded before is forgotten.
func Load(kernel, ramdisk, options string) error {
	err := load(kernel, ramdisk, options)
	if errors.Is(err, unix.ENOSYS) {
		err = ErrNot
	}
	if err != nil {
		return fmt.Errorf("cannot load the kernel %s: %w", kernel, err)
	}
	return nil
}

// Loaded reports whether Start has something to start.
func Loaded() bool {
	b, err := os.ReadFile("/sys/kernel/kexec_loaded")
	return err == nil && len(b) > 0 && b[0] == '1'
}

// Start ends this system without a word to its processes; file systems must be
// unmounted or read-only.
func Start() error {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_KEXEC); err != nil {
		return fmt.Errorf("cannot start the loaded kernel: %w", err)
	}
	select {}
}
