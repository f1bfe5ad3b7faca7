package vmtest

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"appplatform/partitions"
)

func TestConsoleText(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"plain", "a\r\nb\tc", "a\nb\tc"},
		{"colours", "\x1b[1;31mred\x1b[0m", "red"},
		{"cursor separates words", "one\x1b[5;3Htwo", "one\ntwo"},
		{"character set", "\x1b(Bx\x1b)0y\x1b=z", "xyz"},
		{"unfinished", "x\x1b[12", "x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := NewConsole("test", strings.NewReader(test.in), nil, nil)
			if _, err := c.Expect("never", time.Second); err == nil {
				t.Fatal(`Expect("never") = nil; want an error`)
			}
			if got := c.Text(); got != test.want {
				t.Errorf("Text() = %q; want %q", got, test.want)
			}
		})
	}
}

func TestExpect(t *testing.T) {
	r, w := io.Pipe()
	c := NewConsole("test", r, nil, nil)
	go func() {
		for _, part := range []string{"log", "in: ", "login: again "} {
			_, _ = io.WriteString(w, part)
		}
	}()
	if got, err := c.Expect(`lo(\w+): `, time.Second); err != nil || !slices.Equal(got, []string{"login: ", "gin"}) {
		t.Errorf("Expect(...) = %q, %v; want login: and its group", got, err)
	}
	if got, err := c.Expect(`login: a`, time.Second); err != nil || len(got) != 1 {
		t.Errorf("Expect(...) = %q, %v; want the second login", got, err)
	}
	if _, err := c.Expect(`login`, 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), "within 10ms") || !strings.Contains(err.Error(), "login: again") {
		t.Errorf("Expect(...) = %v; want an error with the time and the last words", err)
	}
	c.fail(errors.New("gone"))
	if _, err := c.Expect(`login`, time.Minute); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("Expect(...) = %v; want what ended the console", err)
	}
}

func TestArgs(t *testing.T) {
	for _, test := range []struct {
		name string
		opts Options
		want []string
	}{
		{"defaults", Options{Disks: []Disk{{Path: "/d"}}}, []string{
			"-machine pc", "-accel tcg", "-m 512M", "-smp 1", "virtio-scsi-pci,id=hba-disk0",
			"scsi-hd,bus=hba-disk0.0,drive=disk0,bootindex=0", "format=raw,file=/d",
		}},
		{"UEFI with NVMe", Options{Dir: "/run", Firmware: UEFI, Disks: []Disk{{Path: "/d", Controller: NVMe}}}, []string{
			"-machine q35", "file=/run/efivars.fd", "nvme,serial=disk0,drive=disk0,bootindex=0",
		}},
		{"UEFI with IDE", Options{Firmware: UEFI, Disks: []Disk{{Path: "/d", Controller: IDE}}}, []string{"-machine pc", "ide-hd,drive=disk0"}},
		{"UEFI with mptsas", Options{Firmware: UEFI, NIC: "e1000", Disks: []Disk{{Path: "/d", Controller: MPTSAS}}}, []string{
			"-machine pc", "bus=hba-disk0.0,drive=disk0,scsi-id=1,wwn=", "e1000,netdev=net",
		}},
		{"SATA", Options{Disks: []Disk{{Path: "/d", Controller: AHCI}}}, []string{"-machine q35"}},
		{"two disks", Options{Disks: []Disk{{Path: "/d"}, {Path: "/e", Format: "qcow2"}}}, []string{"drive=disk0,bootindex=0", "drive=disk1,bootindex=1", "format=qcow2,file=/e"}},
		{"logged", Options{Disks: []Disk{{Path: "/d", Log: "/l"}}}, []string{
			"node-name=disk0-data,filename=/d", "filename=/l", "driver=blklogwrites,node-name=disk0,", "drive=disk0,bootindex=0",
		}},
		{"told", Options{Address: "10.0.2.77", Capture: "/c,1", CDs: []string{"/cd"}, Sticks: []string{"/s"}, OEM: []string{`{"a": 1, "b": 2}`}, FwCfg: map[string]string{"opt/a": "1,2"}}, []string{
			"filter-dump,id=capture,netdev=net,file=/c,,1", "media=cdrom,readonly=on,file=/cd -device ide-cd,drive=cd0", "file=/s -device usb-storage,bus=usb.0",
			`-smbios type=11,value={"a": 1,, "b": 2}`, "-fw_cfg name=opt/a,string=1,,2", "hostfwd=tcp:127.0.0.1:2222-10.0.2.77:22",
		}},
		{"ample", Options{Memory: 2 * partitions.GiB, CPUs: 4, KVM: true, Watchdog: true}, []string{"-m 2048M", "-smp 4", "-accel kvm", "i6300esb"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			args, err := test.opts.withDefaults().args("/sockets", map[int]int{22: 2222})
			if err != nil {
				t.Fatal(err)
			}
			line := strings.Join(args, " ")
			for _, w := range append(test.want, "hostfwd=tcp:127.0.0.1:2222-"+test.opts.Address+":22", "path=/sockets/serial.sock") {
				if !strings.Contains(line, w) {
					t.Errorf("args(...) = %s; want %q in it", line, w)
				}
			}
		})
	}
}

func TestArgsErrors(t *testing.T) {
	for _, test := range []struct {
		disk Disk
		want string
	}{
		{Disk{Path: "/a,b"}, "QEMU takes no comma"},
		{Disk{Path: "/a", Controller: "floppy"}, `unknown controller "floppy"`},
		{Disk{Path: "/a", Log: "/l", Format: "qcow2"}, "its format is qcow2, not raw"},
	} {
		_, err := Options{Disks: []Disk{test.disk}}.withDefaults().args("/sockets", nil)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("args(%v) = %v; want an error with %q", test.disk, err, test.want)
		}
	}
}
