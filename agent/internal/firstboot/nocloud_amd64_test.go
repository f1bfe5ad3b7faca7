package firstboot

import (
	"net"
	"strings"
	"testing"
	"testing/fstest"
)

// proxmox is a drive as Proxmox VE 8 writes it.
var proxmox = map[string]string{
	"meta-data": "instance-id: 4f2c8b1d\n",
	"user-data": "#cloud-config\nhostname: app-1\nmanage_etc_hosts: true\nfqdn: app-1.example.org\nuser: debian\npassword: " + hash5 + `
ssh_authorized_keys:
  - ` + testKey + `
chpasswd:
  expire: False
users:
  - default
package_upgrade: true
`,
	"network-config": `version: 1
config:
    - type: physical
      name: eth0
      mac_address: 'bc:24:11:6f:3b:a2'
      subnets:
      - type: static
        address: '192.0.2.10'
        netmask: '255.255.255.0'
        gateway: '192.0.2.1'
      - type: static6
        address: '2001:db8::10/64'
        gateway: '2001:db8::1'
    - type: nameserver
      address:
      - '192.0.2.53'
      search:
      - 'example.org'
`,
}

// firstCard is that of the machine.
func firstCard() (net.HardwareAddr, error) { return net.ParseMAC("BC:24:11:6F:3B:A2") }

