package disk

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"appplatform/bundle"
	"appplatform/image/internal/ext4"
	"appplatform/image/internal/grub"
	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
	"appplatform/vmtest"
)

// fakeKernel is the smallest thing that GRUB takes for a Linux kernel and starts
// as a BIOS machine does. It says its name, its command line and whether it got
// a ramdisk on the serial port. All of it is setup code, for the 16 bits of real
// mode; the offsets up to 0x268 are those of Linux's boot protocol.
func fakeKernel(name string) []byte {
	const entry, puts, strs, end = 0x268, 0x300, 0x340, 0x400
	le := binary.LittleEndian
	b := make([]byte, 4096) // the boot sector, one sector of setup code, the rest
	b[0x1f1] = 1            // sectors of setup code
	le.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x200:], []byte{0xeb, 0x66}) // jump to entry
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x020c)
	b[0x211] = 1                        // the rest is loaded high
	le.PutUint32(b[0x22c:], 0x7fffffff) // highest address of a ramdisk
	le.PutUint32(b[0x238:], 2047)       // longest command line

	texts := []string{"[" + name + ": ", " +ramdisk", "]\r\n"}
	var at [3]uint16
	free := strs
	for i, s := range texts {
		at[i] = uint16(free)
		free += copy(b[free:end], s+"\x00")
	}
	code := b[entry:entry]
	op := func(bytes ...byte) { code = append(code, bytes...) }
	call := func() { op(0xe8); code = le.AppendUint16(code, uint16(puts-entry-len(code)-2)) }
	load := func(address uint16) { op(0xbb); code = le.AppendUint16(code, address) }
	load(at[0])
	call()
	op(0x8b, 0x1e, 0x28, 0x02)       // bx = the command line's address,
	op(0x8c, 0xd8, 0xc1, 0xe0, 0x04) // of which the segment's is
	op(0x29, 0xc3)                   // subtracted
	call()
	op(0x83, 0x3e, 0x1c, 0x02, 0x00) // no ramdisk?
	op(0x74, 6)                      // then past the next two
	load(at[1])
	call()
	load(at[2])
	call()
	op(0xfa, 0xf4, 0xeb, 0xfd) // halt
	copy(b[puts:strs], []byte{
		0x8a, 0x07, 0x84, 0xc0, 0x74, 0x13, // until the text at bx ends
		0x88, 0xc4, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, // wait for the port
		0x88, 0xe0, 0xba, 0xf8, 0x03, 0xee, // write a character
		0x43, 0xeb, 0xe7, 0xc3,
	})
	return b
}

// A patch is a change that the device makes, where the bytes stand.
type patch struct{ old, new string }

var (
	normal  = patch{"\nset default=0\n", "\nset default=1\n"}
	setB    = patch{"Block\nset=a\n", "Block\nset=b\n"}
	noEnv   = patch{"# GRUB Environment Block\n", "# GRUB envIronment bLock\n"}
	timeout = patch{"\nset timeout=2\n", "\nset timeout=\xb2\n"}
	noCfg   = patch{string(grub.Config), strings.Repeat("\x00", len(grub.Config))}
	wildCfg = patch{string(grub.Config), wild(len(grub.Config))}
	kernel  = patch{"[kernel a: ", "[kernel a! "}
	ramdisk = patch{"ramdisk a", "ramdisk A"}
)

// wild is text that opens what it does not close.
func wild(n int) string {
	const text = "set default=1\nfunction boot {\nif x; then \"\xff\x00 ' ${\n\\"
	return strings.Repeat(text, n/len(text)+1)[:n]
}

