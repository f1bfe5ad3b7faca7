package agent

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/agent/internal/firstboot"
	"appplatform/internal/smallfile"
	"appplatform/partitions"
)

// A medium is a file system on a CD, a stick or another disk that is not ours.
type medium struct {
	dev    string // the kernel's name
	fstype string
	label  string
	usb    bool
	err    error // why nobody can tell what is on it
}

// mediaDir is where one at a time is mounted, read-only.
const mediaDir = "run/app-platform/media"

// How long all devices may take to tell what they are, and all media to be read:
// the kernel tries a broken one for minutes, and the network has to start.
const (
	probePatience = 5 * time.Second
	mediaPatience = 10 * time.Second
)

// media lists what can be read besides the disk that the system is on. Opening a
// disk waits until the kernel has looked for its partitions, which are new then.
func (m Machine) media(own disk, probe func(path string) (fstype, label string, err error), patience time.Duration) (all []medium) {
	end := time.Now().Add(patience)
	known := map[string]bool{}
	for {
		var found []medium
		var results []func() (medium, error)
		entries, _ := os.ReadDir(m.path("sys/class/block"))
		for _, e := range entries {
			sys := m.path(filepath.Join("sys/class/block", e.Name()))
			_, noDevice := os.Stat(filepath.Join(sys, "device"))
			_, noPart := os.Stat(filepath.Join(sys, "partition"))
			if known[e.Name()] || own.Has(e.Name()) || noDevice != nil && noPart != nil {
				continue // RAM disks, loop devices.
			}
			known[e.Name()] = true
			place, _ := filepath.EvalSymlinks(sys)
			one := medium{dev: e.Name(), usb: strings.Contains(place, "/usb")}
			found = append(found, one)
			results = append(results, within(end, func() (medium, error) {
				var err error
				one.fstype, one.label, err = probe(m.path(filepath.Join("dev", one.dev)))
				return one, err
			}))
		}
		if len(found) == 0 {
			return all
		}
		for i, result := range results {
			one, err := result()
			switch {
			case err == nil && one.fstype != "":
				all = append(all, one)
			case err != nil && found[i].usb && !strings.HasPrefix(found[i].dev, "sr"):
				found[i].err = fmt.Errorf("cannot read /dev/%s: %w", found[i].dev, err)
				all = append(all, found[i])
			case err != nil: // A broken disk, or a CD with music or nothing on it.
				m.Log.Printf("cannot look for a first-boot configuration on /dev/%s: %v", found[i].dev, err)
			}
		}
	}
}

// within begins something that a broken device can hold up. What it returns waits
// for the end, at most until the given time.
func within[T any](end time.Time, do func() (T, error)) func() (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := do()
		done <- result{value, err}
	}()
	return func() (T, error) {
		select {
		case r := <-done:
			return r.value, r.err
		case <-time.After(time.Until(end)):
			var none T
			return none, errors.New("it is too slow, and may be failing")
		}
	}
}

// probeMedium recognises FAT by its boot sector (Microsoft's FAT specification,
// 3.1 to 3.3) and a CD by its volume descriptor (ECMA-119, 8.4).
func probeMedium(path string) (fstype, label string, err error) {
	f, err := os.Open(path)
	if errors.Is(err, unix.ENOMEDIUM) || errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
		return "", "", nil // An empty drive.
	}
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	const descriptor = 32 << 10 // in the seventeenth sector of a CD
	b := make([]byte, 2048)
	n, err := f.ReadAt(b, descriptor)
	switch {
	case err != nil && err != io.EOF:
		return "", "", err
	case n == len(b) && string(b[1:6]) == "CD001" && b[0] == 1:
		return "iso9660", strings.TrimRight(string(b[40:72]), " \x00"), nil
	}
	n, err = f.ReadAt(b[:512], 0)
	switch {
	case err != nil && err != io.EOF:
		return "", "", err
	case n < 512 || b[510] != 0x55 || b[511] != 0xaa:
		return "", "", nil
	}
	for _, at := range []int{43, 71} { // FAT12 and FAT16, FAT32
		if string(b[at+11:at+14]) == "FAT" {
			label, found, err := fatLabel(f, b)
			if err != nil || !found {
				label = string(b[at : at+11])
			}
			return "vfat", strings.TrimRight(label, " \x00"), err
		}
	}
	return "", "", nil
}

