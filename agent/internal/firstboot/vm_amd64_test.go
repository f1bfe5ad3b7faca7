package firstboot

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/vmware/vmw-guestinfo/bdoor"

	"appplatform/internal/firstbootkeys"
)

// same wants a document that says what whole does.
func same(t *testing.T, what string, d *Document, err error) {
	t.Helper()
	if err != nil || d == nil {
		t.Errorf("%s: %v, %v", what, d, err)
		return
	}
	if want := settings(t, whole).Document; d.text() != want.text() {
		t.Errorf("%s says\n%s\nwant\n%s", what, d.text(), want.text())
	}
}

// properties are whole as lines of text.
var properties = map[string]string{
	"address": "192.0.2.10/24", "gateway": "192.0.2.1", "dns": "192.0.2.53, 2001:db8::53", "address6": "2001:db8::10/64",
	"gateway6": "fe80::1", "hostname": " app-1.example.org ", "admin_password": hash6, "root_password": hash5,
	"ssh_keys": testKey + " ; ", "timezone": "Europe/Berlin", "manager": `{"domain": "example.org"}`,
}

// ovf is an environment as VMware writes it (DSP0243, 11.2), with a property
// that another product has.
func ovf(properties map[string]string) string {
	var b strings.Builder
	b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>
<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
     xmlns:oe="http://schemas.dmtf.org/ovf/environment/1" xmlns:ve="http://www.vmware.com/schema/ovfenv" oe:id="" ve:vCenterId="vm-9">
   <PlatformSection><Kind>VMware ESXi</Kind><Version>8.0.2</Version></PlatformSection>
   <PropertySection>
     <Property oe:key="other.address" oe:value="198.51.100.1"/>
`)
	for _, key := range slices.Sorted(maps.Keys(properties)) {
		value := strings.NewReplacer("&", "&amp;", `"`, "&quot;", "<", "&lt;").Replace(properties[key])
		b.WriteString(`     <Property oe:key="` + firstbootkeys.Prefix + key + `" oe:value="` + value + `"/>` + "\n")
	}
	b.WriteString("   </PropertySection>\n</Environment>\n")
	return b.String()
}

func TestOVF(t *testing.T) {
	d, _, err := FromOVF(fstest.MapFS{OVFFile: {Data: []byte(ovf(properties))}})
	same(t, "the OVF environment", d, err)
	if d, _, err := FromOVF(fstest.MapFS{}); d != nil || err != nil {
		t.Errorf("a CD without an environment offers %v, %v", d, err)
	}
	if d, _, err := decodeOVF([]byte(ovf(nil))); d != nil || err != nil {
		t.Errorf("an environment of others offers %v, %v", d, err)
	}
	empty := map[string]string{}
	for name := range properties {
		empty[name] = ""
	}
	if d, _, err := decodeOVF([]byte(ovf(empty))); err != nil || !d.Empty() {
		t.Errorf("a form that nobody has filled in offers %v, %v", d, err)
	}
	for name, test := range map[string]struct{ text, want string }{
		"typo":     {ovf(map[string]string{"adress": "dhcp"}), `there is no setting "appplatform.adress"`},
		"no XML":   {"<Environment><a></b>", "a mistake in line 1"},
		"entity":   {"<Environment>\n&hunter2;</Environment>", "a mistake in line 2"},
		"other":    {"<html/>", "it is no OVF environment"},
		"manager":  {ovf(map[string]string{"manager": "hunter2"}), "appplatform.manager: it is not JSON"},
		"cut off":  {ovf(properties)[:700], "not XML"},
		"nothing":  {"", "no OVF environment"},
		"encoding": {`<?xml version="1.0" encoding="hunter2"?><Environment/>`, "no OVF environment"},
	} {
		if _, _, err := decodeOVF([]byte(test.text)); err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v; want %q", name, err, test.want)
		}
	}
}

// A guest stands in for VMware's backdoor.
type guest struct {
	variables map[string]string
	broken    bool
}

func (g guest) Get(name string) (string, bool, error) {
	if g.broken {
		return "", false, errors.New("cannot ask VMware for " + name)
	}
	value, found := g.variables[name]
	return value, found, nil
}