// boot starts an installed disk with two sets of files on sda1, some of them
// removed (or, with a colon behind the name, empty), and parts of it patched. sda3
// is among what can be removed.
func boot(t *testing.T, without []string, patches ...patch) *vmtest.Machine {
	t.Helper()
	layout, err := partitions.Layout(partitions.GPT, table.DiskSize)
	if err != nil {
		t.Fatal(err)
	}
	layout.DiskUUID = table.DiskUUID
	for i := range layout.Parts {
		if factory, ok := table.Part(layout.Parts[i].Number); ok {
			layout.Parts[i].UUID = factory.UUID
		} else {
			layout.Parts[i].UUID = partitions.NewUUID([16]byte{byte(i)})
		}
	}
	o := Options{Table: layout, Boot: map[string]Source{}, Time: time.Unix(1767225600, 0)}
	for _, set := range []string{"a", "b"} {
		for name, data := range map[string][]byte{
			"kernel":          fakeKernel("kernel " + set),
			"ramdisk.ext2.xz": bytes.Repeat([]byte("ramdisk "+set), 1000),
		} {
			f := bundle.File{Name: name, SHA256: fmt.Sprintf("%x", sha256.Sum256(data))}
			o.Boot[set+"/"+name] = Source{Data: data}
			o.Boot[set+"/"+f.SumName()] = Source{Data: f.Sum()}
		}
	}
	for _, name := range without {
		if name, empty := strings.CutSuffix(name, ":"); empty {
			o.Boot[name] = Source{}
		} else {
			delete(o.Boot, name)
		}
	}
	image := made(t, o)
	if !slices.Contains(without, "sda3") {
		writeSystem(t, image, layout)
	}
	for _, p := range patches {
		apply(t, image, p)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	m, err := vmtest.Start(ctx, vmtest.Options{
		Tools: testtools.Open(t, tooltree.VM),
		Dir:   t.TempDir(),
		Disks: []vmtest.Disk{{Path: image}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Kill)
	return m
}

// writeSystem makes sda3 as the builder makes the root file system.
func writeSystem(t *testing.T, image string, layout partitions.Table) {
	t.Helper()
	part, _ := layout.Part(partitions.Rootfs)
	var files bytes.Buffer
	if err := writeTar(&files, map[string]Source{bundle.PlatformFile: {Data: []byte("{}")}}, time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	o := ext4.Options{Type: ext4.Ext4, Label: "ap-rootfs", UUID: part.UUID, Size: part.Size, Offset: part.Start, Inodes: 1024, Time: time.Unix(1767225600, 0)}
	if err := ext4.Write(t.Context(), testtools.Open(t, tooltree.Image), o, &files, image); err != nil {
		t.Fatal(err)
	}
}

func apply(t *testing.T, image string, p patch) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	part, _ := table.Part(partitions.Boot)
	n := bytes.Index(read(t, image, part.Start, 16*partitions.MiB), []byte(p.old))
	if n < 0 || len(p.old) != len(p.new) {
		t.Fatalf("cannot find %q on sda1", p.old)
	}
	if _, err := f.WriteAt([]byte(p.new), int64(part.Start)+int64(n)); err != nil {
		t.Fatal(err)
	}
}

// OS-D1, OS-D2, and what happens when a part of an image is missing.
func TestBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("starts QEMU")
	}
	const (
		rescue = `root=/dev/ram0 ramdisk_size=100000 rw `
		system = `root=PARTUUID=(?i:` + partitions.FactoryBootUUID + `)/PARTNROFF=2 ro `
	)
	// What the kernel of a set says of itself.
	starts := func(set, arguments string) string {
		end := ` +ap\.set=` + set
		if strings.HasPrefix(arguments, rescue) {
			end += ` \+ramdisk`
		}
		return `\[kernel ` + set + `: \S+ ` + arguments + `.* ap\.boot=(?i:` + partitions.FactoryBootUUID + `).*` + end + `\]`
	}
	for _, test := range []struct {
		name    string
		without []string
		patches []patch
		want    string
	}{
		{"rescue", nil, nil, starts("a", rescue)},
		{"system", nil, []patch{normal}, starts("a", system)},
		{"set b", nil, []patch{setB}, starts("b", rescue)},
		{"system of set b", nil, []patch{setB, normal}, starts("b", system)},
		{"broken grubenv", nil, []patch{noEnv}, starts("a", rescue)},
		{"broken timeout", nil, []patch{timeout, normal}, starts("a", system)},
		{"zeroed grub.cfg", nil, []patch{noCfg}, starts("a", rescue)},
		{"wild grub.cfg", nil, []patch{wildCfg, setB}, starts("b", system)},
		{"no kernel", []string{"a/kernel"}, nil, starts("b", rescue)},
		{"altered kernel", nil, []patch{kernel}, starts("b", rescue)},
		{"altered kernel of the system", nil, []patch{kernel, normal}, starts("b", system)},
		{"no ramdisk", []string{"a/ramdisk.ext2.xz"}, nil, starts("b", rescue)},
		{"empty ramdisk", []string{"a/ramdisk.ext2.xz:"}, nil, starts("b", rescue)},
		{"altered ramdisk", nil, []patch{ramdisk}, starts("b", rescue)},
		{"altered ramdisk beside the system", nil, []patch{ramdisk, normal}, starts("a", system)},
		{"no kernel for the system", []string{"b/kernel"}, []patch{setB, normal}, starts("a", system)},
		{"no system", []string{"sda3"}, []patch{normal}, starts("a", rescue)},
		{"nothing", []string{"a/kernel", "b/kernel"}, nil, `No image on this disk can be read`},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := boot(t, test.without, test.patches...)
			start := time.Now()
			got, err := m.Serial.Expect(test.want, 30*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("after %v: %s", time.Since(start).Round(time.Millisecond), got[0])
		})
	}
}

// OS-D1: the same menu is on the screen and on the serial port, and both
// keyboards choose from it.
func TestMenu(t *testing.T) {
	if testing.Short() {
		t.Skip("starts QEMU")
	}
	for _, test := range []struct {
		name   string
		choose func(m *vmtest.Machine) error
	}{
		{"serial", func(m *vmtest.Machine) error { return m.Serial.Send("\x1b[B\r") }},
		{"keyboard", func(m *vmtest.Machine) error { return m.PressKeys("down", "ret") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := boot(t, nil)
			if _, err := m.Serial.Expect(`rescue/setup(?s:.*)App Platform`, 30*time.Second); err != nil {
				t.Fatal(err)
			}
			if err := expectOnScreen(m, "rescue/setup", "App Platform"); err != nil {
				t.Error(err)
			}
			if err := test.choose(m); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Serial.Expect(`kernel a: .*PARTNROFF=2`, 10*time.Second); err != nil {
				t.Error(err)
			}
		})
	}
}

// expectOnScreen waits for the screen, which is drawn after the serial port.
func expectOnScreen(m *vmtest.Machine, words ...string) error {
	var screen string
	for range 10 {
		var err error
		if screen, err = m.Screen(); err != nil {
			return err
		}
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(screen, w) }) {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("the screen shows\n%s\nwant %q", screen, words)
}
