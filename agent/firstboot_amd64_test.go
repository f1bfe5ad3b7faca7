package agent

import (
	"encoding/base64"
	"os"
	"strings"
	"testing"

	"appplatform/agent/internal/firstboot"
)

const ovfEnv = `<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1" xmlns:oe="http://schemas.dmtf.org/ovf/environment/1">
<PropertySection><Property oe:key="appplatform.hostname" oe:value="NAME"/></PropertySection></Environment>`

// Each channel of a virtual machine is found where it is, and those before it in
// this table count more. VMware's and Hyper-V's are asked on their machines only:
// here asking would kill the program, or wait.
func TestFirstBootVM(t *testing.T) {
	channels := []struct {
		name string
		add  func(m *testMachine, hostname string)
	}{
		{firstboot.OVF, func(m *testMachine, hostname string) {
			m.plug("sr0", "ata1", cd("OVF ENV"), map[string]string{firstboot.OVFFile: strings.ReplaceAll(ovfEnv, "NAME", hostname)})
		}},
		{firstboot.NoCloud, func(m *testMachine, hostname string) {
			m.plug("sr1", "ata2", cd("cidata"), map[string]string{"meta-data": "local-hostname: " + hostname + "\n"})
		}},
		{firstboot.NoCloud, func(m *testMachine, hostname string) {
			m.plug("vdb", "virtio2", fat(43, "CIDATA"), map[string]string{"meta-data": "local-hostname: " + hostname + "\n"})
		}},
		{firstboot.SMBIOS, func(m *testMachine, hostname string) {
			text := base64.StdEncoding.EncodeToString([]byte(`{"hostname": "` + hostname + `"}`))
			writeFiles(m.t, m.Root, map[string]string{"sys/firmware/dmi/entries/11-0/raw": "\x0b\x05\x00\x01\x01app-platform:" + text + "\x00\x00"})
		}},
		{firstboot.FwCfg, func(m *testMachine, hostname string) {
			writeFiles(m.t, m.Root, map[string]string{"sys/firmware/qemu_fw_cfg/by_name/opt/app-platform/platform.json/raw": `{"hostname": "` + hostname + `"}`})
		}},
	}
	for i, c := range channels {
		m := installedMachine(t)
		m.startSystem()
		writeFiles(t, m.Root, map[string]string{"sys/class/dmi/id/sys_vendor": "QEMU\n"})
		c.add(m, "first")
		for _, later := range channels[i+1:] {
			later.add(m, "later")
		}
		must(t, FirstBoot(t.Context(), m.Machine))
		name, err := os.ReadFile(m.path("etc/hostname"))
		if err != nil || string(name) != "first\n" || !strings.Contains(m.out.String(), "first-boot configuration of "+c.name+"\n") {
			t.Errorf("%s: the host name is %q, %v, and the log says\n%s", c.name, name, err, m.out.String())
		}
	}
}

// A CD whose label is another one is no cloud-init drive.
func TestFirstBootOtherCD(t *testing.T) {
	m := installedMachine(t)
	m.startSystem()
	m.plug("sr0", "ata1", cd("TOOLS"), map[string]string{"meta-data": "local-hostname: x\n", firstboot.PlatformFile: platformJSON})
	plan, err := PlanFirstBoot(t.Context(), m.Machine)
	if err != nil || plan.Channel != "" {
		t.Errorf("PlanFirstBoot() = %+v, %v; want nothing", plan, err)
	}
}
