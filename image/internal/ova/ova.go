// Package ova writes and reads OVA files: a virtual machine described by an OVF
// document, its disk, and a manifest of both in one tar.
//
// Formats: DMTF DSP0243 1.1 (OVF), whose section 5 wants USTAR with the .ovf
// first and the .mf second; VMware's and VirtualBox's importers for what they
// ask beyond that.
package ova

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"appplatform/internal/hint"
)

// A Machine is what an importer makes. Its disk is a streamOptimized VMDK.
type Machine struct {
	Name    string // of the files, without extension, and of the machine
	Product string
	Version string
	Memory  int64 // bytes
	CPUs    int
	// Capacity is the size of the disk that the guest sees, in bytes.
	Capacity int64
	// Class is what the names of the properties begin with, as the guest sees
	// them: "appplatform" makes "appplatform.address".
	Class      string
	Properties []Property
}

// A Property is a setting that an importer asks for and hands to the guest.
type Property struct {
	Key         string // without dots
	Type        string // of OVF: string
	Label       string
	Description string
	Secret      bool // The value is not shown.
}

// maxMember is the largest file that a USTAR header can tell (12 digits of which
// the last is a space, octal): 8 GiB.
const maxMember = 1<<33 - 1

// Write writes the OVA. disk is the finished VMDK of the given size.
func Write(w io.Writer, m Machine, disk io.ReadSeeker, size int64, when time.Time) error {
	if size > maxMember {
		return hint.Errorf("hand out the .vmdk", "cannot write an OVA: its disk has %d bytes and may have %d", size, int64(maxMember))
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, disk); err != nil {
		return err
	}
	if _, err := disk.Seek(0, io.SeekStart); err != nil {
		return err
	}
	ovf, err := m.descriptor(size)
	if err != nil {
		return err
	}
	manifest := manifestLine(m.Name+".ovf", sha256.Sum256(ovf)) + manifestLine(m.diskName(), [sha256.Size]byte(sum.Sum(nil)))
	t := tar.NewWriter(w)
	for _, f := range []struct {
		name    string
		content io.Reader
		size    int64
	}{
		{m.Name + ".ovf", bytes.NewReader(ovf), int64(len(ovf))},
		{m.Name + ".mf", strings.NewReader(manifest), int64(len(manifest))},
		{m.diskName(), disk, size},
	} {
		err := t.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg, Name: f.name, Size: f.size, Mode: 0o644, ModTime: when, Format: tar.FormatUSTAR,
		})
		if err != nil {
			return err
		}
		if n, err := io.Copy(t, f.content); err != nil || n != f.size {
			return errors.Join(err, fmt.Errorf("internal error: %d of %d bytes of %s", n, f.size, f.name))
		}
	}
	return t.Close()
}

func (m Machine) diskName() string { return m.Name + ".vmdk" }

// manifestLine is in the one spelling that every importer reads.
func manifestLine(name string, sum [sha256.Size]byte) string {
	return fmt.Sprintf("SHA256(%s)= %x\n", name, sum)
}
