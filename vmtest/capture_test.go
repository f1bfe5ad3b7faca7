package vmtest_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// wantOnly wants every IPv4 and ARP packet that the machine has sent to be from
// one of the addresses, the first from the first of them.
func wantOnly(t *testing.T, capture string, addresses ...string) {
	t.Helper()
	b, err := os.ReadFile(capture)
	if err != nil {
		t.Fatal(err)
	}
	sent, err := senders(b)
	if err != nil {
		t.Fatalf("%s: %v", capture, err)
	}
	if len(sent) == 0 || sent[0].String() != addresses[0] {
		t.Fatalf("%s: the machine has sent %d packets, from %v; want the first from %s", capture, len(sent), sent[:min(len(sent), 5)], addresses[0])
	}
	for i, a := range sent {
		if !strings.Contains(" "+strings.Join(addresses, " ")+" ", " "+a.String()+" ") {
			t.Errorf("%s: packet %d is from %v; want %v only", capture, i+1, a, addresses)
		}
	}
}

// guestMAC is what QEMU gives to a first network card.
const guestMAC = "\x52\x54\x00\x12\x34\x56"

// senders are the addresses from which the guest has sent IPv4 and ARP packets,
// in order (pcap: the file format of libpcap 2.4, in this machine's byte order).
func senders(b []byte) (all []netip.Addr, err error) {
	const header, record, magic = 24, 16, 0xa1b2c3d4
	le := binary.LittleEndian
	if len(b) < header || le.Uint32(b) != magic || le.Uint32(b[20:]) != 1 {
		return nil, errors.New("it is no capture of Ethernet")
	}
	for b = b[header:]; len(b) >= record; {
		n := int(le.Uint32(b[8:]))
		if n < 0 || n > len(b)-record {
			return all, errors.New("it ends in the middle of a packet")
		}
		frame := b[record : record+n]
		b = b[record+n:]
		if len(frame) < 34 || string(frame[6:12]) != guestMAC {
			continue
		}
		const ipv4, arp = 0x0800, 0x0806
		switch binary.BigEndian.Uint16(frame[12:]) {
		case ipv4: // The sender is at 12 of the header (RFC 791).
			all = append(all, netip.AddrFrom4([4]byte(frame[26:30])))
		case arp: // The sender is at 14 of the packet (RFC 826).
			all = append(all, netip.AddrFrom4([4]byte(frame[28:32])))
		}
	}
	return all, nil
}

// Packets of others, and what is neither IPv4 nor ARP, do not count.
func TestSenders(t *testing.T) {
	// Magic, version 2.4, two zeros, the longest packet, Ethernet.
	b := []byte("\xd4\xc3\xb2\xa1\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x04\x00\x01\x00\x00\x00")
	add := func(from string, kind uint16, at int, address string) {
		frame := make([]byte, 60)
		copy(frame[6:], from)
		binary.BigEndian.PutUint16(frame[12:], kind)
		if address != "" {
			copy(frame[at:], netip.MustParseAddr(address).AsSlice())
		}
		record := make([]byte, 16)
		binary.LittleEndian.PutUint32(record[8:], uint32(len(frame)))
		b = append(append(b, record...), frame...)
	}
	add(guestMAC, 0x86dd, 0, "")
	add("\x52\x55\x0a\x00\x02\x02", 0x0800, 26, "10.0.2.2")
	add(guestMAC, 0x0806, 28, "10.0.2.77")
	add(guestMAC, 0x0800, 26, "0.0.0.0")
	got, err := senders(b)
	if want := "[10.0.2.77 0.0.0.0]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("senders() = %v, %v; want %s", got, err, want)
	}
	if _, err := senders(b[:len(b)-1]); err == nil {
		t.Error("a capture that is cut off is read")
	}
	if _, err := senders([]byte("no capture, but long enough for one")); err == nil {
		t.Error("something else is read")
	}
}
