package firstboot

import (
	"fmt"
	"strings"
	"testing"

	"appplatform/agent/internal/netconf"
	"appplatform/internal/firstbootkeys"
)

// What openssl passwd -6 and -5 make of "secret", and a key of ssh-keygen's form.
const (
	hash6   = "$6$abc$IdWKNKTJEb8LxY7CGg8YBXlvtfZzFw7Mp/r6niK9YB2mdvgY..TKjv1T..8RadRt2qvUHYRLr/TsVArtr91iR1"
	hash5   = "$5$abc$qsg6EHbUzHQzF1POlD7zUwBINSELQxypPaeDcZe6vH0"
	testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f admin@example"
)

// zones has the columns of tzdata's zone.tab.
const zones = "# code\tcoordinates\tTZ\tcomments\nDE\t+5230+01322\tEurope/Berlin\tmost of Germany\nJP\t+353916+1394441\tAsia/Tokyo\n"

const whole = `{
  "address": "192.0.2.10/24", "gateway": "192.0.2.1", "dns": ["192.0.2.53", "2001:db8::53"],
  "address6": "2001:db8::10/64", "gateway6": "fe80::1", "hostname": "app-1.example.org",
  "admin_password": "` + hash6 + `", "root_password": "` + hash5 + `",
  "ssh_keys": ["` + testKey + `"], "timezone": "Europe/Berlin", "manager": {"domain": "example.org"}
}`

// Every setting is one of the document, and the other way round.
func TestKeys(t *testing.T) {
	d, err := Decode([]byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	text := d.text()
	for _, k := range firstbootkeys.Keys {
		if !strings.Contains(text, `"`+k.Name+`":`) {
			t.Errorf("there is no setting %s in %s", k.Name, text)
		}
	}
	if n := strings.Count(text, `":`) - 1; n != len(firstbootkeys.Keys) { // One is inside the manager's.
		t.Errorf("the document has %d settings; want %d", n, len(firstbootkeys.Keys))
	}
}

func TestCheck(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"everything", whole, ""},
		{"nothing", `{}`, ""},
		{"byte order mark", "\ufeff{}", ""},
		{"DHCP", `{"address": "dhcp", "address6": "auto", "dns": ["192.0.2.53"]}`, ""},
		{"rounds", `{"root_password": "$6$rounds=10000$abc$` + hash6[len("$6$abc$"):] + `"}`, ""},
		{"no password", `{"admin_password": "*", "root_password": "*"}`, ""},
		{"router on the link", `{"address": "192.0.2.10/32", "gateway": "198.51.100.1", "address6": "2001:db8::10/128", "gateway6": "2001:db8:1::1"}`, ""},
		{"UTC", `{"timezone": "UTC"}`, ""},

		{"no JSON", `{"address": }`, "it is not JSON: a mistake at byte 13"},
		{"cut off", `{"address": "192`, "it ends too early"},
		{"list", `[]`, "it is not a JSON object"},
		{"two", `{} {}`, "text behind the closing brace"},
		{"unknown setting", `{"adress": "dhcp"}`, `unknown field "adress"`},
		{"wrong type", `{"dns": "192.0.2.53"}`, "dns: it is of another type"},
		{"no length", `{"address": "192.0.2.10"}`, `address: "192.0.2.10" is neither`},
		{"bad address", `{"address": "10.0.2.300/24"}`, `address: "10.0.2.300/24" is neither`},
		{"network address", `{"address": "192.0.2.0/24"}`, "address: 192.0.2.0 is the address of the network"},
		{"gateway elsewhere", `{"address": "192.0.2.10/24", "gateway": "192.0.3.1"}`, "address: the gateway 192.0.3.1 is outside"},
		{"gateway without address", `{"gateway": "192.0.2.1"}`, "gateway: it needs an address"},
		{"gateway with DHCP", `{"address": "dhcp", "gateway": "192.0.2.1"}`, "gateway: it needs an address"},
		{"gateway6 alone", `{"gateway6": "fe80::1"}`, "gateway6: it needs an address6"},
		{"IPv4 as IPv6", `{"address6": "192.0.2.10/24"}`, "address6: 192.0.2.10 is not an IPv6 address"},
		{"DNS name", `{"dns": ["dns.example"]}`, `dns: "dns.example" is not`},
		{"DNS zone", `{"dns": ["fe80::1%eth0"]}`, "dns: fe80::1%eth0 cannot be"},
		{"DNS empty", `{"dns": [""]}`, `dns: "" is not`},
		{"host name with blank", `{"hostname": "a b"}`, `hostname: "a b" is no host name`},
		{"host name with two lines", `{"hostname": "a\nb"}`, "hostname: "},
		{"host name that is an address", `{"hostname": "192.0.2.10"}`, "hostname: "},
		{"long host name", `{"hostname": "` + strings.Repeat("a.", 32) + `b"}`, "hostname: "},
		{"hyphen", `{"hostname": "-a"}`, "hostname: "},
		{"plain password", `{"admin_password": "Hunter2"}`, "admin_password: it is not a hash"},
		{"password as a number", `{"root_password": 4711}`, "root_password: it is of another type"},
		{"yescrypt", `{"root_password": "$y$j9T$abc$def"}`, "root_password: a $y$ hash cannot be read by the rescue system"},
		{"MD5", `{"root_password": "$1$abc$KfJoH2PZNKyFS1sAWLGaV0"}`, "root_password: it is not a hash"},
		{"hash that is cut off", `{"root_password": "$6$abc$abc"}`, "root_password: it is not a hash"},
		{"hash with a colon", `{"root_password": "$6$a:b$` + hash6[len("$6$abc$"):] + `"}`, "root_password: it is not a hash"},
		{"endless rounds", `{"root_password": "$6$rounds=999999999$abc$` + hash6[len("$6$abc$"):] + `"}`, "rounds"},
		{"rounds with a sign", `{"root_password": "$6$rounds=+5000$abc$` + hash6[len("$6$abc$"):] + `"}`, "rounds"},
		{"rounds with zeros", `{"root_password": "$6$rounds=0005000$abc$` + hash6[len("$6$abc$"):] + `"}`, "rounds"},
		{"gateway that is a group", `{"address": "192.0.2.10/32", "gateway": "224.0.0.1"}`, "address: 224.0.0.1 cannot be the address of a gateway"},
		{"gateway6 that is none", `{"address6": "2001:db8::10/128", "gateway6": "::"}`, "address6: :: cannot be the address of a gateway"},
		{"key of another kind", `{"ssh_keys": ["` + testKey + `", "ssh-dss AAAA"]}`, "ssh_keys: number 2: it does not begin"},
		{"key with options", `{"ssh_keys": ["command=\"x\" ` + testKey + `"]}`, "ssh_keys: number 1: it does not begin"},
		{"key that is cut off", `{"ssh_keys": ["ssh-ed25519 AAAAC3"]}`, "not a whole key"},
		{"key of two lines", `{"ssh_keys": ["` + testKey + `\nssh-rsa x"]}`, "more than one line"},
		{"zone", `{"timezone": "Europe/Atlantis"}`, `timezone: there is no time zone "Europe/Atlantis"`},
		{"zone as a path", `{"timezone": "../../../etc/passwd"}`, "timezone: "},
		{"comment as zone", `{"timezone": "TZ"}`, "timezone: "},
		{"manager", `{"manager": "x"}`, "manager: it is not a JSON object"},
	}
	for _, test := range tests {
		d, err := Decode([]byte(test.text))
		if err == nil {
			_, err = d.Check([]byte(zones))
		}
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v; want %q", test.name, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "unter2") || err != nil && strings.Contains(err.Error(), "4711") {
			t.Errorf("%s: the error tells a password: %v", test.name, err)
		}
	}
	// A serial console takes a second for a thousand letters.
	for _, name := range []string{"address", "address6", "gateway", "hostname", "timezone"} {
		d, err := Decode([]byte(`{"` + name + `": "` + strings.Repeat("a.", Most/4) + `_"}`))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Check(nil); err == nil || len(err.Error()) > 300 {
			t.Errorf("%s: the error has %d letters", name, len(fmt.Sprint(err)))
		}
	}
}

