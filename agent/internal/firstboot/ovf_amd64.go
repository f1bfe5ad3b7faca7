package firstboot

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"

	"appplatform/internal/firstbootkeys"
)

// OVFFile is the environment on the CD that a hypervisor makes (DSP0243, 11.2).
const OVFFile = "ovf-env.xml"

// FromOVF reads the environment on a CD.
func FromOVF(disk fs.FS) (*Document, []string, error) {
	text, found, err := read(disk, OVFFile)
	if !found || err != nil {
		return nil, nil, err
	}
	return decodeOVF(text)
}

// decodeOVF takes the properties of this machine that are ours; those of others
// are nobody's mistake. Attributes have a namespace of their own, whose prefix is
// the hypervisor's choice.
func decodeOVF(text []byte) (*Document, []string, error) {
	var env struct {
		XMLName    xml.Name `xml:"Environment"`
		Properties []struct {
			Key   string `xml:"key,attr"`
			Value string `xml:"value,attr"`
		} `xml:"PropertySection>Property"`
	}
	if err := xml.NewDecoder(bytes.NewReader(text)).Decode(&env); err != nil {
		var syntax *xml.SyntaxError // Its text may quote a password.
		if errors.As(err, &syntax) {
			return nil, nil, fmt.Errorf("the OVF environment is not XML: a mistake in line %d", syntax.Line)
		}
		return nil, nil, errors.New("it is no OVF environment")
	}
	var d Document
	found := false
	for _, p := range env.Properties {
		name, ok := ours(p.Key)
		if !ok {
			continue
		}
		found = true
		if err := d.setProperty(name, p.Value); err != nil {
			return nil, nil, err
		}
	}
	if !found {
		return nil, nil, nil
	}
	return &d, nil, nil
}

// A Guest is what VMware tells a machine, by names.
type Guest interface {
	Get(name string) (value string, found bool, err error)
}

// FromGuestOVF reads the environment that VMware passes on without a CD.
func FromGuestOVF(g Guest) (*Document, []string, error) {
	text, found, err := g.Get("guestinfo.ovfEnv")
	if !found || err != nil || text == "" {
		return nil, nil, err
	}
	return decodeOVF([]byte(text))
}

// FromGuestinfo asks for every setting: there is no list of what there is.
func FromGuestinfo(g Guest) (*Document, []string, error) {
	var d Document
	for _, key := range firstbootkeys.Keys {
		value, found, err := g.Get("guestinfo." + firstbootkeys.Prefix + key.Name)
		if err != nil {
			return nil, nil, err
		}
		if !found {
			continue
		}
		if err := d.setProperty(key.Name, value); err != nil {
			return nil, nil, err
		}
	}
	return &d, nil, nil
}
