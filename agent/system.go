package agent

import (
	"fmt"
	"net"
	"os"
	"strings"
	"unsafe"

	"github.com/u-root/u-root/pkg/mount"
	"golang.org/x/sys/unix"

	"appplatform/agent/internal/block"
	"appplatform/agent/internal/kexec"
	"appplatform/partitions"
)

// system is the Kernel of a real machine.
type system struct{ block.BLKPG }

func (system) Mount(source, target, fstype string, flags uintptr, data string) error {
	_, err := mount.Mount(source, target, fstype, data, flags)
	return err // It says what was to be mounted where.
}

func (system) Unmount(target string) error {
	return mount.Unmount(target, false, false)
}

func (system) Mounted(target string) bool {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == target {
			return true
		}
	}
	return false
}

func (system) Swapon(path string) error {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(name)), 0, 0); errno != 0 && errno != unix.EBUSY {
		return fmt.Errorf("cannot use %s as swap space: %w", path, errno)
	}
	return nil
}

func (system) Space(path string) (Space, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return Space{}, fmt.Errorf("cannot tell how full %s is: %w", path, err)
	}
	block := partitions.Size(fs.Bsize)
	return Space{
		Total: partitions.Size(fs.Blocks) * block,
		Used:  partitions.Size(fs.Blocks-fs.Bfree) * block,
		Free:  partitions.Size(fs.Bavail) * block,
	}, nil
}

func (system) Allocate(f *os.File, size partitions.Size) error {
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(size)); err != nil {
		return fmt.Errorf("cannot allocate %v for %s: %w", size, f.Name(), err)
	}
	return nil
}

// Reboot does not ask init, which waits for us in the ramdisk: whoever calls
// it has unmounted what matters.
func (system) Reboot() error {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		return fmt.Errorf("cannot reboot: %w", err)
	}
	select {}
}

func (system) Load(kernel, ramdisk, arguments string) error {
	return kexec.Load(kernel, ramdisk, arguments)
}

func (system) StartLoaded() error { return kexec.Start() }

func (system) HasAddress() bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
			return true
		}
	}
	return false
}

// StartLoaded ends a shutdown: it starts the kernel that is loaded, if any.
func StartLoaded() error {
	if _, err := os.Stat("/" + restartFile); err != nil || !kexec.Loaded() {
		return nil
	}
	return kexec.Start()
}
