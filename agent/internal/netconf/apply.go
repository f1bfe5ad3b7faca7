package netconf

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appplatform/internal/atomicfile"
	"appplatform/internal/smallfile"
)

// pidFile is where the DHCP client of an interface leaves its process number.
func pidFile(link string) string { return "/run/udhcpc." + link + ".pid" }

// leaseScript is what the DHCP client calls; it calls this program.
const leaseScript = "/usr/lib/app-platform/udhcpc.script"

// ResolvConf names the DNS servers.
const ResolvConf = "etc/resolv.conf"

// Start makes the settings effective on the first network card. It does not
// wait for a DHCP server.
func Start(root string, s Settings) error {
	if lo, err := netlink.LinkByName("lo"); err == nil {
		if err := netlink.LinkSetUp(lo); err != nil {
			return fmt.Errorf("cannot start the loopback interface: %w", err)
		}
	}
	link, err := firstLink(root)
	if err != nil {
		return err
	}
	name := link.Attrs().Name
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("cannot start %s: %w", name, err)
	}
	if err := start6(link, s); err != nil {
		return err
	}
	if s.DHCP() {
		return startDHCP(name)
	}
	if err := stopDHCP(name); err != nil {
		return err
	}
	if err := setAddress(link, s.Address, s.Gateway, familyV4); err != nil {
		return err
	}
	// Time servers belong to a lease, as DNS servers do.
	return errors.Join(writeResolvConf(root, "", s.DNS), setTimeServers(root, nil))
}

// start6 sets the IPv6 address, or goes back from one to what the routers of
// the network announce.
func start6(link netlink.Link, s Settings) error {
	if s.Address6.IsValid() {
		return setAddress(link, s.Address6, s.Gateway6, familyV6)
	}
	static, err := staticAddrs(link, familyV6)
	if err != nil || len(static) == 0 {
		return err
	}
	if err := flush(link, familyV6); err != nil {
		return err
	}
	if err := removeGateway(link, familyV6); err != nil {
		return err
	}
	// The static gateway has taken the place of an announced one. Switched off
	// and on, the kernel asks the routers again instead of waiting for minutes.
	for _, value := range []string{"1", "0"} {
		path := filepath.Join("/proc/sys/net/ipv6/conf", link.Attrs().Name, "disable_ipv6")
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("cannot ask for an IPv6 address on %s: %w", link.Attrs().Name, err)
		}
	}
	return nil
}

// Stop ends the DHCP client and takes the addresses from the card.
func Stop(root string) error {
	link, err := firstLink(root)
	if err != nil {
		return err
	}
	name := link.Attrs().Name
	if err := stopDHCP(name); err != nil {
		return err
	}
	// IPv6 link-local and announced addresses come and go with the link.
	if err := flush(link, familyV4); err != nil {
		return err
	}
	if err := flush(link, familyV6); err != nil {
		return err
	}
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("cannot stop %s: %w", name, err)
	}
	return nil
}

// A family is IPv4 or IPv6 in netlink's terms.
type family struct {
	number int
	all    netip.Prefix
}

var (
	familyV4 = family{netlink.FAMILY_V4, netip.MustParsePrefix("0.0.0.0/0")}
	familyV6 = family{netlink.FAMILY_V6, netip.MustParsePrefix("::/0")}
)

// setAddress makes p the only address that was set by hand or by DHCP.
func setAddress(link netlink.Link, p netip.Prefix, gateway netip.Addr, f family) error {
	name := link.Attrs().Name
	addr := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is4() && p.Bits() < 31 {
		addr.Broadcast = net.IP(Broadcast(p).AsSlice())
	}
	if err := flushExcept(link, f, p); err != nil {
		return err
	}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("cannot set the address %v on %s: %w", p, name, err)
	}
	if !gateway.IsValid() {
		return removeGateway(link, f)
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(f.all), Gw: net.IP(gateway.AsSlice())}
	if !p.Contains(gateway) {
		route.Flags = int(netlink.FLAG_ONLINK) // Some DHCP servers name such a router.
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("cannot set the gateway %v on %s: %w", gateway, name, err)
	}
	return nil
}

func removeGateway(link netlink.Link, f family) error {
	routes, err := netlink.RouteList(link, f.number)
	if err != nil {
		return fmt.Errorf("cannot list the routes of %s: %w", link.Attrs().Name, err)
	}
	for _, r := range routes {
		if r.Gw == nil || r.Protocol == unix.RTPROT_RA || r.Dst != nil && r.Dst.String() != f.all.String() {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("cannot remove the gateway %v: %w", r.Gw, err)
		}
	}
	return nil
}

func flush(link netlink.Link, f family) error { return flushExcept(link, f, netip.Prefix{}) }

