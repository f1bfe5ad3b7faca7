// Package boot reads and switches what the machine boots next. Both files it
// changes are changed inside one sector, which a disk writes whole or not at
// all.
package boot

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// An Entry is a line of the boot menu, as `set default=` counts them.
type Entry int

// The entries of the menu.
const (
	Rescue Entry = 0
	System Entry = 1
)

func (e Entry) String() string {
	if e == System {
		return "system"
	}
	return "rescue"
}

// A Loader is a boot loader that an image can be started by.
type Loader interface {
	// Default is what boots when nobody touches the menu.
	Default() (Entry, error)
	// SetDefault returns when the change is on the disk.
	SetDefault(Entry) error
	// CurrentSet is the folder of sda1 whose image is booted: a or b.
	CurrentSet() (string, error)
	// ByHand tells people how to make the installed system the default.
	ByHand() string
}

// Loaders make the loader of each kind that a board can have, for sda1 mounted
// at a folder.
var Loaders = map[string]func(dir string) Loader{
	"grub":     func(dir string) Loader { return GRUB{dir} },
	"extlinux": func(dir string) Loader { return Extlinux{dir} },
}

// GRUB is the boot loader's files below the mount point of sda1.
type GRUB struct{ Dir string }

func (g GRUB) config() string { return filepath.Join(g.Dir, "boot/grub/grub.cfg") }

// sector is how much of a file can be trusted to change at once.
const sector = 512

// Default is what boots when nobody touches the menu.
func (g GRUB) Default() (Entry, error) {
	f, err := os.Open(g.config())
	if err != nil {
		return 0, fmt.Errorf("cannot read the boot default: %w", err)
	}
	defer f.Close()
	head := make([]byte, sector)
	n, _ := f.ReadAt(head, 0)
	at, err := digit(head[:n])
	if err != nil {
		return 0, fmt.Errorf("cannot read the boot default: %s: %w", g.config(), err)
	}
	return Entry(head[at] - '0'), nil
}

// ByHand tells people how to make the installed system the default.
func (g GRUB) ByHand() string { return "set default=1 in " + g.config() }

// SetDefault changes one byte of grub.cfg in place and returns when it is on
// the disk. The file keeps its size and its blocks, so at every moment GRUB
// reads the old digit or the new one.
func (g GRUB) SetDefault(e Entry) error {
	f, err := os.OpenFile(g.config(), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("cannot set the boot default: %w", err)
	}
	defer f.Close()
	head := make([]byte, sector)
	n, _ := f.ReadAt(head, 0)
	at, err := digit(head[:n])
	if err != nil {
		return fmt.Errorf("cannot set the boot default: %s: %w", g.config(), err)
	}
	want := byte('0' + e)
	if head[at] != want {
		if _, err := f.WriteAt([]byte{want}, int64(at)); err != nil {
			return fmt.Errorf("cannot set the boot default: %w", err)
		}
	}
	// Also when nothing changed: the digit may have been written by someone
	// who did not wait for the disk.
	if err := f.Sync(); err != nil {
		return fmt.Errorf("cannot set the boot default: %w", err)
	}
	return nil
}

// digit finds the place of the digit in "set default=0".
func digit(head []byte) (int, error) {
	for start := 0; start < len(head); {
		line := head[start:]
		if end := bytes.IndexByte(line, '\n'); end >= 0 {
			line = line[:end]
		}
		rest, found := bytes.CutPrefix(bytes.TrimLeft(line, " \t"), []byte("set default="))
		if found {
			rest = bytes.TrimLeft(rest, `"'`)
			at := start + len(line) - len(rest)
			if len(rest) > 0 && (rest[0] == '0' || rest[0] == '1') {
				return at, nil
			}
		}
		start += len(line) + 1
	}
	return 0, fmt.Errorf("no line \"set default=0\" or \"set default=1\" in its first %d bytes", sector)
}

// CurrentSet is the folder of sda1 whose image is booted: a or b.
func (g GRUB) CurrentSet() (string, error) {
	b, err := os.ReadFile(filepath.Join(g.Dir, "boot/grub/grubenv"))
	if err != nil {
		return "", fmt.Errorf("cannot read the boot environment: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if set, ok := strings.CutPrefix(strings.TrimSpace(line), "set="); ok && (set == "a" || set == "b") {
			return set, nil
		}
	}
	return "a", nil // What grub.cfg falls back to as well.
}
