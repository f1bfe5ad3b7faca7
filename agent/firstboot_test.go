package agent

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/diskfs/go-diskfs"
	diskfsdisk "github.com/diskfs/go-diskfs/disk"
	"github.com/diskfs/go-diskfs/filesystem"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"appplatform/agent/internal/firstboot"
	"appplatform/agent/internal/netconf"
	"appplatform/partitions"
)

// imageEtc is what both systems have in /etc.
var imageEtc = map[string]string{
	"shadow": "root:$6$old$old:20000:0:99999:7:::\nadmin:$6$old$old:20000:0:99999:7:::\n",
	"hosts":  "127.0.0.1\tlocalhost\n127.0.1.1\tapp-platform\n", "hostname": "app-platform\n",
}

// testHash is a password.
const testHash = "$5$abc$qsg6EHbUzHQzF1POlD7zUwBINSELQxypPaeDcZe6vH0"

const platformJSON = `{"address": "192.0.2.10/24", "hostname": "app-1", "admin_password": "` + testHash + `", "timezone": "Europe/Berlin", "manager": {"secret": "hunter2"}}`

// fresh gives the machine an /etc of its image and nothing in memory.
func (m *testMachine) fresh(ramdisk bool) {
	m.t.Helper()
	m.Ramdisk = ramdisk
	must(m.t, os.RemoveAll(m.path("etc")))
	must(m.t, os.RemoveAll(m.path("run/app-platform")))
	writeFiles(m.t, m.path("etc"), imageEtc)
	writeFiles(m.t, m.Root, map[string]string{zoneTable: "DE\t+5230+01322\tEurope/Berlin\n"})
}

// startSystem starts the installed system up to its first-boot configuration,
// with /etc as the overlay would show it.
func (m *testMachine) startSystem() {
	m.t.Helper()
	m.start()
	m.fresh(false)
	must(m.t, os.MkdirAll(m.path("boot"), 0o755))
	must(m.t, os.MkdirAll(m.path("var/lib"), 0o755))
	must(m.t, Mount(m.t.Context(), m.Machine))
	for name, text := range m.upper() {
		writeFiles(m.t, m.path("etc"), map[string]string{name: text})
	}
}

// upper is what was changed in /etc, without links.
func (m *testMachine) upper() map[string]string {
	m.t.Helper()
	files := map[string]string{}
	dir := m.path("content/mnt/sda2/" + etcUpper)
	must(m.t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			var text []byte
			text, err = os.ReadFile(path)
			name, _ := filepath.Rel(dir, path)
			files[name] = string(text)
		}
		return err
	}))
	return files
}

func (m *testMachine) offer(text string) {
	m.t.Helper()
	writeFiles(m.t, m.path("content/mnt/sda1"), map[string]string{firstboot.PlatformFile: text})
}

func (m *testMachine) network() string {
	m.t.Helper()
	s, err := netconf.Load(m.Root)
	must(m.t, err)
	return s.String()
}

// wantStored looks at what the installed system will find.
func (m *testMachine) wantStored(context string) {
	m.t.Helper()
	upper := m.upper()
	for name, want := range map[string]string{"network.json": `"192.0.2.10/24"`, "hostname": "app-1\n", "hosts": "127.0.1.1\tapp-1\n",
		"shadow": "admin:" + testHash + ":20000:", "timezone": "Europe/Berlin\n", "manager.json": "hunter2", firstboot.RecordFile: `"channel": "sda1"`} {
		if !strings.Contains(upper[name], want) {
			m.t.Errorf("%s: %s on sda2 is %q; want %q", context, name, upper[name], want)
		}
	}
	if !strings.Contains(upper["shadow"], "root:$6$old$old:") {
		m.t.Errorf("%s: root's password has changed: %q", context, upper["shadow"])
	}
	if strings.Contains(m.out.String(), "hunter2") || strings.Contains(m.out.String(), testHash) {
		m.t.Errorf("%s: the log tells secrets:\n%s", context, m.out.String())
	}
}

