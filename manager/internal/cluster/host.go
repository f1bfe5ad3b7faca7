package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"appplatform/internal/hint"
)

// A Host is an external database server.
type Host struct {
	Name string // DNS name, IPv4 or IPv6 address without brackets
	Port int    // 0: that of the kind of server
}

// Address is what to connect to.
func (h Host) Address(standardPort int) string {
	port := h.Port
	if port == 0 {
		port = standardPort
	}
	return net.JoinHostPort(h.Name, strconv.Itoa(port))
}

// String is the host as an administrator writes it.
func (h Host) String() string {
	if h.Port != 0 {
		return h.Address(0)
	}
	if strings.Contains(h.Name, ":") {
		return "[" + h.Name + "]"
	}
	return h.Name
}

// ParseHost reads a DNS name, an IPv4 or an IPv6 address, and :PORT behind it if
// there is one. An IPv6 address with a port needs brackets.
func ParseHost(text string) (Host, error) {
	h, err := parseHost(strings.TrimSpace(text))
	if err != nil {
		return Host{}, hint.Errorf("write such as db.example.com, 192.0.2.1:5433, 2001:db8::1 or [2001:db8::1]:5433", "cannot read the database host %q: %w", text, err)
	}
	return h, nil
}

func parseHost(text string) (h Host, err error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return Host{Name: addr.String()}, nil
	}
	host, port, found := text, "", false
	inBrackets := strings.HasPrefix(text, "[")
	if inBrackets {
		if host, port, found = strings.Cut(text[1:], "]"); !found {
			return h, errors.New("the bracket is not closed")
		}
		if addr, err := netip.ParseAddr(host); err != nil || !addr.Is6() {
			return h, errors.New("what is in brackets is no IPv6 address")
		}
		if port, found = strings.CutPrefix(port, ":"); !found && port != "" {
			return h, errors.New("a colon and a port may follow the bracket")
		}
	} else {
		if strings.Count(text, ":") > 1 {
			return h, errors.New("it is no IPv6 address")
		}
		host, port, found = strings.Cut(text, ":")
	}
	if found {
		// Atoi would take signs.
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return h, fmt.Errorf("%q is no port from 1 to 65535", port)
		}
		h.Port = int(n)
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		h.Name = addr.String()
		return h, nil
	}
	h.Name = host
	return h, dnsName(host)
}

// dnsName says why a text is no name of a host (RFC 1123).
func dnsName(name string) error {
	if name == "" {
		return errors.New("it is empty")
	}
	labels := strings.Split(strings.TrimSuffix(name, "."), ".")
	if len(name) > 253 {
		return errors.New("the name is longer than 253 bytes")
	}
	for _, label := range labels {
		switch {
		case label == "" || len(label) > 63:
			return errors.New("a part of the name is empty or longer than 63 bytes")
		case strings.HasPrefix(label, "-") || strings.HasSuffix(label, "-"):
			return errors.New("a part of the name begins or ends with a hyphen")
		case strings.ContainsFunc(label, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
		}):
			return fmt.Errorf("%q has other characters than letters, digits, hyphens and underscores", label)
		}
	}
	if _, err := strconv.Atoi(labels[len(labels)-1]); err == nil {
		return errors.New("it is no IPv4 address, and the last part of a name is no number")
	}
	return nil
}
