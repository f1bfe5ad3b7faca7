package powercut

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"appplatform/partitions"
)

// A Checker judges the states of one plan.
type Checker struct {
	plan   Plan
	disk   *Disk
	layout partitions.Table // of the disk when it is installed
	memo   *memo

	// Of the disk before the plan:
	before   partitions.Table
	config   []byte   // grub.cfg or extlinux.conf, saying rescue and set a
	loader   []string // hashes of GRUB's places outside of file systems
	baseData []span   // what is not empty
	metadata []span   // the same without the files of image sets

	last Choice // what starts after the plan, if that is known
}

// NewChecker looks at the disk as it was before the plan.
func NewChecker(p Plan) (*Checker, error) {
	c := &Checker{plan: p, memo: &memo{groups: map[string][]*group{}}}
	c.disk = &Disk{base: p.Base, size: int64(p.Size), log: p.Log}
	if err := c.prepare(); err != nil {
		return nil, fmt.Errorf("cannot use the disk before the plan: %w", err)
	}
	if p.Settled > 0 {
		n := len(p.Log.Entries)
		last, err := c.boots(c.view(State{Full: n, Cut: n}))
		if err != nil {
			return nil, fmt.Errorf("cannot use the disk after the plan: %w", err)
		}
		c.last = last
	}
	return c, nil
}

func (c *Checker) prepare() (err error) {
	if c.layout, err = partitions.Layout(c.plan.Platform.Scheme, c.plan.Size); err != nil {
		return err
	}
	boot, _ := c.layout.Part(partitions.Boot)
	v := c.view(State{})
	if c.before, err = c.table(v); err != nil {
		return err
	}
	if c.loader, err = c.loaderHashes(v); err != nil {
		return err
	}
	vol, err := c.volume(v, boot)
	if err != nil {
		return err
	}
	name, pattern, rescue := grubConfig, grubDefault, "0"
	if c.plan.Platform.Boot == "extlinux" {
		name, pattern, rescue = extlinuxConfig, extlinuxDefault, "rescue-a"
	}
	f, err := find(v, vol, name)
	if err != nil {
		return err
	}
	if c.config, err = f.read(v); err != nil {
		return err
	}
	at := pattern.FindSubmatchIndex(c.config)
	if at == nil {
		return fmt.Errorf("/%s does not say what boots", name)
	}
	copy(c.config[at[2]:at[3]], rescue)
	return nil
}

func (c *Checker) view(s State) *view { return &view{disk: c.disk, state: s, memo: c.memo} }

// Check tells what a state would start, or why it would not come up.
func (c *Checker) Check(s State) (Choice, error) {
	v := c.view(s)
	choice, err := remember(v, "boot", c.boots)
	if err != nil {
		return choice, err
	}
	if c.plan.Settled > 0 && s.Cut >= c.plan.Settled && choice != c.last {
		return choice, fmt.Errorf("%v starts, although the plan has come to its end: %v", choice, c.last)
	}
	if c.promisesHold(s) {
		_, err = remember(v, "data", c.keepsData)
	}
	return choice, err
}

// promisesHold tells whether there is anything to keep on sda2.
func (c *Checker) promisesHold(s State) bool {
	return slices.ContainsFunc(c.plan.Promises, func(p Promise) bool { return p.HoldsAt(s) })
}

// boots is what starts, if that is complete.
func (c *Checker) boots(v *view) (Choice, error) {
	if err := c.sameLoader(v); err != nil {
		return Choice{}, err
	}
	table, err := c.table(v)
	if err != nil {
		return Choice{}, err
	}
	boot, _ := table.Part(partitions.Boot)
	choice, err := c.chooses(v, boot, true)
	if err != nil {
		return choice, err
	}
	if err := c.complete(v, table, choice); err != nil {
		return choice, fmt.Errorf("%v starts: %w", choice, err)
	}
	return choice, nil
}

// sameLoader wants what lies outside of file systems, and GRUB's EFI partition,
// as they were: no plan writes them.
func (c *Checker) sameLoader(v *view) error {
	now, err := c.loaderHashes(v)
	if err == nil && !slices.Equal(now, c.loader) {
		err = errors.New("it has changed")
	}
	if err != nil {
		return fmt.Errorf("GRUB outside of sda1: %w", err)
	}
	return nil
}

