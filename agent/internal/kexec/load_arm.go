package kexec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/u-root/u-root/pkg/boot/kexec"
	"github.com/u-root/u-root/pkg/dt"
)

// Where things go, from the beginning of the memory: the kernel unpacks itself
// to the first megabytes and must not lie there (Linux:
// Documentation/arch/arm/booting.rst).
const (
	kernelAt  = 32 << 20
	treeAt    = 64 << 20
	ramdiskAt = treeAt + 1<<20
)

// load does what the system call for files does on other processors, which does
// not exist here: it puts kernel, device tree and ramdisk in their places. The
// kernel recognises the tree among them by its first word
// (Linux: arch/arm/kernel/machine_kexec.c).
func load(kernel, ramdisk, options string) error {
	memory, err := kexec.MemoryMapFromIOMem()
	if err != nil {
		return err
	}
	ram := memory.RAM()
	if len(ram) == 0 {
		return errors.New("/proc/iomem names no memory")
	}
	base := ram[0].Start
	k, err := os.ReadFile(kernel)
	if err != nil {
		return err
	}
	segments := kexec.Segments{segment(k, base+kernelAt)}
	var r []byte
	if ramdisk != "" {
		if r, err = os.ReadFile(ramdisk); err != nil {
			return err
		}
		segments = append(segments, segment(r, base+ramdiskAt))
	}
	tree, err := deviceTree(options, uint32(base+ramdiskAt), uint32(len(r)))
	if err != nil {
		return fmt.Errorf("device tree: %w", err)
	}
	segments = append(segments, segment(tree, base+treeAt))
	return kexec.Load(base+kernelAt, segments, 0)
}

func segment(b []byte, at uintptr) kexec.Segment {
	return kexec.NewSegment(b, kexec.Range{Start: at, Size: uint(len(b))})
}

// deviceTree is the one of this machine with another command line and ramdisk.
func deviceTree(options string, ramdiskAt, ramdiskSize uint32) ([]byte, error) {
	text, err := os.ReadFile("/sys/firmware/fdt")
	if err != nil {
		return nil, err
	}
	return editTree(text, options, ramdiskAt, ramdiskSize)
}

func editTree(text []byte, options string, ramdiskAt, ramdiskSize uint32) ([]byte, error) {
	tree, err := dt.ReadFDT(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	chosen, ok := tree.NodeByName("chosen")
	if !ok {
		return nil, errors.New("it has no node chosen")
	}
	old := map[string]uint64{}
	chosen.Properties = slices.DeleteFunc(chosen.Properties, func(p dt.Property) bool {
		switch p.Name {
		case "linux,initrd-start", "linux,initrd-end":
			old[p.Name] = number(p.Value)
			return true
		}
		return p.Name == "bootargs"
	})
	// A boot loader reserves the memory of the ramdisk that it has loaded.
	tree.ReserveEntries = slices.DeleteFunc(tree.ReserveEntries, func(e dt.ReserveEntry) bool {
		return e.Address == old["linux,initrd-start"] && e.Address != 0
	})
	set := func(name string, value []byte) {
		chosen.Properties = append(chosen.Properties, dt.Property{Name: name, Value: value})
	}
	set("bootargs", append([]byte(options), 0))
	if ramdiskSize > 0 {
		set("linux,initrd-start", binary.BigEndian.AppendUint32(nil, ramdiskAt))
		set("linux,initrd-end", binary.BigEndian.AppendUint32(nil, ramdiskAt+ramdiskSize))
	}
	var out bytes.Buffer
	_, err = tree.Write(&out)
	return out.Bytes(), err
}

// number reads a property of one or two cells.
func number(b []byte) (n uint64) {
	for _, c := range b {
		n = n<<8 | uint64(c)
	}
	return n
}
