package vmtest_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	diskfs "github.com/diskfs/go-diskfs"
	diskfsdisk "github.com/diskfs/go-diskfs/disk"
	"github.com/diskfs/go-diskfs/filesystem"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"golang.org/x/crypto/ssh"

	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
	"appplatform/vmtest"
)

// What the machines here are told. The hashes are those of the passwords, made
// by openssl passwd -6 and -5.
const (
	staticAddress = "10.0.2.77"
	adminPassword = "First-boot-1"
	adminHash     = "$6$firstboot$ooWwWn4DlY3/KLkuCoxlx5eCyrqSa41X1F7k6AsX1hXR9iU.cX/Q7HNWzoKz8lbLw3wbezpDHaawvGjtW0ama/"
	bootPassword  = "First-boot-2"
	bootHash      = "$5$firstboot$P9iy.mK437VSYcrEbpRqZRDHuogg//eRqC6PCr.pD29"
)

// adminKey is a key that always is the same: nobody else reaches the machines.
func adminKey(t *testing.T) (ssh.Signer, string) {
	t.Helper()
	key, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return key, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey())))
}

// platformJSON is everything that a machine can be told.
func platformJSON(t *testing.T) string {
	t.Helper()
	_, line := adminKey(t)
	return fmt.Sprintf(`{"address": "%s/24", "gateway": "10.0.2.2", "dns": ["10.0.2.3"], "hostname": "first-boot", "admin_password": "%s",
		"root_password": "%s", "ssh_keys": ["%s"], "timezone": "Europe/Berlin", "manager": {"domain": "example.org"}}`,
		staticAddress, adminHash, bootHash, line)
}

// cloudInit is the same on a drive as Proxmox makes it, but for the manager.
func cloudInit(t *testing.T) map[string]string {
	t.Helper()
	_, line := adminKey(t)
	return map[string]string{
		"meta-data": "instance-id: 1f2e\n",
		"user-data": fmt.Sprintf("#cloud-config\nhostname: first-boot\nmanage_etc_hosts: true\nuser: admin\npassword: %s\nssh_authorized_keys:\n  - %s\n"+
			"chpasswd:\n  expire: False\n  list: |\n    root:%s\ntimezone: Europe/Berlin\nusers:\n  - default\npackage_upgrade: true\n", adminHash, line, bootHash),
		"network-config": fmt.Sprintf("version: 1\nconfig:\n    - type: physical\n      name: eth0\n      mac_address: '52:54:00:12:34:56'\n      subnets:\n      - type: static\n        address: '%s'\n"+
			"        netmask: '255.255.255.0'\n        gateway: '10.0.2.2'\n    - type: nameserver\n      address:\n      - '10.0.2.3'\n", staticAddress),
	}
}