func (c *Checker) loaderHashes(v *view) ([]string, error) {
	if c.plan.Platform.Boot == "extlinux" {
		return nil, nil // U-Boot is not on this disk.
	}
	pieces := []piece{{0, bootCode}}
	for _, n := range []int{partitions.BIOS, partitions.EFI} {
		p, _ := c.layout.Part(n)
		pieces = append(pieces, piece{int64(p.Start), int64(p.Size)})
	}
	var hashes []string
	for _, p := range pieces {
		sum, err := hash(v, file{[]piece{p}, p.size})
		if err != nil {
			return nil, err
		}
		hashes = append(hashes, sum)
	}
	return hashes, nil
}

// bootCode is the part of the first sector that belongs to GRUB; disk signature
// and partition table follow.
const bootCode = 440

// table reads the partition table as Linux does, which looks at the primary one
// only, and refuses one that the agent would refuse.
func (c *Checker) table(v *view) (partitions.Table, error) {
	head := make([]byte, partitions.HeadSize)
	if _, err := v.ReadAt(head, 0); err != nil {
		return partitions.Table{}, err
	}
	table, err := partitions.Read(head)
	if err != nil {
		return partitions.Table{}, err
	}
	if p, foreign := table.Foreign(); foreign {
		return partitions.Table{}, fmt.Errorf("partition %d (%s) lies where none of ours does", p.Number, p.Label())
	}
	if _, ok := table.Part(partitions.Boot); !ok || table.Scheme != c.plan.Platform.Scheme {
		return partitions.Table{}, errors.New("the partition table has no sda1")
	}
	// extlinux.conf names sda3 by the signature of an MBR.
	if table.Scheme == partitions.MBR && table.DiskUUID != c.plan.Platform.DiskUUID {
		return partitions.Table{}, fmt.Errorf("the disk's signature is %s", table.DiskUUID)
	}
	return table, nil
}

// installed tells whether the table is that of an installed disk. A partition
// has the size that it gets from the plan, or has had before.
func (c *Checker) installed(t partitions.Table) bool {
	for _, want := range c.layout.Parts {
		p, ok := t.Part(want.Number)
		old, _ := c.before.Part(want.Number)
		if !ok || p.Start != want.Start || p.Size != want.Size && p.Size != old.Size {
			return false
		}
	}
	return t.HoldsData()
}

// complete checks by hash that the choice has all it needs: the ramdisk needs
// the set to install from, the system needs what was installed as well.
func (c *Checker) complete(v *view, table partitions.Table, choice Choice) error {
	boot, _ := table.Part(partitions.Boot)
	vol, err := c.volume(v, boot)
	if err != nil {
		return err
	}
	set, err := c.set(v, vol, choice.Set)
	if err != nil || !choice.System {
		return err
	}
	if !c.installed(table) {
		return errors.New("the partition table lacks partitions, or says that sda2 is new")
	}
	rootfs, _ := table.Part(partitions.Rootfs)
	return holds(v, rootfs, set)
}

// keepsData wants a disk whose sda2 the next start does not format: the table
// says that it holds data, or its file system that it has been in use. (The
// same question as in the agent's plan; the magic number, the times of the last
// mount, of the last check and of its making, and the label of a superblock are
// from Linux: fs/ext4/ext4.h.)
func (c *Checker) keepsData(v *view) (struct{}, error) {
	none := struct{}{}
	table, err := c.table(v)
	if err != nil {
		return none, err
	}
	if c.installed(table) {
		return none, nil
	}
	data, _ := c.layout.Part(partitions.Data)
	b := make([]byte, sector)
	if _, err := v.ReadAt(b, int64(data.Start)+1024); err != nil {
		return none, err
	}
	mounted := binary.LittleEndian.Uint32(b[44:]) != 0
	checked := int64(binary.LittleEndian.Uint32(b[64:])) - int64(binary.LittleEndian.Uint32(b[264:]))
	used := mounted || checked < -2 || checked > 2
	if binary.LittleEndian.Uint16(b[56:]) != ext2Magic || !used || !bytes.HasPrefix(b[120:136], []byte("ap-data\x00")) {
		return none, errors.New("the next start would format sda2, which holds files that were synced")
	}
	return none, nil
}