// What is not in the document stays as it was.
func TestNetwork(t *testing.T) {
	const before = "--addr=198.51.100.5/24 --gateway=198.51.100.1 --dns1=198.51.100.53 --addr6=2001:db8:5::5/64"
	for text, want := range map[string]string{
		`{"address": "192.0.2.10/24"}`:                                   "--addr=192.0.2.10/24 --dns1=198.51.100.53 --addr6=2001:db8:5::5/64",
		`{"address": "192.0.2.10/24", "gateway": "192.0.2.1"}`:           "--addr=192.0.2.10/24 --gateway=192.0.2.1 --dns1=198.51.100.53 --addr6=2001:db8:5::5/64",
		`{"address": "dhcp", "address6": "auto"}`:                        "--dhcp",
		`{"dns": ["192.0.2.53"]}`:                                        "--addr=198.51.100.5/24 --gateway=198.51.100.1 --dns1=192.0.2.53 --addr6=2001:db8:5::5/64",
		`{"address6": "2001:db8::10/64", "gateway6": "fe80::1"}`:         "--addr=198.51.100.5/24 --gateway=198.51.100.1 --dns1=198.51.100.53 --addr6=2001:db8::10/64 --gateway6=fe80::1",
		`{"address": "dhcp", "dns": ["192.0.2.53"], "address6": "auto"}`: "--dhcp --dns1=192.0.2.53",
	} {
		old, err := netconf.Change(netconf.Settings{}, netconf.Arguments{Addr: "198.51.100.5/24", Gateway: "198.51.100.1", DNS1: "198.51.100.53", Addr6: "2001:db8:5::5/64"})
		if err != nil || old.String() != before {
			t.Fatalf("%v, %v", old, err)
		}
		d, err := Decode([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		s, err := d.Check(nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Network(old).String(); got != want {
			t.Errorf("%s makes %s; want %s", text, got, want)
		}
	}
}
