package gateway

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"appplatform/internal/hint"
)

// Settings are what the pages General and IP hold.
type Settings struct {
	Enabled bool `json:"enabled"` // Enable Linux Support

	// What the firmware starts with. Empty fields mean what the image says.
	Cmdline     string `json:"cmdline"`
	Initrd      string `json:"initrd"`
	RamdiskSize string `json:"ramdisk_size"` // KiB

	IP IP `json:"ip"`
}

// IP is the address that the gateway hands to the platform; without one the
// platform asks a DHCP server. What setip has set on the platform wins.
type IP struct {
	Address string `json:"address"`
	Mask    string `json:"mask"`
	Gateway string `json:"gateway"`
	DNS1    string `json:"dns1"`
	DNS2    string `json:"dns2"`
}

// The values that manuals tell people to type for the rescue system.
const (
	rescueCmdline = "root=/dev/ram0"
	rescueInitrd  = "ramdisk.ext2.xz"
	rescueSize    = "100000"
)

// setEntry makes the fields say what the platform wants to boot.
func (s *Settings) setEntry(rescue bool, p Preset) {
	s.Cmdline, s.Initrd, s.RamdiskSize = "root="+p.Rootfs, "", ""
	if rescue {
		s.Cmdline, s.Initrd, s.RamdiskSize = rescueCmdline, rescueInitrd, rescueSize
	}
}

// wrong names a field as its page does.
func wrong(field, format string, args ...any) error {
	return fmt.Errorf("%s: %w", field, fmt.Errorf(format, args...))
}

// Check says what cannot be right, in the words of the pages.
func (s Settings) Check() error {
	if strings.ContainsAny(s.Cmdline, "\r\n\x00") || len(s.Cmdline) > 1024 {
		return wrong("Kernel command line", "one line of at most 1024 characters")
	}
	if strings.ContainsAny(s.Initrd, " \t\r\n\x00") {
		return hint.Errorf("the rescue system is "+rescueInitrd, "%w", wrong("Initrd file", "%q is not a file name", s.Initrd))
	}
	if s.RamdiskSize != "" {
		if n, err := strconv.ParseUint(s.RamdiskSize, 10, 32); err != nil || n < 1 || n > 1<<20 {
			return hint.Errorf("the rescue system takes "+rescueSize, "%w", wrong("Ramdisk size", "%q is not a number of KiB", s.RamdiskSize))
		}
	}
	return s.IP.check()
}

func (ip IP) check() error {
	if ip.Address == "" {
		if ip != (IP{}) {
			return wrong("IP address", "without one, DHCP gives all the others: empty them or give an address")
		}
		return nil
	}
	addr, err := netip.ParseAddr(ip.Address)
	if err != nil || !addr.Is4() {
		return wrong("IP address", "%q is not an IPv4 address", ip.Address)
	}
	mask, err := netip.ParseAddr(ip.Mask)
	if err != nil || !mask.Is4() || !contiguous(mask) {
		return wrong("Network mask", "%q is not a mask such as 255.255.255.0", ip.Mask)
	}
	for _, f := range []struct{ name, value string }{{"Default gateway", ip.Gateway}, {"DNS server", ip.DNS1}, {"Alternative DNS server", ip.DNS2}} {
		if f.value == "" {
			continue
		}
		if a, err := netip.ParseAddr(f.value); err != nil || !a.Is4() {
			return wrong(f.name, "%q is not an IPv4 address", f.value)
		}
	}
	return nil
}

func contiguous(mask netip.Addr) bool {
	b := mask.As4()
	bits := fmt.Sprintf("%08b%08b%08b%08b", b[0], b[1], b[2], b[3])
	return !strings.Contains(bits, "01") && bits[0] == '1'
}

// argument is how the kernel's own network configuration spells the address
// (Linux: Documentation/admin-guide/nfs/nfsroot.rst); the platform reads it.
func (ip IP) argument() string {
	if ip.Address == "" {
		return ""
	}
	return fmt.Sprintf("ip=%s::%s:%s::eth0:off:%s:%s", ip.Address, ip.Gateway, ip.Mask, ip.DNS1, ip.DNS2)
}

// A bootPlan is what the firmware loads and starts.
type bootPlan struct {
	label          string // of extlinux.conf
	kernel, initrd string // on the boot partition
	options        string
}

// plan works out what the fields mean for the image on the card.
func (s Settings) plan(c bootConfig, exists func(string) bool) (bootPlan, error) {
	words := strings.Fields(s.Cmdline)
	root := ""
	words = slices.DeleteFunc(words, func(w string) bool {
		value, ok := strings.CutPrefix(w, "root=")
		if !ok && !strings.HasPrefix(w, "/dev/") { // Manuals write both.
			return false
		}
		root = value
		if !ok {
			root = w
		}
		return true
	})
	entry, ok := c.entry(c.def)
	if !ok {
		return bootPlan{}, fmt.Errorf("%s has no entry %q", configPath, c.def)
	}
	if root != "" {
		var err error
		if entry, err = c.current(root == "/dev/ram0"); err != nil {
			return bootPlan{}, err
		}
	}
	p := bootPlan{label: entry.label, kernel: entry.kernel, initrd: entry.initrd}
	if s.Initrd != "" {
		p.initrd = s.Initrd
		if !strings.HasPrefix(p.initrd, "/") {
			p.initrd = path.Join(path.Dir(entry.kernel), p.initrd)
		}
	}
	for _, f := range []string{p.kernel, p.initrd} {
		if f != "" && !exists(f) {
			return p, hint.Errorf("Initrd file is "+rescueInitrd+" for the rescue system and empty for the installed one", "there is no file %s on the boot partition", f)
		}
	}
	replace := map[string]string{"root=": root, "ramdisk_size=": s.RamdiskSize}
	var options []string
	for _, w := range strings.Fields(entry.options) {
		for name, value := range replace {
			if value != "" && strings.HasPrefix(w, name) {
				w = name + value
				delete(replace, name)
			}
		}
		options = append(options, w)
	}
	for _, name := range []string{"root=", "ramdisk_size="} {
		if replace[name] != "" {
			options = append(options, name+replace[name])
		}
	}
	options = append(options, words...)
	if ip := s.IP.argument(); ip != "" {
		options = append(options, ip)
	}
	p.options = strings.Join(options, " ")
	return p, nil
}
