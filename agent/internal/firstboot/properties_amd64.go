package firstboot

import (
	"encoding/json"
	"fmt"
	"strings"

	"appplatform/internal/firstbootkeys"
)

// setProperty sets what is one line of text elsewhere: an OVF property, a
// guestinfo variable, a pair of Hyper-V. An empty value is one that nobody has
// filled in.
func (d *Document) setProperty(name, value string) error {
	value = strings.TrimSpace(value)
	texts := map[string]*string{
		"address": &d.Address, "gateway": &d.Gateway, "address6": &d.Address6, "gateway6": &d.Gateway6,
		"hostname": &d.Hostname, "admin_password": &d.AdminPassword, "root_password": &d.RootPassword, "timezone": &d.Timezone,
	}
	switch text := texts[name]; {
	case text != nil:
		*text = value
	case name == "dns":
		d.DNS = strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' || r == ';' })
	case name == "ssh_keys":
		d.SSHKeys = lines(strings.ReplaceAll(value, ";", "\n"))
	case name == "manager":
		if value != "" && !json.Valid([]byte(value)) {
			return fmt.Errorf("%s%s: it is not JSON", firstbootkeys.Prefix, name)
		}
		if value != "" && value != "null" {
			d.Manager = json.RawMessage(value)
		}
	default:
		return fmt.Errorf("there is no setting %.80q", firstbootkeys.Prefix+name)
	}
	return nil
}

// lines are those that are not empty.
func lines(text string) (all []string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			all = append(all, line)
		}
	}
	return all
}

// ours is the name of a setting in what others call it.
func ours(key string) (name string, ok bool) { return strings.CutPrefix(key, firstbootkeys.Prefix) }
