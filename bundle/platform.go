package bundle

import (
	"encoding/json"
	"fmt"

	"appplatform/partitions"
)

// PlatformFile is where both systems of an image say what they are.
const PlatformFile = "etc/platform.json"

// A Platform is what the builder tells the device about itself.
type Platform struct {
	Board    string            `json:"board"`
	Arch     string            `json:"arch"`
	Label    string            `json:"label"`
	Scheme   partitions.Scheme `json:"scheme"`
	Boot     string            `json:"boot"`      // boot loader: grub or extlinux
	DiskUUID string            `json:"disk_uuid"` // of the image as it left the factory
	BootUUID string            `json:"boot_uuid"` // PARTUUID of sda1, likewise
	Keys     []string          `json:"keys"`      // minisign public keys that updates may be signed with
	DevKey   bool              `json:"dev_key"`   // one of Keys is a development key
}

// Encode is the text of platform.json.
func (p Platform) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return nil, fmt.Errorf("internal error: %w", err)
	}
	return append(b, '\n'), nil
}

// DecodePlatform reads platform.json.
func DecodePlatform(text []byte) (Platform, error) {
	var p Platform
	if err := decodeStrict(text, &p); err != nil {
		return Platform{}, fmt.Errorf("cannot read /%s: %w", PlatformFile, err)
	}
	if _, err := partitions.ParseScheme(string(p.Scheme)); err != nil {
		return Platform{}, fmt.Errorf("cannot read /%s: %w", PlatformFile, err)
	}
	return p, nil
}
