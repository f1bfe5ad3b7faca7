// Package vmtest starts disk images in QEMU, from the tool tree and never the
// host's, and talks to them as people and machines do: serial console, keys,
// SSH, guest agent, power button and power cut. `apimage run` uses it as well
// as the tests.
package vmtest

import (
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"appplatform/partitions"
	"appplatform/tooltree"
)

// Arch is a kind of processor, as QEMU's programs are named.
type Arch string

// The processors that images are built for.
const (
	X86   Arch = "x86_64"
	ARM   Arch = "arm"
	ARM64 Arch = "aarch64"
)

// cpus are the models that QEMU plays. max has SHA instructions, with which an
// image is hashed in half the time; the gateways get what is closest to theirs.
var cpus = map[Arch]string{X86: "max", ARM: "cortex-a15", ARM64: "cortex-a72"}

// uboot are the boot loaders of gateways, in the tool tree.
var uboot = map[Arch]string{ARM: "/usr/lib/u-boot/qemu_arm/u-boot.bin", ARM64: "/usr/lib/u-boot/qemu_arm64/u-boot.bin"}

// Firmware is what starts the boot loader.
type Firmware string

// The firmware of virtual machines, and that of gateways.
const (
	BIOS  Firmware = "bios"
	UEFI  Firmware = "uefi"
	UBoot Firmware = "u-boot"
)

// A Controller is how a disk is attached.
type Controller string

// The controllers that virtual machines offer.
const (
	VirtioSCSI Controller = "virtio-scsi"
	VirtioBlk  Controller = "virtio-blk"
	AHCI       Controller = "ahci"
	IDE        Controller = "ide"
	PVSCSI     Controller = "pvscsi"
	MPTSAS     Controller = "mptsas1068"
	NVMe       Controller = "nvme"
)

// Controllers are all of them.
var Controllers = []Controller{VirtioSCSI, VirtioBlk, AHCI, IDE, PVSCSI, MPTSAS, NVMe}

// attach are the QEMU devices of each controller; %s is the disk's drive.
var attach = map[Controller][]string{
	VirtioSCSI: {"virtio-scsi-pci,id=hba-%s", "scsi-hd,bus=hba-%[1]s.0,drive=%[1]s"},
	VirtioBlk:  {"virtio-blk-pci,drive=%s"},
	AHCI:       {"ide-hd,drive=%s"}, // on the controller that q35 has
	IDE:        {"ide-hd,drive=%s"}, // on the controller that pc has
	PVSCSI:     {"pvscsi,id=hba-%s", "scsi-hd,bus=hba-%[1]s.0,drive=%[1]s"},
	// Linux sees only disks with a name of their own there.
	MPTSAS: {"mptsas1068,id=hba-%s", "scsi-hd,bus=hba-%[1]s.0,drive=%[1]s,scsi-id=1,wwn=0x5000c50015ea71ad"},
	NVMe:   {"nvme,serial=%s,drive=%[1]s"},
}

// attachAHCI is for a machine that has no controller of its own.
var attachAHCI = []string{"ich9-ahci,id=hba-%s", "ide-hd,bus=hba-%[1]s.0,drive=%[1]s"}

// A Disk is an image file that the machine writes to.
type Disk struct {
	Path       string
	Format     string // raw (also if empty) or qcow2
	Controller Controller
	// Log, if any, is a file that takes every write and flush in the order in
	// which they were completed (package powercut reads it). The disk is raw then.
	Log string
}

// Options describe one machine.
type Options struct {
	// Tools is a tree of kind tooltree.VM, or of tooltree.Gateway for ARM.
	Tools *tooltree.Tree
	Arch  Arch // X86 if empty
	// Dir takes the serial log and the firmware's variables, which outlive the
	// machine. It is made if need be.
	Dir      string
	Firmware Firmware // BIOS if empty, UBoot on ARM
	Disks    []Disk
	Memory   partitions.Size // 512 MiB if 0 (OS-A4)
	CPUs     int             // 1 if 0 (OS-A4)
	// KVM is only for machines where CanKVM said yes.
	KVM bool
	// Clock is what the machine's clock shows when it starts (2026-01-31); by
	// default the time.
	Clock string
	// NIC is a QEMU model; virtio-net-pci if empty.
	NIC string
	// Forward lists ports of the guest to be reached on ports of 127.0.0.1:
	// on the given one, or on any free one if it is 0.
	Forward map[int]int
	// Address is what the guest is expected to have; by default what QEMU's DHCP
	// server hands out.
	Address string
	// Capture, if any, is a file that takes all that the network card sends and
	// receives, as tcpdump writes it.
	Capture string
	// CDs and Sticks are image files in CD drives and USB sticks.
	CDs, Sticks []string
	// OEM are strings of the firmware (SMBIOS type 11); FwCfg are texts by name.
	OEM   []string
	FwCfg map[string]string
	// Watchdog adds a device that resets the machine when it is not fed.
	Watchdog bool
	// Terminal puts the serial console on this process's standard input and
	// output instead of Machine.Serial.
	Terminal bool
	// Kernel starts this kernel with Append and, if any, Initrd, past firmware
	// and boot loader.
	Kernel, Append, Initrd string
	// NoReboot makes a reboot end the machine.
	NoReboot bool
	// Stderr is told what QEMU itself says; it becomes part of errors anyway.
	Stderr io.Writer
}