// The network of the ramdisk is set before it starts, and the installation stores
// everything for the system.
func TestFirstBootInstall(t *testing.T) {
	for _, gateway := range []bool{false, true} {
		m := newMachine(t, "sda", 4*partitions.GiB)
		if gateway {
			m = newGateway(t, "sda", 4*partitions.GiB)
		}
		m.fresh(true)
		m.offer(platformJSON)
		must(t, Mount(t.Context(), m.Machine))
		must(t, FirstBoot(t.Context(), m.Machine))
		if got := m.network(); got != "--addr=192.0.2.10/24" {
			t.Errorf("the network of the ramdisk is %s", got)
		}
		if m.Mounted("/"+mediaDir) || m.Mounted("/"+bootDir) {
			t.Errorf("mounted: %v", m.mounted)
		}
		must(t, Start(t.Context(), m.Machine, nobody{}))
		m.checkInstalled("first boot")
		m.wantStored("installed")
		log, err := os.ReadFile(m.path("content/mnt/sda2/" + InstallLog))
		must(t, err)
		if !strings.Contains(string(log), "store the first-boot configuration of sda1") {
			t.Errorf("the install log says\n%s", log)
		}

		m.startSystem()
		must(t, FirstBoot(t.Context(), m.Machine))
		if strings.Contains(m.out.String(), "first-boot") {
			t.Errorf("the installed system applies it again:\n%s", m.out.String())
		}
		if s := GetStatus(t.Context(), m.Machine); s.FirstBoot == nil || s.FirstBoot.Channel != firstboot.SDA1 || len(s.Problems) > 0 {
			t.Errorf("GetStatus() = %+v", s)
		}
	}
}

// The power fails while it is being stored: after any number of files, also between the two
// of a host name or of a time zone, and behind the record, before the installation ends. Memory is gone,
// and the next start does the rest.
func TestFirstBootSurvivesPowerCut(t *testing.T) {
	whole := newMachine(t, "sda", 4*partitions.GiB)
	whole.fresh(true)
	whole.offer(platformJSON)
	must(t, FirstBoot(t.Context(), whole.Machine))
	must(t, Start(t.Context(), whole.Machine, nobody{}))
	stored := whole.upper()
	const zone = "/usr/share/zoneinfo/Europe/Berlin"
	stored["localtime"] = zone
	names := slices.Sorted(maps.Keys(stored))
	if !slices.Contains(names, "hosts") || !slices.Contains(names, "timezone") || names[0] != firstboot.RecordFile {
		t.Fatalf("the files are %v", names)
	}
	names = append(names[1:], names[0]) // The record comes last.
	for n := range len(names) + 1 {
		m := newMachine(t, "sda", 4*partitions.GiB)
		m.fresh(true)
		m.offer(platformJSON)
		must(t, FirstBoot(t.Context(), m.Machine))
		steps, err := PlanInstall(t.Context(), m.Machine)
		must(t, err)
		i := slices.IndexFunc(steps, func(s Step) bool { _, store := s.(storeFirstBoot); return store })
		must(t, Apply(t.Context(), m.Machine, steps[:i]))
		upper := m.path("content/mnt/sda2/" + etcUpper)
		for _, name := range names[:n] {
			if name == "localtime" {
				must(t, os.Symlink(zone, filepath.Join(upper, name)))
			} else {
				writeFiles(t, upper, map[string]string{name: stored[name]})
			}
		}
		if n < len(names) && names[n] == "localtime" {
			must(t, os.Symlink("/cut/off", filepath.Join(upper, ".localtime.new")))
		}
		m.start()
		m.fresh(true)
		must(t, Mount(t.Context(), m.Machine))
		must(t, FirstBoot(t.Context(), m.Machine))
		if got := m.network(); got != "--addr=192.0.2.10/24" {
			t.Errorf("after %d files the network of the ramdisk is %s", n, got)
		}
		must(t, Start(t.Context(), m.Machine, nobody{}))
		m.checkInstalled(fmt.Sprintf("power cut after %d files", n))
		m.wantStored(fmt.Sprintf("power cut after %d files", n))
		if link, err := os.Readlink(filepath.Join(upper, "localtime")); link != zone {
			t.Errorf("after %d files localtime leads to %q, %v", n, link, err)
		}
	}
}