func TestGuestinfo(t *testing.T) {
	variables := map[string]string{"guestinfo.other": "x"}
	for name, value := range properties {
		variables["guestinfo.appplatform."+name] = value
	}
	d, _, err := FromGuestinfo(guest{variables: variables})
	same(t, "guestinfo", d, err)
	d, _, err = FromGuestOVF(guest{variables: map[string]string{"guestinfo.ovfEnv": ovf(properties)}})
	same(t, "the OVF environment in guestinfo", d, err)
	if d, _, err := FromGuestOVF(guest{}); d != nil || err != nil {
		t.Errorf("no OVF environment in guestinfo offers %v, %v", d, err)
	}
	if d, _, err := FromGuestinfo(guest{}); err != nil || !d.Empty() {
		t.Errorf("no guestinfo offers %v, %v", d, err)
	}
	for name, read := range map[string]func(Guest) (*Document, []string, error){"ovf": FromGuestOVF, "guestinfo": FromGuestinfo} {
		if _, _, err := read(guest{broken: true}); err == nil {
			t.Errorf("%s: a backdoor that fails is not reported", name)
		}
	}
}

// A backdoor is VMware behind its port: one channel, with a cookie, that takes
// commands and gives answers in words of four bytes.
type backdoor struct {
	t         *testing.T
	variables map[string]string
	oldest    bool // knows no cookies
	moved     int  // how often it says that it has begun on another host
	open      bool
	left      int
	command   []byte
	answer    []byte
}

func (d *backdoor) call(p *bdoor.BackdoorProto) *bdoor.BackdoorProto {
	out := &bdoor.BackdoorProto{}
	word, kind := p.BX.AsUInt32().Word(), p.CX.AsUInt32().High
	const id, high, low, success, waiting, checkpoint = 7, 0x1234, 0x5678, 1, 2, 16
	status := uint16(success)
	if p.CX.AsUInt32().Low != 0x1e {
		d.t.Errorf("command %#x", p.CX.AsUInt32().Low)
	}
	if kind != 0 && (!d.open || p.DX.AsUInt32().High != id || p.SI.AsUInt32().Word() != high || p.DI.AsUInt32().Word() != low) {
		d.t.Errorf("message %d on another channel, or with another cookie", kind)
	}
	switch kind {
	case 0:
		if d.oldest && word>>31 == 1 || word&^(1<<31) != 0x49435052 {
			status = 0
			break
		}
		d.open = true
		out.DX.AsUInt32().High = id
		out.SI.AsUInt32().SetWord(high)
		out.DI.AsUInt32().SetWord(low)
	case 1:
		d.left, d.command = int(word), nil
	case 2:
		d.command = binary.LittleEndian.AppendUint32(d.command, word)
		if d.left -= 4; d.left > 0 {
			break
		}
		command := string(d.command[:len(d.command)+d.left])
		name, ok := strings.CutPrefix(command, "info-get ")
		if value, found := d.variables[name]; ok && found {
			d.answer = []byte("1 " + value)
		} else {
			d.answer = []byte("0 No value found for " + name)
		}
	case 3:
		status |= waiting
		out.BX.AsUInt32().SetWord(uint32(len(d.answer)))
		out.DX.AsUInt32().High = 1
		d.left = 0
	case 4:
		if d.moved > 0 && d.left > 0 {
			d.moved--
			status = checkpoint
			break
		}
		var b [4]byte
		d.left += copy(b[:], d.answer[min(d.left, len(d.answer)):])
		out.BX.AsUInt32().SetWord(binary.LittleEndian.Uint32(b[:]))
		out.DX.AsUInt32().High = 2
	case 5:
		if d.left != len(d.answer) {
			d.t.Errorf("%d bytes of %q were read", d.left, d.answer)
		}
	case 6:
		d.open = false
	}
	out.CX.AsUInt32().High = status
	return out
}

