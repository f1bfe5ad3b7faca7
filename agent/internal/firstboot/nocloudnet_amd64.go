package firstboot

import (
	"bytes"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// networkConfig reads version 1 and 2 of cloud-init's network configuration, as
// far as it is about the addresses of the first network card.
func (c *cloud) networkConfig(n node) {
	if inner := fields(n)["network"]; isMap(inner) {
		n = inner
	}
	m := fields(n)
	if config := m["config"]; config != nil && config.Kind == yaml.ScalarNode && config.Value == "disabled" {
		return
	}
	switch c.text("version", m["version"]) {
	case "1":
		c.each(n, "", map[string]func(string, node){"version": nothing, "config": c.networkV1})
	case "2":
		c.each(n, "", map[string]func(string, node){"version": nothing, "renderer": nothing, "ethernets": c.networkV2})
	default:
		if n != nil {
			c.fail("version", "it is neither 1 nor 2")
		}
	}
}

// networkV1 is a list of cards and name servers.
func (c *cloud) networkV1(key string, n node) {
	var cards []card
	for _, one := range c.list(key, n) {
		if !isMap(one) {
			c.fail(key, "an entry is not a map")
			return
		}
		m := fields(one)
		switch kind := c.text(key+".type", m["type"]); kind {
		case "physical":
			cards = append(cards, card{key, one, c.text(key+".mac_address", m["mac_address"])})
		case "nameserver":
			c.each(one, key+".", map[string]func(string, node){"type": nothing, "address": c.servers, "interface": nothing})
		default:
			c.ignore(key, "type "+kind)
		}
	}
	if one, ok := c.firstCard(key, cards); ok {
		c.each(one.n, key+".", map[string]func(string, node){"type": nothing, "name": nothing, "mac_address": nothing, "subnets": c.subnets})
	}
}

// A card is what is said of one, and its MAC address, if that is named.
type card struct {
	key string
	n   node
	mac string
}

// firstCard picks what is said of the first network card, which is the one that the
// machine uses. Names such as eth0 are somebody else's; without a MAC address the
// first entry is meant.
func (c *cloud) firstCard(key string, cards []card) (card, bool) {
	if len(cards) == 0 || c.err != nil {
		return card{}, false
	}
	if len(cards) > 1 {
		c.ignore(key, "there is one network card")
	}
	if !slices.ContainsFunc(cards, func(one card) bool { return one.mac != "" }) {
		return cards[0], true
	}
	mine, err := c.card()
	if err != nil {
		c.fail(key, "it names MAC addresses, and that of this machine is not known: "+err.Error())
		return card{}, false
	}
	for _, one := range cards {
		if mac, err := net.ParseMAC(one.mac); err == nil && bytes.Equal(mac, mine) {
			return one, true
		}
	}
	c.fail(key, "the first network card of this machine, "+mine.String()+", is not among the MAC addresses")
	return card{}, false
}

// subnets are the addresses of a card in version 1.
func (c *cloud) subnets(key string, n node) {
	for _, one := range c.list(key, n) {
		if !isMap(one) {
			c.fail(key, "an entry is not a map")
			return
		}
		m := fields(one)
		known := map[string]func(string, node){"type": nothing, "control": nothing, "dns_nameservers": c.servers}
		switch kind := c.text(key+".type", m["type"]); kind {
		case "dhcp", "dhcp4":
			c.automatic(key, &c.d.Address, "dhcp")
		case "dhcp6", "ipv6_slaac", "ipv6_dhcpv6-stateful", "ipv6_dhcpv6-stateless":
			c.automatic(key, &c.d.Address6, "auto")
		case "static", "static6":
			known["address"], known["netmask"] = nothing, nothing
			if c.address(key+".address", withMask(c.text(key+".address", m["address"]), c.text(key+".netmask", m["netmask"]))) {
				known["gateway"] = c.router
			}
		case "manual":
		default:
			c.fail(key+".type", fmt.Sprintf("%.40q is none of static, static6, dhcp, dhcp6", kind))
		}
		c.each(one, key+".", known)
	}
}

// automatic is what counts unless there is an address.
func (c *cloud) automatic(key string, to *string, word string) {
	if *to != "" && *to != word {
		c.ignore(key, word+" beside an address")
		return
	}
	*to = word
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
func (c *cloud) address(key, text string) (taken bool) {
	to, automatic := &c.d.Address, "dhcp"
	if strings.Contains(text, ":") {
		to, automatic = &c.d.Address6, "auto"
	}
	if *to != "" && *to != automatic && *to != text {
		c.ignore(key, "more than one address")
		return false
	}
	*to = text
	return true
}

// router takes the first of each family.
func (c *cloud) router(key string, n node) {
	text, to := c.text(key, n), &c.d.Gateway
	if strings.Contains(text, ":") {
		to = &c.d.Gateway6
	}
	if *to != "" && *to != text {
		c.ignore(key, "more than one gateway")
		return
	}
	*to = text
}

func (c *cloud) servers(key string, n node) {
	for _, text := range c.texts(key, n) {
		if text != "" && !slices.Contains(c.d.DNS, text) {
			c.d.DNS = append(c.d.DNS, text)
		}
	}
}

// networkV2 is a map of cards.
func (c *cloud) networkV2(key string, n node) {
	if n != nil && !isMap(n) {
		c.fail(key, "it is not a map")
		return
	}
	var cards []card
	all := fields(n)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		where := key + "." + name + "."
		cards = append(cards, card{where, all[name], c.text(where+"match.macaddress", fields(fields(all[name])["match"])["macaddress"])})
	}
	one, ok := c.firstCard(key, cards)
	if !ok {
		return
	}
	c.each(one.n, one.key, map[string]func(string, node){
		"match": nothing, "set-name": nothing, "optional": nothing, "accept-ra": nothing,
		// addresses come before, in the order of the alphabet, and count more.
		"dhcp4": func(key string, n node) {
			if c.isTrue(key, n) {
				c.automatic(key, &c.d.Address, "dhcp")
			}
		},
		"dhcp6": func(key string, n node) {
			if c.isTrue(key, n) {
				c.automatic(key, &c.d.Address6, "auto")
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
		m := fields(one)
		switch c.text(key+".to", m["to"]) {
		case "default", "0.0.0.0/0", "::/0":
			c.router(key+".via", m["via"])
		default:
			c.ignore(key, "not a default route")
		}
	}
}
