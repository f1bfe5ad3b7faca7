package gateway

import (
	"strings"
	"testing"
)

// Whatever is typed into the pages, settings that are accepted start one kernel
// of the image with one line of options that says what was typed.
func FuzzSettings(f *testing.F) {
	c, err := parseBootConfig(sample)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("", "", "", "", "", "", "", "")
	f.Add("root=/dev/ram0", "ramdisk.ext2.xz", "100000", "", "", "", "", "")
	f.Add("/dev/sda3 debug", "", "", "10.0.2.20", "255.255.255.0", "10.0.2.2", "10.0.2.3", "")
	f.Add("root=/dev/ram0 root=/dev/sda3", "../../kernel", "+5", "::ffff:10.0.2.20", "255.0.255.0", "", "", "fe80::1%a b")
	f.Add("a\nb", "/b/..", "0", "0.0.0.0", "0.0.0.0", "x", "x", "x")
	f.Fuzz(func(t *testing.T, cmdline, initrd, size, address, mask, gateway, dns1, dns2 string) {
		s := Settings{Cmdline: cmdline, Initrd: initrd, RamdiskSize: size, IP: IP{address, mask, gateway, dns1, dns2}}
		if s.Check() != nil {
			return
		}
		p, err := s.plan(c, func(string) bool { return true })
		if err != nil {
			t.Fatalf("plan() of accepted settings %+v = %v", s, err)
		}
		if p.kernel != "/b/kernel" || p.initrd != "" && !strings.HasPrefix(p.initrd, "/") || strings.ContainsAny(p.options, "\n\x00") {
			t.Errorf("plan() of %+v = %+v", s, p)
		}
		count := map[string]int{}
		for word := range strings.FieldsSeq(p.options) {
			name, value, _ := strings.Cut(word, "=")
			count[name]++
			if name == "ramdisk_size" && strings.Trim(value, "0123456789") != "" && !strings.Contains(cmdline, word) {
				t.Errorf("the ramdisk size is %q", value)
			}
			if name == "ip" && !strings.Contains(cmdline, word) && strings.Count(word, ":") != 8 {
				t.Errorf("the address is handed over as %q", word)
			}
		}
		if count["root"] != 1 {
			t.Errorf("the options have %d roots: %s", count["root"], p.options)
		}
		for word := range strings.FieldsSeq(cmdline) {
			if !strings.HasPrefix(word, "root=") && !strings.HasPrefix(word, "/dev/") && !strings.Contains(p.options, word) {
				t.Errorf("%q is missing in %s", word, p.options)
			}
		}
	})
}

// Whatever extlinux.conf holds, the label that boots is one of its entries and
// stands where it is changed.
func FuzzBootConfig(f *testing.F) {
	f.Add(sample)
	f.Add("label x\nkernel /k\ndefault  x \r\nDEFAULT y\n")
	f.Add("DEFAULT\nDEFAULT a a\nLABEL a a\nLINUX /../k\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseBootConfig(text)
		if err != nil {
			return
		}
		if _, ok := c.entry(c.def); !ok || c.def == "" || !strings.HasPrefix(text[c.at:], c.def) {
			t.Fatalf("what boots is %q at %d of %q", c.def, c.at, text)
		}
		for _, e := range c.entries {
			if len(e.label) != len(c.def) || e.kernel == "" {
				continue
			}
			changed, err := parseBootConfig(text[:c.at] + e.label + text[c.at+len(c.def):])
			if err != nil || changed.def != e.label {
				t.Errorf("changed to %q, it boots %q: %v", e.label, changed.def, err)
			}
		}
	})
}