// Whatever the length of names and values, they arrive as they are.
func TestBackdoor(t *testing.T) {
	for _, d := range []*backdoor{{}, {oldest: true}, {moved: 2}} {
		d.t, d.variables = t, map[string]string{}
		for i := range 9 {
			d.variables["guestinfo."+strings.Repeat("n", i)] = strings.Repeat("wert", 3)[:i]
		}
		for name, want := range d.variables {
			if value, found, err := (VMware{d.call}).Get(name); value != want || !found || err != nil || d.open {
				t.Errorf("Get(%q) = %q, %v, %v; want %q, and the channel closed", name, value, found, err, want)
			}
		}
		if value, found, err := (VMware{d.call}).Get("guestinfo.none"); value != "" || found || err != nil {
			t.Errorf("what is not there is %q, %v, %v", value, found, err)
		}
	}
	d := &backdoor{t: t, moved: 100, variables: map[string]string{"guestinfo.a": "a long value"}}
	if _, _, err := (VMware{d.call}).Get("guestinfo.a"); err == nil || d.open {
		t.Errorf("a machine that is always moved: %v, open %v", err, d.open)
	}
	refuses := func(*bdoor.BackdoorProto) *bdoor.BackdoorProto { return &bdoor.BackdoorProto{} }
	if _, _, err := (VMware{refuses}).Get("guestinfo.a"); err == nil {
		t.Error("a backdoor that refuses is not reported")
	}
}

// What the backdoor answers to info-get.
func TestGuestinfoReply(t *testing.T) {
	for reply, want := range map[string]string{"1 a b": "a b", "1 ": "", "0 No value found": "none", "": "error", "1": "error", "2 x": "error"} {
		value, found, err := parseReply("guestinfo.a", reply)
		if !found {
			value = "none"
		}
		if err != nil {
			value = "error"
		}
		if value != want {
			t.Errorf("parseReply(%q) = %q, %v, %v; want %s", reply, value, found, err, want)
		}
	}
}

// oem is an entry of type 11 as the kernel shows it: type, length, handle, count.
func oem(all ...string) []byte {
	return append([]byte{11, 5, 0, 1, byte(len(all))}, strings.Join(all, "\x00")+"\x00\x00"...)
}

func TestSMBIOS(t *testing.T) {
	inBase64 := base64.StdEncoding.EncodeToString([]byte(whole))
	for name, entry := range map[string][]byte{
		"JSON":   oem("other", "app-platform:"+whole),
		"base64": oem("app-platform:" + inBase64),
	} {
		sys := fstest.MapFS{"firmware/dmi/entries/1-0/raw": {Data: []byte("x")}, "firmware/dmi/entries/11-0/raw": {Data: oem("first")},
			"firmware/dmi/entries/11-1/raw": {Data: entry}}
		d, _, err := FromSMBIOS(sys)
		same(t, name, d, err)
	}
	for name, entry := range map[string][]byte{"none": oem("other"), "short": {11}, "too long": {11, 200, 0, 0, 1, 'a', 0, 0}, "empty": {}} {
		if d, _, err := FromSMBIOS(fstest.MapFS{"firmware/dmi/entries/11-0/raw": {Data: entry}}); d != nil || err != nil {
			t.Errorf("%s: FromSMBIOS() = %v, %v; want nothing", name, d, err)
		}
	}
	if _, _, err := FromSMBIOS(fstest.MapFS{"firmware/dmi/entries/11-0/raw": {Data: oem("app-platform:hunter2!")}}); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a string that is neither: %v", err)
	}
}

func TestFwCfg(t *testing.T) {
	d, _, err := FromFwCfg(fstest.MapFS{fwCfgFile: {Data: []byte(whole)}})
	same(t, "fw_cfg", d, err)
	if d, _, err := FromFwCfg(fstest.MapFS{}); d != nil || err != nil {
		t.Errorf("no fw_cfg offers %v, %v", d, err)
	}
	if _, _, err := FromFwCfg(fstest.MapFS{fwCfgFile: {Data: make([]byte, Most+1)}}); err == nil {
		t.Error("a document of any size is read")
	}
}

// A host is Hyper-V behind the kernel: it waits for its daemon, then sets pairs.
type host struct {
	t        *testing.T
	chatty   bool          // repeats its last message for ever
	pause    time.Duration // before each message
	clock    time.Duration
	messages [][]byte
	answers  []uint32
	started  bool
}

func (h *host) Write(b []byte) (int, error) {
	if len(b) != kvpMessage {
		h.t.Errorf("a message of %d bytes is written; want %d", len(b), kvpMessage)
	}
	if !h.started {
		if h.started = true; b[0] != kvpRegister1 {
			h.t.Errorf("the first message is of kind %d; want a registration", b[0])
		}
		return len(b), nil
	}
	h.answers = append(h.answers, binary.LittleEndian.Uint32(b))
	return len(b), nil
}

