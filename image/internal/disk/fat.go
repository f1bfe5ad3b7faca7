package disk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"appplatform/partitions"
	"appplatform/tooltree"
)

// A fat is a FAT file system to be made.
type fat struct {
	part          partitions.Partition
	label, serial string
	options       []string // of mkfs.vfat
}

// writeFAT makes the file system in its place in the image and copies the files
// into it in the order of their names, one behind the other.
func writeFAT(ctx context.Context, tools *tooltree.Tree, f fat, files map[string]Source, mtime time.Time, out string) error {
	dir, err := os.MkdirTemp("", "fat")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	start := int64(f.part.Start / partitions.Sector)
	image := fmt.Sprintf("%s@@%d", out, f.part.Start)
	args := append([]string{"mkfs.vfat"}, f.options...)
	commands := [][]string{append(args, "-n", f.label, "-i", f.serial, "--invariant",
		fmt.Sprintf("--offset=%d", start), "-h", fmt.Sprint(start), out, fmt.Sprint(int64(f.part.Size/partitions.KiB)))}
	made := map[string]bool{}
	for i, name := range slices.Sorted(maps.Keys(files)) {
		for _, d := range parents(name) {
			if !made[d] {
				commands = append(commands, []string{"mmd", "-i", image, "::/" + d})
			}
			made[d] = true
		}
		// mcopy takes the time from the file, and follows no link.
		copied := filepath.Join(dir, fmt.Sprint(i))
		if err := files[name].copyTo(copied, mtime); err != nil {
			return fmt.Errorf("cannot add /%s to %s: %w", name, f.label, err)
		}
		commands = append(commands, []string{"mcopy", "-m", "-i", image, copied, "::/" + name})
	}
	env := []string{fmt.Sprintf("SOURCE_DATE_EPOCH=%d", mtime.Unix()), "MTOOLS_SKIP_CHECK=1"}
	for _, args := range commands {
		err := tools.Run(ctx, tooltree.Cmd{Args: args, Env: env, ReadOnly: []string{dir}, Writable: []string{filepath.Dir(out)}})
		if err != nil {
			return fmt.Errorf("cannot make the file system %s: %w", f.label, err)
		}
	}
	return nil
}

// copyTo makes a file with the content and the time.
func (s Source) copyTo(name string, mtime time.Time) error {
	data := s.Data
	if s.Path != "" {
		var err error
		if data, err = os.ReadFile(s.Path); err != nil {
			return err
		}
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		return err
	}
	return os.Chtimes(name, mtime, mtime)
}

// usedFAT32 is how much of a FAT32 file system, from its first sector on, is in
// use: up to the end of the last cluster that belongs to a file. (The fields
// are those of Microsoft's FAT specification of 2000, the sizes in bytes.)
func usedFAT32(f *os.File, p partitions.Partition) (partitions.Size, error) {
	b := make([]byte, partitions.Sector)
	if _, err := f.ReadAt(b, int64(p.Start)); err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	sector := int64(le.Uint16(b[11:]))
	cluster := int64(b[13]) * sector
	table := int64(le.Uint16(b[14:])) * sector
	size := int64(le.Uint32(b[36:])) * sector
	files := table + int64(b[16])*size
	if sector == 0 || cluster == 0 || size == 0 || le.Uint16(b[22:]) != 0 {
		return 0, errors.New("no FAT32 file system")
	}
	entries := make([]byte, size)
	if _, err := f.ReadAt(entries, int64(p.Start)+table); err != nil {
		return 0, err
	}
	last := int64(len(entries)/4) - 1
	for last >= 2 && le.Uint32(entries[last*4:])&0x0fffffff == 0 {
		last--
	}
	return partitions.Size(files + (last-1)*cluster), nil // Clusters are counted from 2.
}
