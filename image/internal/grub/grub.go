// Package grub makes what starts the kernel from BIOS and from UEFI: the first
// sector, the core image, the EFI program, and the files that all of them read
// on sda1. Installing GRUB is writing these to their places; no grub-install.
package grub

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"appplatform/partitions"
	"appplatform/tooltree"
)

// Label is the file system label of sda1. GRUB looks for it when the disk it
// was loaded from has no readable sda1.
const Label = "APBOOT"

// The places of GRUB's own files on sda1.
const (
	ConfigPath = "boot/grub/grub.cfg"
	EnvPath    = "boot/grub/grubenv"
	folder     = "boot/grub"
)

// Config is grub.cfg, which people may change.
//
//go:embed grub.cfg
var Config []byte

// menu is the rest of it, a part of the images. All machines have the same one:
// what differs is asked from the machine or stands in grubenv.
//
//go:embed menu.cfg
var menu []byte

// EFIProgram is where firmware looks for a program to start on the EFI
// partition of a disk that it knows nothing about.
const EFIProgram = "EFI/BOOT/BOOTX64.EFI"

// envSize is the size GRUB insists on. GRUB and the device write the file in
// place: it must never change its size or its blocks.
const envSize = 1024

// Env is the grubenv of a new image: set a is current.
func Env() []byte { return env("set=a\n") }

func env(variables string) []byte {
	b := []byte("# GRUB Environment Block\n" + variables)
	for len(b) < envSize {
		b = append(b, '#')
	}
	return b
}

// early runs inside GRUB before it reads grub.cfg. root is sda1 of the disk
// that GRUB was loaded from; search takes that one if it is ours, so that a
// second installed disk in the machine is left alone.
const early = `search --no-floppy --set=root --hint=$root --label ` + Label + `
set prefix=(memdisk)/` + folder + `
`

// Packages are those that Make takes GRUB from.
var Packages = []string{"grub-efi-amd64-bin", "grub-pc-bin"}

// LicencePackage has their licence.
const LicencePackage = "grub-common"

// modules is all of GRUB that exists on the machine: nothing is loaded from
// sda1 but grub.cfg and grubenv. The second group is for people at its prompt.
var modules = []string{
	"memdisk", "tar", "part_gpt", "ext2", "normal", "configfile", "search", "search_label", "probe", "loadenv",
	"hashsum", "gcry_sha256", "regexp", "test", "echo", "sleep", "boot", "reboot", "serial", "terminal",

	"part_msdos", "fat", "ls", "cat", "halt", "help", "search_fs_file", "search_fs_uuid", "minicmd",
}

// The kinds of GRUB, and the modules that only one of them has.
const (
	bios = "i386-pc"
	efi  = "x86_64-efi"
)

var ownModules = map[string][]string{bios: {"biosdisk", "linux16"}, efi: {"linux", "efi_gop", "all_video"}}

// Describe says what of GRUB is in an image.
func Describe() string {
	return fmt.Sprintf("In the BIOS boot partition (%s) and on the EFI partition (%s). Modules, and what they need: %s; %s: %s; %s: %s.", bios, efi,
		strings.Join(modules, " "), bios, strings.Join(ownModules[bios], " "), efi, strings.Join(ownModules[efi], " "))
}

// Images are the parts of GRUB that lie outside of file systems, and the
// program for the EFI partition.
type Images struct {
	Boot []byte // first sector, without the partition table
	Core []byte // BIOS boot partition
	EFI  []byte // EFIProgram
}

