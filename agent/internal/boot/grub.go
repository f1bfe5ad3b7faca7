// Package boot reads and switches what the machine boots next. Both files it
// changes are changed inside one sector, which a disk writes whole or not at
// all.
package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"appplatform/internal/atomicfile"
	"appplatform/internal/smallfile"
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
	// CurrentSet is the folder of sda1 whose image is booted: a or b.
	CurrentSet() (string, error)
	// Forgotten reports whether CurrentSet is not what was set last: that is
	// damaged, and the loader takes a.
	Forgotten() bool
	// SetBoot makes an entry of the image in a or b boot, and returns when that
	// is on the disk. At every moment in between, either the old choice or the
	// rescue system of one of the two images boots.
	SetBoot(e Entry, set string) error
	// ByHand tells people how to make the installed system the default.
	ByHand() string
}

// Loaders make the loader of each kind that a board can have, for sda1 mounted
// at a folder and the GUID or signature of its disk.
var Loaders = map[string]func(dir, disk string) Loader{
	"grub":     func(dir, _ string) Loader { return GRUB{dir} },
	"extlinux": func(dir, disk string) Loader { return Extlinux{dir, disk} },
}

// GRUB is the boot loader's files below the mount point of sda1.
type GRUB struct{ Dir string }

func (g GRUB) config() string { return filepath.Join(g.Dir, "boot/grub/grub.cfg") }

// sector is how much of a file can be trusted to change at once.
const sector = 512

// firstLines are the lines in the first sector of a file. One that goes on in
// the second is not among them: nobody knows what it says.
func firstLines(f *os.File) []byte {
	head := make([]byte, sector+1) // with the end of the last line
	n, _ := f.ReadAt(head, 0)
	if n == len(head) {
		n = bytes.LastIndexByte(head, '\n') + 1
	}
	return head[:n]
}

// Default is what boots when nobody touches the menu.
func (g GRUB) Default() (Entry, error) {
	f, err := os.Open(g.config())
	if err != nil {
		return 0, fmt.Errorf("cannot read the boot default: %w", err)
	}
	defer f.Close()
	head := firstLines(f)
	at, err := digit(head)
	if err != nil {
		return 0, fmt.Errorf("cannot read the boot default: %s: %w", g.config(), err)
	}
	return Entry(head[at] - '0'), nil
}

// ByHand tells people how to make the installed system the default.
func (g GRUB) ByHand() string { return "set default=1 in " + g.config() }

// SetBoot changes one byte of grub.cfg and one of grubenv in place. The files
// keep their sizes and blocks, so that GRUB always reads an old byte or a new
// one. The system of an image becomes the default after its set, and stops to be
// it before.
func (g GRUB) SetBoot(e Entry, set string) error {
	steps := []func() error{
		func() error { return g.writeSet(set) },
		func() error { return g.writeDigit(e) },
	}
	if e == Rescue {
		slices.Reverse(steps)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("cannot set what boots: %w", err)
		}
	}
	return nil
}

// writeDigit makes the file anew if it is damaged: GRUB starts the rescue system
// then. What it needs besides the digit is in GRUB's image.
func (g GRUB) writeDigit(e Entry) error {
	err := change(g.config(), digit, byte('0'+e))
	if !damaged(err) {
		return err
	}
	text := fmt.Sprintf("# What boots: 0 is rescue/setup, 1 is App Platform.\nset default=%d\n", e)
	return renew(g.config(), []byte(text))
}

// writeSet changes the letter in the environment block, or makes the block anew
// if it is damaged: GRUB takes set a then.
func (g GRUB) writeSet(set string) error {
	err := change(g.environment(), setLetter, set[0])
	if !damaged(err) {
		return err
	}
	block := []byte("# GRUB Environment Block\nset=" + set + "\n")
	block = append(block, bytes.Repeat([]byte("#"), environmentSize-len(block))...)
	return renew(g.environment(), block)
}

func damaged(err error) bool { return errors.Is(err, errNoLine) || errors.Is(err, fs.ErrNotExist) }

// renew keeps the damaged file beside the new one, for what somebody had written
// there.
func renew(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Rename(path, path+".damaged"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return atomicfile.Write(path, content, 0o644)
}

// environmentSize is that of every environment block, in bytes.
const environmentSize = 1024

// errNoLine is a damaged file.
var errNoLine = fmt.Errorf("not in its first %d bytes", sector)

// change writes one byte in the first sector of a file, where find says.
func change(path string, find func(head []byte) (int, error), to byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	head := firstLines(f)
	at, err := find(head)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if head[at] != to {
		if _, err := f.WriteAt([]byte{to}, int64(at)); err != nil {
			return err
		}
	}
	return f.Sync() // Whoever wrote it before may not have waited.
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
			if end := bytes.IndexAny(rest, "\"'; \t\r"); end >= 0 {
				rest = rest[:end]
			}
			if word := string(rest); word == "0" || word == "1" {
				return at, nil
			}
		}
		start += len(line) + 1
	}
	return 0, fmt.Errorf("no line \"set default=0\" or \"set default=1\": %w", errNoLine)
}

// setLetter finds the place of the letter in "set=a" of an environment block
// (GRUB: grub-core/lib/envblk.c).
func setLetter(head []byte) (int, error) {
	start := 0
	for line := range bytes.Lines(head) {
		if value, ok := bytes.CutPrefix(line, []byte("set=")); ok && len(value) == 2 && (value[0] == 'a' || value[0] == 'b') {
			return start + len("set="), nil
		}
		start += len(line)
	}
	return 0, fmt.Errorf("no line \"set=a\" or \"set=b\": %w", errNoLine)
}

func (g GRUB) environment() string { return filepath.Join(g.Dir, "boot/grub/grubenv") }

// Forgotten reports whether the environment block is damaged or gone.
func (g GRUB) Forgotten() bool {
	b, err := smallfile.Read(g.environment(), smallfile.Most)
	if err == nil {
		_, err = setLetter(b[:min(len(b), sector)])
	}
	return damaged(err)
}

// CurrentSet is the folder of sda1 whose image is booted: a or b.
func (g GRUB) CurrentSet() (string, error) {
	b, err := smallfile.Read(g.environment(), smallfile.Most)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("cannot read the boot environment: %w", err)
	}
	at, err := setLetter(b[:min(len(b), sector)])
	if err != nil {
		return "a", nil // What GRUB's menu falls back to as well.
	}
	return string(b[at]), nil
}