// ovfEnvironment is the same as properties, on a CD as VMware makes it.
func ovfEnvironment(t *testing.T) map[string]string {
	t.Helper()
	_, line := adminKey(t)
	var b strings.Builder
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>
<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1" xmlns:oe="http://schemas.dmtf.org/ovf/environment/1" oe:id="">
  <PropertySection>
`)
	for _, p := range [][2]string{{"address", staticAddress + "/24"}, {"gateway", "10.0.2.2"}, {"dns", "10.0.2.3"}, {"address6", ""}, {"hostname", "first-boot"},
		{"admin_password", adminHash}, {"root_password", bootHash}, {"ssh_keys", line}, {"timezone", "Europe/Berlin"}, {"manager", "{&quot;domain&quot;: &quot;example.org&quot;}"}} {
		fmt.Fprintf(&b, "    <Property oe:key=\"appplatform.%s\" oe:value=\"%s\"/>\n", p[0], p[1])
	}
	b.WriteString("  </PropertySection>\n</Environment>\n")
	return map[string]string{"ovf-env.xml": b.String()}
}

// Each channel that QEMU can offer: a new machine installs itself and comes up
// with all that it was told, from its first packet on.
func TestFirstBoot(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		channel string
		tell    func(t *testing.T, o *vmtest.Options)
	}{
		{"ovf", func(t *testing.T, o *vmtest.Options) { o.CDs = []string{newCD(t, "OVF ENV", ovfEnvironment(t))} }},
		{"cidata", func(t *testing.T, o *vmtest.Options) { o.CDs = []string{newCD(t, "cidata", cloudInit(t))} }},
		{"smbios", func(t *testing.T, o *vmtest.Options) {
			o.OEM = []string{"other", "app-platform:" + oneLine(platformJSON(t))}
		}},
		{"fw_cfg", func(t *testing.T, o *vmtest.Options) {
			o.FwCfg = map[string]string{"opt/app-platform/platform.json": platformJSON(t)}
		}},
		{"usb", func(t *testing.T, o *vmtest.Options) { o.Sticks = []string{newStick(t, platformJSON(t))} }},
		{"sda1", func(t *testing.T, o *vmtest.Options) { addToBoot(t, o.Disks[0].Path, "platform.json", platformJSON(t)) }},
	} {
		t.Run(test.channel, func(t *testing.T) {
			t.Parallel()
			o := vmtest.Options{Dir: logDir(t), Address: staticAddress, Disks: []vmtest.Disk{{Path: newDisk(t, factoryImage(t), 4*partitions.GiB)}}}
			o.Capture = filepath.Join(o.Dir, "network.pcap")
			test.tell(t, &o)
			m := start(t, o)
			expect(t, m, `first-boot configuration of `+test.channel, menuWithin+bootWithin)
			expect(t, m, `store the first-boot configuration of `+test.channel, installWithin)
			expect(t, m, saysSystem, installWithin)
			expect(t, m, loginPrompt, bootWithin)
			wantNoSecrets(t, m.SerialLog()) // Before what is typed here is in it.
			wantConfigured(t, m, test.channel)
			powerOff(t, m)
			wantOnly(t, o.Capture, staticAddress)
			checkInstalled(t, o.Disks[0].Path)
		})
	}
	t.Run("bad", testFirstBootBad)
	t.Run("once", testFirstBootOnce)
}

// wantNoSecrets reads what a machine has said on its console.
func wantNoSecrets(t *testing.T, path string) {
	t.Helper()
	said, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(said), "first-boot configuration of ") {
		t.Errorf("%s lacks what the machine has said", path)
	}
	for _, secret := range []string{adminHash, bootHash, "example.org"} {
		if strings.Contains(string(said), secret) {
			t.Errorf("the console tells %s", secret)
		}
	}
}

// wantConfigured looks at a machine as its administrator would.
func wantConfigured(t *testing.T, m *vmtest.Machine, channel string) {
	t.Helper()
	r := rootLogin(t, m, bootPassword)
	r.want("ip -4 address show eth0", staticAddress+"/24")
	r.want("ip route", "default via 10.0.2.2")
	r.want("cat /etc/resolv.conf", "10.0.2.3")
	r.want("hostname", "first-boot")
	r.want("getent hosts first-boot", "127.0.1.1")
	r.want("readlink -f /etc/localtime", "Europe/Berlin")
	r.want("date +%Z", "CE") // CET or CEST
	r.want("apagent status", "configured by "+channel)
	r.want("cat /apps/install_step1.log", "store the first-boot configuration of "+channel)
	// 1 is that of a grep that has read all files and found nothing.
	r.want("grep -rlF -e '"+adminHash+"' -e '"+bootHash+"' /apps/install_step1.log /var/log/messages; echo status $?", "status 1")
	if channel != "cidata" {
		r.want("stat -c '%a %U' /etc/manager.json", "600 root")
		r.want("cat /etc/manager.json", "example.org")
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootWithin)
	defer cancel()
	key, _ := adminKey(t)
	byKey, err := vmtest.DialSSHKey(ctx, m.Addr(22), "admin", key)
	if err != nil {
		t.Fatalf("with the key: %v", err)
	}
	byKey.Close()
	byPassword, err := vmtest.DialSSH(ctx, m.Addr(22), "admin", adminPassword)
	if err != nil {
		t.Fatalf("with the password: %v", err)
	}
	byPassword.Close()
	if _, err := vmtest.DialSSH(ctx, m.Addr(22), "admin", "ipapps"); !vmtest.IsRefused(err) {
		t.Errorf("with the password of the image: %v; want a refusal", err)
	}
}

// What is bad is refused as a whole on the console, and the machine asks for an
// address as ever.
func testFirstBootBad(t *testing.T) {
	t.Parallel()
	o := vmtest.Options{Dir: logDir(t), Disks: []vmtest.Disk{{Path: installedDisk(t)}},
		OEM: []string{`app-platform:{"address": "10.0.2.300/24", "hostname": "first-boot"}`}}
	o.Capture = filepath.Join(o.Dir, "network.pcap")
	m := start(t, o)
	expect(t, m, `cannot use the first-boot configuration of smbios: address: "10\.0\.2\.300/24" is neither`, menuWithin+bootWithin)
	expect(t, m, loginPrompt, bootWithin)
	login(t, m)
	r := rootLogin(t, m, rootPassword)
	r.want("ip -4 address show eth0", "10.0.2.15/24")
	r.want("hostname", "app-platform")
	r.want("apagent status", "problem: cannot use the first-boot configuration of smbios")
	powerOff(t, m)
	wantOnly(t, o.Capture, "0.0.0.0", "10.0.2.15")
}

// What people change later stays, until the machine is told something else.
func testFirstBootOnce(t *testing.T) {
	t.Parallel()
	const name = "opt/app-platform/platform.json"
	disk := installedDisk(t)
	run := func(document string, look func(m *vmtest.Machine, r root), addresses ...string) {
		t.Helper()
		o := vmtest.Options{Dir: logDir(t), Disks: []vmtest.Disk{{Path: disk}}, FwCfg: map[string]string{name: document}}
		o.Capture = filepath.Join(o.Dir, "network.pcap")
		m := start(t, o)
		expect(t, m, saysSystem, menuWithin)
		expect(t, m, loginPrompt, bootWithin)
		look(m, rootLogin(t, m, rootPassword))
		powerOff(t, m)
		wantOnly(t, o.Capture, addresses...)
	}
	const first = `{"address": "10.0.2.77/24", "gateway": "10.0.2.2"}`
	run(first, func(m *vmtest.Machine, r root) {
		r.want("ip -4 address show eth0", "10.0.2.77/24")
		r.run("ping -c 1 10.0.2.2")
		r.run("setip --addr=10.0.2.78 --mask=24 --gateway=10.0.2.2")
		r.run("ping -c 1 10.0.2.2")
		send(t, m.Serial, "reboot\n")
		expect(t, m, saysSystem, offWithin+menuWithin)
		expect(t, m, loginPrompt, bootWithin)
		again := rootLogin(t, m, rootPassword)
		again.want("ip -4 address show eth0", "10.0.2.78/24")
	}, "10.0.2.77", "10.0.2.78")
	run(`{"address": "10.0.2.79/24", "gateway": "10.0.2.2"}`, func(_ *vmtest.Machine, r root) {
		r.want("ip -4 address show eth0", "10.0.2.79/24")
		r.run("ping -c 1 10.0.2.2")
	}, "10.0.2.79")
}

// oneLine is a JSON text without line breaks, which firmware does not keep.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// newCD makes a CD with files, with long names in both ways that there are.
func newCD(t *testing.T, label string, files map[string]string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cd.iso")
	d, err := diskfs.Create(path, 4<<20, diskfs.SectorSizeDefault)
	if err != nil {
		t.Fatal(err)
	}
	d.LogicalBlocksize = 2048
	fs, err := d.CreateFilesystem(diskfsdisk.FilesystemSpec{FSType: filesystem.TypeISO9660, VolumeLabel: label})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		f, err := fs.OpenFile(name, os.O_CREATE|os.O_RDWR)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := fs.(*iso9660.FileSystem).Finalize(iso9660.FinalizeOptions{RockRidge: true, Joliet: true, VolumeIdentifier: label}); err != nil {
		t.Fatal(err)
	}
	return path
}

// newStick makes a stick as it is sold, with one partition, and a document on it.
func newStick(t *testing.T, document string) string {
	t.Helper()
	const (
		start = 2048 // in sectors of 512 bytes
		size  = 64 << 20
	)
	dir := t.TempDir()
	path, text := filepath.Join(dir, "stick.img"), filepath.Join(dir, "platform.json")
	mbr := make([]byte, 512)
	entry := mbr[446:]
	entry[4] = 0x0c // FAT32
	binary.LittleEndian.PutUint32(entry[8:], start)
	binary.LittleEndian.PutUint32(entry[12:], size/512-start)
	mbr[510], mbr[511] = 0x55, 0xaa
	for name, b := range map[string][]byte{path: mbr, text: []byte(document)} {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	tool(t, dir, "mkfs.vfat", "-F", "32", "-n", "STICK", fmt.Sprintf("--offset=%d", start), path, fmt.Sprint((size-start*512)/1024))
	tool(t, dir, "mcopy", "-i", fmt.Sprintf("%s@@%d", path, start*512), text, "::/platform.json")
	return path
}

// addToBoot puts a file on the sda1 of a new disk.
func addToBoot(t *testing.T, disk, name, text string) {
	t.Helper()
	file := filepath.Join(filepath.Dir(disk), name)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	boot, _ := readTable(t, disk).Part(partitions.Boot)
	tool(t, filepath.Dir(disk), "debugfs", "-w", "-R", fmt.Sprintf("write %s %s", file, name), on(disk, boot))
	if got := readBoot(t, disk, boot, "/"+name); got != text {
		t.Fatalf("/%s of sda1 is %q", name, got)
	}
}

// tool runs a tool of the tool tree on files of a folder.
func tool(t *testing.T, dir string, args ...string) {
	t.Helper()
	err := testtools.Open(t, tooltree.Image).Run(t.Context(), tooltree.Cmd{Args: args, Env: []string{"MTOOLS_SKIP_CHECK=1"}, Writable: []string{dir}})
	if err != nil {
		t.Fatal(err)
	}
}

// What the tests above are made of, judged by tools and by hand.
func TestFirstBootMedia(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the tools of the archive")
	}
	for label, files := range map[string]map[string]string{"cidata": cloudInit(t), "OVF ENV": ovfEnvironment(t)} {
		iso := newCD(t, label, files)
		if out := judge(t, iso, "blkid", "-p", iso); !strings.Contains(out, fmt.Sprintf("LABEL=%q", label)) || !strings.Contains(out, `TYPE="iso9660"`) {
			t.Errorf("blkid says %s", out)
		}
	}
	stick := newStick(t, platformJSON(t))
	if out := judge(t, stick, "sfdisk", "--verify", stick); !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk says %s", out)
	}
	if out := judge(t, stick, "mtype", "-i", stick+"@@1048576", "::/platform.json"); out != platformJSON(t) {
		t.Errorf("platform.json on the stick is %s", out)
	}
	for password, hash := range map[string]string{adminPassword: adminHash, bootPassword: bootHash} {
		f := strings.Split(hash, "$")
		if out := judge(t, stick, "openssl", "passwd", "-"+f[1], "-salt", f[2], password); strings.TrimSpace(out) != hash {
			t.Errorf("the hash of %s is %s; want %s", password, out, hash)
		}
	}
}
