package netconf

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// checkSettings wants settings that were accepted to be some that setip could
// have made, in files that hold what they are to hold.
func checkSettings(t *testing.T, s Settings) {
	if len(s.DNS) == 0 {
		s.DNS = nil // An empty list in the file says the same.
	}
	if err := s.Validate(); err != nil {
		t.Fatalf("%+v was accepted: %v", s, err)
	}
	root := t.TempDir()
	path := filepath.Join(root, File)
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(path); err != nil {
		t.Fatal(err)
	}
	if again, err := Load(root); err != nil || !reflect.DeepEqual(again, s) {
		t.Errorf("saved and loaded: %+v, %v; want %+v", again, err, s)
	}
	var a Arguments
	for word := range strings.FieldsSeq(s.String()) {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "--dhcp":
			a.DHCP = true
		case "--addr":
			a.Addr = value
		case "--gateway":
			a.Gateway = value
		case "--addr6":
			a.Addr6 = value
		case "--gateway6":
			a.Gateway6 = value
		case "--dns1":
			a.DNS1 = value
		case "--dns2":
			a.DNS2 = value
		default:
			if !strings.HasPrefix(name, "--dns") || len(s.DNS) < 3 {
				t.Fatalf("the settings are %q", s)
			}
		}
	}
	if again, err := Change(Settings{}, a); err != nil || len(s.DNS) < 3 && again.String() != s.String() {
		t.Errorf("setip %v sets %v, %v", s, again, err)
	}
}

// Whatever is in the file, settings that are taken from it make sense.
func FuzzLoad(f *testing.F) {
	root := f.TempDir()
	path := filepath.Join(root, File)
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"address": "192.168.1.20/24", "gateway": "192.168.1.1", "dns": ["192.168.1.1", "2001:db8::53"]}`))
	f.Add([]byte(`{"address6": "2001:db8::20/64", "gateway6": "fe80::1"}`))
	f.Add([]byte(`{"address": "2001:db8::20/64"}`))
	f.Add([]byte(`{"address6": "192.168.1.20/24", "gateway6": "fe80::1%eth0"}`))
	f.Add([]byte(`{"dns": [null, "::"]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
		if s, err := Load(root); err == nil {
			checkSettings(t, s)
		}
	})
}

// The same for what a gateway hands over on the kernel command line.
func FuzzCmdline(f *testing.F) {
	f.Add("root=/dev/ram0 ip=10.0.2.20::10.0.2.2:255.255.255.0::eth0:off:10.0.2.3: quiet")
	f.Add("ip=dhcp ip=:::::eth0:on ip=10.0.0.4:::31")
	f.Add("ip=10.0.2.20/24:::")
	f.Fuzz(func(t *testing.T, cmdline string) {
		if s, err := fromCmdline(cmdline); err == nil {
			checkSettings(t, s)
		}
	})
}
