// Package agent changes a machine: it installs the image, mounts the disks,
// decides what to do in the ramdisk and tells how things are. A change is a
// list of steps first, which can be printed, and every step can be run again
// after a power cut.
package agent

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/agent/internal/block"
	"appplatform/agent/internal/boot"
	"appplatform/bundle"
	"appplatform/internal/run"
	"appplatform/partitions"
)

// A Machine is the computer that steps work on. Files hang off Root and all
// that is not a file goes through Kernel and Run, so that a folder can stand
// in for a machine.
type Machine struct {
	Root     string
	Kernel   Kernel
	Run      func(ctx context.Context, name string, args ...string) error
	Log      *Log
	Platform bundle.Platform
	Cmdline  string // of the kernel
	Ramdisk  bool   // started from the ramdisk, not from sda3
	Patience time.Duration

	health time.Duration // how long a new image may take to work
	pause  time.Duration // between two looks at it
	grace  time.Duration // for an orderly shutdown; 0 waits for none
	listen func(network, address string) (net.Listener, error)
}

// Kernel is what a Machine asks of the running kernel. Paths are paths of the
// machine, without its Root.
type Kernel interface {
	block.PartitionSetter
	Mount(source, target, fstype string, flags uintptr, data string) error
	Unmount(target string) error
	Mounted(target string) bool
	Swapon(path string) error
	// Space tells how full the file system is that a folder lies on.
	Space(path string) (Space, error)
	// Allocate gives an empty file its room on the disk.
	Allocate(f *os.File, size partitions.Size) error
	Reboot() error
	// Load makes a kernel with a ramdisk, or "", ready for StartLoaded, which
	// starts it without the firmware. These paths are the program's.
	Load(kernel, ramdisk, arguments string) error
	StartLoaded() error
	// HasAddress reports whether there is a network beyond this machine.
	HasAddress() bool
}

// A Space is how full a file system is. Free is what everybody may still write;
// the rest that is not used is kept for root.
type Space struct{ Total, Used, Free partitions.Size }

// This is the machine that the program runs on. It fails when /etc/platform.json
// is missing or wrong.
func This(log *Log) (Machine, error) {
	m := Machine{Root: "/", Kernel: system{}, Run: run.Cmd, Log: log, Patience: 30 * time.Second, health: healthWithin, pause: time.Second, grace: 5 * time.Minute, listen: net.Listen}
	text, err := os.ReadFile(m.path(bundle.PlatformFile))
	if err != nil {
		return Machine{}, fmt.Errorf("cannot tell which platform this is: %w", err)
	}
	if m.Platform, err = bundle.DecodePlatform(text); err != nil {
		return Machine{}, err
	}
	if boot.Loaders[m.Platform.Boot] == nil {
		return Machine{}, fmt.Errorf("/%s names the unknown boot loader %q", bundle.PlatformFile, m.Platform.Boot)
	}
	cmdline, err := os.ReadFile(m.path("proc/cmdline"))
	if err != nil {
		return Machine{}, fmt.Errorf("cannot read the kernel command line: %w", err)
	}
	m.Cmdline = strings.TrimSpace(string(cmdline))
	m.Ramdisk, err = onRamdisk()
	return m, err
}

// onRamdisk looks at what is mounted rather than at the command line, which
// people type in more than one form.
func onRamdisk() (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat("/", &st); err != nil {
		return false, fmt.Errorf("cannot tell what is mounted at /: %w", err)
	}
	const ramMajor = 1
	return unix.Major(uint64(st.Dev)) == ramMajor, nil
}

// path is where a file of the machine is for this program.
func (m Machine) path(name string) string { return filepath.Join(m.Root, name) }

// The places where boot and data partition are mounted on every board.
const (
	bootDir = "mnt/sda1"
	dataDir = "mnt/sda2"
)

// InstallLog is what people are told to read, on the data partition.
const InstallLog = "apps/install_step1.log"

func (m Machine) loader() boot.Loader {
	return boot.Loaders[m.Platform.Boot](m.path(bootDir), m.Platform.DiskUUID)
}

// openSet opens an image set of sda1; "" is the one that the firmware starts.
func (m Machine) openSet(name string) (bundle.Set, error) {
	if name == "" {
		var err error
		if name, err = m.loader().CurrentSet(); err != nil {
			return bundle.Set{}, err
		}
	}
	return bundle.Open(m.path(filepath.Join(bootDir, name)), m.Platform)
}

// bootArgument is a value of the kernel command line, or "".
func (m Machine) bootArgument(name string) string {
	for _, word := range strings.Fields(m.Cmdline) {
		if value, ok := strings.CutPrefix(word, name+"="); ok {
			return value
		}
	}
	return ""
}