// What cannot be stored keeps no machine from being installed: it is said, and the
// system tries again.
func TestFirstBootNotStored(t *testing.T) {
	m := newMachine(t, "sda", 4*partitions.GiB)
	m.fresh(true)
	m.offer(platformJSON)
	must(t, FirstBoot(t.Context(), m.Machine))
	steps, err := PlanInstall(t.Context(), m.Machine)
	must(t, err)
	i := slices.IndexFunc(steps, func(s Step) bool { _, store := s.(storeFirstBoot); return store })
	must(t, Apply(t.Context(), m.Machine, steps[:i]))
	// Of a machine that was in use.
	writeFiles(t, m.path("content/mnt/sda2/"+etcUpper), map[string]string{"shadow": "root:x:20000:0:99999:7:::\n"})
	must(t, Apply(t.Context(), m.Machine, steps[i:]))
	const want = "cannot use the first-boot configuration of sda1: cannot set the passwords: /etc/shadow lacks admin or root"
	if upper := m.upper(); len(upper) != 1 || !strings.Contains(m.out.String(), want) {
		t.Errorf("stored: %v; the log says\n%s", upper, m.out.String())
	}
	if why, err := os.ReadFile(m.path(refusedFile)); err != nil || !strings.Contains(string(why), want) {
		t.Errorf("the reason is kept as %q, %v", why, err)
	}
}

// What was planned cannot be stored in part: every start would write it again over
// what people have set since.
func TestFirstBootRefusedWhole(t *testing.T) {
	m := installedMachine(t)
	m.startSystem()
	m.offer(platformJSON)
	writeFiles(t, m.path("etc"), map[string]string{"shadow": "root:x:20000:0:99999:7:::\n"})
	if err := FirstBoot(t.Context(), m.Machine); err == nil || m.network() != "--dhcp" {
		t.Errorf("FirstBoot() = %v, and the network is %s", err, m.network())
	}
}

// An image that is written over a machine in use finds on sda2 what was applied
// there, and what people have changed since.
func TestFirstBootOverData(t *testing.T) {
	m := newMachine(t, "sda", 4*partitions.GiB)
	m.fresh(true)
	m.offer(platformJSON)
	must(t, FirstBoot(t.Context(), m.Machine))
	must(t, Start(t.Context(), m.Machine, nobody{}))
	writeFiles(t, m.path("content/mnt/sda2/"+etcUpper), map[string]string{"network.json": `{"address": "192.0.2.77/24"}`})
	writes, err := partitions.Factory(partitions.GPT, 16*partitions.GiB).GPTWrites(nil)
	must(t, err)
	for _, w := range writes {
		if w.Offset < partitions.HeadSize {
			m.writeDisk(int64(w.Offset), w.Data)
		}
	}
	m.start()
	m.fresh(true)
	writeFiles(t, m.path("content/mnt/sda1"), map[string]string{"boot/grub/grub.cfg": "set default=0\nset timeout=2\n"})
	must(t, Mount(t.Context(), m.Machine))
	must(t, FirstBoot(t.Context(), m.Machine))
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.checkInstalled("over data")
	if m.ran("mke2fs") || !strings.Contains(m.out.String(), "store the first-boot configuration of sda1\nit was applied before\n") {
		t.Errorf("formatted: %v; the log says\n%s", m.ran("mke2fs"), m.out.String())
	}
	if got := m.upper()["network.json"]; !strings.Contains(got, "192.0.2.77") {
		t.Errorf("the network on sda2 is %s; want what was changed", got)
	}
}

