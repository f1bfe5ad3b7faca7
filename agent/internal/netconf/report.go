package netconf

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// String is the settings as setip would be called to get them.
func (s Settings) String() string {
	var words []string
	add := func(format string, v any) { words = append(words, fmt.Sprintf(format, v)) }
	if s.DHCP() {
		add("%s", "--dhcp")
	} else {
		add("--addr=%v", s.Address)
		if s.Gateway.IsValid() {
			add("--gateway=%v", s.Gateway)
		}
	}
	for i, a := range s.DNS {
		add(fmt.Sprintf("--dns%d=%%v", i+1), a)
	}
	if s.Address6.IsValid() {
		add("--addr6=%v", s.Address6)
	}
	if s.Gateway6.IsValid() {
		add("--gateway6=%v", s.Gateway6)
	}
	return strings.Join(words, " ")
}

// FirstMAC is the MAC address of the card that Start makes the settings effective
// on. Drivers may still be looking for it.
func FirstMAC(root string) (net.HardwareAddr, error) {
	for attempt := 0; ; attempt++ {
		mac, lowest := "", 0
		cards, _ := filepath.Glob(filepath.Join(root, "sys/class/net/*/device"))
		for _, path := range cards {
			dir := filepath.Dir(path)
			index, err := os.ReadFile(filepath.Join(dir, "ifindex"))
			if err != nil {
				continue // It has just gone.
			}
			address, _ := os.ReadFile(filepath.Join(dir, "address"))
			if n, err := strconv.Atoi(strings.TrimSpace(string(index))); err == nil && (mac == "" || n < lowest) {
				mac, lowest = strings.TrimSpace(string(address)), n
			}
		}
		if mac != "" {
			return net.ParseMAC(mac)
		}
		if attempt == 15 {
			return nil, errors.New("there is no network card")
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// Report tells what is in effect on the first network card.
func Report(root string) (string, error) {
	link, err := firstLink(root)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	state := "down"
	if link.Attrs().RawFlags&1 != 0 { // IFF_UP
		state = "up"
	}
	fmt.Fprintf(&b, "card     %s (%s), %s\n", link.Attrs().Name, link.Attrs().HardwareAddr, state)
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return "", fmt.Errorf("cannot list the addresses of %s: %w", link.Attrs().Name, err)
	}
	for _, a := range addrs {
		fmt.Fprintf(&b, "address  %v\n", a.IPNet)
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return "", fmt.Errorf("cannot list the routes of %s: %w", link.Attrs().Name, err)
	}
	for _, r := range routes {
		if r.Gw != nil {
			fmt.Fprintf(&b, "gateway  %v\n", r.Gw)
		}
	}
	text, _ := os.ReadFile(filepath.Join(root, ResolvConf))
	for line := range strings.Lines(string(text)) {
		if server, ok := strings.CutPrefix(strings.TrimSpace(line), "nameserver "); ok {
			fmt.Fprintf(&b, "dns      %s\n", server)
		}
	}
	return b.String(), nil
}
