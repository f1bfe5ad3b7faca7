package agent

import (
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/agent/internal/firstboot"
	"appplatform/agent/internal/netconf"
	"appplatform/internal/smallfile"
)

// vmChannels are those of hypervisors. Each is asked only where it can be.
func (m Machine) vmChannels(media []medium) []firstboot.Channel {
	sys := os.DirFS(m.path("sys"))
	cd := func(one medium) bool { return one.fstype == "iso9660" }
	vmware := sync.OnceValue(m.vmware)
	cidata := func(one medium) bool { return strings.EqualFold(one.label, firstboot.NoCloudLabel) }
	noCloud := func(disk fs.FS) (*firstboot.Document, []string, error) {
		return firstboot.FromNoCloud(disk, func() (net.HardwareAddr, error) { return netconf.FirstMAC(m.Root) })
	}
	return []firstboot.Channel{
		{Name: firstboot.OVF, Read: m.fromMedia(media, cd, firstboot.FromOVF)},
		{Name: firstboot.OVF, Read: fromVMware(vmware, firstboot.FromGuestOVF)},
		{Name: firstboot.Guestinfo, Read: fromVMware(vmware, firstboot.FromGuestinfo)},
		{Name: firstboot.NoCloud, Read: m.fromMedia(media, cidata, noCloud)},
		{Name: firstboot.SMBIOS, Read: func() (*firstboot.Document, []string, error) { return firstboot.FromSMBIOS(sys) }},
		{Name: firstboot.FwCfg, Read: func() (*firstboot.Document, []string, error) { return firstboot.FromFwCfg(sys) }},
		{Name: firstboot.KVP, Read: m.fromHyperV},
	}
}

// vendor is who made the machine, as its firmware says.
func (m Machine) vendor() string {
	text, _ := smallfile.Read(m.path("sys/class/dmi/id/sys_vendor"), 4096)
	return strings.TrimSpace(string(text))
}

// vmware is the hypervisor, or nil.
func (m Machine) vmware() firstboot.Guest {
	if !strings.HasPrefix(m.vendor(), "VMware") {
		return nil
	}
	guest, err := firstboot.OpenVMware()
	if err != nil {
		m.Log.Printf("%v", err) // One that was switched off has nothing to say.
		return nil
	}
	return guest
}

func fromVMware(vmware func() firstboot.Guest, read func(firstboot.Guest) (*firstboot.Document, []string, error)) func() (*firstboot.Document, []string, error) {
	return func() (*firstboot.Document, []string, error) {
		if guest := vmware(); guest != nil {
			return read(guest)
		}
		return nil, nil, nil
	}
}

// fromHyperV asks before Hyper-V's own daemon is started.
func (m Machine) fromHyperV() (*firstboot.Document, []string, error) {
	if !strings.HasPrefix(m.vendor(), "Microsoft") {
		return nil, nil, nil
	}
	fd, err := unix.Open(m.path("dev/vmbus/hv_kvp"), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, nil // The service is switched off, or the daemon runs.
	}
	defer unix.Close(fd)
	return firstboot.FromKVP(kvpDevice{fd, time.Now()})
}

// A kvpDevice is an open /dev/vmbus/hv_kvp.
type kvpDevice struct {
	fd     int
	opened time.Time
}

func (d kvpDevice) Read(b []byte, patience time.Duration) (int, error) {
	end := d.Now() + patience
	for {
		left := max(0, end-d.Now())
		fds := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err == nil && n == 0 {
			return 0, nil
		}
		if err == nil {
			n, err = unix.Read(d.fd, b)
		}
		if err == nil {
			return n, nil
		}
		if err != unix.EINTR && err != unix.EAGAIN {
			return 0, fmt.Errorf("cannot read a message: %w", err)
		}
	}
}

func (d kvpDevice) Write(b []byte) (int, error) { return unix.Write(d.fd, b) }

func (d kvpDevice) Now() time.Duration { return time.Since(d.opened) }