// What people change later stays, until the document says something else.
func TestFirstBootOnce(t *testing.T) {
	m := installedMachine(t)
	m.startSystem()
	m.offer(platformJSON)
	must(t, FirstBoot(t.Context(), m.Machine))
	if got := m.network(); got != "--addr=192.0.2.10/24" {
		t.Fatalf("the network is %s", got)
	}
	if log, err := os.ReadFile(m.path("content/mnt/sda2/" + InstallLog)); err != nil || !strings.Contains(string(log), "first-boot configuration of sda1") || lastLine(m.path("content/mnt/sda2/"+InstallLog)) != finished {
		t.Errorf("the install log says\n%s, %v", log, err)
	}
	s, err := changedSettings(m.Root, NetworkArguments{Addr: "192.0.2.77/24"})
	must(t, err)
	must(t, s.Save(m.path(netconf.File)))
	m.out.Reset()
	must(t, FirstBoot(t.Context(), m.Machine))
	if got := m.network(); got != "--addr=192.0.2.77/24" || m.out.Len() > 0 {
		t.Errorf("after setip the network is %s, and the log says %q", got, m.out.String())
	}
	// As a hypervisor does it that writes its drive anew with each start.
	m.offer(strings.Replace(strings.Replace(platformJSON, "app-1", "app-2", 1), "}}", `}, "dns": ["192.0.2.53"]}`, 1))
	writeFiles(t, m.path("etc"), map[string]string{"shadow": "root:x:20000:0:99999:7:::\nadmin:changed:20000:0:99999:7:::\n"})
	must(t, FirstBoot(t.Context(), m.Machine))
	name, err := os.ReadFile(m.path("etc/hostname"))
	must(t, err)
	shadow, err := os.ReadFile(m.path("etc/shadow"))
	if got := m.network(); err != nil || got != "--addr=192.0.2.77/24 --dns1=192.0.2.53" || string(name) != "app-2\n" || !strings.Contains(string(shadow), "admin:changed:") {
		t.Errorf("another name and a DNS server make the network %s, the name %q, the passwords %q, %v", got, name, shadow, err)
	}
	m.offer(`{"hostname": "app-3"}`)
	must(t, FirstBoot(t.Context(), m.Machine))
	name, err = os.ReadFile(m.path("etc/hostname"))
	if got := m.network(); got != "--addr=192.0.2.77/24 --dns1=192.0.2.53" || string(name) != "app-3\n" {
		t.Errorf("a document without an address makes the network %s, the name %q, %v", got, name, err)
	}
}

// A bad document changes nothing, is said on the console with its way out, and
// stays a problem of the machine.
func TestFirstBootRefused(t *testing.T) {
	m := installedMachine(t)
	m.startSystem()
	m.offer(`{"address": "192.0.2.10/24", "hostname": "app-1", "root_password": "hunter2"}`)
	err := FirstBoot(t.Context(), m.Machine)
	const want = "cannot use the first-boot configuration of sda1: root_password: it is not a hash"
	if err == nil || !strings.Contains(m.out.String(), want) || !strings.Contains(m.out.String(), "\nhint: correct it") || strings.Contains(m.out.String(), "hunter2") {
		t.Errorf("FirstBoot() = %v, and the console shows %q; want %q", err, m.out.String(), want)
	}
	if got := m.network(); got != "--dhcp" {
		t.Errorf("the network is %s; want DHCP", got)
	}
	for name, text := range imageEtc {
		if got, err := os.ReadFile(m.path("etc/" + name)); err != nil || string(got) != text {
			t.Errorf("/etc/%s is %q, %v; want it as it was", name, got, err)
		}
	}
	if s := GetStatus(t.Context(), m.Machine); s.FirstBoot != nil || len(s.Problems) != 1 || !strings.Contains(s.Problems[0], want) {
		t.Errorf("GetStatus() has %v and the problems %q", s.FirstBoot, s.Problems)
	}
	m.offer(platformJSON)
	must(t, FirstBoot(t.Context(), m.Machine))
	if s := GetStatus(t.Context(), m.Machine); s.FirstBoot == nil || len(s.Problems) != 0 {
		t.Errorf("when it is corrected, GetStatus() has %v and the problems %q", s.FirstBoot, s.Problems)
	}
}

