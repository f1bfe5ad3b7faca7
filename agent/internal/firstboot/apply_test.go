package firstboot

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/agent/internal/netconf"
	"appplatform/internal/testtools"
	"appplatform/tooltree"
)

const shadow = "root:$6$old$old:20000:0:99999:7:::\ndaemon:*:20000:0:99999:7:::\nadmin:$6$old$old:20001:0:99999:7:::\n"

func put(t *testing.T, dir, name, text string, mode os.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// settings are those of a text.
func settings(t *testing.T, text string) Settings {
	t.Helper()
	d, err := Decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	s, err := d.Check([]byte(zones))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// apply stores settings, as often as a power cut makes it necessary.
func apply(t *testing.T, p Place, text string) (log string) {
	t.Helper()
	for range 2 {
		log = ""
		changes, err := settings(t, text).Changes(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			log += c.String() + "\n"
			if err := c.Do(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return log
}

// Everything is where the tools of the machine look, other lines stay, and the
// log has no secrets.
func TestChanges(t *testing.T) {
	for _, where := range []string{"etc itself", "empty upper folder"} {
		base := t.TempDir()
		put(t, base, "shadow", shadow, 0o640)
		put(t, base, "hosts", "127.0.0.1\tlocalhost\n127.0.1.1\tapp-platform\n::1\tlocalhost\n192.0.2.7\tmine", 0o644)
		p := Place{Etc: base}
		if where != "etc itself" {
			p = Place{Etc: t.TempDir(), Base: base}
		}
		log := apply(t, p, whole)
		for name, want := range map[string]string{
			"shadow":   strings.Replace(strings.Replace(shadow, "root:$6$old$old", "root:"+hash5, 1), "admin:$6$old$old", "admin:"+hash6, 1),
			"hosts":    "127.0.0.1\tlocalhost\n127.0.1.1\tapp-1.example.org app-1\n::1\tlocalhost\n192.0.2.7\tmine\n",
			"hostname": "app-1.example.org\n", "timezone": "Europe/Berlin\n",
			keysFile: testKey + "\n", ManagerFile: "{\"domain\": \"example.org\"}\n",
		} {
			if got, err := os.ReadFile(p.path(name)); err != nil || string(got) != want {
				t.Errorf("%s: %s is %q, %v; want %q", where, name, got, err, want)
			}
		}
		for name, want := range map[string]os.FileMode{"shadow": 0o640, ManagerFile: 0o600, keysFile: 0o644} {
			if info, err := os.Stat(p.path(name)); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %s: %v, %v; want mode %v", where, name, info, err, want)
			}
		}
		if link, err := os.Readlink(p.path("localtime")); err != nil || link != "/usr/share/zoneinfo/Europe/Berlin" {
			t.Errorf("%s: localtime leads to %s, %v", where, link, err)
		}
		n, err := netconf.LoadFile(p.path("network.json"))
		if want := "--addr=192.0.2.10/24 --gateway=192.0.2.1 --dns1=192.0.2.53 --dns2=2001:db8::53 --addr6=2001:db8::10/64 --gateway6=fe80::1"; err != nil || n.String() != want {
			t.Errorf("%s: the network is %v, %v; want %s", where, n, err, want)
		}
		for _, secret := range []string{hash5, hash6, "domain"} {
			if strings.Contains(log, secret) {
				t.Errorf("the log tells %s:\n%s", secret, log)
			}
		}
		if left, _ := filepath.Glob(p.path(".*")); len(left) > 0 {
			t.Errorf("%s: left over: %v", where, left)
		}
	}
}

// ssh-keygen reads the keys that are accepted.
func TestSSHKeygenReadsKeys(t *testing.T) {
	if testing.Short() {
		t.Skip("takes OpenSSH from the archive: make test runs it")
	}
	tools := testtools.Open(t, tooltree.VM)
	dir := t.TempDir()
	for _, kind := range []string{"ed25519", "ecdsa"} {
		path := filepath.Join(dir, kind)
		err := tools.Run(t.Context(), tooltree.Cmd{
			Args: []string{"ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "a comment", "-f", path}, Writable: []string{dir},
		})
		if err != nil {
			t.Fatal(err)
		}
		line, err := os.ReadFile(path + ".pub")
		if err != nil {
			t.Fatal(err)
		}
		if err := checkKey(strings.TrimSpace(string(line))); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// A document without a part leaves that part alone.
func TestChangesOfOneThing(t *testing.T) {
	etc := t.TempDir()
	log := apply(t, Place{Etc: etc}, `{"timezone": "Asia/Tokyo"}`)
	names, err := filepath.Glob(etc + "/*")
	if err != nil || len(names) != 2 || log != "set the time zone Asia/Tokyo\n" {
		t.Errorf("it wrote %v and said %q", names, log)
	}
}

// What cannot be stored is known before anything is: without the user there is
// nobody to give the password to, and a file that cannot be read is not replaced.
func TestChangesRefused(t *testing.T) {
	for name, spoil := range map[string]func(etc string){
		"no admin":      func(etc string) { put(t, etc, "shadow", "root:x:::::::\n", 0o640) },
		"no shadow":     func(string) {},
		"shadow folder": func(etc string) { put(t, etc, "shadow/x", "", 0o640) },
		"hosts folder": func(etc string) {
			put(t, etc, "shadow", shadow, 0o640)
			put(t, etc, "hosts/x", "", 0o640)
		},
	} {
		p := Place{Etc: t.TempDir(), Base: t.TempDir()}
		spoil(p.Etc)
		if changes, err := settings(t, whole).Changes(p); err == nil {
			t.Errorf("%s: Changes() = %v; want an error", name, changes)
		}
	}
}

// A file that was deleted in an overlay does not come back from below.
func TestChangesWhiteout(t *testing.T) {
	p := Place{Etc: t.TempDir(), Base: t.TempDir()}
	put(t, p.Base, "hosts", "192.0.2.7\tmine\n", 0o644)
	put(t, p.Base, "shadow", shadow, 0o640)
	for _, name := range []string{"hosts", "shadow"} {
		if err := unix.Mknod(p.path(name), unix.S_IFCHR, 0); err != nil {
			t.Skipf("cannot make such a device here: %v", err)
		}
	}
	apply(t, p, `{"hostname": "a"}`)
	if got, err := os.ReadFile(p.path("hosts")); err != nil || string(got) != "127.0.1.1\ta\n" {
		t.Errorf("hosts is %q, %v", got, err)
	}
	if changes, err := settings(t, whole).Changes(p); err == nil {
		t.Errorf("without a shadow, Changes() = %v; want an error", changes)
	}
}

// What was applied is not again, whatever changes beside it or in how it is written,
// and each channel has its own.
func TestRecord(t *testing.T) {
	etc := t.TempDir()
	r, err := LoadRecord(etc)
	if err != nil || r.Channel != "" {
		t.Fatalf("LoadRecord() = %+v, %v", r, err)
	}
	stick, cloud := settings(t, whole), settings(t, `{"hostname": "a"}`)
	now := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	for _, o := range []struct {
		channel string
		Settings
	}{{USB, stick}, {NoCloud, cloud}} {
		if r.News(o.channel, o.Settings).Empty() {
			t.Errorf("%s is known before it was applied", o.channel)
		}
		if err := r.Save(etc, o.channel, o.Settings, now); err != nil {
			t.Fatal(err)
		}
		if r, err = LoadRecord(etc); err != nil || r.Channel != o.channel || !r.Time.Equal(now) {
			t.Errorf("LoadRecord() = %+v, %v", r, err)
		}
	}
	if !r.News(USB, stick).Empty() || !r.News(NoCloud, cloud).Empty() {
		t.Errorf("%+v does not know what was applied", r)
	}
	if info, err := os.Stat(filepath.Join(etc, RecordFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the record is %v, %v; want mode 0600", info, err)
	}
	for text, want := range map[string]string{
		`"address": "192.0.2.10/24"`:             `"address": "192.0.2.11/24"`,
		`"gateway": "192.0.2.1"`:                 `"gateway": "192.0.2.2"`,
		`"192.0.2.53", "2001:db8::53"`:           `"192.0.2.54"`,
		`"2001:db8::10/64"`:                      `"2001:db8::11/64"`,
		`app-1.example.org`:                      `app-2`,
		hash6:                                    hash5,
		`"root_password": "` + hash5:             `"root_password": "` + hash6,
		testKey:                                  testKey + "2",
		`"timezone": "Europe/Berlin"`:            `"timezone": "UTC"`,
		`{"domain": "example.org"}`:              `{"domain": "example.com"}`,
		`"2001:db8::53"], `:                      `"2001:DB8:0::53"],  `, // It says the same.
		`"manager": {"domain": "example.org"}`:   `"manager": { "domain":"example.org"}`,
		`, "manager": {"domain": "example.org"}`: ``, // What is left out stays.
	} {
		news := r.News(USB, settings(t, strings.Replace(whole, text, want, 1)))
		changes, err := news.Changes(Place{Etc: "/nowhere", Base: t.TempDir()})
		same := strings.Contains(want, "2001:DB8") || strings.Contains(want, `{ "domain"`) || want == ""
		passwords := strings.Contains(want, "$")
		if n := len(news.digests()); n > 1 || same != (n == 0) || !passwords && (err != nil || len(changes) != n) {
			t.Errorf("with %s, %d settings are news, which make %v, %v", want, n, changes, err)
		}
	}
	put(t, etc, RecordFile, "{", 0o600)
	if _, err := LoadRecord(etc); err == nil {
		t.Error("a record that is cut off is read")
	}
}

// The first channel that offers anything decides, also when it is bad.
func TestChoose(t *testing.T) {
	says := func(name, text string) Channel {
		return Channel{name, func() (*Document, []string, error) {
			if text == "" {
				return nil, nil, nil
			}
			d, err := Decode([]byte(text))
			return &d, nil, err
		}}
	}
	for _, test := range []struct {
		usb, sda1 string
		want      string
		bad       bool
	}{
		{"", "", "", false},
		{"", `{"hostname": "b"}`, SDA1, false},
		{`{}`, `{"hostname": "b"}`, SDA1, false},
		{`{"hostname": "a"}`, `{"hostname": "b"}`, USB, false},
		{`{"hostname": "a"}`, `{`, USB, false},
		{`{`, `{"hostname": "b"}`, USB, true},
	} {
		o, found, err := Choose([]Channel{says(USB, test.usb), says(SDA1, test.sda1)})
		if o.Channel != test.want || (err != nil) != test.bad || found != (test.want != "" && !test.bad) {
			t.Errorf("%q, %q: Choose() = %+v, %v, %v; want %s, bad %v", test.usb, test.sda1, o, found, err, test.want, test.bad)
		}
	}
}
