package ova

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// A Package is an OVA that was opened.
type Package struct {
	Capacity int64 // of the disk, in bytes, by the descriptor
	// Disk is the VMDK inside.
	Disk *io.SectionReader
}

// maxText bounds the descriptor and the manifest, in bytes.
const maxText = 1 << 20

// Open reads an OVA of so many bytes, and says what is wrong with one that this
// package could not have written: order, manifest, and what descriptor and
// members say of each other.
func Open(r io.ReaderAt, size int64) (*Package, error) {
	p, err := open(r, size)
	if err != nil {
		return nil, fmt.Errorf("not a sound OVA: %w", err)
	}
	return p, nil
}

func open(r io.ReaderAt, size int64) (*Package, error) {
	file := io.NewSectionReader(r, 0, size)
	t := tar.NewReader(file)
	var names []string
	var text [2][]byte
	for i := range text {
		h, err := t.Next()
		if err != nil {
			return nil, fmt.Errorf("it has no descriptor and manifest: %w", err)
		}
		if err := checkHeader(h); err != nil || h.Size > maxText {
			return nil, errors.Join(err, fmt.Errorf("%s has %d bytes", h.Name, h.Size))
		}
		if text[i], err = io.ReadAll(t); err != nil {
			return nil, err
		}
		names = append(names, h.Name)
	}
	h, err := t.Next()
	if err != nil {
		return nil, fmt.Errorf("it has no disk: %w", err)
	}
	if err := checkHeader(h); err != nil {
		return nil, err
	}
	names = append(names, h.Name)
	base := strings.TrimSuffix(names[0], ".ovf")
	if names[0] != base+".ovf" || names[1] != base+".mf" || path.Ext(names[2]) != ".vmdk" {
		return nil, fmt.Errorf("its files are %s; they should be an .ovf, its .mf and a .vmdk", strings.Join(names, ", "))
	}
	at, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, t); err != nil {
		return nil, err
	}
	if _, err := t.Next(); err != io.EOF {
		return nil, fmt.Errorf("something follows the disk (%v)", err)
	}
	want := manifestLine(names[0], sha256.Sum256(text[0])) + manifestLine(names[2], [sha256.Size]byte(sum.Sum(nil)))
	if err := compareManifest(text[1], want); err != nil {
		return nil, err
	}
	p := &Package{Disk: io.NewSectionReader(r, at, h.Size)}
	return p, p.readDescriptor(text[0], names[2], h.Size)
}

func checkHeader(h *tar.Header) error {
	if h.Typeflag != tar.TypeReg || h.Format != tar.FormatUSTAR || path.Base(h.Name) != h.Name {
		return fmt.Errorf("%q is not a plain USTAR member", h.Name)
	}
	return nil
}

// compareManifest names the first file whose hash is another one.
func compareManifest(got []byte, want string) error {
	lines := bufio.NewScanner(bytes.NewReader(got))
	for w := range strings.Lines(want) {
		if !lines.Scan() || lines.Text()+"\n" != w {
			name, _, _ := strings.Cut(strings.TrimPrefix(w, "SHA256("), ")")
			return fmt.Errorf("%s is not what the manifest says", name)
		}
	}
	if len(got) != len(want) {
		return errors.New("the manifest has further lines")
	}
	return nil
}

// readDescriptor compares what the descriptor says of the disk.
func (p *Package) readDescriptor(text []byte, name string, size int64) error {
	var e struct {
		XMLName xml.Name `xml:"http://schemas.dmtf.org/ovf/envelope/1 Envelope"`
		Files   []struct {
			ID   string `xml:"http://schemas.dmtf.org/ovf/envelope/1 id,attr"`
			Href string `xml:"http://schemas.dmtf.org/ovf/envelope/1 href,attr"`
			Size int64  `xml:"http://schemas.dmtf.org/ovf/envelope/1 size,attr"`
		} `xml:"References>File"`
		Disks []struct {
			FileRef  string `xml:"http://schemas.dmtf.org/ovf/envelope/1 fileRef,attr"`
			Capacity int64  `xml:"http://schemas.dmtf.org/ovf/envelope/1 capacity,attr"`
			Units    string `xml:"http://schemas.dmtf.org/ovf/envelope/1 capacityAllocationUnits,attr"`
		} `xml:"DiskSection>Disk"`
	}
	if err := xml.Unmarshal(text, &e); err != nil {
		return fmt.Errorf("the descriptor is damaged: %w", err)
	}
	if len(e.Files) != 1 || len(e.Disks) != 1 || e.Files[0].ID != e.Disks[0].FileRef {
		return errors.New("the descriptor does not have one disk in one file")
	}
	if f := e.Files[0]; f.Href != name || f.Size != size {
		return fmt.Errorf("the descriptor says that %s has %d bytes; there is %s with %d", f.Href, f.Size, name, size)
	}
	disk := e.Disks[0]
	var exponent uint
	if n, err := fmt.Sscanf(disk.Units, "byte * 2^%d", &exponent); n != 1 || err != nil || exponent > 40 || disk.Capacity < 0 || disk.Capacity > 1<<60>>exponent {
		return fmt.Errorf("the descriptor says that the disk has %d times %q", disk.Capacity, disk.Units)
	}
	p.Capacity = disk.Capacity << exponent
	return nil
}
