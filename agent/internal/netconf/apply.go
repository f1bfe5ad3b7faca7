package netconf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"appplatform/internal/atomicfile"
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
	if s.Address6.IsValid() {
		if err := setAddress(link, s.Address6, s.Gateway6, familyV6); err != nil {
			return err
		}
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
	return writeResolvConf(root, "", s.DNS)
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
	addrs, err := netlink.AddrList(link, f.number)
	if err != nil {
		return fmt.Errorf("cannot list the addresses of %s: %w", link.Attrs().Name, err)
	}
	for _, a := range addrs {
		if a.Scope == int(netlink.SCOPE_LINK) || a.Flags&unix.IFA_F_PERMANENT == 0 || keep.IsValid() && a.IPNet.String() == keep.String() {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("cannot remove the address %v: %w", a.IPNet, err)
		}
	}
	return nil
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
		"-t", "5", "-T", "2", "-A", "5", "-R"}
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

func stopDHCP(link string) error {
	text, err := os.ReadFile(pidFile(link))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot stop the DHCP client: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil && isDHCP(pid) {
		_ = unix.Kill(pid, unix.SIGTERM)
		for range 50 {
			if !isDHCP(pid) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	_ = os.Remove(pidFile(link))
	return nil
}

// isDHCP makes sure that the number has not passed on to another process.
func isDHCP(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(b), "udhcpc\x00")
}

// A Lease is what the DHCP client tells its script in the environment.
type Lease struct {
	Link    string
	Address netip.Prefix
	Gateway netip.Addr
	Domain  string
	DNS     []netip.Addr
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
	for _, text := range strings.Fields(getenv("dns")) {
		if a, err := netip.ParseAddr(text); err == nil {
			l.DNS = append(l.DNS, a)
		}
	}
	return l, nil
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
		return writeResolvConf(root, l.Domain, l.DNS)
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
	path := filepath.Join(root, ResolvConf)
	if link, err := os.Readlink(path); err == nil {
		if !filepath.IsAbs(link) {
			link = filepath.Join("/", filepath.Dir(ResolvConf), link)
		}
		path = filepath.Join(root, link)
	}
	if old, err := os.ReadFile(path); err == nil && string(old) == b.String() {
		return nil
	}
	return atomicfile.Write(path, []byte(b.String()), 0o644)
}
