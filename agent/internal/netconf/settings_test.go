package netconf

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// OS-C6.
func TestChange(t *testing.T) {
	const static = "--addr=192.168.1.20/24 --gateway=192.168.1.1 --dns1=192.168.1.1"
	tests := []struct {
		name   string
		before string
		args   Arguments
		want   string // what String says, or part of the error
	}{
		{"dotted mask", "", Arguments{Addr: "192.168.1.20", Mask: "255.255.255.0", Gateway: "192.168.1.1", DNS1: "192.168.1.1"}, static},
		{"prefix as mask", "", Arguments{Addr: "192.168.1.20", Mask: "24"}, "--addr=192.168.1.20/24"},
		{"prefix with slash", "", Arguments{Addr: "192.168.1.20", Mask: "/24"}, "--addr=192.168.1.20/24"},
		{"prefix behind address", "", Arguments{Addr: "10.1.2.3/8", DNS1: "10.0.0.1", DNS2: "2001:db8::53"}, "--addr=10.1.2.3/8 --dns1=10.0.0.1 --dns2=2001:db8::53"},
		{"odd mask", "", Arguments{Addr: "10.0.0.5", Mask: "255.255.255.252", Gateway: "10.0.0.6"}, "--addr=10.0.0.5/30 --gateway=10.0.0.6"},
		{"point to point", "", Arguments{Addr: "10.0.0.4", Mask: "31", Gateway: "10.0.0.5"}, "--addr=10.0.0.4/31 --gateway=10.0.0.5"},
		{"back to DHCP", static, Arguments{DHCP: true}, "--dhcp"},
		{"DHCP with own DNS", static, Arguments{DHCP: true, DNS1: "9.9.9.9"}, "--dhcp --dns1=9.9.9.9"},
		{"DNS alone", static, Arguments{DNS1: "1.1.1.1"}, "--addr=192.168.1.20/24 --gateway=192.168.1.1 --dns1=1.1.1.1"},
		{"new address drops the gateway", static, Arguments{Addr: "10.0.0.5", Mask: "24"}, "--addr=10.0.0.5/24 --dns1=192.168.1.1"},
		{"IPv6 beside IPv4", static, Arguments{Addr6: "2001:db8::20/64", Gateway6: "fe80::1"}, static + " --addr6=2001:db8::20/64 --gateway6=fe80::1"},
		{"IPv6 automatic", "6", Arguments{Addr6: "auto"}, "--dhcp"},
		{"DHCP keeps IPv6", "6", Arguments{DHCP: true}, "--dhcp --addr6=2001:db8::9/64"},

		{"not an address", "", Arguments{Addr: "192.168.1", Mask: "24"}, "not an IPv4 address"},
		{"host name", "", Arguments{Addr: "gateway", Mask: "24"}, "not an IPv4 address"},
		{"IPv6 as --addr", "", Arguments{Addr: "2001:db8::20", Mask: "64"}, "not an IPv4 address"},
		{"no mask", "", Arguments{Addr: "192.168.1.20"}, "--mask is missing"},
		{"mask twice", "", Arguments{Addr: "192.168.1.20/24", Mask: "24"}, "give the network mask once"},
		{"mask with holes", "", Arguments{Addr: "192.168.1.20", Mask: "255.0.255.0"}, "do not stand together"},
		{"mask too long", "", Arguments{Addr: "192.168.1.20", Mask: "33"}, "not between 1 and 32"},
		{"mask of zeros", "", Arguments{Addr: "192.168.1.20", Mask: "0.0.0.0"}, "not a network mask"},
		{"mask only", "", Arguments{Mask: "255.255.255.0"}, "not an IPv4 address"},
		{"network address", "", Arguments{Addr: "192.168.1.0", Mask: "24"}, "the address of the network"},
		{"broadcast address", "", Arguments{Addr: "192.168.1.255", Mask: "24"}, "broadcast address"},
		{"loopback", "", Arguments{Addr: "127.0.0.1", Mask: "8"}, "cannot be the address"},
		{"multicast", "", Arguments{Addr: "224.0.0.5", Mask: "24"}, "cannot be the address"},
		{"reserved", "", Arguments{Addr: "250.0.0.5", Mask: "24"}, "cannot be the address"},
		{"gateway elsewhere", "", Arguments{Addr: "192.168.1.20", Mask: "24", Gateway: "192.168.2.1"}, "outside the network"},
		{"gateway is itself", "", Arguments{Addr: "192.168.1.20", Mask: "24", Gateway: "192.168.1.20"}, "this machine itself"},
		{"gateway is broadcast", "", Arguments{Addr: "192.168.1.20", Mask: "24", Gateway: "192.168.1.255"}, "network or broadcast"},
		{"gateway is no address", "", Arguments{Addr: "192.168.1.20", Mask: "24", Gateway: "router"}, "not an IPv4 address"},
		{"DNS is a name", "", Arguments{DHCP: true, DNS1: "dns.example"}, "not an IP address"},
		{"DHCP and address", "", Arguments{DHCP: true, Addr: "192.168.1.20", Mask: "24"}, "does not go with"},
		{"IPv6 without length", "", Arguments{Addr6: "2001:db8::20"}, "with prefix length"},
		{"IPv4 as --addr6", "", Arguments{Addr6: "192.168.1.20/24"}, "not an IPv6 address"},
		{"IPv6 link-local", "", Arguments{Addr6: "fe80::1/64"}, "cannot be the address"},
		{"IPv6 gateway elsewhere", "", Arguments{Addr6: "2001:db8::20/64", Gateway6: "2001:db9::1"}, "outside the network"},
		{"IPv6 gateway alone", "", Arguments{Gateway6: "fe80::1"}, "--gateway6 needs --addr6"},
		{"automatic with gateway", "", Arguments{Addr6: "auto", Gateway6: "fe80::1"}, "does not go with"},
	}
	befores := map[string]Settings{
		"":     {},
		static: {Address: netip.MustParsePrefix("192.168.1.20/24"), Gateway: netip.MustParseAddr("192.168.1.1"), DNS: []netip.Addr{netip.MustParseAddr("192.168.1.1")}},
		"6":    {Address6: netip.MustParsePrefix("2001:db8::9/64")},
	}
	for _, test := range tests {
		s, err := Change(befores[test.before], test.args)
		got := s.String()
		if err != nil {
			got = err.Error()
		}
		ok := got == test.want
		if !strings.HasPrefix(test.want, "--addr=") && !strings.HasPrefix(test.want, "--dhcp") {
			ok = err != nil && strings.Contains(got, test.want)
		}
		if !ok {
			t.Errorf("%s: Change(%+v) = %q; want %q", test.name, test.args, got, test.want)
		}
	}
}

