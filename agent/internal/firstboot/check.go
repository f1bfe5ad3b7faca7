package firstboot

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"appplatform/agent/internal/netconf"
)

// Settings are a document that was checked. The zero value sets nothing.
type Settings struct {
	Document
	v4, v6, dns bool // what of the network is to be set
	network     netconf.Settings
}

// Empty reports whether nothing is to be set.
func (s Settings) Empty() bool { return len(s.digests()) == 0 }

// digests tell values apart that set something else, by the names under which
// settings are applied. How a document is written does not count.
func (s Settings) digests() map[string]string {
	digests := map[string]string{}
	add := func(name string, set bool, values ...any) {
		if set {
			text, _ := json.Marshal(values) // Check has accepted them.
			sum := sha256.Sum256(text)
			digests[name] = hex.EncodeToString(sum[:])
		}
	}
	n := s.network
	add("ipv4", s.v4, n.Address.String(), n.Gateway.String())
	add("ipv6", s.v6, n.Address6.String(), n.Gateway6.String())
	add("dns", s.dns, n.DNS)
	add("hostname", s.Hostname != "", s.Hostname)
	add("admin_password", s.AdminPassword != "", s.AdminPassword)
	add("root_password", s.RootPassword != "", s.RootPassword)
	add("ssh_keys", len(s.SSHKeys) > 0, s.SSHKeys)
	add("timezone", s.Timezone != "", s.Timezone)
	add("manager", s.Manager != nil, s.Manager)
	return digests
}

// unset leaves one of them as it is on the machine.
func (s *Settings) unset(name string) {
	switch name {
	case "ipv4":
		s.v4 = false
	case "ipv6":
		s.v6 = false
	case "dns":
		s.dns = false
	case "hostname":
		s.Hostname = ""
	case "admin_password":
		s.AdminPassword = ""
	case "root_password":
		s.RootPassword = ""
	case "ssh_keys":
		s.SSHKeys = nil
	case "timezone":
		s.Timezone = ""
	case "manager":
		s.Manager = nil
	}
}

// Check refuses a document as a whole when a part of it could not work. zones has
// the time zones of the device (usr/share/zoneinfo/zone.tab).
func (d Document) Check(zones []byte) (Settings, error) {
	s := Settings{Document: d}
	if err := s.checkNetwork(); err != nil {
		return Settings{}, err
	}
	checks := []struct {
		name string
		set  bool
		err  error
	}{
		{"hostname", d.Hostname != "", checkHostname(d.Hostname)},
		{"admin_password", d.AdminPassword != "", checkHash(d.AdminPassword)},
		{"root_password", d.RootPassword != "", checkHash(d.RootPassword)},
		{"timezone", d.Timezone != "", checkZone(d.Timezone, zones)},
		{"manager", d.Manager != nil, checkManager(d.Manager)},
	}
	for i, key := range d.SSHKeys {
		if err := checkKey(key); err != nil {
			return Settings{}, fmt.Errorf("ssh_keys: number %d: %w", i+1, err)
		}
	}
	for _, c := range checks {
		if c.set && c.err != nil {
			return Settings{}, fmt.Errorf("%s: %w", c.name, c.err)
		}
	}
	return s, nil
}

