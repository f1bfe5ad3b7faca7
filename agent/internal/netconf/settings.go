// Package netconf is the network settings of the machine: their file, what is
// allowed in them, and how they take effect.
package netconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"appplatform/internal/atomicfile"
	"appplatform/internal/smallfile"
)

// File is where the settings are kept, below the root of the machine.
const File = "etc/network.json"

// Settings are what the administrator chose. The zero value means DHCP.
type Settings struct {
	// Address is empty for DHCP.
	Address  netip.Prefix `json:"address,omitzero"`
	Gateway  netip.Addr   `json:"gateway,omitzero"`
	DNS      []netip.Addr `json:"dns,omitempty"`
	Address6 netip.Prefix `json:"address6,omitzero"`
	Gateway6 netip.Addr   `json:"gateway6,omitzero"`
}

// DHCP reports whether the IPv4 address comes from a server.
func (s Settings) DHCP() bool { return !s.Address.IsValid() }

// Load reads the settings below root; without a file, they are what a gateway
// has handed over on the kernel command line, or else DHCP.
func Load(root string) (Settings, error) {
	s, err := LoadFile(filepath.Join(root, File))
	if errors.Is(err, os.ErrNotExist) {
		cmdline, _ := os.ReadFile(filepath.Join(root, "proc/cmdline"))
		return fromCmdline(string(cmdline))
	}
	return s, err
}

// LoadFile reads the settings of a file that may be another system's.
func LoadFile(path string) (Settings, error) {
	text, err := smallfile.Read(path, smallfile.Most)
	if err != nil {
		return Settings{}, fmt.Errorf("cannot read the network settings: %w", err)
	}
	var s Settings
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return Settings{}, fmt.Errorf("cannot read the network settings: /%s: %w", File, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return Settings{}, fmt.Errorf("cannot read the network settings: /%s: text behind the closing brace", File)
	}
	if err := s.Validate(); err != nil {
		return Settings{}, fmt.Errorf("cannot use the network settings: /%s: %w", File, err)
	}
	return s, nil
}

// fromCmdline reads ip=ADDRESS:SERVER:GATEWAY:MASK:HOST:DEVICE:METHOD:DNS1:DNS2
// (Linux: Documentation/admin-guide/nfs/nfsroot.rst) as far as it is about
// addresses.
func fromCmdline(cmdline string) (Settings, error) {
	for _, word := range strings.Fields(cmdline) {
		value, ok := strings.CutPrefix(word, "ip=")
		f := strings.Split(value, ":")
		if !ok || len(f) < 4 || f[0] == "" {
			continue
		}
		f = append(f, make([]string, 9)...)
		s, err := Change(Settings{}, Arguments{Addr: f[0], Gateway: f[2], Mask: f[3], DNS1: f[7], DNS2: f[8]})
		if err != nil {
			return Settings{}, fmt.Errorf("cannot use the address on the kernel command line: %s: %w", word, err)
		}
		return s, nil
	}
	return Settings{}, nil
}

// Save writes the settings to a file.
func (s Settings) Save(path string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("internal error: %w", err)
	}
	return atomicfile.Write(path, append(text, '\n'), 0o644)
}

// Arguments are what setip is called with, as typed.
type Arguments struct {
	Addr, Mask, Gateway, DNS1, DNS2, Addr6, Gateway6 string
	DHCP                                             bool
}

// Change applies the arguments to the settings before. IPv4 and IPv6 are
// changed independently of each other.
func Change(before Settings, a Arguments) (Settings, error) {
	s := before
	v4 := a.Addr != "" || a.Mask != "" || a.Gateway != ""
	switch {
	case a.DHCP && v4:
		return Settings{}, errors.New("--dhcp does not go with --addr, --mask and --gateway")
	case a.DHCP:
		s.Address, s.Gateway, s.DNS = netip.Prefix{}, netip.Addr{}, nil
	case v4:
		var err error
		if s.Address, s.Gateway, err = parse4(a); err != nil {
			return Settings{}, err
		}
	}
	if a.DNS1 != "" || a.DNS2 != "" {
		var err error
		if s.DNS, err = parseDNS(a.DNS1, a.DNS2); err != nil {
			return Settings{}, err
		}
	}
	if err := change6(&s, a); err != nil {
		return Settings{}, err
	}
	return s, s.Validate()
}

func parse4(a Arguments) (netip.Prefix, netip.Addr, error) {
	none := netip.Prefix{}
	text, bits, slash := strings.Cut(a.Addr, "/")
	addr, err := netip.ParseAddr(text)
	if err != nil || !addr.Is4() {
		return none, netip.Addr{}, fmt.Errorf("--addr=%s is not an IPv4 address such as 192.168.1.20", a.Addr)
	}
	if slash && a.Mask != "" {
		return none, netip.Addr{}, errors.New("give the network mask once, as --mask or behind the address")
	}
	mask := a.Mask
	if slash {
		mask = bits
	}
	if mask == "" {
		return none, netip.Addr{}, errors.New("--mask is missing, for example --mask=255.255.255.0")
	}
	n, err := parseMask(mask)
	if err != nil {
		return none, netip.Addr{}, err
	}
	var gateway netip.Addr
	if a.Gateway != "" {
		if gateway, err = netip.ParseAddr(a.Gateway); err != nil || !gateway.Is4() {
			return none, netip.Addr{}, fmt.Errorf("--gateway=%s is not an IPv4 address", a.Gateway)
		}
	}
	return netip.PrefixFrom(addr, n), gateway, nil
}

