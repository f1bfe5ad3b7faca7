package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
	"appplatform/vmtest"
)

// fakeKernel is the smallest thing that GRUB takes for a Linux kernel. It says
// its name, its command line and whether it got a ramdisk on the serial port.
func fakeKernel(name string) []byte {
	const base = 0x100000 // where GRUB puts the code
	le := binary.LittleEndian
	b := make([]byte, 1024, 4096) // the boot sector and one sector of setup code
	b[0x1f1] = 1
	le.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x200:], []byte{0xeb, 0x66})
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x020c)
	b[0x211] = 1 // loaded high
	le.PutUint32(b[0x214:], base)
	le.PutUint32(b[0x22c:], 0x7fffffff)
	le.PutUint32(b[0x230:], 0x1000)
	le.PutUint32(b[0x238:], 2047)
	le.PutUint64(b[0x258:], base)
	le.PutUint32(b[0x260:], 0x10000)

	const strs, puts = 0x100, 0x80
	texts := []string{"[" + name + ": ", " +ramdisk", "]\r\n"}
	var at [3]uint32
	code := make([]byte, strs)
	for i, s := range texts {
		at[i] = uint32(base + len(code))
		code = append(append(code, s...), 0)
	}
	var c []byte
	op := func(bytes ...byte) { c = append(c, bytes...) }
	call := func() { op(0xe8); c = le.AppendUint32(c, uint32(puts-len(c)-4)) }
	load := func(address uint32) { op(0xbb); c = le.AppendUint32(c, address) }
	op(0xbc, 0x00, 0x80, 0x10, 0x00) // esp = behind the code
	op(0x89, 0xf5)                   // ebp = boot parameters
	load(at[0])
	call()
	op(0x8b, 0x9d, 0x28, 0x02, 0x00, 0x00) // ebx = their command line
	call()
	op(0x83, 0xbd, 0x1c, 0x02, 0x00, 0x00, 0x00) // no ramdisk?
	op(0x74, 10)                                 // then past the next two
	load(at[1])
	call()
	load(at[2])
	call()
	op(0xfa, 0xf4, 0xeb, 0xfd) // halt
	copy(code, c)
	copy(code[puts:], []byte{
		0x8a, 0x03, 0x84, 0xc0, 0x74, 0x15, // until the text at ebx ends
		0x88, 0xc4, 0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, // wait for the port
		0x88, 0xe0, 0x66, 0xba, 0xf8, 0x03, 0xee, // write a character
		0x43, 0xeb, 0xe5, 0xc3,
	})
	return append(b, code...)
}

// A patch is a change that the device makes, where the bytes stand.
type patch struct{ old, new string }

var (
	normal = patch{"\nset default=0\n", "\nset default=1\n"}
	setB   = patch{"Block\nset=a\n", "Block\nset=b\n"}
	noEnv  = patch{"# GRUB Environment Block\n", "# GRUB envIronment bLock\n"}
)

// boot starts a disk with two sets of files on sda1, some of them removed (or,
// with a colon behind the name, empty), and parts of it patched.
func boot(t *testing.T, without []string, patches ...patch) *vmtest.Machine {
	t.Helper()
	o := Options{Table: table, Boot: map[string]Source{}, Time: time.Unix(1767225600, 0)}
	for _, set := range []string{"a", "b"} {
		o.Boot[set+"/kernel"] = Source{Data: fakeKernel("kernel " + set)}
		o.Boot[set+"/ramdisk.ext2.xz"] = Source{Data: bytes.Repeat([]byte("ramdisk "+set), 1000)}
	}
	for _, name := range without {
		if name, empty := strings.CutSuffix(name, ":"); empty {
			o.Boot[name] = Source{}
		} else {
			delete(o.Boot, name)
		}
	}
	image := made(t, o)
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
		disk   = `.* ap\.boot=(?i:` + partitions.FactoryBootUUID + `)`
	)
	for _, test := range []struct {
		name    string
		without []string
		patches []patch
		want    string
	}{
		{"rescue", nil, nil, `\[kernel a: \S+ ` + rescue + disk + ` \+ramdisk\]`},
		{"system", nil, []patch{normal}, `\[kernel a: \S+ ` + system + disk + `\]`},
		{"set b", nil, []patch{setB}, `\[kernel b: \S+ ` + rescue + disk + ` \+ramdisk\]`},
		{"broken grubenv", nil, []patch{noEnv}, `\[kernel a: .* \+ramdisk\]`},
		{"no kernel", []string{"a/kernel"}, nil, `\[kernel b: ` + `.* \+ramdisk\]`},
		{"no ramdisk", []string{"a/ramdisk.ext2.xz"}, nil, `\[kernel b: \S+ ` + rescue + disk + ` \+ramdisk\]`},
		{"empty ramdisk", []string{"a/ramdisk.ext2.xz:"}, nil, `\[kernel b: \S+ ` + rescue + disk + ` \+ramdisk\]`},
		{"no kernel for the system", []string{"b/kernel"}, []patch{setB, normal}, `\[kernel a: .*PARTNROFF=2`},
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
