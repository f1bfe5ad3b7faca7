package ova

import (
	"bytes"
	_ "embed"
	"encoding/xml"
	"fmt"
	"strings"
	"text/template"
)

//go:embed machine.ovf.tmpl
var templateText string

var descriptorTemplate = template.Must(template.New("ovf").Funcs(template.FuncMap{"x": escape}).Parse(templateText))

func escape(s string) (string, error) {
	var b bytes.Buffer
	err := xml.EscapeText(&b, []byte(s))
	return b.String(), err
}

// descriptor is the OVF document of the machine whose VMDK has so many bytes.
func (m Machine) descriptor(diskSize int64) ([]byte, error) {
	for _, p := range m.Properties {
		if strings.ContainsAny(p.Key, ".: ") { // DSP0243, section 9.5.1
			return nil, fmt.Errorf("internal error: a property named %q", p.Key)
		}
	}
	// Proxmox knows the size of an OVA's disk only in this form of unit.
	exponent := 30
	for m.Capacity%(1<<exponent) != 0 {
		exponent--
	}
	var b bytes.Buffer
	err := descriptorTemplate.Execute(&b, struct {
		Machine
		DiskName string
		Units    int64 // of the capacity
		Exponent int   // of the unit, 2^Exponent bytes
		DiskSize int64
		MiB      int64 // of memory
	}{m, m.diskName(), m.Capacity >> exponent, exponent, diskSize, m.Memory >> 20})
	return b.Bytes(), err
}