// fatLabel is the label in the root folder of a FAT file system, which is all that
// Windows writes (Microsoft's FAT specification, 3.1 to 3.3, 6.1). It is one of the
// first entries.
func fatLabel(f io.ReaderAt, sector []byte) (label string, found bool, err error) {
	word := func(at int) int64 { return int64(binary.LittleEndian.Uint16(sector[at:])) }
	long := func(at int) int64 { return int64(binary.LittleEndian.Uint32(sector[at:])) }
	perTable := word(22)
	root := word(14)
	if perTable != 0 {
		root += int64(sector[16]) * perTable
	} else { // FAT32 has its root folder in a cluster; the first has the number 2.
		root += int64(sector[16])*long(36) + (long(44)-2)*int64(sector[13])
	}
	entries := make([]byte, 512)
	if n, err := f.ReadAt(entries, root*word(11)); root <= 0 || word(11) == 0 || n < len(entries) {
		if err == io.EOF {
			err = nil
		}
		return "", false, err
	}
	const volume, longName = 0x08, 0x0f
	for ; len(entries) > 0 && entries[0] != 0; entries = entries[32:] {
		if attributes := entries[11]; entries[0] != 0xe5 && attributes&longName != longName && attributes&volume != 0 {
			return string(entries[:11]), true, nil
		}
	}
	return "", false, nil
}

// fromMedia reads the media that fit one after the other, until one offers
// something. One that cannot be read is an error: it may be the one that counts.
func (m Machine) fromMedia(all []medium, fits func(medium) bool, read reader) func() (*firstboot.Document, []string, error) {
	return func() (*firstboot.Document, []string, error) {
		for _, one := range all {
			if !fits(one) {
				continue
			}
			if one.err != nil {
				return nil, nil, one.err
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
	type offered struct {
		d       *firstboot.Document
		ignored []string
	}
	o, err := within(time.Now().Add(mediaPatience), func() (o offered, err error) {
		if err := os.MkdirAll(m.path(mediaDir), 0o700); err != nil {
			return o, err
		}
		const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
		if err := m.Kernel.Mount(dev, "/"+mediaDir, fstype, flags, ""); err != nil {
			return o, err
		}
		o.d, o.ignored, err = read(os.DirFS(m.path(mediaDir)))
		return o, errors.Join(err, m.Kernel.Unmount("/"+mediaDir))
	})()
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", dev, err)
	}
	return o.d, o.ignored, nil
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
			return nil, nil, err
		}
		fstype := "ext4"
		if m.isFAT(partitions.Boot) {
			fstype = "vfat"
		}
		return m.fromDevice(own.PartPath(partitions.Boot), fstype, firstboot.FromFile)
	}
}

// How long a first installation waits until USB has told what is plugged in, how
// long after the kernel's start any start looks for that, and how long it waits for
// the disk of a stick that USB has told of. Its partitions are known a moment later.
const (
	busPatience   = 3 * time.Second
	busUptime     = 3 * time.Second
	stickPatience = 10 * time.Second
	partPatience  = 300 * time.Millisecond
)

// awaitSticks waits for USB sticks that are there. A machine without any hardly ever
// waits: it has run for longer already, but for a first installation.
func (m Machine) awaitSticks(ctx context.Context, fresh bool) {
	hubs, _ := filepath.Glob(m.path("sys/bus/usb/devices/usb*"))
	if len(hubs) == 0 {
		return
	}
	came := false
	for start := time.Now(); ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		passed, ready := time.Since(start), m.sticksReady()
		if passed >= min(stickPatience, m.Patience) || ready && busKnown(fresh, passed, m.uptime()) {
			break
		}
		came = came || !ready
	}
	if came {
		time.Sleep(partPatience)
	}
}

// busKnown reports whether USB has had time to tell what is plugged in.
func busKnown(fresh bool, waited, uptime time.Duration) bool {
	return uptime >= busUptime && (!fresh || waited >= busPatience)
}

// uptime is how long the kernel has run; a kernel that does not tell is not waited for.
func (m Machine) uptime() time.Duration {
	text, err := smallfile.Read(m.path("proc/uptime"), 4096)
	if err == nil {
		var seconds float64
		if _, err = fmt.Sscan(string(text), &seconds); err == nil {
			return time.Duration(seconds * float64(time.Second))
		}
	}
	return busUptime
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