// The files of a machine's folder.
const (
	serialLog  = "serial.log"
	efiVars    = "efivars.fd"
	ovmfCode   = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	ovmfVars   = "usr/share/OVMF/OVMF_VARS_4M.fd"
	socketName = "%s.sock"
)

// withDefaults fills in what an ordinary machine of the specification has.
func (o Options) withDefaults() Options {
	if o.Arch == "" {
		o.Arch = X86
	}
	if o.Firmware == "" && o.Arch == X86 {
		o.Firmware = BIOS
	} else if o.Firmware == "" {
		o.Firmware = UBoot
	}
	if o.Memory == 0 {
		o.Memory = 512 * partitions.MiB
	}
	if o.CPUs == 0 {
		o.CPUs = 1
	}
	if o.NIC == "" {
		o.NIC = "virtio-net-pci"
	}
	o.Disks = slices.Clone(o.Disks)
	for i := range o.Disks {
		d := &o.Disks[i]
		if d.Format == "" {
			d.Format = "raw"
		}
		if d.Controller == "" {
			d.Controller = VirtioSCSI
		}
	}
	return o
}

// chipset picks the machine type: IDE is on the old one, AHCI on the new, and
// Linux finds no disk behind the new one's mptsas1068.
func (o Options) chipset() string {
	if o.Arch != X86 {
		return "virt,acpi=off" // With ACPI, arm64 has a power button only there.
	}
	for _, d := range o.Disks {
		switch d.Controller {
		case AHCI:
			return "q35"
		case IDE, MPTSAS:
			return "pc"
		}
	}
	if o.Firmware == UEFI {
		return "q35"
	}
	return "pc"
}