// Without sda2 nobody knows what was applied before.
func TestFirstBootWithoutData(t *testing.T) {
	m := installedMachine(t)
	m.startSystem()
	m.offer(platformJSON)
	writeFiles(t, m.Root, map[string]string{noDataFile: "why\n"})
	must(t, FirstBoot(t.Context(), m.Machine))
	if got := m.network(); got != "--dhcp" || m.out.Len() > 0 {
		t.Errorf("the network is %s, and the log says %q", got, m.out.String())
	}
}

// A machine whose disk cannot be found is told its address all the same, by who
// wants to mend it.
func TestFirstBootWithoutDisk(t *testing.T) {
	m := newMachine(t, "sda", 4*partitions.GiB)
	m.fresh(true)
	must(t, os.RemoveAll(m.path("sys/class/block/sda")))
	must(t, Mount(t.Context(), m.Machine))
	m.plug("sdb", "usb1/1-1", fat(71, "STICK"), map[string]string{firstboot.PlatformFile: `{"address": "192.0.2.10/24"}`})
	must(t, FirstBoot(t.Context(), m.Machine))
	if got := m.network(); got != "--addr=192.0.2.10/24" {
		t.Errorf("the network is %s", got)
	}
}

// The rescue system keeps to what was applied, and to what was changed later.
func TestFirstBootRescue(t *testing.T) {
	m := installedMachine(t)
	m.startSystem()
	m.offer(platformJSON)
	must(t, FirstBoot(t.Context(), m.Machine))
	// As the overlay would have it.
	for _, name := range []string{"network.json", "hostname", "shadow", firstboot.RecordFile} {
		text, err := os.ReadFile(m.path("etc/" + name))
		must(t, err)
		writeFiles(t, m.path("content/mnt/sda2/"+etcUpper), map[string]string{name: string(text)})
	}
	writeFiles(t, m.path("content/mnt/sda2/"+etcUpper), map[string]string{"network.json": `{"address": "192.0.2.77/24"}`})
	m.start()
	m.fresh(true)
	must(t, Mount(t.Context(), m.Machine))
	m.out.Reset()
	must(t, FirstBoot(t.Context(), m.Machine))
	if got := m.network(); got != "--addr=192.0.2.77/24" || m.out.Len() > 0 {
		t.Errorf("the network is %s, and the log says %q", got, m.out.String())
	}
	if steps, err := PlanInstall(t.Context(), m.Machine); err != nil || strings.Contains(fmt.Sprint(steps), "first-boot") {
		t.Errorf("PlanInstall() = %v, %v; want nothing to be stored again", steps, err)
	}
}

// What somebody sets in the rescue system counts, also if a configuration was
// waiting for the system: that is stored before it, and not once more.
func TestFirstBootRescueSetip(t *testing.T) {
	m := installedMachine(t)
	m.start()
	m.fresh(true)
	m.offer(platformJSON)
	must(t, Mount(t.Context(), m.Machine))
	must(t, FirstBoot(t.Context(), m.Machine))
	// There is no network card here to set it on.
	if err := SetNetwork(t.Context(), m.Machine, NetworkArguments{Addr: "192.0.2.77/24"}); err != nil && strings.Contains(err.Error(), "last until") {
		t.Fatal(err)
	}
	steps, err := PlanInstall(t.Context(), m.Machine) // As after a re-installation that was interrupted.
	must(t, err)
	for _, s := range steps {
		if store, ok := s.(storeFirstBoot); ok {
			d, err := m.findDisk(t.Context())
			must(t, err)
			must(t, m.mountChecked(t.Context(), d, partitions.Data, dataDir))
			must(t, store.Do(t.Context(), m.Machine))
		}
	}
	m.startSystem()
	must(t, FirstBoot(t.Context(), m.Machine))
	name, err := os.ReadFile(m.path("etc/hostname"))
	if got := m.network(); got != "--addr=192.0.2.77/24" || err != nil || string(name) != "app-1\n" {
		t.Errorf("the network of the system is %s, its name %q, %v", got, name, err)
	}
}

// fat is the boot sector of a FAT file system, cd the descriptor of a CD.
func fat(at int, label string) []byte {
	b := make([]byte, 64<<10)
	copy(b[at:], fmt.Sprintf("%-11sFAT", label))
	b[510], b[511] = 0x55, 0xaa
	return b
}

