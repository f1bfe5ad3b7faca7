package firstboot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// accepted wants a document that was accepted to be one that platform.json could
// hold, and to leave no way to other lines of the files that it is written to.
func accepted(t *testing.T, d Document) {
	s, err := d.Check([]byte(zones))
	if err != nil {
		return
	}
	again, err := Decode([]byte(d.text()))
	if err != nil || again.text() != d.text() {
		t.Fatalf("%s is read again as %s, %v", d.text(), again.text(), err)
	}
	for _, text := range append([]string{s.Hostname, s.AdminPassword, s.RootPassword, s.Timezone}, s.SSHKeys...) {
		if strings.ContainsAny(text, "\n\r\x00") {
			t.Errorf("%q has more than one line", text)
		}
	}
	if strings.Contains(s.AdminPassword+s.RootPassword, ":") || strings.Contains(s.Timezone, "..") || strings.ContainsAny(s.Hostname, " \t/") {
		t.Errorf("%s is accepted", d.text())
	}
	etc := t.TempDir()
	if err := os.WriteFile(filepath.Join(etc, "shadow"), []byte(shadow), 0o600); err != nil {
		t.Fatal(err)
	}
	changes, err := s.Changes(Place{Etc: etc})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		if line := c.String(); strings.Contains(line, "\n") || s.AdminPassword != "" && strings.Contains(line, s.AdminPassword) && s.AdminPassword != noPassword {
			t.Errorf("the log says %q", line)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte(`{"address": "dhcp", "address6": "auto", "dns": ["192.0.2.53"], "manager": null}`))
	f.Add([]byte(`{"hostname": "a\u0000b", "timezone": "../x", "ssh_keys": [""]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if d, err := Decode(text); err == nil {
			accepted(t, d)
		}
	})
}
