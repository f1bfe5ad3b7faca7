// Package partitions says how the disk is divided: the numbers, sizes, places
// and names of sda1 to sda4, as values. It is the one home of these figures for
// the image builder and for the device, and it touches no disk.
package partitions

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// A Scheme is a kind of partition table.
type Scheme string

// GPT is used by virtual machines, MBR by the gateways, whose firmware reads
// nothing else.
const (
	GPT Scheme = "gpt"
	MBR Scheme = "mbr"
)

// ParseScheme reads "gpt" or "mbr".
func ParseScheme(text string) (Scheme, error) {
	switch s := Scheme(text); s {
	case GPT, MBR:
		return s, nil
	}
	return "", fmt.Errorf("%q is not a partition scheme (gpt or mbr)", text)
}

// The numbers of the partitions are what administrators know them by; they
// never change.
const (
	Boot   = 1  // kernel, ramdisk and packed root file systems
	Data   = 2  // everything that must survive
	Rootfs = 3  // the unpacked, read-only system
	Swap   = 4  // swap space
	BIOS   = 14 // GRUB for BIOS firmware
	EFI    = 15 // GRUB for UEFI firmware
)

// Types of partitions. GPT writes GUIDs, MBR two hexadecimal digits.
const (
	TypeLinux = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	TypeSwap  = "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F"
	TypeBIOS  = "21686148-6449-6E6F-744E-656564454649"
	TypeEFI   = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"

	TypeMBRFAT32 = "0c"
	TypeMBRLinux = "83"
	TypeMBRSwap  = "82"
	typeMBRNew   = "da" // "no file system"
)

// What every image carries before it is installed. Install replaces those of
// the disk and of sda1 by random ones, so that two installed disks in one
// machine are never mixed up.
const (
	FactoryDiskUUID = "3A8C1D5E-6B0F-4E27-9C41-D0A5F7B21E60"
	FactoryBootUUID = "91F4E2B7-0C5D-4A38-8E16-7B2D9F60C3A1"
	biosUUID        = "5D2E8A90-F173-4B6C-A2D4-18C7E05B9F32"
	efiUUID         = "C7609B1F-4E82-4D35-B90A-6F1D23E8A754"
	factoryDiskID   = "41505001" // MBR disk signature
)

// Alignment is what every partition's start and end are a multiple of.
const Alignment = MiB

// LeastData is the smallest sda2 that PostgreSQL and a few apps can live in.
const LeastData = GiB

// Title is what a partition is for, whatever the table calls it.
func Title(number int) string {
	for _, p := range declared(GPT) {
		if p.Number == number {
			return p.Name
		}
	}
	return ""
}

// A Partition is one entry of a table.
type Partition struct {
	Number int
	Name   string // GPT only
	Type   string
	UUID   string // PARTUUID; empty until somebody chooses one
	Start  Size
	Size   Size
}

// Label is what the table says about the partition, for messages.
func (p Partition) Label() string {
	if p.Name == "" {
		return "type " + p.Type
	}
	return strconv.Quote(p.Name)
}

// End is the first place behind the partition.
func (p Partition) End() Size { return p.Start + p.Size }

// A Table is the division of one disk. Parts lie in the order of their place
// on the disk, which is not that of their numbers.
type Table struct {
	Scheme   Scheme
	DiskSize Size
	DiskUUID string
	Parts    []Partition
}

// Part finds a partition by its number.
func (t Table) Part(number int) (Partition, bool) {
	for _, p := range t.Parts {
		if p.Number == number {
			return p, true
		}
	}
	return Partition{}, false
}

// declared lists the partitions in the order they lie on the disk, without
// their places. sda2 lies last so that a larger disk makes it grow in place;
// its size is what the others leave.
func declared(scheme Scheme) []Partition {
	if scheme == MBR {
		return []Partition{
			{Number: Boot, Type: TypeMBRFAT32, Size: 200 * MiB},
			{Number: Rootfs, Type: TypeMBRLinux, Size: 500 * MiB},
			{Number: Swap, Type: TypeMBRSwap, Size: 512 * MiB},
			{Number: Data, Type: TypeMBRLinux},
		}
	}
	return []Partition{
		{Number: BIOS, Name: "bios", Type: TypeBIOS, UUID: biosUUID, Size: 1 * MiB},
		{Number: EFI, Name: "efi", Type: TypeEFI, UUID: efiUUID, Size: 16 * MiB},
		{Number: Boot, Name: "boot", Type: TypeLinux, Size: 350 * MiB},
		{Number: Rootfs, Name: "rootfs", Type: TypeLinux, Size: 500 * MiB},
		{Number: Swap, Name: "swap", Type: TypeSwap, Size: 512 * MiB},
		{Number: Data, Name: "data", Type: TypeLinux},
	}
}

// place puts the declared partitions one behind the other.
func place(scheme Scheme, disk Size) Table {
	t := Table{Scheme: scheme, DiskSize: disk, Parts: declared(scheme)}
	next := Alignment
	for i := range t.Parts {
		p := &t.Parts[i]
		p.Start = next
		if p.Number == Data {
			p.Size = usableEnd(scheme, disk) - p.Start
		}
		next = p.End()
	}
	return t
}

