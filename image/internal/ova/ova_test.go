package ova

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/ovf/importer"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"appplatform/internal/testtools"
	"appplatform/tooltree"
)

var machine = Machine{
	Name: "app-platform-x86_64", Product: "App Platform", Version: "160001",
	Memory: 512 << 20, CPUs: 1, Capacity: 16 << 30,
	Class: "appplatform", Properties: []Property{
		{Key: "address", Type: "string", Label: "IP address", Description: "An address with its prefix length, or dhcp: \"192.0.2.10/24\" & <more>"},
		{Key: "admin_password", Type: "string", Label: "Password", Description: "As a hash", Secret: true},
	},
}

var when = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// write makes an OVA around something that stands for a disk.
func write(t *testing.T, m Machine, disk []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := Write(&b, m, bytes.NewReader(disk), int64(len(disk)), when); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// OS-A1: what is in an OVA comes back, in the order that importers want, and tar
// and sha256sum agree.
func TestOVA(t *testing.T) {
	disk := bytes.Repeat([]byte("a disk "), 1000)
	b := write(t, machine, disk)
	p, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(p.Disk)
	if err != nil || !bytes.Equal(got, disk) || p.Capacity != machine.Capacity {
		t.Errorf("the OVA has a disk of %d bytes and %d, %v", len(got), p.Capacity, err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "x.ova"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := testtools.Open(t, tooltree.Formats).Output(t.Context(), tooltree.Cmd{
		Args:     []string{"bash", "-c", `cd "$1" && head -c 263 x.ova | tail -c 6 && tar xvf x.ova && sed -E 's/^SHA256\((.*)\)= (.*)/\2  \1/' *.mf | sha256sum -c`, "bash", dir},
		Writable: []string{dir},
	})
	want := "ustar\x00app-platform-x86_64.ovf\napp-platform-x86_64.mf\napp-platform-x86_64.vmdk\napp-platform-x86_64.ovf: OK\napp-platform-x86_64.vmdk: OK\n"
	if err != nil || string(out) != want {
		t.Errorf("tar and sha256sum say %q, %v; want %q", out, err, want)
	}
	if again := write(t, machine, disk); !bytes.Equal(again, b) {
		t.Error("two OVAs of the same machine differ")
	}
}

// OVF descriptors follow the schema of DSP0243.
func TestDescriptorSchema(t *testing.T) {
	tools := testtools.Open(t, tooltree.Formats)
	schema, err := filepath.Abs("testdata/dmtf")
	if err != nil {
		t.Fatal(err)
	}
	bare := machine
	bare.Properties = nil
	for name, m := range map[string]Machine{"with properties": machine, "without": bare} {
		text, err := m.descriptor(12345)
		if err != nil {
			t.Fatal(err)
		}
		validate := func(text []byte) error {
			return tools.Run(t.Context(), tooltree.Cmd{
				Args:  []string{"xmllint", "--nonet", "--noout", "--schema", schema + "/ovf-envelope.xsd", "-"},
				Stdin: bytes.NewReader(text), ReadOnly: []string{schema},
			})
		}
		if err := validate(text); err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
		if wrong := bytes.Replace(text, []byte("<References>"), []byte("<Reference>"), 1); validate(wrong) == nil {
			t.Error("the validation does not notice a wrong descriptor")
		}
	}
}

// VMware's importer reads the manifest and makes the machine of OS-A4. What it
// imports into is VMware's own simulator of vCenter, which knows SHA-1 only and so
// cannot compare the disk with the manifest.
func TestImport(t *testing.T) {
	disk := []byte("what stands for a disk")
	file := filepath.Join(t.TempDir(), "app-platform.ova")
	if err := os.WriteFile(file, write(t, machine, disk), 0o644); err != nil {
		t.Fatal(err)
	}
	simulator.Test(func(ctx context.Context, c *vim25.Client) {
		vm, err := importInto(ctx, c, file)
		if err != nil {
			t.Fatal(err)
		}
		hw := vm.Config.Hardware
		if vm.Name != machine.Name || hw.MemoryMB != 512 || hw.NumCPU != 1 || vm.Config.Version != "vmx-14" || vm.Config.GuestId != "other4xLinux64Guest" {
			t.Errorf("the importer makes %s: %d MB, %d CPUs, %s, %s", vm.Name, hw.MemoryMB, hw.NumCPU, vm.Config.Version, vm.Config.GuestId)
		}
		devices := object.VirtualDeviceList(hw.Device)
		if n := len(devices.SelectByType((*types.ParaVirtualSCSIController)(nil))); n != 1 {
			t.Errorf("the machine has %d paravirtual SCSI controllers", n)
		}
		if n := len(devices.SelectByType((*types.VirtualVmxnet3)(nil))); n != 1 {
			t.Errorf("the machine has %d vmxnet3 cards", n)
		}
		disks := devices.SelectByType((*types.VirtualDisk)(nil))
		if len(disks) != 1 || disks[0].(*types.VirtualDisk).CapacityInKB != 16<<20 {
			t.Errorf("the machine has the disks %+v", disks)
		}
		var address string
		for _, p := range vm.Config.VAppConfig.GetVmConfigInfo().Property {
			if p.ClassId+"."+p.Id == "appplatform.address" {
				address = p.Value
			}
		}
		if address != "192.0.2.10/24" {
			t.Errorf("the guest is told the address %q", address)
		}
	})
}

func importInto(ctx context.Context, c *vim25.Client, file string) (*mo.VirtualMachine, error) {
	finder := find.NewFinder(c)
	dc, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return nil, err
	}
	finder.SetDatacenter(dc)
	folders, err := dc.Folders(ctx)
	if err != nil {
		return nil, err
	}
	store, err := finder.DefaultDatastore(ctx)
	if err != nil {
		return nil, err
	}
	host, err := finder.HostSystem(ctx, "DC0_H0")
	if err != nil {
		return nil, err
	}
	pool, err := host.ResourcePool(ctx)
	if err != nil {
		return nil, err
	}
	i := importer.Importer{
		Log: func(string) (int, error) { return 0, nil }, Client: c, Finder: finder,
		Datacenter: dc, Datastore: store, Folder: folders.VmFolder, Host: host, ResourcePool: pool,
		Archive: &importer.TapeArchive{Path: file},
	}
	if err := i.ReadManifest("app-platform-x86_64.ovf"); err != nil {
		return nil, err
	}
	if sum := i.Manifest["app-platform-x86_64.vmdk"]; sum == nil || sum.Algorithm != "SHA256" || len(sum.Checksum) != 64 {
		return nil, fmt.Errorf("the manifest says %+v", sum)
	}
	ref, err := i.Import(ctx, "*.ovf", importer.Options{
		NetworkMapping:  []importer.Network{{Name: "VM Network", Network: "VM Network"}},
		PropertyMapping: []importer.Property{{KeyValue: importer.KeyValue{Key: "appplatform.address", Value: "192.0.2.10/24"}}},
	})
	if err != nil {
		return nil, err
	}
	var vm mo.VirtualMachine
	err = property.DefaultCollector(c).RetrieveOne(ctx, *ref, []string{"name", "config"}, &vm)
	return &vm, err
}

// Whatever is wrong with an OVA is said.
func TestDamage(t *testing.T) {
	disk := bytes.Repeat([]byte("a disk "), 300)
	sound := write(t, machine, disk)
	members := func(change func([]member) []member) []byte {
		var list []member
		r := tar.NewReader(bytes.NewReader(sound))
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, member{*h, data})
		}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, m := range change(list) {
			m.Size = int64(len(m.data))
			if err := w.WriteHeader(&m.Header); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(m.data); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	resum := func(m []member) []member {
		m[1].data = []byte(manifestLine(m[0].Name, sha256.Sum256(m[0].data)) + manifestLine(m[2].Name, sha256.Sum256(m[2].data)))
		return m
	}
	for _, test := range []struct {
		name   string
		change func([]member) []member
		want   string
	}{
		{"sound", func(m []member) []member { return m }, ""},
		{"no disk", func(m []member) []member { return m[:2] }, "no disk"},
		{"order", func(m []member) []member { return []member{m[1], m[0], m[2]} }, "should be"},
		{"disk", func(m []member) []member { m[2].data[5] ^= 1; return m }, "app-platform-x86_64.vmdk is not what the manifest says"},
		{"descriptor", func(m []member) []member { m[0].data[100] ^= 1; return m }, "app-platform-x86_64.ovf is not what the manifest says"},
		{"another manifest line", func(m []member) []member { m[1].data = append(m[1].data, "SHA256(x)= 0\n"...); return m }, "further lines"},
		{"another member", func(m []member) []member { return append(m, m[1]) }, "follows the disk"},
		{"name", func(m []member) []member { m[2].Name = "../x.vmdk"; return resum(m) }, "plain USTAR"},
		{"format", func(m []member) []member { m[0].Format = tar.FormatGNU; return m }, "plain USTAR"},
		{"size", func(m []member) []member { m[2].data = m[2].data[1:]; return resum(m) }, "the descriptor says"},
		{"XML", func(m []member) []member { m[0].data = m[0].data[:300]; return resum(m) }, "descriptor is damaged"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := members(test.change)
			_, err := Open(bytes.NewReader(b), int64(len(b)))
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("Open = %v; want %q", err, test.want)
			}
		})
	}
	for _, n := range []int{0, 100, 512, 3000, len(sound) - 1500} {
		if _, err := Open(bytes.NewReader(sound), int64(n)); err == nil {
			t.Errorf("an OVA that is cut off at %d is taken", n)
		}
	}
	var b bytes.Buffer
	if err := Write(&b, machine, bytes.NewReader(disk), maxMember+1, when); err == nil || b.Len() != 0 {
		t.Errorf("a disk that USTAR has no room for: %v", err)
	}
}

type member struct {
	tar.Header
	data []byte
}