// parseMask reads 255.255.255.0, 24 or /24.
func parseMask(text string) (int, error) {
	if n, err := strconv.Atoi(strings.TrimPrefix(text, "/")); err == nil {
		if n < 1 || n > 32 {
			return 0, fmt.Errorf("--mask=%s is not between 1 and 32", text)
		}
		return n, nil
	}
	mask, err := netip.ParseAddr(text)
	if err != nil || !mask.Is4() {
		return 0, fmt.Errorf("--mask=%s is not a network mask such as 255.255.255.0", text)
	}
	b := mask.As4()
	value := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n := 0
	for ; value&(1<<31) != 0; value <<= 1 {
		n++
	}
	if value != 0 || n == 0 {
		return 0, fmt.Errorf("--mask=%s is not a network mask: its ones do not stand together on the left", text)
	}
	return n, nil
}

func parseDNS(texts ...string) ([]netip.Addr, error) {
	var servers []netip.Addr
	for _, text := range texts {
		if text == "" {
			continue
		}
		addr, err := netip.ParseAddr(text)
		if err != nil || !canServe(addr) {
			return nil, fmt.Errorf("the DNS server %s is not an IP address", text)
		}
		servers = append(servers, addr)
	}
	return servers, nil
}

// canServe reports whether a DNS server may have the address. What may stand in
// a zone (fe80::1%...) could be more than a word of a configuration file.
func canServe(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && a.Zone() == ""
}

// change6 sets the IPv6 address; --addr6=auto goes back to what the routers
// of the network announce.
func change6(s *Settings, a Arguments) error {
	if a.Addr6 == "" && a.Gateway6 == "" {
		return nil
	}
	if a.Addr6 == "auto" {
		if a.Gateway6 != "" {
			return errors.New("--gateway6 does not go with --addr6=auto")
		}
		s.Address6, s.Gateway6 = netip.Prefix{}, netip.Addr{}
		return nil
	}
	if a.Addr6 != "" {
		prefix, err := netip.ParsePrefix(a.Addr6)
		if err != nil || !prefix.Addr().Is6() || prefix.Addr().Is4In6() {
			return fmt.Errorf("--addr6=%s is not an IPv6 address with prefix length such as 2001:db8::20/64", a.Addr6)
		}
		s.Address6, s.Gateway6 = prefix, netip.Addr{}
	}
	if a.Gateway6 != "" {
		gateway, err := netip.ParseAddr(a.Gateway6)
		if err != nil || !gateway.Is6() || gateway.Is4In6() {
			return fmt.Errorf("--gateway6=%s is not an IPv6 address", a.Gateway6)
		}
		s.Gateway6 = gateway
	}
	return nil
}

// Validate says what would not work.
func (s Settings) Validate() error {
	if err := validate4(s.Address, s.Gateway); err != nil {
		return err
	}
	for _, a := range s.DNS {
		if !canServe(a) {
			return fmt.Errorf("%v cannot be the address of a DNS server", a)
		}
	}
	return validate6(s.Address6, s.Gateway6)
}

func validate4(p netip.Prefix, gateway netip.Addr) error {
	if !p.IsValid() {
		if gateway.IsValid() {
			return errors.New("a gateway needs an address; with DHCP the server names it")
		}
		return nil
	}
	a := p.Addr()
	switch {
	case !a.Is4():
		return fmt.Errorf("%v is not an IPv4 address", a)
	case p.Bits() == 0, a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a.As4()[0] == 0, a.As4()[0] >= 240:
		return fmt.Errorf("%v cannot be the address of a machine", p)
	case p.Bits() < 31 && a == p.Masked().Addr():
		return fmt.Errorf("%v is the address of the network %v itself, not of a machine in it", a, p.Masked())
	case p.Bits() < 31 && a == Broadcast(p):
		return fmt.Errorf("%v is the broadcast address of the network %v", a, p.Masked())
	case !gateway.IsValid():
		return nil
	case !p.IsSingleIP() && !p.Contains(gateway): // Alone in its network, any router is reached on the link.
		return fmt.Errorf("the gateway %v is outside the network %v", gateway, p.Masked())
	case !gateway.Is4(), gateway.IsUnspecified(), gateway.IsMulticast(), gateway.IsLoopback():
		return fmt.Errorf("%v cannot be the address of a gateway", gateway)
	case gateway == a:
		return fmt.Errorf("the gateway %v is this machine itself", gateway)
	case p.Bits() < 31 && (gateway == p.Masked().Addr() || gateway == Broadcast(p)):
		return fmt.Errorf("the gateway %v is the network or broadcast address of %v", gateway, p.Masked())
	}
	return nil
}

func validate6(p netip.Prefix, gateway netip.Addr) error {
	if !p.IsValid() {
		if gateway.IsValid() {
			return errors.New("--gateway6 needs --addr6")
		}
		return nil
	}
	a := p.Addr()
	switch {
	case a.Is4(), a.Is4In6():
		return fmt.Errorf("%v is not an IPv6 address", a)
	case a.IsUnspecified(), a.IsMulticast(), a.IsLoopback(), a.IsLinkLocalUnicast(), p.Bits() == 0:
		return fmt.Errorf("%v cannot be the address of a machine", p)
	case gateway.Zone() != "":
		return fmt.Errorf("the gateway %v names a network card, and there is only one", gateway)
	case !gateway.IsValid() || gateway.Is6() && !gateway.Is4In6() && gateway.IsLinkLocalUnicast():
		return nil
	case !p.IsSingleIP() && !p.Contains(gateway):
		return fmt.Errorf("the gateway %v is outside the network %v", gateway, p.Masked())
	case !gateway.Is6(), gateway.Is4In6(), gateway.IsUnspecified(), gateway.IsMulticast(), gateway.IsLoopback():
		return fmt.Errorf("%v cannot be the address of a gateway", gateway)
	case gateway == a:
		return fmt.Errorf("the gateway %v is this machine itself", gateway)
	}
	return nil
}

// Broadcast is the last address of an IPv4 network.
func Broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}
