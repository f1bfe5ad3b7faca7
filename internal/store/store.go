// Package store is the list of images that a release puts beside them and that
// devices and managers read: linux.json, as the vendor's SDK has it.
package store

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// Name is that of the list's file.
const Name = "linux.json"

// A List says which images there are and which devices they are for.
type List struct {
	Platforms []Platform `json:"platforms"`
	Devices   []Device   `json:"devices"`
}

// A Platform is one version of an image. File names are relative to the list.
type Platform struct {
	ID      string `json:"id"`
	Text    string `json:"text"`
	File    string `json:"file"`             // for a first installation
	Update  string `json:"update,omitempty"` // for a machine that is installed
	Zip     string `json:"zip,omitempty"`
	Version string `json:"version"` // the image's number
}

// A Device is a kind of machine and the platforms that run on it.
type Device struct {
	ID        string   `json:"id"`
	Platforms []string `json:"platforms"`
}

// maxList bounds the size of a list, in bytes.
const maxList = 1 << 20

// Decode reads a list. Fields that it does not know are left to who wrote them.
func Decode(r io.Reader) (List, error) {
	var l List
	if err := json.NewDecoder(io.LimitReader(r, maxList)).Decode(&l); err != nil {
		return List{}, fmt.Errorf("cannot read the list of images: %w", err)
	}
	return l, nil
}

// Encode writes the list as people can read it.
func (l List) Encode() ([]byte, error) {
	text, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("internal error: %w", err)
	}
	return append(text, '\n'), nil
}

// For are the platforms of a device, in the order of the list.
func (l List) For(device string) (platforms []Platform) {
	for _, d := range l.Devices {
		if d.ID != device {
			continue
		}
		for _, p := range l.Platforms {
			if slices.Contains(d.Platforms, p.ID) {
				platforms = append(platforms, p)
			}
		}
	}
	return platforms
}