// Make builds GRUB for a disk with this partition table.
func Make(ctx context.Context, tools *tooltree.Tree, t partitions.Table) (*Images, error) {
	core, ok := t.Part(partitions.BIOS)
	if !ok {
		return nil, fmt.Errorf("internal error: no partition %d for GRUB", partitions.BIOS)
	}
	dir, err := os.MkdirTemp("", "grub")
	if err != nil {
		return nil, fmt.Errorf("cannot make GRUB: %w", err)
	}
	defer os.RemoveAll(dir)
	memdisk, err := inMemory(ConfigPath, menu)
	if err != nil {
		return nil, fmt.Errorf("cannot make GRUB: %w", err)
	}
	for name, content := range map[string][]byte{earlyFile: []byte(early), memdiskFile: memdisk} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return nil, fmt.Errorf("cannot make GRUB: %w", err)
		}
	}

	var images Images
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		images.Core, err = makeImage(ctx, tools, dir, bios)
		return err
	})
	group.Go(func() (err error) {
		images.EFI, err = makeImage(ctx, tools, dir, efi)
		return err
	})
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("cannot make GRUB: %w", err)
	}
	if images.Boot, err = os.ReadFile(filepath.Join(tools.Dir(), "usr/lib/grub", bios, "boot.img")); err != nil {
		return nil, fmt.Errorf("cannot make GRUB: %w", err)
	}
	if err := images.place(core); err != nil {
		return nil, fmt.Errorf("cannot make GRUB: %v", err)
	}
	return &images, nil
}

// What grub-mkimage puts into an image.
const (
	earlyFile   = "early.cfg"
	memdiskFile = "memdisk.tar"
)

// inMemory is the archive that GRUB takes for a disk with one file.
func inMemory(name string, content []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Format: tar.FormatUSTAR})
	if err == nil {
		_, err = w.Write(content)
	}
	return b.Bytes(), errors.Join(err, w.Close())
}

func makeImage(ctx context.Context, tools *tooltree.Tree, dir, target string) ([]byte, error) {
	out := filepath.Join(dir, target+".img")
	args := []string{
		"grub-mkimage",
		"--output=" + out, // it cannot write to a pipe
		"--format=" + target,
		"--directory=/usr/lib/grub/" + target,
		// Without a disk before the comma: the one that GRUB was loaded from.
		fmt.Sprintf("--prefix=(,gpt%d)/%s", partitions.Boot, folder),
		"--config=" + filepath.Join(dir, earlyFile),
		"--memdisk=" + filepath.Join(dir, memdiskFile),
	}
	args = append(append(args, modules...), ownModules[target]...)
	if err := tools.Run(ctx, tooltree.Cmd{Args: args, Writable: []string{dir}}); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}

// The places that grub-install would patch; they are the same since GRUB 2.00.
const (
	bootCodeSize   = 440   // disk signature and partition table follow
	bootCoreSector = 0x5c  // boot.img: where core.img is, 8 bytes
	bootDriveCheck = 0x66  // boot.img: a jump that floppy disks need, 2 bytes
	coreList       = 0x1f4 // core.img: the first list entry: sector 8, count 2, segment 2 bytes
	coreSegment    = 0x820 // where in memory the second sector of core.img goes
)

// place tells both BIOS images where on the disk core.img lies.
func (i *Images) place(p partitions.Partition) error {
	const sector = int(partitions.Sector)
	if len(i.Boot) < bootCodeSize {
		return fmt.Errorf("boot.img has only %d bytes", len(i.Boot))
	}
	for len(i.Core)%sector != 0 {
		i.Core = append(i.Core, 0)
	}
	if len(i.Core) > int(p.Size) {
		return fmt.Errorf("core.img has %d bytes and partition %d has room for %v", len(i.Core), p.Number, p.Size)
	}
	start := uint64(p.Start / partitions.Sector)
	i.Boot = i.Boot[:bootCodeSize]
	binary.LittleEndian.PutUint64(i.Boot[bootCoreSector:], start)
	copy(i.Boot[bootDriveCheck:], []byte{0x90, 0x90})
	binary.LittleEndian.PutUint64(i.Core[coreList:], start+1)
	binary.LittleEndian.PutUint16(i.Core[coreList+8:], uint16(len(i.Core)/sector-1))
	binary.LittleEndian.PutUint16(i.Core[coreList+10:], coreSegment)
	return nil
}
