package netconf

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A client whose script hangs is killed with its script, so that the script
// cannot take away the address that is set next.
func TestStopDHCP(t *testing.T) {
	const link = "test-no-such-link"
	for name, script := range map[string]string{
		"ends":    "sleep 60 & trap 'kill $!; exit' TERM; wait",
		"refuses": "trap '' TERM; sh -c 'sleep 60; true' & wait; sleep 60",
	} {
		cmd := exec.Command("/bin/sh")
		cmd.Args = []string{"udhcpc", "-c", script, "sh", "-i", link, "-f"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waited := make(chan error, 1)
		go func() { waited <- cmd.Wait() }()
		time.Sleep(200 * time.Millisecond) // Until it has set its trap.
		if got := clients("/proc", link); !slices.Contains(got, cmd.Process.Pid) {
			t.Fatalf("%s: clients() = %v; want %d among them", name, got, cmd.Process.Pid)
		}
		if err := end(cmd.Process.Pid, time.Second); err != nil {
			t.Errorf("%s: end() = %v", name, err)
		}
		<-waited
		if alive("/proc", strconv.Itoa(cmd.Process.Pid)) {
			t.Errorf("%s: something of the client is left", name)
		}
		if got := clients("/proc", link); len(got) > 0 {
			t.Errorf("%s: clients() = %v; want none", name, got)
		}
	}
}

// --addr6=auto takes the static address and its gateway away at once.
func TestAutomaticIPv6(t *testing.T) {
	runtime.LockOSThread() // The thread ends with the test, and its network with it.
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("cannot make a network to test in: %v", err)
	}
	link, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	global := func() (found []string) {
		addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range addrs {
			if a.IP.IsGlobalUnicast() {
				found = append(found, a.IPNet.String())
			}
		}
		return found
	}
	static := Settings{Address6: netip.MustParsePrefix("2001:db8::20/64")}
	if err := start6(link, static); err != nil {
		t.Skipf("cannot set an IPv6 address here: %v", err)
	}
	if got := global(); !slices.Equal(got, []string{"2001:db8::20/64"}) {
		t.Fatalf("the addresses are %v; want the static one", got)
	}
	if err := start6(link, Settings{}); err != nil && !strings.Contains(err.Error(), "read-only file system") {
		t.Errorf("start6() = %v", err)
	}
	if got := global(); len(got) > 0 {
		t.Errorf("the addresses are %v; want none", got)
	}
}

// The first card is that with the lowest number, not lo and not the first by name.
func TestFirstMAC(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"lo/ifindex": "1\n", "lo/address": "00:00:00:00:00:00\n",
		"eth0/ifindex": "10\n", "eth0/address": "bc:24:11:00:00:01\n", "eth0/device/vendor": "",
		"eth1/ifindex": "9\n", "eth1/address": "BC:24:11:6f:3b:a2\n", "eth1/device/vendor": "",
	} {
		path := filepath.Join(root, "sys/class/net", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if mac, err := FirstMAC(root); err != nil || mac.String() != "bc:24:11:6f:3b:a2" {
		t.Errorf("FirstMAC() = %v, %v", mac, err)
	}
}

func TestWriteTimeServers(t *testing.T) {
	root := t.TempDir()
	servers := []netip.Addr{netip.MustParseAddr("10.0.2.4"), netip.MustParseAddr("2001:db8::4")}
	for _, test := range []struct {
		servers []netip.Addr
		want    string
		changed bool
	}{
		{nil, "", false},
		{servers, "server 10.0.2.4 iburst\nserver 2001:db8::4 iburst\n", true},
		{servers, "server 10.0.2.4 iburst\nserver 2001:db8::4 iburst\n", false},
		{nil, "", true},
	} {
		changed, err := writeTimeServers(root, test.servers)
		if err != nil || changed != test.changed {
			t.Errorf("writeTimeServers(%v) = %v, %v; want %v", test.servers, changed, err, test.changed)
		}
		if got, _ := os.ReadFile(filepath.Join(root, timeSources)); string(got) != test.want {
			t.Errorf("writeTimeServers(%v) writes %q; want %q", test.servers, got, test.want)
		}
	}
}