func (s *Settings) checkNetwork() error {
	d, n := s.Document, &s.network
	s.v4, s.v6, s.dns = d.Address != "", d.Address6 != "", len(d.DNS) > 0
	if err := parsePrefix("address", d.Address, "dhcp", &n.Address); err != nil {
		return err
	}
	if err := parsePrefix("address6", d.Address6, "auto", &n.Address6); err != nil {
		return err
	}
	if err := parseAddr("gateway", d.Gateway, &n.Gateway); err != nil {
		return err
	}
	if err := parseAddr("gateway6", d.Gateway6, &n.Gateway6); err != nil {
		return err
	}
	for _, text := range d.DNS {
		var a netip.Addr
		if err := parseAddr("dns", text, &a); err != nil {
			return err
		}
		n.DNS = append(n.DNS, a)
	}
	switch {
	case d.Gateway != "" && !n.Address.IsValid():
		return errors.New("gateway: it needs an address; with DHCP the server names it")
	case d.Gateway6 != "" && !n.Address6.IsValid():
		return errors.New("gateway6: it needs an address6")
	}
	// One at a time, so that the message can name the field.
	for _, part := range []struct {
		name string
		netconf.Settings
	}{
		{"address", netconf.Settings{Address: n.Address, Gateway: n.Gateway}},
		{"dns", netconf.Settings{DNS: n.DNS}},
		{"address6", netconf.Settings{Address6: n.Address6, Gateway6: n.Gateway6}},
	} {
		if err := part.Validate(); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// parsePrefix reads an address with its prefix length; "" and automatic are none.
func parsePrefix(name, text, automatic string, p *netip.Prefix) (err error) {
	if text == "" || text == automatic {
		return nil
	}
	if *p, err = netip.ParsePrefix(text); err != nil {
		return fmt.Errorf("%s: %.80q is neither an address with prefix length nor %s", name, text, automatic)
	}
	return nil
}

func parseAddr(name, text string, a *netip.Addr) (err error) {
	if text == "" && name != "dns" {
		return nil
	}
	if *a, err = netip.ParseAddr(text); err != nil {
		return fmt.Errorf("%s: %.80q is not an IP address", name, text)
	}
	return nil
}

// Network is what becomes of the network settings that were there before. As
// setip does it, IPv4, IPv6 and DNS servers are set independently, and DHCP
// brings its own servers, unless the document names some.
func (s Settings) Network(before netconf.Settings) netconf.Settings {
	n := before
	if s.v4 {
		n.Address, n.Gateway = s.network.Address, s.network.Gateway
		if !n.Address.IsValid() && len(s.network.DNS) == 0 {
			n.DNS = nil
		}
	}
	if s.v6 {
		n.Address6, n.Gateway6 = s.network.Address6, s.network.Gateway6
	}
	if s.dns {
		n.DNS = s.network.DNS
	}
	return n
}

// checkHostname knows what Linux and the names of the DNS allow.
func checkHostname(name string) error {
	if _, err := netip.ParseAddr(name); err == nil || len(name) > 64 {
		return fmt.Errorf("%.80q is no host name: it is an address, or has more than 64 characters", name)
	}
	for _, label := range strings.Split(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || !only(label, letters+digits+"-") {
			return fmt.Errorf("%.80q is no host name: its parts are letters, digits and hyphens", name)
		}
	}
	return nil
}

const (
	letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	digits  = "0123456789"
	base64s = letters + digits + "./" // of crypt(5)
)

func only(text, allowed string) bool { return strings.Trim(text, allowed) == "" }

// hashes are the kinds of crypt(5) that both systems read, and how long they are.
// The rescue system's busybox knows no newer ones.
var hashes = map[string]int{"5": 43, "6": 86}

// maxRounds keeps a login from taking minutes; the default is 5000.
const maxRounds = 1_000_000

// noPassword in shadow(5) lets nobody in by password; keys still do.
const noPassword = "*"

// checkHash never says what it was given.
func checkHash(hash string) error {
	if hash == noPassword {
		return nil
	}
	if strings.HasPrefix(hash, "$y$") {
		return errors.New("a $y$ hash cannot be read by the rescue system; make one of the kind $6$: openssl passwd -6")
	}
	f := strings.Split(hash, "$")
	if len(f) == 5 && strings.HasPrefix(f[2], "rounds=") {
		text := f[2][len("rounds="):] // "+5000" and "05000" would be a number, too.
		rounds, err := strconv.Atoi(text)
		if err != nil || rounds < 1000 || rounds > maxRounds || !only(text, digits) || text[0] == '0' {
			return fmt.Errorf("its rounds are not between 1000 and %d", maxRounds)
		}
		f = slices.Delete(f, 2, 3)
	}
	if len(f) != 4 || f[0] != "" || hashes[f[1]] == 0 || len(f[2]) > 16 || !only(f[2], base64s) ||
		len(f[3]) != hashes[f[1]] || !only(f[3], base64s) {
		return errors.New("it is not a hash that begins with $5$ or $6$; to make one: openssl passwd -6")
	}
	return nil
}

// keyKinds are those that the SSH servers of both systems know.
var keyKinds = []string{"ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
	"sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"}

// checkKey takes a line of authorized_keys without options: KIND BASE64 COMMENT.
// The key itself begins with its kind once more (RFC 4253, 6.6).
func checkKey(line string) error {
	if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return errors.New("it has more than one line")
	}
	f := strings.Fields(line)
	if len(f) < 2 || !slices.Contains(keyKinds, f[0]) {
		return errors.New("it does not begin with the kind of a key, such as ssh-ed25519")
	}
	b, err := base64.StdEncoding.DecodeString(f[1])
	if err != nil || len(b) < 4+len(f[0]) || int(binary.BigEndian.Uint32(b)) != len(f[0]) || string(b[4:4+len(f[0])]) != f[0] {
		return fmt.Errorf("it is not a whole key of the kind %s", f[0])
	}
	return nil
}

// checkZone looks for a zone in zone.tab, which both systems have: places by
// country, in the third of the columns that tabs part.
func checkZone(zone string, zones []byte) error {
	if zone == "UTC" || zone == "Etc/UTC" {
		return nil
	}
	for line := range strings.Lines(string(zones)) {
		f := strings.Split(strings.TrimSpace(line), "\t")
		if len(f) > 2 && f[2] == zone && line[0] != '#' {
			return nil
		}
	}
	return fmt.Errorf("there is no time zone %.80q; names are such as Europe/Berlin or UTC", zone)
}

func checkManager(text []byte) error {
	var object map[string]json.RawMessage
	if json.Unmarshal(text, &object) != nil {
		return errors.New("it is not a JSON object")
	}
	return nil
}
