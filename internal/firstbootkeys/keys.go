// Package firstbootkeys lists what a machine can be told before its first start,
// for the agent that reads it and for the builder that describes it to a
// hypervisor. It holds values only.
package firstbootkeys

// Prefix stands before the names where others have names, too: OVF properties,
// guestinfo, and the pairs of Hyper-V.
const Prefix = "appplatform."

// A Key is one setting.
type Key struct {
	Name        string // in platform.json, and behind Prefix elsewhere
	Type        string // of the OVF property
	Label       string // what a form of a hypervisor calls it
	Description string
	Secret      bool // not to be shown when it is typed, nor in a log
}

// The settings, in the order in which a form asks for them.
var Keys = []Key{
	{"address", "string", "IPv4 address", `Address with prefix length, such as 192.168.1.20/24, or "dhcp".`, false},
	{"gateway", "string", "IPv4 gateway", "Router of the network, such as 192.168.1.1.", false},
	{"dns", "string", "DNS servers", "Addresses, separated by commas.", false},
	{"address6", "string", "IPv6 address", `Address with prefix length, such as 2001:db8::20/64, or "auto".`, false},
	{"gateway6", "string", "IPv6 gateway", "Router of the network, such as fe80::1.", false},
	{"hostname", "string", "Host name", "Letters, digits, hyphens and dots, at most 64.", false},
	{"admin_password", "string", "Password of admin", "As a hash: the output of openssl passwd -6.", true},
	{"root_password", "string", "Password of root", "As a hash: the output of openssl passwd -6.", true},
	{"ssh_keys", "string", "SSH keys of admin", "Public keys as in authorized_keys, separated by semicolons.", false},
	{"timezone", "string", "Time zone", "A name such as Europe/Berlin.", false},
	{"manager", "string", "Settings of the manager", "A JSON object, which the manager reads.", true},
}