func cd(label string) []byte {
	b := make([]byte, 64<<10)
	copy(b[32<<10:], "\x01CD001\x01")
	copy(b[32<<10+40:], fmt.Sprintf("%-32s", label))
	return b
}

// plug adds a device with files on it, below a bus of its kind.
func (m *testMachine) plug(name, bus string, head []byte, files map[string]string) {
	m.t.Helper()
	dir := "sys/devices/pci0000:00/" + bus + "/block/" + name
	writeFiles(m.t, m.Root, map[string]string{dir + "/device/model": "test", "dev/" + name: string(head)})
	must(m.t, os.Symlink(m.path(dir), m.path("sys/class/block/"+name)))
	must(m.t, os.MkdirAll(m.path("content/dev/"+name), 0o755))
	writeFiles(m.t, m.path("content/dev/"+name), files)
}

// A stick counts more than sda1, and only a stick is asked for platform.json. A
// CD has other ways.
func TestFirstBootMedia(t *testing.T) {
	const stick = `{"hostname": "stick"}`
	for _, test := range []struct {
		name, bus string
		head      []byte
		file      map[string]string
		want      string
	}{
		{"FAT32 stick", "usb1/1-1", fat(71, "STICK"), map[string]string{firstboot.PlatformFile: stick}, "stick\n"},
		{"FAT16 stick", "usb1/1-1", fat(43, "STICK"), map[string]string{firstboot.PlatformFile: stick}, "stick\n"},
		{"stick without a document", "usb1/1-1", fat(71, "STICK"), nil, "app-1\n"},
		{"disk that is no stick", "ata1", fat(71, "STICK"), map[string]string{firstboot.PlatformFile: stick}, "app-1\n"},
		{"stick with another file system", "usb1/1-1", make([]byte, 64<<10), map[string]string{firstboot.PlatformFile: stick}, "app-1\n"},
		{"empty drive", "usb1/1-1", nil, nil, "app-1\n"},
		{"stick that cannot be mounted", "usb1/1-1", fat(71, badStick), map[string]string{firstboot.PlatformFile: stick}, imageEtc["hostname"]},
		{"disk that cannot be mounted", "ata1", fat(71, badStick), map[string]string{firstboot.PlatformFile: stick}, "app-1\n"},
	} {
		m := installedMachine(t)
		m.startSystem()
		m.offer(platformJSON)
		m.plug("sdb", test.bus, test.head, test.file)
		err := FirstBoot(t.Context(), m.Machine)
		if bad := test.want == imageEtc["hostname"]; bad != (err != nil) || bad && !strings.Contains(m.out.String(), "cannot use the first-boot configuration of usb: /dev/sdb: ") {
			t.Errorf("%s: FirstBoot() = %v", test.name, err)
		}
		if got, err := os.ReadFile(m.path("etc/hostname")); err != nil || string(got) != test.want {
			t.Errorf("%s: the host name is %q, %v; want %q", test.name, got, err, test.want)
		}
		if m.Mounted("/" + mediaDir) {
			t.Errorf("%s: it is still mounted", test.name)
		}
	}
}

// A link on a stick does not lead out of it.
func TestFirstBootLink(t *testing.T) {
	m := installedMachine(t)
	m.startSystem()
	m.plug("sdb", "usb1/1-1", fat(71, "STICK"), nil)
	writeFiles(t, m.Root, map[string]string{"secret": `{"hostname": "secret"}`})
	must(t, os.Symlink(m.path("secret"), m.path("content/dev/sdb/platform.json")))
	err := FirstBoot(t.Context(), m.Machine)
	if got, _ := os.ReadFile(m.path("etc/hostname")); string(got) != imageEtc["hostname"] || err == nil || !strings.Contains(err.Error(), "platform.json is not an ordinary file") {
		t.Errorf("FirstBoot() = %v, and the host name is %q", err, got)
	}
}

