// Package disk writes the disk image that a machine is installed from: the
// partition table, GRUB for BIOS and UEFI, and sda1. The rest of the disk is a
// hole, which the first start fills.
package disk

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"appplatform/image/internal/ext4"
	"appplatform/image/internal/grub"
	"appplatform/internal/extlinux"
	"appplatform/partitions"
	"appplatform/tooltree"
)

// A Source is the content of one file: a file of this machine, or bytes.
type Source struct {
	Path string
	Data []byte
}

// Options describe one disk image. The same options always give the same
// bytes.
type Options struct {
	Table partitions.Table
	// Boot are the files of sda1 by their path, "a/kernel"; GRUB's own are
	// added.
	Boot map[string]Source
	// Time stands in the file systems.
	Time time.Time
}

// bootInodes is enough for two images and whatever an administrator leaves.
const bootInodes = 1024

// Write makes the raw, sparse disk image out. It must not exist; after an
// error, part of it may.
func Write(ctx context.Context, tools *tooltree.Tree, o Options, out string) error {
	if err := write(ctx, tools, o, out); err != nil {
		return fmt.Errorf("cannot write the disk image: %w", err)
	}
	return nil
}

func write(ctx context.Context, tools *tooltree.Tree, o Options, out string) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	boot, ok := o.Table.Part(partitions.Boot)
	if !ok {
		return errors.New("internal error: the table lacks the boot partition")
	}
	o.Boot = maps.Clone(o.Boot)
	write := writeGPT
	if o.Table.Scheme == partitions.MBR {
		write = writeMBR
		o.Boot[extlinux.ConfigPath] = Source{Data: extlinux.Config(o.Table.DiskUUID)}
	} else {
		o.Boot[grub.ConfigPath] = Source{Data: grub.Config}
		o.Boot[grub.EnvPath] = Source{Data: grub.Env()}
	}
	if err := checkRoom(o.Boot, boot); err != nil {
		return err
	}
	f, err := os.OpenFile(out, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := write(ctx, tools, o, f); err != nil {
		return err
	}
	return f.Close()
}

// writeGPT makes a disk for virtual machines, at its full size.
func writeGPT(ctx context.Context, tools *tooltree.Tree, o Options, f *os.File) error {
	boot, _ := o.Table.Part(partitions.Boot)
	efi, ok := o.Table.Part(partitions.EFI)
	if !ok {
		return errors.New("internal error: the table lacks the EFI partition")
	}
	if err := f.Truncate(int64(o.Table.DiskSize)); err != nil {
		return err
	}
	// The parts write to places of their own, side by side.
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return writeBoot(ctx, tools, o, boot, f.Name()) })
	group.Go(func() error {
		images, err := grub.Make(ctx, tools, o.Table)
		if err != nil {
			return err
		}
		if err := writeTable(f, o.Table, images); err != nil {
			return err
		}
		return writeEFI(ctx, tools, efi, images.EFI, o.Time, f.Name())
	})
	return group.Wait()
}

// checkRoom refuses an image that could never be updated: the next one, which
// may be somewhat larger, must fit beside it.
func checkRoom(files map[string]Source, boot partitions.Partition) error {
	var total partitions.Size
	for name, s := range files {
		if s.Path == "" {
			total += partitions.Size(len(s.Data))
			continue
		}
		info, err := os.Stat(s.Path)
		if err != nil {
			return fmt.Errorf("cannot read /%s of sda1: %w", name, err)
		}
		total += partitions.Size(info.Size())
	}
	if most := boot.Size * 2 / 5; total > most {
		return fmt.Errorf("sda1 (%v) has no room for a second image: its files have %d MiB and may have %d MiB",
			boot.Size, total/partitions.MiB, most/partitions.MiB)
	}
	return nil
}

// writeTable writes the partition table and GRUB for BIOS.
func writeTable(f *os.File, t partitions.Table, images *grub.Images) error {
	writes, err := t.GPTWrites(images.Boot)
	if err != nil {
		return err
	}
	core, _ := t.Part(partitions.BIOS)
	writes = append(writes, partitions.Write{Offset: core.Start, Data: images.Core})
	for _, w := range writes {
		if _, err := f.WriteAt(w.Data, int64(w.Offset)); err != nil {
			return err
		}
	}
	return nil
}

// writeBoot makes sda1.
func writeBoot(ctx context.Context, tools *tooltree.Tree, o Options, boot partitions.Partition, out string) error {
	r, w := io.Pipe()
	defer r.Close()
	go func() { w.CloseWithError(writeTar(w, o.Boot, o.Time)) }()
	return ext4.Write(ctx, tools, ext4.Options{
		Type:   ext4.Ext2,
		Label:  grub.Label,
		UUID:   boot.UUID,
		Size:   boot.Size,
		Offset: boot.Start,
		Inodes: bootInodes,
		Time:   o.Time,
	}, r, out)
}

// writeTar writes the files and their folders in the order of their names.
func writeTar(w io.Writer, files map[string]Source, mtime time.Time) error {
	t := tar.NewWriter(w)
	made := map[string]bool{".": true}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for _, dir := range parents(name) {
			if made[dir] {
				continue
			}
			made[dir] = true
			h := &tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: mtime, Format: tar.FormatPAX}
			if err := t.WriteHeader(h); err != nil {
				return err
			}
		}
		if err := files[name].writeTar(t, name, mtime); err != nil {
			return fmt.Errorf("cannot add /%s to sda1: %w", name, err)
		}
	}
	return t.Close()
}

// parents of "a/b/c" are "a" and "a/b".
func parents(name string) (dirs []string) {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		dirs = append(dirs, dir)
	}
	slices.Reverse(dirs)
	return dirs
}

func (s Source) writeTar(t *tar.Writer, name string, mtime time.Time) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: mtime, Format: tar.FormatPAX}
	var content io.Reader = bytes.NewReader(s.Data)
	h.Size = int64(len(s.Data))
	if s.Path != "" {
		f, err := os.Open(s.Path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		content, h.Size = f, info.Size()
	}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(t, content)
	return err
}

// writeEFI makes the EFI partition: FAT16, since 16 MiB have too few clusters
// for FAT32 and firmware reads both.
func writeEFI(ctx context.Context, tools *tooltree.Tree, p partitions.Partition, program []byte, mtime time.Time, out string) error {
	serial := strings.ToUpper(strings.ReplaceAll(p.UUID, "-", ""))[:8]
	files := map[string]Source{grub.EFIProgram: {Data: program}}
	return writeFAT(ctx, tools, fat{p, "EFI", serial, []string{"-F", "16"}}, files, mtime, out)
}
