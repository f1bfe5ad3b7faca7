package firstboot

import (
	"encoding/base64"
	"strings"
	"testing"
	"testing/fstest"
)

func FuzzOVF(f *testing.F) {
	f.Add([]byte(ovf(properties)))
	f.Add([]byte(ovf(map[string]string{"hostname": "a", "manager": "null", "dns": ",;"})))
	f.Add([]byte(`<Environment><PropertySection><Property key="appplatform.ssh_keys" value="a;b"/></PropertySection></Environment>`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if d, _, err := FromOVF(fstest.MapFS{OVFFile: {Data: text}}); err == nil && d != nil {
			accepted(t, *d)
		}
	})
}

func FuzzNoCloud(f *testing.F) {
	f.Add([]byte(proxmox["meta-data"]), []byte(proxmox["user-data"]), []byte(proxmox["network-config"]))
	f.Add([]byte("local-hostname: a"), []byte("#cloud-config\nusers: [default, {name: admin}]\nchpasswd: {list: ['root:x']}"),
		[]byte("version: 2\nethernets: {a: {addresses: [192.0.2.10/24], routes: [{to: default, via: 192.0.2.1}]}}"))
	f.Add([]byte("? [a]\n: b"), []byte("#cloud-config\n&a [*a]"), []byte("version: 1\nconfig: disabled"))
	f.Fuzz(func(t *testing.T, meta, user, network []byte) {
		d, ignored, err := FromNoCloud(fstest.MapFS{"meta-data": {Data: meta}, "user-data": {Data: user}, "network-config": {Data: network}}, firstCard)
		if err == nil && d != nil {
			accepted(t, *d)
		}
		if err != nil {
			ignored = append(ignored, err.Error())
		}
		for _, line := range ignored {
			if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("the log says %q", line)
			}
		}
	})
}

func FuzzSMBIOS(f *testing.F) {
	f.Add(oem("other", "app-platform:"+whole))
	f.Add(oem("app-platform:" + base64.StdEncoding.EncodeToString([]byte(`{"hostname": "a"}`))))
	f.Add([]byte{11, 255, 0, 0, 1, 'a', 0, 0})
	f.Fuzz(func(t *testing.T, entry []byte) {
		if d, _, err := FromSMBIOS(fstest.MapFS{"firmware/dmi/entries/11-0/raw": {Data: entry}}); err == nil && d != nil {
			accepted(t, *d)
		}
	})
}

// Whatever the host says, whole messages and others, one after the other.
func FuzzKVP(f *testing.F) {
	f.Add(pair(kvpSet, kvpExternal, "appplatform.hostname", "a"), kvpMessage)
	f.Add(append(pair(kvpRegister1, 0, "", ""), pair(kvpSet, kvpExternal, "appplatform.dns", "192.0.2.53")...), kvpMessage)
	f.Add(pair(kvpSet, kvpExternal, "appplatform.timezone", "UTC"), 2576)
	f.Fuzz(func(t *testing.T, messages []byte, size int) {
		h := &host{t: t}
		for size > 0 && size <= kvpMessage && len(messages) >= size {
			h.messages, messages = append(h.messages, messages[:size]), messages[size:]
		}
		if d, _, err := FromKVP(h); err == nil {
			accepted(t, *d)
		}
	})
}