// usableEnd is where the last partition is to end.
func usableEnd(scheme Scheme, disk Size) Size {
	return lastEnd(scheme, disk) / Alignment * Alignment
}

// lastEnd is where the last partition must have ended: GPT keeps a copy of
// itself in the last 33 sectors, and MBR cannot count beyond 2 TiB.
func lastEnd(scheme Scheme, disk Size) Size {
	if scheme == MBR {
		return min(disk, 1<<32*Sector-Alignment)
	}
	return disk - (1+arraySectors)*Sector
}

// LeastDisk is the smallest disk that Layout accepts.
func LeastDisk(scheme Scheme) Size {
	t := place(scheme, 0)
	least := t.Parts[len(t.Parts)-1].Start + LeastData
	if scheme == GPT {
		least += Alignment
	}
	return least
}

// Layout divides a disk the way it is installed. UUIDs that differ from one
// disk to the next are left empty.
func Layout(scheme Scheme, disk Size) (Table, error) {
	if least := LeastDisk(scheme); disk < least {
		return Table{}, fmt.Errorf("the disk is too small: it has %s and needs at least %s", disk.Short(), least.Short())
	}
	return place(scheme, disk), nil
}

// Factory divides the disk of an image before it is installed: only what the
// boot loader needs and sda1, so that the image is small.
func Factory(scheme Scheme, disk Size) Table {
	t := place(scheme, disk)
	kept := t.Parts[:0]
	for _, p := range t.Parts {
		switch p.Number {
		case Boot:
			if scheme == GPT {
				p.UUID = FactoryBootUUID
			}
			kept = append(kept, p)
		case BIOS, EFI:
			kept = append(kept, p)
		}
	}
	t.Parts = kept
	t.DiskUUID = FactoryDiskUUID
	if scheme == MBR {
		t.DiskUUID = factoryDiskID
	}
	return t
}

// Grow returns the table for a disk that has become larger, and whether it is
// another one: the end of sda2, which lies last, moves to the end of the disk,
// and nothing else moves at all. There is no way back to a smaller disk.
func (t Table) Grow(disk Size) (grown Table, changed bool, err error) {
	if len(t.Parts) == 0 || t.Parts[len(t.Parts)-1].Number != Data {
		return Table{}, false, errors.New("sda2 is not the last partition")
	}
	grown = t
	grown.Parts = slices.Clone(t.Parts)
	data := &grown.Parts[len(grown.Parts)-1]
	if needs := max(t.DiskSize, data.End()); disk < needs || data.End() > lastEnd(t.Scheme, disk) {
		return Table{}, false, fmt.Errorf("the disk has %s and its partition table needs %s", disk.Short(), needs.Short())
	}
	before := data.Size
	// Somebody may have moved the end to the very last sector by hand.
	data.Size = max(data.End(), usableEnd(t.Scheme, disk)) - data.Start
	grown.DiskSize = disk
	// An MBR does not say how large the disk is.
	return grown, data.Size != before || t.Scheme == GPT && t.DiskSize != disk, nil
}

// Until sda2's file system is complete, the table says that it is new: GPT by
// its name, MBR by its type. From then on nothing ever formats it again.
const newData = "data (new)"

// MarkData returns the table with that said about sda2 or no longer said.
func (t Table) MarkData(holdsData bool) Table {
	t.Parts = slices.Clone(t.Parts)
	want, _ := place(t.Scheme, t.DiskSize).Part(Data)
	for i := range t.Parts {
		p := &t.Parts[i]
		switch {
		case p.Number != Data:
		case holdsData:
			p.Name, p.Type = want.Name, want.Type
		case t.Scheme == MBR:
			p.Type = typeMBRNew
		default:
			p.Name = newData
		}
	}
	return t
}

// HoldsData reports whether there is an sda2 that is no longer new.
func (t Table) HoldsData() bool {
	p, ok := t.Part(Data)
	want, _ := place(t.Scheme, t.DiskSize).Part(Data)
	return ok && p.Name == want.Name && p.Type == want.Type
}

// Foreign looks for a partition that no image of ours puts where it is.
func (t Table) Foreign() (Partition, bool) {
	ours := place(t.Scheme, t.DiskSize)
	for _, p := range t.Parts {
		our, ok := ours.Part(p.Number)
		isNew := p.Number == Data && t.Scheme == MBR && p.Type == typeMBRNew
		if !ok || p.Start != our.Start || p.Type != our.Type && !isNew || p.Number != Data && p.Size != our.Size {
			return p, true
		}
	}
	return Partition{}, false
}

// UUID is the PARTUUID of a partition as the kernel and GRUB spell it, on an
// MBR disk also that of a partition which is not there yet.
func (t Table) UUID(number int) string {
	if t.Scheme == MBR {
		return t.mbrUUID(number)
	}
	p, _ := t.Part(number)
	return p.UUID
}
