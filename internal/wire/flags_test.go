package wire

import "testing"

// TestFlags holds the names and bits of the specification (manager.md, J2 and P2).
func TestFlags(t *testing.T) {
	want := []struct {
		name string
		bit  Flags
	}{
		{"App", 1}, {"Database", 2}, {"DB files", 4}, {"DNS", 8}, {"Ethernet", 0x10}, {"File", 0x20}, {"Files", 0x40},
		{"HTTP client", 0x80}, {"HTTP file", 0x100}, {"Process", 0x200}, {"TLS", 0x400}, {"TCP", 0x800}, {"LDS", 0x1000},
		{"Webserver traffic", 0x2000}, {"WebSocket client", 0x4000}, {"App WebSocket", 0x8000}, {"WebDAV service", 0x10000},
		{"Command", 0x20000}, {"Config", 0x40000}, {"Time", 0x80000}, {"SMTP", 0x100000}, {"UDP", 0x200000}, {"DTLS", 0x400000},
		{"Media", 0x800000}, {"Media channel", 0x1000000}, {"ICE", 0x2000000}, {"TURN", 0x4000000}, {"AppSharing", 0x8000000},
		{"Audio", 0x10000000}, {"Video", 0x20000000}, {"Browser", 0x40000000}, {"AppProxy", 0x80000000},
		{"Alarm client", 0x100000000}, {"Webserver", 0x200000000},
	}
	native := map[string]bool{"AppSharing": true, "AppProxy": true, "Audio": true, "Browser": true, "DTLS": true, "ICE": true,
		"Media": true, "Media channel": true, "TURN": true, "Video": true}
	if len(FlagNames) != len(want) || len(want) != 34 {
		t.Fatalf("there are %d flags; want 34", len(FlagNames))
	}
	for n, w := range want {
		if got := FlagNames[n]; got.Name != w.name || got.Flag != w.bit || got.Native != native[w.name] {
			t.Errorf("flag %d is %+v; want %s %#x, native %v", n, got, w.name, uint64(w.bit), native[w.name])
		}
		if got := w.bit.String(); got != w.name {
			t.Errorf("Flags(%#x) = %s; want %s", uint64(w.bit), got, w.name)
		}
	}
	if DefaultFlags != 0x8001 {
		t.Errorf("DefaultFlags = %#x; want 0x8001", uint64(DefaultFlags))
	}
	for _, c := range []struct {
		flags Flags
		want  string
	}{{0, ""}, {DefaultFlags, "App, App WebSocket"}, {1 | 1<<40, "App, 0x10000000000"}} {
		if got := c.flags.String(); got != c.want {
			t.Errorf("Flags(%#x) = %q; want %q", uint64(c.flags), got, c.want)
		}
	}
}
