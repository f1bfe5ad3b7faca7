package firstboot

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// networkConfig reads version 1 and 2 of cloud-init's network configuration, as
// far as it is about the addresses of the first network card.
func (c *cloud) networkConfig(n node) {
	m, _ := n.(map[string]any)
	if inner, ok := m["network"].(map[string]any); ok {
		m = inner
	}
	switch fmt.Sprint(m["version"]) {
	case "1":
		c.each(m, "", map[string]func(string, node){"version": nothing, "config": c.networkV1})
	case "2":
		c.each(m, "", map[string]func(string, node){"version": nothing, "renderer": nothing, "ethernets": c.networkV2})
	default:
		if n != nil {
			c.fail("version", "it is neither 1 nor 2")
		}
	}
}

// networkV1 is a list of cards and name servers.
func (c *cloud) networkV1(key string, n node) {
	if c.text(key, stringOnly(n)) == "disabled" {
		return
	}
	cards := 0
	for _, one := range c.list(key, n) {
		m, ok := one.(map[string]any)
		if !ok {
			c.fail(key, "an entry is not a map")
			return
		}
		switch kind := c.text(key+".type", m["type"]); kind {
		case "physical":
			if cards++; cards > 1 {
				c.ignore(key, "there is one network card")
				continue
			}
			c.each(m, key+".", map[string]func(string, node){"type": nothing, "name": nothing, "mac_address": nothing, "subnets": c.subnets})
		case "nameserver":
			c.each(m, key+".", map[string]func(string, node){"type": nothing, "address": c.servers, "interface": nothing})
		default:
			c.ignore(key, "type "+kind)
		}
	}
}

func stringOnly(n node) node {
	if s, ok := n.(string); ok {
		return s
	}
	return nil
}

// subnets are the addresses of a card in version 1.
func (c *cloud) subnets(key string, n node) {
	for _, one := range c.list(key, n) {
		m, ok := one.(map[string]any)
		if !ok {
			c.fail(key, "an entry is not a map")
			return
		}
		known := map[string]func(string, node){"type": nothing, "control": nothing, "dns_nameservers": c.servers}
		switch kind := c.text(key+".type", m["type"]); kind {
		case "dhcp", "dhcp4":
			c.d.Address = "dhcp"
		case "dhcp6", "ipv6_slaac", "ipv6_dhcpv6-stateful", "ipv6_dhcpv6-stateless":
			c.d.Address6 = "auto"
		case "static", "static6":
			known["address"] = func(key string, n node) { c.address(key, withMask(c.text(key, n), c.text(key, m["netmask"]))) }
			known["netmask"] = nothing
			known["gateway"] = c.router
		case "manual":
		default:
			c.fail(key+".type", fmt.Sprintf("%.40q is none of static, static6, dhcp, dhcp6", kind))
		}
		c.each(m, key+".", known)
	}
}

// withMask puts a dotted or counted mask behind an address, as a length.
func withMask(address, mask string) string {
	if strings.Contains(address, "/") || mask == "" {
		return address
	}
	if a, err := netip.ParseAddr(mask); err == nil && a.Is4() {
		b := a.As4()
		n := 0
		for n < 32 && b[n/8]&(0x80>>(n%8)) != 0 {
			n++
		}
		if p, err := netip.AddrFrom4([4]byte{255, 255, 255, 255}).Prefix(n); err == nil && p.Addr() == a {
			mask = fmt.Sprint(n)
		}
	}
	return address + "/" + mask
}

// address takes the first of each family.
func (c *cloud) address(key, text string) {
	to, other := &c.d.Address, "dhcp"
	if strings.Contains(text, ":") {
		to, other = &c.d.Address6, "auto"
	}
	if *to != "" && *to != other && *to != text {
		c.ignore(key, "more than one address")
		return
	}
	*to = text
}

func (c *cloud) router(key string, n node) {
	text := c.text(key, n)
	if strings.Contains(text, ":") {
		c.d.Gateway6 = text
	} else {
		c.d.Gateway = text
	}
}

func (c *cloud) servers(key string, n node) {
	for _, text := range c.texts(key, n) {
		if text != "" && !slices.Contains(c.d.DNS, text) {
			c.d.DNS = append(c.d.DNS, text)
		}
	}
}

// networkV2 is a map of cards; the first by name is the one.
func (c *cloud) networkV2(key string, n node) {
	m, ok := n.(map[string]any)
	if !ok {
		c.fail(key, "it is not a map")
		return
	}
	var names []string
	for name := range m {
		names = append(names, name)
	}
	if slices.Sort(names); len(names) > 1 {
		c.ignore(key, "there is one network card")
	}
	if len(names) == 0 {
		return
	}
	c.each(m[names[0]], key+"."+names[0]+".", map[string]func(string, node){
		"match": nothing, "set-name": nothing, "optional": nothing, "accept-ra": nothing,
		// Before addresses, in the order of the alphabet for dhcp4 as well: a
		// static address counts more.
		"dhcp4": func(_ string, n node) {
			if n == true && c.d.Address == "" {
				c.d.Address = "dhcp"
			}
		},
		"dhcp6": func(_ string, n node) {
			if n == true && c.d.Address6 == "" {
				c.d.Address6 = "auto"
			}
		},
		"addresses": func(key string, n node) {
			for _, one := range c.texts(key, n) {
				c.address(key, one)
			}
		},
		"gateway4":    c.router,
		"gateway6":    c.router,
		"nameservers": func(key string, n node) { c.each(n, key+".", map[string]func(string, node){"addresses": c.servers}) },
		"routes":      c.routes,
	})
}

// routes names the gateway in version 2.
func (c *cloud) routes(key string, n node) {
	for _, one := range c.list(key, n) {
		m, _ := one.(map[string]any)
		switch c.text(key+".to", m["to"]) {
		case "default", "0.0.0.0/0", "::/0":
			c.router(key+".via", m["via"])
		default:
			c.ignore(key, "not a default route")
		}
	}
}
