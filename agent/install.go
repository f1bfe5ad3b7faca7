package agent

import (
	"context"
	"crypto/rand"
	"strings"

	"appplatform/agent/internal/block"
	"appplatform/partitions"
)

// PlanInstall looks at the disk and lists what is to be done to install the
// image on it, or to finish an installation that was interrupted. It changes
// nothing; a disk that cannot be used is an error here.
func PlanInstall(ctx context.Context, m Machine) ([]Step, error) {
	d, err := m.findDisk(ctx)
	if err != nil {
		return nil, err
	}
	return m.planInstall(d)
}

func (m Machine) planInstall(d disk) ([]Step, error) {
	table, err := m.planTable(d)
	if err != nil {
		return nil, err
	}
	keep, err := keepsData(d, table)
	if err != nil {
		return nil, err
	}
	boot, _ := table.Part(partitions.Boot)
	steps := []Step{
		announce{d, []partitions.Partition{boot}},
		mountBoot{d},
		checkSet{},
	}
	if !installedTable(d.table) {
		steps = append(steps, writeTable{d, table})
	}
	steps = append(steps, announce{d, table.Parts}, makeSwap{d})
	if keep {
		steps = append(steps, checkData{d})
	} else {
		steps = append(steps, formatData{d, table})
	}
	steps = append(steps, mountData{d})
	if !installedTable(d.table) {
		steps = append(steps, commitData{d, table.MarkData(true)})
	}
	_, before := d.table.Part(partitions.Data)
	fresh := !before
	steps = append(steps,
		writeRootfs{disk: d, resume: !fresh},
		verifyRootfs{disk: d},
		makeFolders{},
	)
	if offer, found := m.pendingFirstBoot(); found {
		steps = append(steps, storeFirstBoot{offer})
	}
	return append(steps,
		labelSystem{},
		markInstalled{},
		bootSystem{},
	), nil
}

// planTable decides how the disk is to be divided, and refuses a disk that is
// not ours to divide.
func (m Machine) planTable(d disk) (partitions.Table, error) {
	if n := d.SectorSize(); n != partitions.Sector {
		return partitions.Table{}, withHint("use a disk or a controller that offers 512 byte sectors",
			"cannot install on %v: it has sectors of %v", d.Disk, n)
	}
	if p, foreign := d.table.Foreign(); foreign {
		return partitions.Table{}, withHint("nothing was changed; write the image to an empty disk",
			"cannot install on %v: partition %d (%s, %s) belongs to another system", d.Disk, p.Number, p.Label(), p.Size.Short())
	}
	if installedTable(d.table) {
		if last := d.table.Parts[len(d.table.Parts)-1]; last.End() > d.Size {
			return partitions.Table{}, withHint("nothing was changed; give the disk its former size back",
				"cannot use %v: it has %s, and its data partition ends at %s", d.Disk, d.Size.Short(), last.End().Short())
		}
		return d.table, nil
	}
	t, err := partitions.Layout(m.Platform.Scheme, d.Size)
	if err != nil {
		return partitions.Table{}, withHint("nothing was changed; enlarge the disk and start again",
			"cannot install on %v: %w", d.Disk, err)
	}
	m.nameDisk(&t, d.table)
	return t.MarkData(false), nil
}

// nameDisk gives the disk and its partitions GUIDs of their own. An interrupted
// installation has done so already; what it chose is kept.
//
// The signature of an MBR stays: extlinux.conf names the disk by it, and a
// gateway has one disk.
func (m Machine) nameDisk(t *partitions.Table, old partitions.Table) {
	if t.Scheme == partitions.MBR {
		t.DiskUUID = old.DiskUUID
		return
	}
	fresh := strings.EqualFold(old.DiskUUID, m.Platform.DiskUUID)
	t.DiskUUID = old.DiskUUID
	if fresh {
		t.DiskUUID = randomUUID()
	}
	for i := range t.Parts {
		p := &t.Parts[i]
		switch before, known := old.Part(p.Number); {
		case p.Number == partitions.BIOS || p.Number == partitions.EFI: // The layout names these.
		case known && !fresh:
			p.UUID = before.UUID
		default:
			p.UUID = randomUUID()
		}
	}
}

func randomUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // It cannot fail.
	return partitions.NewUUID(b)
}

// installedTable reports whether the table has all partitions and says that
// sda2 holds data. From then on it is only changed by a resize.
func installedTable(t partitions.Table) bool {
	if !t.HoldsData() {
		return false
	}
	for _, n := range []int{partitions.Boot, partitions.Rootfs, partitions.Swap} {
		if _, ok := t.Part(n); !ok {
			return false
		}
	}
	return true
}

// dataLabel names the file system of sda2.
const dataLabel = "ap-data"

// keepsData reports whether sda2 must not be formatted: the table says so, or,
// when the image was written over an installed disk, a file system of ours
// that was in use still lies where sda2 will be.
func keepsData(d disk, t partitions.Table) (bool, error) {
	if installedTable(d.table) {
		return true, nil
	}
	data, _ := t.Part(partitions.Data)
	return inUse(d, data)
}

// holdsData reports whether a disk that is not installed may hold data of ours:
// the image was written over it, or its table is damaged.
func holdsData(d disk) bool {
	data, known := d.table.Part(partitions.Data)
	if !known {
		layout, err := partitions.Layout(d.table.Scheme, d.Size)
		if err != nil {
			return false // There is no room for any.
		}
		data, _ = layout.Part(partitions.Data)
	}
	used, err := inUse(d, data)
	return used || err != nil || d.table.HoldsData()
}

func inUse(d disk, data partitions.Partition) (bool, error) {
	ext, found, err := block.ProbeExt(d.Path(), data.Start)
	if err != nil {
		return false, err
	}
	used := found && ext.Label == dataLabel && ext.Used
	if used && ext.Size > data.Size {
		return false, withHint("nothing was changed; use the disk that the data was made on, or empty this one",
			"cannot install on %v: it holds App Platform data of %v, and has room for %v", d.Disk, ext.Size, data.Size)
	}
	return used, nil
}