// A dry run names the steps that the log will have, and changes nothing.
func TestFirstBootPlan(t *testing.T) {
	m := installedMachine(t)
	m.startSystem()
	m.offer(platformJSON)
	plan, err := PlanFirstBoot(t.Context(), m.Machine)
	must(t, err)
	var got []string
	for _, s := range plan.Steps {
		got = append(got, s.String())
	}
	want := []string{"set the network: --addr=192.0.2.10/24", "set the host name app-1", "set the password of admin",
		"set the time zone Europe/Berlin", "store the settings of the manager in /etc/manager.json", "remember that it was applied"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the steps differ (-want +got):\n%s", diff)
	}
	if m.network() != "--dhcp" || m.out.Len() > 0 {
		t.Errorf("planning has changed the network to %s and said %q", m.network(), m.out.String())
	}
}

// A stick that cannot be read at all may be the one that counts; a disk that is no
// stick, or a CD, is passed over. Partitions that come with the opening of a disk are
// looked at.
func TestMedia(t *testing.T) {
	m := newMachine(t, "sda", 4*partitions.GiB)
	m.plug("sdb", "usb1/1-1", nil, nil)
	m.plug("sdc", "usb1/1-2", nil, nil)
	m.plug("sdd", "ata1", nil, nil)
	m.plug("sde", "usb1/1-3", nil, nil)
	m.plug("sr0", "usb1/1-4", nil, nil)
	got := map[string]string{}
	for _, one := range m.media(disk{}, func(path string) (string, string, error) {
		switch name := filepath.Base(path); name {
		case "sdb1":
			return "vfat", "STICK", nil
		case "sdb":
			m.plug("sdb1", "usb1/1-1", nil, nil)
			fallthrough
		case "sda":
			return "", "", nil
		default:
			return "", "", unix.EIO
		}
	}, time.Hour) {
		got[one.dev] = fmt.Sprint(one.fstype, one.err)
	}
	want := map[string]string{"sdb1": "vfat<nil>", "sdc": "cannot read /dev/sdc: input/output error", "sde": "cannot read /dev/sde: input/output error"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the media differ (-want +got):\n%s", diff)
	}
}

// Windows writes a label into the root folder only, which blkid knows, too.
func TestProbeMedium(t *testing.T) {
	dir := t.TempDir()
	fat32 := filepath.Join(dir, "fat32")
	d, err := diskfs.Create(fat32, 64<<20, diskfs.SectorSizeDefault)
	must(t, err)
	_, err = d.CreateFilesystem(diskfsdisk.FilesystemSpec{FSType: filesystem.TypeFat32, VolumeLabel: "CIDATA"})
	must(t, err)
	must(t, d.Close())
	f, err := os.OpenFile(fat32, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("NO NAME    "), 71)
	must(t, errors.Join(err, f.Close()))

	// 512 bytes in a sector, 4 sectors in a cluster, 1 reserved, 2 tables of 32, 512
	// entries in the root folder, 16384 sectors.
	fat16 := make([]byte, 8<<20)
	copy(fat16, "\xeb\x3c\x90MSWIN4.1\x00\x02\x04\x01\x00\x02\x00\x02\x00\x40\xf8\x20\x00")
	copy(fat16[36:], "\x80\x00\x29\x01\x02\x03\x04NO NAME    FAT16   ")
	fat16[510], fat16[511] = 0x55, 0xaa
	root := fat16[(1+2*32)*512:]
	copy(root, "\xe5LD        \x08")
	copy(root[32:], "Ac\x00i\x00d\x00a\x00t\x00\x0f") // a long name
	copy(root[64:], "FILE    TXT\x20")
	copy(root[96:], "cidata     \x08")
	must(t, os.WriteFile(filepath.Join(dir, "fat16"), fat16, 0o600))
	copy(root[96:], strings.Repeat("\x00", 12))
	copy(fat16[43:], "STICK      ")
	must(t, os.WriteFile(filepath.Join(dir, "old"), fat16, 0o600))

	for name, want := range map[string]string{"fat32": "CIDATA", "fat16": "cidata", "old": "STICK"} {
		path := filepath.Join(dir, name)
		if fstype, label, err := probeMedium(path); fstype != "vfat" || label != want || err != nil {
			t.Errorf("probeMedium(%s) = %q, %q, %v; want %q", name, fstype, label, err, want)
		}
		tag := map[bool]string{true: "LABEL_FATBOOT", false: "LABEL"}[name == "old"]
		out, err := exec.Command(lookPath(t, "blkid"), "-p", "-s", tag, "-o", "value", path).Output()
		if err != nil || strings.TrimSpace(string(out)) != want {
			t.Errorf("blkid of %s: %q, %v; want %q", name, out, err, want)
		}
	}
}

