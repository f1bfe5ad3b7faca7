package firstboot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// The channels, by the names under which they are logged and remembered.
const (
	USB       = "usb"       // platform.json on a USB stick
	SDA1      = "sda1"      // platform.json on the boot partition
	OVF       = "ovf"       // OVF environment, on a CD or through VMware
	Guestinfo = "guestinfo" // VMware's guestinfo.appplatform.*
	NoCloud   = "cidata"    // a cloud-init drive
	SMBIOS    = "smbios"    // OEM strings
	FwCfg     = "fw_cfg"    // QEMU's firmware configuration
	KVP       = "kvp"       // Hyper-V's key-value pairs
)

// A Channel is one way to tell a machine its configuration. Read returns nil when
// it offers none, and what it has that does not apply to this machine.
type Channel struct {
	Name string
	Read func() (d *Document, ignored []string, err error)
}

// An Offer is the document of a channel.
type Offer struct {
	Channel  string
	Document Document
	Ignored  []string
}

// Choose takes the first channel that offers anything. When that is bad nothing
// is taken: another one could be years old, and nobody has chosen it.
func Choose(channels []Channel) (offer Offer, found bool, err error) {
	for _, c := range channels {
		d, ignored, err := c.Read()
		if err != nil {
			return Offer{Channel: c.Name}, false, err
		}
		if d != nil && !d.Empty() {
			return Offer{c.Name, *d, ignored}, true, nil
		}
	}
	return Offer{}, false, nil
}

// PlatformFile is the document by itself, in the root of a stick or of sda1.
const PlatformFile = "platform.json"

// FromFile reads the document by itself.
func FromFile(disk fs.FS) (*Document, []string, error) {
	text, found, err := read(disk, PlatformFile)
	if !found || err != nil {
		return nil, nil, err
	}
	d, err := Decode(text)
	return &d, nil, err
}

// read reads an ordinary file; a link could lead out of a disk that somebody has
// plugged in. Only what is surely not there is absent: what cannot be read may be
// what somebody wants, and another channel must not take its place.
func read(disk fs.FS, name string) (text []byte, found bool, err error) {
	info, err := fs.Lstat(disk, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("cannot read %s: %w", name, err)
	case !info.Mode().IsRegular():
		return nil, false, fmt.Errorf("%s is not an ordinary file", name)
	}
	f, err := disk.Open(name)
	if err != nil {
		return nil, false, fmt.Errorf("cannot read %s: %w", name, err)
	}
	defer f.Close()
	text, err = io.ReadAll(io.LimitReader(f, Most+1))
	if err != nil {
		return nil, false, fmt.Errorf("cannot read %s: %w", name, err)
	}
	if len(text) > Most {
		return nil, false, fmt.Errorf("%s has more than %d bytes", name, Most)
	}
	return text, true, nil
}
