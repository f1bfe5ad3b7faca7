package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/agent/internal/firstboot"
	"appplatform/partitions"
)

// A medium is a file system on a CD, a stick or another disk that is not ours.
type medium struct {
	dev    string // the kernel's name
	fstype string
	label  string
	usb    bool
}

// mediaDir is where one at a time is mounted, read-only.
const mediaDir = "run/app-platform/media"

// media lists what can be read besides the disk that the system is on.
func (m Machine) media(own disk) (all []medium) {
	entries, _ := os.ReadDir(m.path("sys/class/block"))
	for _, e := range entries {
		sys := m.path(filepath.Join("sys/class/block", e.Name()))
		_, noDevice := os.Stat(filepath.Join(sys, "device"))
		_, noPart := os.Stat(filepath.Join(sys, "partition"))
		if own.Has(e.Name()) || noDevice != nil && noPart != nil {
			continue // RAM disks, loop devices.
		}
		fstype, label := probeMedium(m.path(filepath.Join("dev", e.Name())))
		if fstype == "" {
			continue
		}
		place, _ := filepath.EvalSymlinks(sys)
		all = append(all, medium{e.Name(), fstype, label, strings.Contains(place, "/usb")})
	}
	return all
}

// probeMedium recognises FAT by its boot sector (Microsoft's FAT specification,
// 3.1 to 3.3) and a CD by its volume descriptor (ECMA-119, 8.4).
func probeMedium(path string) (fstype, label string) {
	f, err := os.Open(path)
	if err != nil {
		return "", "" // An empty drive.
	}
	defer f.Close()
	const descriptor = 32 << 10 // in the seventeenth sector of a CD
	b := make([]byte, 2048)
	if n, _ := f.ReadAt(b, descriptor); n == len(b) && string(b[1:6]) == "CD001" && b[0] == 1 {
		return "iso9660", strings.TrimRight(string(b[40:72]), " \x00")
	}
	if n, _ := f.ReadAt(b[:512], 0); n < 512 || b[510] != 0x55 || b[511] != 0xaa {
		return "", ""
	}
	for _, label := range []int{43, 71} { // FAT12 and FAT16, FAT32
		if string(b[label+11:label+14]) == "FAT" {
			return "vfat", strings.TrimRight(string(b[label:label+11]), " \x00")
		}
	}
	return "", ""
}

// fromMedia reads the media that fit one after the other, until one offers
// something. One that cannot be mounted offers nothing.
func (m Machine) fromMedia(all []medium, fits func(medium) bool, read reader) func() (*firstboot.Document, []string, error) {
	return func() (*firstboot.Document, []string, error) {
		for _, one := range all {
			if !fits(one) {
				continue
			}
			d, ignored, err := m.fromDevice("/dev/"+one.dev, one.fstype, read)
			if d != nil || err != nil {
				return d, ignored, err
			}
		}
		return nil, nil, nil
	}
}

// A reader reads what a file system has for the first start.
type reader func(fs.FS) (*firstboot.Document, []string, error)

// fromDevice reads a device, which is unmounted again at once.
func (m Machine) fromDevice(dev, fstype string, read reader) (*firstboot.Document, []string, error) {
	if err := os.MkdirAll(m.path(mediaDir), 0o700); err != nil {
		return nil, nil, fmt.Errorf("cannot read %s: %w", dev, err)
	}
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := m.Kernel.Mount(dev, "/"+mediaDir, fstype, flags, ""); err != nil {
		m.Log.Printf("cannot look for a first-boot configuration on %s: %v", dev, err)
		return nil, nil, nil
	}
	d, ignored, err := read(os.DirFS(m.path(mediaDir)))
	return d, ignored, errors.Join(err, m.Kernel.Unmount("/"+mediaDir))
}

// fromBoot reads sda1, which an installation that has not begun has not mounted.
func (m Machine) fromBoot(own disk) func() (*firstboot.Document, []string, error) {
	return func() (*firstboot.Document, []string, error) {
		boot, known := own.table.Part(partitions.Boot)
		switch {
		case m.Kernel.Mounted("/" + bootDir):
			return firstboot.FromFile(os.DirFS(m.path(bootDir)))
		case !known:
			return nil, nil, nil
		}
		if err := own.Announce(m.Kernel, boot); err != nil {
			m.Log.Printf("%v", err)
			return nil, nil, nil
		}
		fstype := "ext4"
		if m.isFAT(partitions.Boot) {
			fstype = "vfat"
		}
		return m.fromDevice(own.PartPath(partitions.Boot), fstype, firstboot.FromFile)
	}
}

// How long a first installation waits until USB has told what is plugged in, and
// how long any start waits for the disk of a stick that USB has told of. Its
// partitions are known a moment later.
const (
	busPatience   = 3 * time.Second
	stickPatience = 10 * time.Second
	partPatience  = 300 * time.Millisecond
)

// awaitSticks waits for USB sticks that are there. A machine without any does not
// wait, but for the first installation of one that has USB.
func (m Machine) awaitSticks(ctx context.Context, fresh bool) {
	hubs, _ := filepath.Glob(m.path("sys/bus/usb/devices/usb*"))
	if len(hubs) == 0 {
		return
	}
	came := false
	for start := time.Now(); ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		passed, ready := time.Since(start), m.sticksReady()
		if passed >= min(stickPatience, m.Patience) || ready && (!fresh || passed >= busPatience) {
			break
		}
		came = came || !ready
	}
	if came {
		time.Sleep(partPatience)
	}
}

// sticksReady reports whether each USB interface of a mass storage (class 8) has
// its disk.
func (m Machine) sticksReady() bool {
	classes, _ := filepath.Glob(m.path("sys/bus/usb/devices/*/bInterfaceClass"))
	for _, path := range classes {
		class, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(class)) != "08" {
			continue
		}
		if disks, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "host*/target*/*/block/*")); len(disks) == 0 {
			return false
		}
	}
	return true
}