// What does not apply is not named without end.
func TestFirstBootTitle(t *testing.T) {
	few, many := FirstBootPlan{Ignored: []string{"a", "b"}}, FirstBootPlan{Ignored: strings.Split(strings.Repeat("x,", 99)+"x", ",")}
	if got := few.Title(); !strings.HasSuffix(got, "left out: a, b") {
		t.Errorf("Title() = %q", got)
	}
	if got := many.Title(); !strings.HasSuffix(got, ", x and 80 more") || strings.Count(got, "x,") != mostIgnored-1 {
		t.Errorf("Title() = %q", got)
	}
}

// What does not end in time is not waited for.
func TestWithin(t *testing.T) {
	block := make(chan bool)
	defer close(block)
	if _, err := within(time.Now(), func() (int, error) { <-block; return 1, nil })(); err == nil {
		t.Error("within() has waited for what does not end")
	}
	if n, err := within(time.Now().Add(time.Hour), func() (int, error) { return 1, nil })(); n != 1 || err != nil {
		t.Errorf("within() = %v, %v; want 1", n, err)
	}
}

// Any start of a machine that has not run for long gives USB a moment, and the first
// installation gives it more.
func TestBusKnown(t *testing.T) {
	m := newMachine(t, "sda", 4*partitions.GiB)
	for _, test := range []struct {
		uptime string
		fresh  bool
		waited time.Duration
		want   bool
	}{
		{"1.50 2.00\n", false, 0, false},
		{"1.50 2.00\n", false, time.Second, false},
		{"3.10 5.00\n", false, time.Second, true},
		{"100.10 5.00\n", false, 0, true},
		{"100.10 5.00\n", true, time.Second, false},
		{"100.10 5.00\n", true, busPatience, true},
		{"", false, 0, true},
	} {
		writeFiles(t, m.Root, map[string]string{"proc/uptime": test.uptime})
		if got := busKnown(test.fresh, test.waited, m.uptime()); got != test.want {
			t.Errorf("uptime %q, fresh %v, waited %v: %v; want %v", test.uptime, test.fresh, test.waited, got, test.want)
		}
	}
}

// What USB has told of is waited for: an interface of the class 8 without a disk.
func TestSticksReady(t *testing.T) {
	const dir = "sys/bus/usb/devices/"
	for name, test := range map[string]struct {
		files map[string]string
		want  bool
	}{
		"no USB":   {nil, true},
		"keyboard": {map[string]string{dir + "1-1:1.0/bInterfaceClass": "03\n"}, true},
		"coming":   {map[string]string{dir + "1-1:1.0/bInterfaceClass": "08\n"}, false},
		"there":    {map[string]string{dir + "1-1:1.0/bInterfaceClass": "08\n", dir + "1-1:1.0/host2/target2:0:0/2:0:0:0/block/sdb/size": "1"}, true},
		"one more": {map[string]string{dir + "1-1:1.0/bInterfaceClass": "08\n", dir + "1-1:1.0/host2/target2:0:0/2:0:0:0/block/sdb/size": "1",
			dir + "1-2:1.0/bInterfaceClass": "08\n"}, false},
	} {
		m := newMachine(t, "sda", 4*partitions.GiB)
		writeFiles(t, m.Root, test.files)
		if got := m.sticksReady(); got != test.want {
			t.Errorf("%s: sticksReady() = %v; want %v", name, got, test.want)
		}
	}
}