func flushExcept(link netlink.Link, f family, keep netip.Prefix) error {
	addrs, err := staticAddrs(link, f)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if keep.IsValid() && a.IPNet.String() == keep.String() {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("cannot remove the address %v: %w", a.IPNet, err)
		}
	}
	return nil
}

// staticAddrs are the addresses that were set by hand or by DHCP, not those that
// the kernel makes or that routers announce.
func staticAddrs(link netlink.Link, f family) ([]netlink.Addr, error) {
	addrs, err := netlink.AddrList(link, f.number)
	if err != nil {
		return nil, fmt.Errorf("cannot list the addresses of %s: %w", link.Attrs().Name, err)
	}
	return slices.DeleteFunc(addrs, func(a netlink.Addr) bool {
		return a.Scope == int(netlink.SCOPE_LINK) || a.Flags&unix.IFA_F_PERMANENT == 0
	}), nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: net.IP(p.Addr().AsSlice()), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// firstLink is the network card with the lowest number. Drivers may still be
// looking for it when the system starts.
func firstLink(root string) (netlink.Link, error) {
	for attempt := 0; ; attempt++ {
		links, err := netlink.LinkList()
		if err != nil {
			return nil, fmt.Errorf("cannot list the network cards: %w", err)
		}
		var first netlink.Link
		for _, l := range links {
			name := l.Attrs().Name
			if _, err := os.Stat(filepath.Join(root, "sys/class/net", name, "device")); err != nil {
				continue // lo and other interfaces without a card.
			}
			if first == nil || l.Attrs().Index < first.Attrs().Index {
				first = l
			}
		}
		if first != nil {
			return first, nil
		}
		if attempt == 15 {
			return nil, errors.New("cannot start the network: there is no network card")
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// startDHCP leaves busybox's client running on its own: it goes on asking for
// as long as no server answers, and nothing waits for it.
func startDHCP(link string) error {
	if err := stopDHCP(link); err != nil {
		return err
	}
	host, _ := os.Hostname()
	args := []string{"busybox", "udhcpc", "-f", "-S", "-i", link, "-p", pidFile(link), "-s", leaseScript,
		"-t", "5", "-T", "2", "-A", "5", "-R", "-O", "ntpsrv"}
	if host != "" && host != "(none)" {
		args = append(args, "-x", "hostname:"+host)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("cannot start the DHCP client: %w", err)
	}
	defer null.Close()
	busybox, err := findBusybox()
	if err != nil {
		return err
	}
	p, err := os.StartProcess(busybox, args, &os.ProcAttr{
		Env:   append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin"),
		Files: []*os.File{null, null, null},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("cannot start the DHCP client: %w", err)
	}
	return p.Release()
}

func findBusybox() (string, error) {
	for _, path := range []string{"/usr/bin/busybox", "/bin/busybox"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errors.New("cannot start the DHCP client: busybox is missing")
}

// stopDHCP returns when no client of the link runs any more, nor a script of
// it: a late deconfig would take the next address away.
func stopDHCP(link string) error {
	for _, pid := range clients("/proc", link) {
		if err := end(pid, 5*time.Second); err != nil {
			return err
		}
	}
	_ = os.Remove(pidFile(link))
	return nil
}

// end asks a client to end; it gives its lease back and calls its script. When
// that takes too long, both are killed: the client leads a process group, which
// its scripts belong to.
func end(pid int, patience time.Duration) error {
	_ = unix.Kill(pid, unix.SIGTERM)
	if gone(pid, patience) {
		return nil
	}
	_ = unix.Kill(pid, unix.SIGKILL)
	_ = unix.Kill(-pid, unix.SIGKILL)
	if gone(pid, patience) {
		return nil
	}
	return fmt.Errorf("cannot stop the DHCP client: process %d does not end", pid)
}

// gone waits until a process and the group that it leads have ended.
func gone(pid int, patience time.Duration) bool {
	for start := time.Now(); time.Since(start) < patience; time.Sleep(20 * time.Millisecond) {
		if !alive("/proc", strconv.Itoa(pid)) {
			return true
		}
	}
	return false
}

// alive does not count what has ended and only waits for its parent to notice.
func alive(proc, leader string) bool {
	files, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "stat"))
	for _, path := range files {
		b, _ := os.ReadFile(path)
		// 12 (name) STATE PARENT GROUP ...; the name may hold blanks and brackets.
		rest := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(rest) < 3 || rest[0] == "Z" || rest[0] == "X" {
			continue
		}
		if rest[2] == leader || filepath.Base(filepath.Dir(path)) == leader {
			return true
		}
	}
	return false
}

// clients are the DHCP clients of a link, whether or not they have written
// their number to a file yet. A process that has ended has no arguments.
func clients(proc, link string) []int {
	var pids []int
	files, _ := filepath.Glob(filepath.Join(proc, "[0-9]*", "cmdline"))
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(b), "udhcpc\x00") || !strings.Contains(string(b), "\x00-i\x00"+link+"\x00") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// A Lease is what the DHCP client tells its script in the environment.
type Lease struct {
	Link    string
	Address netip.Prefix
	Gateway netip.Addr
	Domain  string
	DNS     []netip.Addr
	NTP     []netip.Addr
}

// ParseLease reads the environment of the script.
func ParseLease(getenv func(string) string) (Lease, error) {
	l := Lease{Link: getenv("interface"), Domain: getenv("domain")}
	addr, err := netip.ParseAddr(getenv("ip"))
	if err != nil {
		return Lease{}, fmt.Errorf("cannot use the DHCP lease: address %q", getenv("ip"))
	}
	bits := 24
	if n, err := strconv.Atoi(getenv("mask")); err == nil && n > 0 && n <= 32 {
		bits = n
	} else if n, err := parseMask(getenv("subnet")); err == nil {
		bits = n
	}
	l.Address = netip.PrefixFrom(addr, bits)
	if routers := strings.Fields(getenv("router")); len(routers) > 0 {
		l.Gateway, _ = netip.ParseAddr(routers[0])
	}
	l.DNS, l.NTP = addresses(getenv("dns")), addresses(getenv("ntpsrv"))
	return l, nil
}

// addresses are those of a list that can be used.
func addresses(list string) []netip.Addr {
	var addrs []netip.Addr
	for _, text := range strings.Fields(list) {
		if a, err := netip.ParseAddr(text); err == nil && !a.IsUnspecified() && !a.IsMulticast() && a.Zone() == "" {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// OnLease does what the DHCP client reports: deconfig, bound or renew. DNS
// servers that the administrator chose count more than the server's.
func OnLease(root, event string, getenv func(string) string) error {
	switch event {
	case "deconfig":
		link, err := netlink.LinkByName(getenv("interface"))
		if err != nil {
			return fmt.Errorf("cannot use the DHCP lease: %w", err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("cannot start %s: %w", link.Attrs().Name, err)
		}
		return flush(link, familyV4)
	case "bound", "renew":
		l, err := ParseLease(getenv)
		if err != nil {
			return err
		}
		link, err := netlink.LinkByName(l.Link)
		if err != nil {
			return fmt.Errorf("cannot use the DHCP lease: %w", err)
		}
		if err := setAddress(link, l.Address, l.Gateway, familyV4); err != nil {
			return err
		}
		if s, err := Load(root); err == nil && len(s.DNS) > 0 {
			l.DNS = s.DNS
		}
		return errors.Join(writeResolvConf(root, l.Domain, l.DNS), setTimeServers(root, l.NTP))
	}
	return nil // leasefail and nak: it goes on asking.
}

// writeResolvConf leaves the file alone when it says the same already, and
// follows a link to where it may be written.
func writeResolvConf(root, domain string, servers []netip.Addr) error {
	var b strings.Builder
	if domain != "" && !strings.ContainsAny(domain, "\n\r") {
		fmt.Fprintf(&b, "search %s\n", domain)
	}
	for _, a := range servers {
		fmt.Fprintf(&b, "nameserver %v\n", a)
	}
	return storeResolvConf(root, b.String())
}

// MoreDNS is a file with DNS servers that the administrator chose besides those of
// the network, one line each as in resolv.conf: the manager's settings.
const MoreDNS = "etc/network-dns.conf"

// moreMark begins what is from there in resolv.conf.
const moreMark = "# set in the manager\n"

// UpdateDNS takes over what that file says now.
func UpdateDNS(root string) error {
	old, err := os.ReadFile(resolvConf(root))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot set the DNS servers: %w", err)
	}
	network, _, _ := strings.Cut(string(old), moreMark)
	return storeResolvConf(root, network)
}

func storeResolvConf(root, text string) error {
	if more := moreDNS(root); more != "" {
		text += moreMark + more
	}
	path := resolvConf(root)
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return nil
	}
	return atomicfile.Write(path, []byte(text), 0o644)
}

// resolvConf is where the file is that the name may be a link to.
func resolvConf(root string) string {
	path := filepath.Join(root, ResolvConf)
	if link, err := os.Readlink(path); err == nil {
		if !filepath.IsAbs(link) {
			link = filepath.Join("/", filepath.Dir(ResolvConf), link)
		}
		path = filepath.Join(root, link)
	}
	return path
}

// moreDNS are the lines of that file that make sense: a few addresses.
func moreDNS(root string) string {
	text, err := smallfile.Read(filepath.Join(root, MoreDNS), 4096)
	if err != nil {
		return ""
	}
	var b strings.Builder
	for line := range strings.Lines(string(text)) {
		if name, address, ok := strings.Cut(strings.TrimSpace(line), " "); ok && name == "nameserver" {
			for _, a := range addresses(address) {
				fmt.Fprintf(&b, "nameserver %v\n", a)
			}
		}
	}
	return b.String()
}
