package firstboot

import (
	"bytes"
	"encoding/base64"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// oemMark begins the OEM string that is a document, as it is or in base64.
const oemMark = "app-platform:"

// FromSMBIOS reads the OEM strings (type 11) of the firmware; sys is /sys.
func FromSMBIOS(sys fs.FS) (*Document, []string, error) {
	entries, err := fs.Glob(sys, "firmware/dmi/entries/11-*")
	if err != nil {
		return nil, nil, err
	}
	slices.Sort(entries)
	for _, entry := range entries {
		text, found, err := read(sys, path.Join(entry, "raw"))
		if err != nil {
			return nil, nil, err
		}
		if !found {
			continue
		}
		for _, s := range oemStrings(text) {
			if rest, ok := strings.CutPrefix(s, oemMark); ok {
				d, err := decodeOEM(rest)
				return d, nil, err
			}
		}
	}
	return nil, nil, nil
}

// oemStrings are behind the formatted part, whose length is its second byte; each
// ends with a zero, and all of them with one more (DMTF DSP0134, 6.1.3).
func oemStrings(entry []byte) (all []string) {
	if len(entry) < 2 || int(entry[1]) > len(entry) {
		return nil
	}
	for _, s := range bytes.Split(entry[entry[1]:], []byte{0}) {
		if len(s) == 0 {
			break
		}
		all = append(all, string(s))
	}
	return all
}

func decodeOEM(text string) (*Document, error) {
	text = strings.TrimSpace(text)
	if !strings.HasPrefix(text, "{") {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, errors.New("the string behind " + oemMark + " is neither a JSON object nor base64")
		}
		text = string(b)
	}
	d, err := Decode([]byte(text))
	return &d, err
}

// fwCfgFile is where the kernel shows the file opt/app-platform/platform.json.
const fwCfgFile = "firmware/qemu_fw_cfg/by_name/opt/app-platform/platform.json/raw"

// FromFwCfg reads QEMU's firmware configuration; sys is /sys.
func FromFwCfg(sys fs.FS) (*Document, []string, error) {
	text, found, err := read(sys, fwCfgFile)
	if !found || err != nil {
		return nil, nil, err
	}
	d, err := Decode(text)
	return &d, nil, err
}