// args is QEMU's command line; sockets is where it finds our sockets, ports
// are the host's ports by the guest's.
func (o Options) args(sockets string, ports map[int]int) ([]string, error) {
	accel, cpu := "tcg,thread=multi", cpus[o.Arch]
	if o.KVM {
		accel, cpu = "kvm", "host"
	}
	args := []string{
		"qemu-system-" + string(o.Arch), "-nodefaults", "-no-user-config", "-name", "app-platform",
		"-machine", o.chipset(), "-accel", accel, "-cpu", cpu,
		"-m", strconv.Itoa(int(o.Memory/partitions.MiB)) + "M", "-smp", strconv.Itoa(o.CPUs),
		"-display", "none", "-device", "virtio-rng-pci",
	}
	if o.Arch == X86 {
		args = append(args, "-vga", "std", "-boot", "strict=on")
	} else if o.Kernel == "" {
		args = append(args, "-bios", uboot[o.Arch])
	}
	if o.Clock != "" {
		args = append(args, "-rtc", "base="+o.Clock)
	}
	if o.NoReboot {
		args = append(args, "-no-reboot")
	}
	socket := func(name string) string {
		return fmt.Sprintf("socket,id=%s,path=%s", name, filepath.Join(sockets, fmt.Sprintf(socketName, name)))
	}
	// QEMU connects to us and not we to it, so that no first word is lost.
	serial := []string{"-chardev", socket("serial"), "-serial", "chardev:serial"}
	if o.Terminal {
		serial = []string{"-chardev", "stdio,id=serial,mux=on,signal=off", "-serial", "chardev:serial", "-mon", "chardev=serial"}
	}
	args = append(args, serial...)
	args = append(args, "-chardev", socket("qmp"), "-mon", "chardev=qmp,mode=control")
	args = append(args, "-chardev", socket("agent"), "-device", "virtio-serial-pci",
		"-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0")
	if o.Firmware == UEFI {
		args = append(args,
			"-drive", "if=pflash,format=raw,unit=0,readonly=on,file="+ovmfCode,
			"-drive", "if=pflash,format=raw,unit=1,file="+filepath.Join(o.Dir, efiVars))
	}
	for i, d := range o.Disks {
		id := fmt.Sprintf("disk%d", i)
		if strings.Contains(d.Path+d.Log, ",") {
			return nil, fmt.Errorf("cannot attach %s: QEMU takes no comma in a path", d.Path)
		}
		if d.Log != "" && d.Format != "raw" {
			return nil, fmt.Errorf("cannot log the writes to %s: its format is %s, not raw", d.Path, d.Format)
		}
		args = append(args, d.drive(id)...)
		devices, ok := attach[d.Controller]
		if o.Arch != X86 && d.Controller == AHCI {
			devices = attachAHCI
		}
		if !ok {
			return nil, fmt.Errorf("cannot attach %s: unknown controller %q (one of %v)", d.Path, d.Controller, Controllers)
		}
		for j, device := range devices {
			device = fmt.Sprintf(device, id)
			// QEMU itself starts a kernel as the first thing of all.
			if j == len(devices)-1 && o.Kernel == "" && o.Arch == X86 {
				device += fmt.Sprintf(",bootindex=%d", i)
			}
			args = append(args, "-device", device)
		}
	}
	netdev := "user,id=net"
	for _, guest := range sortedKeys(ports) {
		netdev += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-%s:%d", ports[guest], o.Address, guest)
	}
	args = append(args, "-netdev", netdev, "-device", o.NIC+",netdev=net,romfile=") // no network boot
	if o.Capture != "" {
		args = append(args, "-object", "filter-dump,id=capture,netdev=net,file="+comma(o.Capture))
	}
	args = append(args, o.plugged()...)
	if o.Watchdog {
		args = append(args, "-device", "i6300esb", "-action", "watchdog=reset")
	}
	if o.Kernel != "" {
		args = append(args, "-kernel", o.Kernel, "-append", o.Append)
		if o.Initrd != "" {
			args = append(args, "-initrd", o.Initrd)
		}
	}
	return args, nil
}

// comma is a value that may have commas in it, as QEMU reads it.
func comma(value string) string { return strings.ReplaceAll(value, ",", ",,") }

// plugged is what is put into the machine or told by its firmware.
func (o Options) plugged() (args []string) {
	for i, path := range o.CDs {
		args = append(args, "-drive", fmt.Sprintf("if=none,id=cd%d,format=raw,media=cdrom,readonly=on,file=%s", i, comma(path)),
			"-device", fmt.Sprintf("ide-cd,drive=cd%d", i))
	}
	if len(o.Sticks) > 0 {
		args = append(args, "-device", "qemu-xhci,id=usb")
	}
	for i, path := range o.Sticks {
		args = append(args, "-drive", fmt.Sprintf("if=none,id=stick%d,format=raw,file=%s", i, comma(path)),
			"-device", fmt.Sprintf("usb-storage,bus=usb.0,removable=on,drive=stick%d", i))
	}
	for _, text := range o.OEM {
		args = append(args, "-smbios", "type=11,value="+comma(text))
	}
	for _, name := range slices.Sorted(maps.Keys(o.FwCfg)) {
		args = append(args, "-fw_cfg", "name="+name+",string="+comma(o.FwCfg[name]))
	}
	return args
}

// drive is what a controller's device is attached to. What QEMU has accepted
// outlives its death in the host's memory: nothing is gained by waiting for the
// host's disk.
func (d Disk) drive(id string) []string {
	if d.Log == "" {
		return []string{"-drive", fmt.Sprintf("if=none,id=%s,format=%s,file=%s,cache=unsafe,discard=unmap", id, d.Format, d.Path)}
	}
	// A node with no-flush would not see flushes, so only those below have it.
	// The flag also makes a flush end at once: what comes before it in the log
	// was really complete before it began.
	return []string{
		"-blockdev", fmt.Sprintf("driver=file,node-name=%s-data,filename=%s,cache.no-flush=on,discard=unmap", id, d.Path),
		"-blockdev", fmt.Sprintf("driver=file,node-name=%s-log,filename=%s,cache.no-flush=on", id, d.Log),
		"-blockdev", fmt.Sprintf("driver=blklogwrites,node-name=%[1]s,file=%[1]s-data,log=%[1]s-log,log-super-update-interval=1,discard=unmap", id),
	}
}