func TestLoad(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if s, err := Load(root); err != nil || !s.DHCP() {
		t.Errorf("Load() without a file = %v, %v; want DHCP", s, err)
	}
	want, err := Change(Settings{}, Arguments{Addr: "10.0.0.5/24", Gateway: "10.0.0.1", DNS1: "10.0.0.2", Addr6: "2001:db8::5/64"})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(root, File)
	if err := want.Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := Load(root)
	if err != nil || got.String() != want.String() {
		t.Errorf("Load() = %v, %v; want %v", got, err, want)
	}
	for text, reason := range map[string]string{
		`{"adress": "10.0.0.5/24"}`:                            "unknown field",
		`{"address": "10.0.0.0/24"}`:                           "the address of the network",
		`{"address": "10.0.0.5/24", "gateway": "10.1.0.1"}`:    "outside the network",
		`{"address": "10.0.0.5"}`:                              "cannot read",
		`{"address6": "2001:db8::5/64"} {"gateway": "fe80::"}`: "text behind",
		"": "cannot read",
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(root); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("Load() of %s = %v; want %q", text, err, reason)
		}
	}
}

func TestParseLease(t *testing.T) {
	env := map[string]string{"interface": "eth0", "ip": "10.0.2.15", "subnet": "255.255.255.0", "mask": "24",
		"router": "10.0.2.2 10.0.2.9", "dns": "10.0.2.3 bad 9.9.9.9", "domain": "example.org",
		"ntpsrv": "10.0.2.4 0.0.0.0 pool"}
	got, err := ParseLease(func(name string) string { return env[name] })
	if err != nil {
		t.Fatal(err)
	}
	want := Lease{"eth0", netip.MustParsePrefix("10.0.2.15/24"), netip.MustParseAddr("10.0.2.2"), "example.org",
		[]netip.Addr{netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("9.9.9.9")},
		[]netip.Addr{netip.MustParseAddr("10.0.2.4")}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("ParseLease() differs (-want +got):\n%s", diff)
	}
	delete(env, "ip")
	if _, err := ParseLease(func(name string) string { return env[name] }); err == nil {
		t.Error("a lease without an address is accepted")
	}
}