func drive(files map[string]string) fstest.MapFS {
	disk := fstest.MapFS{}
	for name, text := range files {
		disk[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return disk
}

func TestNoCloud(t *testing.T) {
	tests := []struct {
		name    string
		files   map[string]string
		want    string // as platform.json
		ignored string
	}{
		{"Proxmox", proxmox,
			`{"address": "192.0.2.10/24", "gateway": "192.0.2.1", "dns": ["192.0.2.53"], "address6": "2001:db8::10/64", "gateway6": "2001:db8::1",
			"hostname": "app-1", "admin_password": "` + hash5 + `", "ssh_keys": ["` + testKey + `"]}`,
			"user-data: package_upgrade, user-data: user (the user is admin), network-config: config.search"},
		{"Proxmox, DHCP", map[string]string{"network-config": "version: 1\nconfig:\n- type: physical\n  name: eth0\n  subnets:\n  - type: dhcp4\n  - type: dhcp6\n"},
			`{"address": "dhcp", "address6": "auto"}`, ""},
		{"version 2", map[string]string{"network-config": `
version: 2
ethernets:
  id0:
    match: {macaddress: 'bc:24:11:6f:3b:a2'}
    set-name: eth0
    dhcp4: false
    addresses: [192.0.2.10/24, "2001:db8::10/64", 192.0.2.11/24]
    gateway6: fe80::1
    routes:
      - {to: default, via: 192.0.2.1}
      - {to: 198.51.100.0/24, via: 192.0.2.2}
    nameservers:
      addresses: [192.0.2.53, "2001:db8::53"]
      search: [example.org]
    mtu: 1400
`}, `{"address": "192.0.2.10/24", "gateway": "192.0.2.1", "dns": ["192.0.2.53", "2001:db8::53"], "address6": "2001:db8::10/64", "gateway6": "fe80::1"}`,
			"network-config: ethernets.id0.addresses (more than one address), network-config: ethernets.id0.mtu, network-config: ethernets.id0.nameservers.search, network-config: ethernets.id0.routes (not a default route)"},
		{"version 2 below network, static before DHCP", map[string]string{"network-config": "network:\n  version: 2\n  ethernets:\n    eth0: {dhcp4: true, addresses: [192.0.2.10/24]}\n    eth1: {dhcp4: true}\n"},
			`{"address": "192.0.2.10/24"}`, "network-config: ethernets (there is one network card), network-config: ethernets.eth0.dhcp4 (dhcp beside an address)"},
		{"users", map[string]string{"user-data": "#cloud-config\nusers:\n- name: admin\n  hashed_passwd: " + hash6 + "\n  sudo: ALL\n  ssh_authorized_keys: [" + testKey + "]\n- name: root\n  passwd: " + hash5 + "\n  ssh_authorized_keys: [x]\n- name: guest\n  passwd: hunter2\ntimezone: Europe/Berlin\n"},
			`{"admin_password": "` + hash6 + `", "root_password": "` + hash5 + `", "ssh_keys": ["` + testKey + `"], "timezone": "Europe/Berlin"}`,
			"user-data: users.admin.sudo, user-data: users.root.ssh_authorized_keys, user-data: users (there are the users admin and root)"},
		{"chpasswd", map[string]string{"user-data": "#cloud-config\nchpasswd:\n  list: |\n    root:" + hash6 + "\n    guest:hunter2\n  users:\n  - {name: admin, password: " + hash5 + ", type: hash}\n"},
			`{"root_password": "` + hash6 + `", "admin_password": "` + hash5 + `"}`, "user-data: chpasswd.list (there are the users admin and root)"},
		{"host name of meta-data", map[string]string{"meta-data": "instance-id: i\nlocal-hostname: app-2\n", "user-data": ""}, `{"hostname": "app-2"}`, ""},
		{"script", map[string]string{"user-data": "#!/bin/sh\nrm -rf /\n"}, `{}`, "user-data (it does not begin with #cloud-config)"},
		{"key that moves the cursor", map[string]string{"user-data": "#cloud-config\n\"a\\e[2J\\nb\": 1\n"}, `{}`, "user-data: a[2Jb"},
		{"nothing", nil, `{}`, ""},
		{"host name that is a number", map[string]string{"user-data": "#cloud-config\nhostname: 101\n"}, `{"hostname": "101"}`, ""},
		{"host name that is a date", map[string]string{"user-data": "\ufeff#cloud-config\nhostname: 2024-01-01\n"}, `{"hostname": "2024-01-01"}`, ""},
		{"key that is no text", map[string]string{"user-data": "#cloud-config\n1: x\n? [a]\n: y\nhostname: a\n"}, `{"hostname": "a"}`, "user-data: 1, user-data: a key that is no text"},
		{"alias", map[string]string{"user-data": "#cloud-config\nhostname: &name a\nfqdn: *name\ntimezone: null\n"}, `{"hostname": "a"}`, ""},
		{"no network", map[string]string{"network-config": "network: {config: disabled}\n"}, `{}`, ""},
		{"no network in version 1", map[string]string{"network-config": "version: 1\nconfig: disabled\n"}, `{}`, ""},
		{"no cards", map[string]string{"network-config": "version: 2\nethernets:\n"}, `{}`, ""},
		{"two subnets", map[string]string{"network-config": "version: 1\nconfig:\n- type: physical\n  subnets:\n  - {type: static, address: 192.0.2.10/24, gateway: 192.0.2.1}\n" +
			"  - {type: static, address: 198.51.100.10/24, gateway: 198.51.100.1}\n"}, `{"address": "192.0.2.10/24", "gateway": "192.0.2.1"}`,
			"network-config: config.subnets.address (more than one address), network-config: config.subnets.gateway"},
		{"two gateways", map[string]string{"network-config": "version: 2\nethernets: {eth0: {addresses: [192.0.2.10/24], gateway4: 192.0.2.1, routes: [{to: default, via: 192.0.2.2}]}}\n"},
			`{"address": "192.0.2.10/24", "gateway": "192.0.2.1"}`, "network-config: ethernets.eth0.routes.via (more than one gateway)"},
		{"static before DHCP", map[string]string{"network-config": "version: 1\nconfig:\n- type: physical\n  subnets:\n  - {type: static, address: 192.0.2.10/24}\n  - {type: dhcp4}\n"},
			`{"address": "192.0.2.10/24"}`, "network-config: config.subnets (dhcp beside an address)"},
		{"DHCP before static", map[string]string{"network-config": "version: 1\nconfig:\n- type: physical\n  subnets:\n  - {type: dhcp4}\n  - {type: static, address: 192.0.2.10/24}\n"},
			`{"address": "192.0.2.10/24"}`, ""},
		{"router on the link", map[string]string{"network-config": "version: 1\nconfig:\n- type: physical\n  subnets:\n  - {type: static, address: 192.0.2.10/32, gateway: 198.51.100.1}\n"},
			`{"address": "192.0.2.10/32", "gateway": "198.51.100.1"}`, ""},
		{"DHCP of YAML 1.1", map[string]string{"network-config": "version: 2\nethernets: {eth0: {dhcp4: yes, dhcp6: Off}}\n"}, `{"address": "dhcp"}`, ""},
		{"the card by its MAC address", map[string]string{"network-config": "version: 1\nconfig:\n- type: physical\n  mac_address: 'bc:24:11:00:00:01'\n  subnets: [{type: static, address: 198.51.100.10/24}]\n" +
			"- type: physical\n  mac_address: 'bc:24:11:6f:3b:a2'\n  subnets: [{type: static, address: 192.0.2.10/24}]\n"}, `{"address": "192.0.2.10/24"}`, "network-config: config (there is one network card)"},
		{"the card by its MAC address in version 2", map[string]string{"network-config": "version: 2\nethernets:\n  a: {match: {macaddress: 'bc:24:11:00:00:01'}, dhcp4: true}\n  b: {match: {macaddress: 'bc:24:11:6f:3b:a2'}, addresses: [192.0.2.10/24]}\n"},
			`{"address": "192.0.2.10/24"}`, "network-config: ethernets (there is one network card)"},
		{"locked", map[string]string{"user-data": "#cloud-config\nusers:\n- {name: admin, lock_passwd: true}\n- {name: root, hashed_passwd: " + hash5 + ", lock_passwd: false}\n"},
			`{"admin_password": "*", "root_password": "` + hash5 + `"}`, ""},
	}
	for _, test := range tests {
		d, ignored, err := FromNoCloud(drive(test.files), firstCard)
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if want := settings(t, test.want).Document; d.text() != want.text() {
			t.Errorf("%s says\n%s\nwant\n%s", test.name, d.text(), want.text())
		}
		if got := strings.Join(ignored, ", "); got != test.ignored {
			t.Errorf("%s: ignored is\n%s\nwant\n%s", test.name, got, test.ignored)
		}
	}
}

// What is wrong is said without what it holds; a password that is not a hash is
// refused like everywhere.
func TestNoCloudRefuses(t *testing.T) {
	for name, test := range map[string]struct{ file, text, want string }{
		"no YAML":        {"user-data", "#cloud-config\npassword: \"hunter2\nx", "user-data: it is not YAML: a mistake in line"},
		"alias":          {"user-data", "#cloud-config\npassword: *hunter2\n", "user-data: it is not YAML"},
		"plain":          {"user-data", "#cloud-config\npassword: hunter2\n", "admin_password: it is not a hash"},
		"number":         {"user-data", "#cloud-config\npassword: 4711\n", "admin_password: it is not a hash"},
		"random":         {"user-data", "#cloud-config\nchpasswd:\n  users:\n  - {name: root, type: RANDOM}\n", "chpasswd.users: the password of root is missing"},
		"list of users":  {"user-data", "#cloud-config\nusers: {name: admin}\n", "users: it is not a list"},
		"list":           {"user-data", "#cloud-config\n- a\n", "user-data: "},
		"version":        {"network-config", "version: 3\n", "network-config: version: it is neither 1 nor 2"},
		"subnet":         {"network-config", "version: 1\nconfig:\n- type: physical\n  subnets:\n  - type: bootp\n", `"bootp" is none of`},
		"mask":           {"network-config", "version: 1\nconfig:\n- type: physical\n  subnets:\n  - {type: static, address: 192.0.2.10, netmask: 255.0.255.0}\n", `address: "192.0.2.10/255.0.255.0" is neither`},
		"address":        {"network-config", "version: 2\nethernets: {eth0: {addresses: [192.0.2.300/24]}}\n", `address: "192.0.2.300/24" is neither`},
		"other cards":    {"network-config", "version: 1\nconfig:\n- {type: physical, mac_address: 'bc:24:11:00:00:01', subnets: [{type: dhcp}]}\n", "network-config: config: the first network card of this machine, bc:24:11:6f:3b:a2, is not among"},
		"other cards 2":  {"network-config", "version: 2\nethernets: {a: {match: {macaddress: 'bc:24:11:00:00:01'}, dhcp4: true}}\n", "network-config: ethernets: the first network card"},
		"neither":        {"network-config", "version: 2\nethernets: {a: {dhcp4: maybe}}\n", "ethernets.a.dhcp4: it is neither true nor false"},
		"plain text":     {"user-data", "#cloud-config\nusers:\n- {name: admin, plain_text_passwd: hunter2}\n", "users.admin.plain_text_passwd: passwords are hashes"},
		"text":           {"user-data", "#cloud-config\n- a\n", "user-data: it is not a map"},
		"map of entries": {"network-config", "version: 1\nconfig: [a]\n", "config: an entry is not a map"},
	} {
		d, _, err := FromNoCloud(drive(map[string]string{test.file: test.text}), firstCard)
		if err == nil {
			_, err = d.Check([]byte(zones))
		}
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "4711") {
			t.Errorf("%s: %v; want %q", name, err, test.want)
		}
	}
}
