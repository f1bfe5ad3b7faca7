// Package block finds disks, reads and writes their partition tables and tells
// the kernel about partitions. Paths hang off a root, so that a folder with
// ordinary files serves as a machine in tests.
package block

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"appplatform/partitions"
)

// A Disk is a whole disk, whatever it is called on this machine.
type Disk struct {
	Name string // sda, vda, nvme0n1
	Size partitions.Size
	root string
}

// Disks lists the disks that may hold a system: no ramdisks, CD or floppy
// drives, and nothing that lies on another disk.
func Disks(root string) ([]Disk, error) {
	entries, err := os.ReadDir(filepath.Join(root, "sys/class/block"))
	if err != nil {
		return nil, fmt.Errorf("cannot list the disks: %w", err)
	}
	var disks []Disk
	for _, e := range entries {
		d := Disk{Name: e.Name(), root: root}
		if exists(d.sys("partition")) || !exists(d.sys("device")) || strings.HasPrefix(d.Name, "sr") || strings.HasPrefix(d.Name, "fd") {
			continue
		}
		sectors, err := readNumber(d.sys("size"))
		if err != nil || sectors == 0 {
			continue // An empty drive.
		}
		d.Size = partitions.Size(sectors) * partitions.Sector
		disks = append(disks, d)
	}
	slices.SortFunc(disks, func(a, b Disk) int { return strings.Compare(a.Name, b.Name) })
	return disks, nil
}

// String is the disk as an administrator would name it.
func (d Disk) String() string { return "/dev/" + d.Name }

// Path is the device file of the disk.
func (d Disk) Path() string { return filepath.Join(d.root, "dev", d.Name) }

// PartName is the kernel's name of a partition: sda1, nvme0n1p1.
func (d Disk) PartName(number int) string {
	if last := d.Name[len(d.Name)-1]; last >= '0' && last <= '9' {
		return fmt.Sprintf("%sp%d", d.Name, number)
	}
	return fmt.Sprintf("%s%d", d.Name, number)
}

// PartPath is the device file of a partition.
func (d Disk) PartPath(number int) string {
	return filepath.Join(d.root, "dev", d.PartName(number))
}

// Has reports whether the kernel's name is that of the disk or of a partition of it.
func (d Disk) Has(name string) bool {
	if d.Name == "" {
		return false
	}
	rest, ok := strings.CutPrefix(name, strings.TrimSuffix(d.PartName(0), "0"))
	return name == d.Name || ok && rest != "" && strings.Trim(rest, "0123456789") == ""
}

// SectorSize is the unit that the disk reads and writes.
func (d Disk) SectorSize() partitions.Size {
	n, err := readNumber(d.sys("queue/logical_block_size"))
	if err != nil {
		return partitions.Sector
	}
	return partitions.Size(n)
}

func (d Disk) sys(name string) string {
	return filepath.Join(d.root, "sys/class/block", d.Name, name)
}

// rescans are the files in which a driver is asked to look again how large its
// disks are: that of SCSI and SATA disks, which answers when it has, and that
// of NVMe controllers, which does so a moment later. Virtio's disks tell.
var rescans = []struct {
	name string
	wait time.Duration
}{{"device/rescan", 0}, {"device/rescan_controller", time.Second}}

// Rescan asks how large the disk is now. A virtual machine's disk can be
// enlarged while the machine runs.
func (d Disk) Rescan() (Disk, error) {
	for _, r := range rescans {
		if path := d.sys(r.name); exists(path) {
			if err := os.WriteFile(path, []byte("1\n"), 0o200); err != nil {
				return d, fmt.Errorf("cannot ask for the size of %v: %w", d, err)
			}
			time.Sleep(r.wait)
		}
	}
	sectors, err := readNumber(d.sys("size"))
	if err != nil {
		return d, fmt.Errorf("cannot ask for the size of %v: %w", d, err)
	}
	d.Size = partitions.Size(sectors) * partitions.Sector
	return d, nil
}

// Head reads the beginning of the disk, where the partition table lies.
func (d Disk) Head() ([]byte, error) {
	f, err := os.Open(d.Path())
	if err != nil {
		return nil, fmt.Errorf("cannot read %v: %w", d, err)
	}
	defer f.Close()
	head := make([]byte, partitions.HeadSize)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("cannot read %v: %w", d, err)
	}
	return head, nil
}

// WriteTable writes the partition table. What lies between the writes is safe:
// see partitions.Table.Writes.
func (d Disk) WriteTable(t partitions.Table) error {
	head, err := d.Head()
	if err != nil {
		return err
	}
	writes, err := t.Writes(head)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(d.Path(), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("cannot write the partition table of %v: %w", d, err)
	}
	defer f.Close()
	for _, w := range writes {
		if _, err := f.WriteAt(w.Data, int64(w.Offset)); err != nil {
			return fmt.Errorf("cannot write the partition table of %v: %w", d, err)
		}
		if err := f.Sync(); err != nil {
			return fmt.Errorf("cannot write the partition table of %v: %w", d, err)
		}
	}
	return nil
}

// errNotThere is a partition that the kernel does not know.
var errNotThere = errors.New("the kernel does not know it")

// kernelPart is where the kernel believes a partition to lie.
func (d Disk) kernelPart(number int) (start, size partitions.Size, err error) {
	dir := filepath.Join(d.root, "sys/class/block", d.PartName(number))
	if !exists(dir) {
		return 0, 0, errNotThere
	}
	s, err := readNumber(filepath.Join(dir, "start"))
	if err != nil {
		return 0, 0, err
	}
	n, err := readNumber(filepath.Join(dir, "size"))
	if err != nil {
		return 0, 0, err
	}
	return partitions.Size(s) * partitions.Sector, partitions.Size(n) * partitions.Sector, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func readNumber(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}
