package tooltree

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// This init is the one place where importing a package does something: a
// process that Command started is only here to mount and to become the tool.
// Tests and commands need no call of their own for it.
func init() {
	if len(os.Args) != 1 || os.Args[0] != stage0 {
		return
	}
	runtime.LockOSThread()
	err := enter(os.Getenv(stageVariable))
	fmt.Fprintf(os.Stderr, "cannot enter the tool tree: %v\n", err)
	os.Exit(126)
}

// enter builds the tool's view of the file system and executes the tool; it
// returns only if that fails.
func enter(told string) error {
	var s stage
	if err := json.Unmarshal([]byte(told), &s); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	root := filepath.Join(s.Tree, "mnt")
	if err := unix.Mount("tmpfs", root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	in := func(path string) string { return filepath.Join(root, path) }
	for _, link := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+link, in(link)); err != nil {
			return err
		}
	}
	for _, dir := range []string{"tmp", "run", "var/tmp", "var/lib", "root"} {
		if err := os.MkdirAll(in(dir), 0o777); err != nil {
			return err
		}
		if err := os.Chmod(in(dir), 0o777); err != nil {
			return err
		}
	}
	for _, dir := range []string{"usr", "etc"} {
		if err := bind(filepath.Join(s.Tree, dir), in(dir), true); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := bind(dir, in(dir), false); err != nil {
			return err
		}
	}
	if _, err := os.Stat("/etc/resolv.conf"); err == nil {
		// QEMU's user network asks the host's name servers.
		if err := unix.Mount("/etc/resolv.conf", in("/etc/resolv.conf"), "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind /etc/resolv.conf: %w", err)
		}
	}
	for _, m := range s.Mounts {
		if err := bind(m.Host, in(m.Inside), m.ReadOnly); err != nil {
			return err
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old root: %w", err)
	}
	if err := os.Chdir(s.Dir); err != nil {
		return err
	}
	if s.Niceness > 0 {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, s.Niceness)
	}
	unix.Umask(0o022) // Nothing that is built depends on the caller's.
	if err := syscall.Exec(s.Path, s.Args, s.Env); err != nil {
		return fmt.Errorf("start %s: %w", s.Path, err)
	}
	return nil
}

// bind makes a host folder or file visible at target.
func bind(host, target string, readOnly bool) error {
	info, err := os.Stat(host)
	if err != nil {
		return err
	}
	if info.IsDir() {
		err = os.MkdirAll(target, 0o755)
	} else if err = os.MkdirAll(filepath.Dir(target), 0o755); err == nil {
		err = os.WriteFile(target, nil, 0o644)
		if errors.Is(err, fs.ErrExist) {
			err = nil
		}
	}
	if err != nil {
		return fmt.Errorf("make a place for %s: %w", host, err)
	}
	if err := unix.Mount(host, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", host, err)
	}
	if readOnly {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		if err := unix.MountSetattr(unix.AT_FDCWD, target, unix.AT_RECURSIVE, attr); err != nil {
			return fmt.Errorf("bind %s read-only: %w", host, err)
		}
	}
	return nil
}
