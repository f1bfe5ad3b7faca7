package gateway

import (
	"strings"
	"testing"
)

const sample = `# What boots
DEFAULT normal-b
PROMPT 0
LABEL rescue-a
LINUX /a/kernel
INITRD /a/ramdisk.ext2.xz
APPEND root=/dev/ram0 ramdisk_size=100000 rw quiet ap.set=a

LABEL normal-a
LINUX /a/kernel
APPEND root=PARTUUID=41505001-03 ro quiet ap.set=a

LABEL rescue-b
LINUX /b/kernel
INITRD /b/ramdisk.ext2.xz
APPEND root=/dev/ram0 ramdisk_size=100000 rw quiet ap.set=b

LABEL normal-b
LINUX /b/kernel
APPEND root=PARTUUID=41505001-03 ro quiet ap.set=b
`

// OS-D3: what manuals tell people to type, in every way they write it.
func TestPlan(t *testing.T) {
	c, err := parseBootConfig(sample)
	if err != nil {
		t.Fatal(err)
	}
	rescue := func(options string) bootPlan { return bootPlan{"rescue-b", "/b/kernel", "/b/ramdisk.ext2.xz", options} }
	normal := func(options string) bootPlan { return bootPlan{"normal-b", "/b/kernel", "", options} }
	for _, test := range []struct {
		name     string
		settings Settings
		want     bootPlan
	}{
		{"empty", Settings{}, normal("root=PARTUUID=41505001-03 ro quiet ap.set=b")},
		{"rescue", Settings{Cmdline: "root=/dev/ram0", Initrd: "ramdisk.ext2.xz", RamdiskSize: "100000"}, rescue("root=/dev/ram0 ramdisk_size=100000 rw quiet ap.set=b")},
		{"rescue without root=", Settings{Cmdline: "/dev/ram0", Initrd: "ramdisk.ext2.xz", RamdiskSize: "90000"}, rescue("root=/dev/ram0 ramdisk_size=90000 rw quiet ap.set=b")},
		{"rescue, empty fields", Settings{Cmdline: "root=/dev/ram0"}, rescue("root=/dev/ram0 ramdisk_size=100000 rw quiet ap.set=b")},
		{"IPx11", Settings{Cmdline: "root=/dev/sda3"}, normal("root=/dev/sda3 ro quiet ap.set=b")},
		{"IPx13", Settings{Cmdline: "root=/dev/nvme0n1p3"}, normal("root=/dev/nvme0n1p3 ro quiet ap.set=b")},
		{"more words", Settings{Cmdline: "root=/dev/sda3 debug"}, normal("root=/dev/sda3 ro quiet ap.set=b debug")},
		{"address", Settings{IP: IP{Address: "10.0.2.20", Mask: "255.255.255.0", Gateway: "10.0.2.2", DNS1: "10.0.2.3"}},
			normal("root=PARTUUID=41505001-03 ro quiet ap.set=b ip=10.0.2.20::10.0.2.2:255.255.255.0::eth0:off:10.0.2.3:")},
	} {
		got, err := test.settings.plan(c, func(name string) bool {
			return strings.HasSuffix(name, "kernel") || strings.HasSuffix(name, "/ramdisk.ext2.xz")
		})
		if err != nil || got != test.want {
			t.Errorf("%s: plan() = %+v, %v; want %+v", test.name, got, err, test.want)
		}
	}
	_, err = Settings{Cmdline: "root=/dev/ram0", Initrd: "ramdsk.ext2.xz"}.plan(c, func(name string) bool { return name == "/b/kernel" })
	if err == nil || !strings.Contains(err.Error(), "no file /b/ramdsk.ext2.xz") || !strings.Contains(err.Error(), "ramdisk.ext2.xz for the rescue system") {
		t.Errorf("plan() with a misspelt file = %v; want its name and the right one", err)
	}
}

func TestParseBootConfigRefuses(t *testing.T) {
	for _, text := range []string{"", "DEFAULT x\n", "DEFAULT x\nLABEL x\n", "LABEL x\nLINUX /k\n"} {
		if c, err := parseBootConfig(text); err == nil {
			t.Errorf("parseBootConfig(%q) = %+v; want an error", text, c)
		}
	}
}

func TestCheck(t *testing.T) {
	good := Settings{Enabled: true, Cmdline: "root=/dev/ram0", Initrd: "ramdisk.ext2.xz", RamdiskSize: "100000",
		IP: IP{"192.168.1.2", "255.255.255.0", "192.168.1.1", "", ""}}
	for _, s := range []Settings{good, {}} {
		if err := s.Check(); err != nil {
			t.Errorf("Check() of %+v = %v", s, err)
		}
	}
	for want, change := range map[string]func(*Settings){
		"Kernel command line":                 func(s *Settings) { s.Cmdline = "a\nb" },
		"Initrd file":                         func(s *Settings) { s.Initrd = "ramdisk ext2" },
		"Ramdisk size":                        func(s *Settings) { s.RamdiskSize = "100 MB" },
		"IP address: \"192.168.1.300\"":       func(s *Settings) { s.IP.Address = "192.168.1.300" },
		"IP address: without one":             func(s *Settings) { s.IP.Address = "" },
		"Network mask: \"255.0.255.0\"":       func(s *Settings) { s.IP.Mask = "255.0.255.0" },
		"Network mask: \"\"":                  func(s *Settings) { s.IP.Mask = "" },
		"Default gateway: \"x\"":              func(s *Settings) { s.IP.Gateway = "x" },
		"Alternative DNS server: \"fe80::1\"": func(s *Settings) { s.IP.DNS2 = "fe80::1" },
	} {
		s := good
		change(&s)
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check() = %v; want %q", err, want)
		}
	}
}