func TestWriteResolvConf(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"etc", "run"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/run/resolv.conf", filepath.Join(root, ResolvConf)); err != nil {
		t.Fatal(err)
	}
	servers := []netip.Addr{netip.MustParseAddr("10.0.2.3"), netip.MustParseAddr("9.9.9.9")}
	if err := writeResolvConf(root, "example.org", servers); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(root, "run/resolv.conf"))
	if want := "search example.org\nnameserver 10.0.2.3\nnameserver 9.9.9.9\n"; err != nil || string(got) != want {
		t.Errorf("behind the link is %q, %v; want %q", got, err, want)
	}
	// F1: servers of the manager's settings count besides the network's, now and
	// with the next lease.
	for _, test := range []struct{ more, want string }{
		{"nameserver 192.0.2.53\nnameserver 2001:db8::53\n", "search example.org\nnameserver 10.0.2.3\nnameserver 9.9.9.9\n# set in the manager\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n"},
		{"nameserver 192.0.2.54\noptions debug\nnameserver evil\nnameserver 0.0.0.0\n", "search example.org\nnameserver 10.0.2.3\nnameserver 9.9.9.9\n# set in the manager\nnameserver 192.0.2.54\n"},
		{"", "search example.org\nnameserver 10.0.2.3\nnameserver 9.9.9.9\n"},
	} {
		if err := os.WriteFile(filepath.Join(root, MoreDNS), []byte(test.more), 0o644); err != nil {
			t.Fatal(err)
		}
		for name, change := range map[string]func() error{"UpdateDNS": func() error { return UpdateDNS(root) }, "a lease": func() error { return writeResolvConf(root, "example.org", servers) }} {
			if err := change(); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(filepath.Join(root, "run/resolv.conf")); err != nil || string(got) != test.want {
				t.Errorf("behind %s with %q: %q, %v; want %q", name, test.more, got, err, test.want)
			}
		}
	}
}

// A gateway hands its platform an address on the kernel command line; what
// setip has stored, DHCP as well, counts more.
func TestLoadFromCmdline(t *testing.T) {
	for cmdline, want := range map[string]string{
		"quiet ip=192.168.1.20::192.168.1.1:255.255.255.0::eth0:off:192.168.1.2:9.9.9.9\n": "192.168.1.20/24 192.168.1.1 [192.168.1.2 9.9.9.9]",
		"ip=192.168.1.20:::255.255.255.0":                                                  "192.168.1.20/24 invalid IP []",
		"ip=dhcp":                                                                          "invalid Prefix invalid IP []",
		"quiet":                                                                            "invalid Prefix invalid IP []",
	} {
		root := t.TempDir()
		if err := os.MkdirAll(filepath.Join(root, "proc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "proc/cmdline"), []byte(cmdline), 0o644); err != nil {
			t.Fatal(err)
		}
		s, err := Load(root)
		if got := fmt.Sprintf("%v %v %v", s.Address, s.Gateway, s.DNS); err != nil || got != want {
			t.Errorf("Load() with %q = %v, %v; want %s", cmdline, got, err, want)
		}
		if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := (Settings{}).Save(filepath.Join(root, File)); err != nil {
			t.Fatal(err)
		}
		if s, err := Load(root); err != nil || !s.DHCP() {
			t.Errorf("Load() with stored settings and %q = %v, %v; want DHCP", cmdline, s, err)
		}
	}
	if _, err := fromCmdline("ip=192.168.1.300:::255.255.255.0"); err == nil || !strings.Contains(err.Error(), "192.168.1.300") {
		t.Errorf("fromCmdline() = %v; want what is wrong", err)
	}
}
