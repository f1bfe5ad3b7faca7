package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"appplatform/image/internal/ova"
	"appplatform/image/internal/vdisk"
	"appplatform/internal/firstbootkeys"
	"appplatform/internal/hint"
)

// formatOVA is the format of a whole machine around a VMDK.
const formatOVA = "ova"

// DiskFormats are the formats that a raw image can be written in.
func DiskFormats() []string {
	var names []string
	for _, f := range vdisk.Formats {
		names = append(names, string(f))
	}
	return append(names, formatOVA)
}

// diskFormat is the format of a file by its name; what is none of ours is an
// error.
func diskFormat(name string) (string, error) {
	format := strings.TrimPrefix(filepath.Ext(name), ".")
	for _, f := range DiskFormats() {
		if f == format {
			return f, nil
		}
	}
	return "", hint.Errorf("the formats are "+strings.Join(DiskFormats(), ", "), "%s: no disk format %q", name, format)
}

// machine is what an OVA of the board describes.
func (p *Plan) machine() ova.Machine {
	m := ova.Machine{
		Product: product, Version: p.Label, Memory: int64(p.Board.Memory), CPUs: 1, Capacity: int64(p.Board.Disk),
		Class: strings.TrimSuffix(firstbootkeys.Prefix, "."),
	}
	for _, k := range firstbootkeys.Keys {
		m.Properties = append(m.Properties, ova.Property{Key: k.Name, Type: k.Type, Label: k.Label, Description: k.Description, Secret: k.Secret})
	}
	return m
}

const product = "App Platform"

// part is the name of a file while it is written.
func part(name string) string { return name + ".part" }

// writeDisks reads the raw image once and writes it to files whose names end in
// their formats, each under its name with .part behind it. m describes what is in
// OVAs, except for the names.
func writeDisks(ctx context.Context, raw string, files []string, m ova.Machine, progress func(done, total int64)) error {
	in, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer in.Close()
	var outputs []vdisk.Output
	var machines []string
	vmdks := map[string]string{} // the files of each OVA's disk
	for _, name := range files {
		format, err := diskFormat(name)
		if err != nil {
			return err
		}
		if format == formatOVA {
			machines = append(machines, name)
			continue
		}
		f, err := create(part(name))
		if err != nil {
			return err
		}
		defer f.Close()
		outputs = append(outputs, vdisk.Output{Format: vdisk.Format(format), File: f, Name: filepath.Base(name)})
		if format == string(vdisk.VMDK) {
			vmdks[strings.TrimSuffix(name, ".vmdk")] = f.Name()
		}
	}
	for _, name := range machines {
		base := strings.TrimSuffix(name, "."+formatOVA)
		if vmdks[base] != "" {
			continue
		}
		f, err := create(part(base + ".vmdk"))
		if err != nil {
			return err
		}
		defer os.Remove(f.Name())
		defer f.Close()
		outputs = append(outputs, vdisk.Output{Format: vdisk.VMDK, File: f, Name: filepath.Base(base) + ".vmdk"})
		vmdks[base] = f.Name()
	}
	if _, err := vdisk.Convert(ctx, in, outputs, progress); err != nil {
		return err
	}
	info, err := in.Stat()
	if err != nil {
		return err
	}
	m.Capacity = (info.Size() + vdisk.SectorSize - 1) / vdisk.SectorSize * vdisk.SectorSize
	for _, name := range machines {
		if err := writeOVA(name, vmdks[strings.TrimSuffix(name, "."+formatOVA)], m); err != nil {
			return err
		}
	}
	return nil
}

// create makes a file anew, over what an interrupted build has left.
func create(name string) (*os.File, error) {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
}

func writeOVA(name, vmdk string, m ova.Machine) error {
	disk, err := os.Open(vmdk)
	if err != nil {
		return err
	}
	defer disk.Close()
	info, err := disk.Stat()
	if err != nil {
		return err
	}
	f, err := create(part(name))
	if err != nil {
		return err
	}
	defer f.Close()
	m.Name = strings.TrimSuffix(filepath.Base(name), "."+formatOVA)
	if err := ova.Write(f, m, disk, info.Size(), imageTime); err != nil {
		return err
	}
	return f.Close()
}

// Convert writes a raw disk image to files whose names end in the formats they
// get. They appear under their names when all of them are whole. An OVA is of a
// machine with as much memory as our images need.
func Convert(ctx context.Context, raw string, files []string, progress func(done, total int64)) error {
	if err := checkConvert(raw, files); err != nil {
		return fmt.Errorf("cannot convert %s: %w", raw, err)
	}
	defer func() {
		for _, f := range files {
			os.Remove(part(f)) // What is published is not there any more.
		}
	}()
	if err := writeDisks(ctx, raw, files, ova.Machine{Product: filepath.Base(raw), Version: "1", Memory: 512 << 20, CPUs: 1, Class: "disk"}, progress); err != nil {
		return fmt.Errorf("cannot convert %s: %w", raw, err)
	}
	for _, f := range files {
		if err := publish(part(f), f); err != nil {
			return err
		}
	}
	return nil
}

// magics begin files that are disks already and no raw images.
var magics = []string{"QFI\xfb", "KDMV", "vhdxfile", "conectix"}

// checkConvert refuses what cannot be meant.
func checkConvert(raw string, files []string) error {
	f, err := os.Open(raw)
	if err != nil {
		return err
	}
	defer f.Close()
	begin := make([]byte, 8)
	n, _ := f.ReadAt(begin, 0)
	for _, m := range magics {
		if strings.HasPrefix(string(begin[:n]), m) {
			return hint.Errorf("qemu-img convert -O raw makes a raw image of it", "it is not a raw image but a disk of another format")
		}
	}
	in, err := f.Stat()
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, name := range files {
		if info, err := os.Stat(name); err == nil && os.SameFile(in, info) {
			return fmt.Errorf("%s would replace it", name)
		}
		if seen[filepath.Clean(name)] {
			return fmt.Errorf("%s is named twice", name)
		}
		seen[filepath.Clean(name)] = true
	}
	return nil
}

// A Content is what VerifyDisk has found in a file.
type Content struct {
	ID   string // the same for disks with the same size and bytes
	Size int64  // bytes, as a guest sees it
}

// VerifyDisk reads a disk image, raw (.img) or in one of the formats that we
// write, from end to end and says what is wrong with it.
func VerifyDisk(name string) (Content, error) {
	c, err := verifyDisk(name)
	if err != nil {
		return Content{}, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

func verifyDisk(name string) (Content, error) {
	f, err := os.Open(name)
	if err != nil {
		return Content{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Content{}, err
	}
	if filepath.Ext(name) == ".img" {
		d, err := vdisk.OpenRaw(f)
		if err != nil {
			return Content{}, err
		}
		id, err := vdisk.Sum(d)
		return Content{id.String(), d.Size()}, err
	}
	format, err := diskFormat(name)
	if err != nil {
		return Content{}, err
	}
	if format != formatOVA {
		id, size, err := vdisk.Format(format).Verify(f, info.Size())
		return Content{id.String(), size}, err
	}
	p, err := ova.Open(f, info.Size())
	if err != nil {
		return Content{}, err
	}
	id, size, err := vdisk.VMDK.Verify(p.Disk, p.Disk.Size())
	if err == nil && size != p.Capacity {
		err = fmt.Errorf("the descriptor says that the disk has %d bytes, the VMDK %d", p.Capacity, size)
	}
	return Content{id.String(), size}, err
}