func (h *host) Read(b []byte, patience time.Duration) (int, error) {
	if !h.started {
		h.t.Error("messages are read before the registration")
	}
	if len(h.messages) == 0 || h.pause > patience {
		h.clock += patience
		return 0, nil
	}
	h.clock += h.pause
	next := h.messages[0]
	if !h.chatty || len(h.messages) > 1 {
		h.messages = h.messages[1:]
	}
	return copy(b, next), nil
}

func (h *host) Now() time.Duration { return h.clock }

// pair is a message of the host; sizes count the zeros.
func pair(operation, pool byte, key, value string) []byte {
	b := make([]byte, kvpMessage)
	b[0], b[1] = operation, pool
	binary.LittleEndian.PutUint32(b[4:], 1) // REG_SZ
	binary.LittleEndian.PutUint32(b[8:], uint32(len(key)+1))
	binary.LittleEndian.PutUint32(b[12:], uint32(len(value)+1))
	copy(b[kvpKey:], key)
	copy(b[kvpValue:], value)
	return b
}

func TestKVP(t *testing.T) {
	const get, auto = 0, 2
	h := &host{t: t, messages: [][]byte{pair(kvpRegister1, 0, "3.1", ""), pair(get, auto, "OSName", ""),
		pair(kvpSet, 3, "appplatform.address", "198.51.100.1/24"), pair(kvpSet, kvpExternal, "other", "x")}}
	for _, name := range slices.Sorted(maps.Keys(properties)) {
		h.messages = append(h.messages, pair(kvpSet, kvpExternal, "appplatform."+name, properties[name]))
	}
	d, _, err := FromKVP(h)
	same(t, "KVP", d, err)
	if len(h.answers) != 3+len(properties) || h.answers[0] != kvpFailed || slices.ContainsFunc(h.answers[1:], func(a uint32) bool { return a != kvpOK }) {
		t.Errorf("the answers are %x", h.answers)
	}
	if d, _, err := FromKVP(&host{t: t}); err != nil || !d.Empty() {
		t.Errorf("a host that says nothing offers %v, %v", d, err)
	}
	wrong := pair(kvpSet, kvpExternal, "appplatform.adress", "x")
	for name, message := range map[string][]byte{"typo": wrong, "short": wrong[:100]} {
		if _, _, err := FromKVP(&host{t: t, messages: [][]byte{message}}); err == nil {
			t.Errorf("%s: it is accepted", name)
		}
	}
	// All pairs count, also those that come slowly.
	slow := &host{t: t, pause: 900 * time.Millisecond}
	for _, name := range []string{"hostname", "timezone", "address"} {
		slow.messages = append(slow.messages, pair(kvpSet, kvpExternal, "appplatform."+name, properties[name]))
	}
	slow.messages[1], slow.pause = pair(0, 2, "OSName", ""), 900*time.Millisecond
	if d, _, err := FromKVP(slow); err != nil || d.Hostname == "" || d.Address == "" {
		t.Errorf("a slow host offers %v, %v", d, err)
	}
	if slow.clock > 6*time.Second {
		t.Errorf("a slow host is listened to for %v", slow.clock)
	}
	late := &host{t: t, pause: 2 * time.Second}
	if _, _, err := FromKVP(late); err != nil || late.clock != kvpQuiet {
		t.Errorf("a silent host is listened to for %v, %v", late.clock, err)
	}
	// What does not end may be half of something.
	for name, message := range map[string][]byte{"sets": pair(kvpSet, kvpExternal, "appplatform.hostname", "a"), "asks": pair(0, 2, "OSName", "")} {
		h := &host{t: t, chatty: true, pause: 500 * time.Millisecond, messages: [][]byte{message}}
		d, _, err := FromKVP(h)
		if h.clock > 11*time.Second || (err != nil) != (name == "sets") || err == nil && !d.Empty() {
			t.Errorf("a host that %s for ever: %v, %v after %v", name, d, err, h.clock)
		}
	}
	large := pair(kvpSet, kvpExternal, "appplatform.hostname", "a")
	binary.LittleEndian.PutUint32(large[8:], 1<<31)
	binary.LittleEndian.PutUint32(large[12:], 1<<32-1)
	if d, _, err := FromKVP(&host{t: t, messages: [][]byte{large}}); err != nil || d.Hostname != "a" {
		t.Errorf("sizes beyond the message: %v, %v", d, err)
	}
}
