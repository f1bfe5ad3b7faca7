package powercut

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"appplatform/bundle"
	"appplatform/partitions"
)

// A Choice is what a boot loader starts.
type Choice struct {
	System bool   // the installed system; otherwise the ramdisk
	Set    string // the folder of sda1: a or b
}

func (c Choice) String() string {
	if c.System {
		return "the system of set " + c.Set
	}
	return "the ramdisk of set " + c.Set
}

// The files that boot loaders read on sda1, in the places and with the words of
// the packages that make them.
const (
	grubConfig     = "boot/grub/grub.cfg"
	grubEnv        = "boot/grub/grubenv"
	grubEnvSize    = 1024 // GRUB refuses others (GRUB: include/grub/lib/envblk.h)
	grubEnvHeader  = "# GRUB Environment Block\n"
	extlinuxConfig = "extlinux/extlinux.conf"
)

// volume opens sda1.
func (c *Checker) volume(v *view, boot partitions.Partition) (volume, error) {
	if c.plan.Platform.Boot == "extlinux" {
		return openFAT32(v, int64(boot.Start))
	}
	return openExt2(v, int64(boot.Start))
}

// chooses is what the firmware starts, with the boot loader's way out when
// files are missing or, as far as it looks, not what they should be.
func (c *Checker) chooses(v *view, boot partitions.Partition, look bool) (Choice, error) {
	vol, err := c.volume(v, boot)
	if err != nil {
		return Choice{}, fmt.Errorf("cannot read sda1: %w", err)
	}
	tries := c.grubOrder
	if c.plan.Platform.Boot == "extlinux" {
		tries = c.extlinuxOrder
	}
	order, err := tries(v, vol)
	if err != nil {
		return Choice{}, err
	}
	for _, choice := range order {
		if ok, err := c.starts(v, vol, choice, look); ok || err != nil {
			return choice, err
		}
	}
	return Choice{}, errors.New("nothing on sda1 can be started")
}

// starts tells whether the files are there that an entry names, and, for GRUB,
// have the hashes that lie beside them.
func (c *Checker) starts(v *view, vol volume, choice Choice, look bool) (bool, error) {
	names := []string{bundle.KernelName, bundle.RamdiskName}
	if choice.System {
		names = names[:1]
	}
	for _, name := range names {
		f, err := find(v, vol, choice.Set+"/"+name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && f.size == 0 {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if !look || c.plan.Platform.Boot != "grub" {
			continue
		}
		if ok, err := hashMatches(v, vol, choice.Set, name, f); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// hashMatches compares a file with NAME.sha256, as GRUB's sha256sum does.
func hashMatches(v *view, vol volume, set, name string, f file) (bool, error) {
	want := bundle.File{Name: name}
	beside, err := find(v, vol, set+"/"+want.SumName())
	if errors.Is(err, fs.ErrNotExist) || err == nil && beside.size > sector {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	text, err := beside.read(v)
	if err != nil {
		return false, err
	}
	if want.SHA256, err = hash(v, f); err != nil {
		return false, err
	}
	return bytes.Equal(text, want.Sum()), nil
}

var grubDefault = regexp.MustCompile(`(?m)^set default=([01])$`)

// grubOrder is what grub.cfg tries. All of it but the digit must be as it was:
// then it is the file whose way through the sets this knows.
func (c *Checker) grubOrder(v *view, vol volume) ([]Choice, error) {
	f, err := find(v, vol, grubConfig)
	if err != nil {
		return nil, err
	}
	text, err := f.read(v)
	if err != nil {
		return nil, err
	}
	at := grubDefault.FindSubmatchIndex(text)
	if at == nil {
		return nil, errors.New("grub.cfg has no line set default=0 or 1")
	}
	system := text[at[2]] == '1'
	text[at[2]] = '0'
	if !bytes.Equal(text, c.config) {
		return nil, errors.New("grub.cfg has changed in more than its default")
	}
	sets := []string{"a", "b"}
	if grubSet(v, vol) == "b" {
		slices.Reverse(sets)
	}
	return []Choice{{system, sets[0]}, {system, sets[1]}}, nil
}

// grubSet is the current set as load_env reads it: a broken file is none.
func grubSet(v *view, vol volume) string {
	f, err := find(v, vol, grubEnv)
	if err != nil || f.size != grubEnvSize {
		return ""
	}
	b, err := f.read(v)
	text, ok := strings.CutPrefix(string(b), grubEnvHeader)
	if err != nil || !ok {
		return ""
	}
	for line := range strings.Lines(text) {
		if set, ok := strings.CutPrefix(line, "set="); ok {
			return strings.TrimSpace(set)
		}
	}
	return ""
}

var extlinuxDefault = regexp.MustCompile(`(?m)^DEFAULT ((?:rescue|normal)-[ab])$`)

// extlinuxOrder is what U-Boot tries: the default, then the labels as they come
// (U-Boot: boot/pxe_utils.c, boot_unattempted_labels).
func (c *Checker) extlinuxOrder(v *view, vol volume) ([]Choice, error) {
	f, err := find(v, vol, extlinuxConfig)
	if err != nil {
		return nil, err
	}
	text, err := f.read(v)
	if err != nil {
		return nil, err
	}
	at := extlinuxDefault.FindSubmatchIndex(text)
	if at == nil {
		return nil, errors.New("extlinux.conf has no line DEFAULT that names one of its entries")
	}
	first := string(text[at[2]:at[3]])
	copy(text[at[2]:], "rescue-a")
	if !bytes.Equal(text, c.config) {
		return nil, errors.New("extlinux.conf has changed in more than its default")
	}
	var order []Choice
	for _, label := range []string{first, "rescue-a", "normal-a", "rescue-b", "normal-b"} {
		entry, set, _ := strings.Cut(label, "-")
		order = append(order, Choice{entry == "normal", set})
	}
	return order, nil
}

// set opens the image set in a folder of sda1 and compares its files with its
// signed manifest.
func (c *Checker) set(v *view, vol volume, name string) (bundle.Manifest, error) {
	set, err := c.openSet(v, vol, name)
	if err != nil {
		return bundle.Manifest{}, fmt.Errorf("set %s: %w", name, err)
	}
	for _, want := range []bundle.File{set.Kernel, set.Ramdisk, set.Rootfs.File} {
		f, err := find(v, vol, name+"/"+want.Name)
		if err != nil {
			return bundle.Manifest{}, err
		}
		sum, err := hash(v, f)
		if err != nil {
			return bundle.Manifest{}, fmt.Errorf("/%s/%s: %w", name, want.Name, err)
		}
		if f.size != want.Size || sum != want.SHA256 {
			return bundle.Manifest{}, fmt.Errorf("/%s/%s is not what was signed", name, want.Name)
		}
	}
	return set, nil
}

// openSet lets the package bundle check the manifest, as the device does.
func (c *Checker) openSet(v *view, vol volume, name string) (bundle.Manifest, error) {
	dir, err := os.MkdirTemp("", "set")
	if err != nil {
		return bundle.Manifest{}, err
	}
	defer os.RemoveAll(dir)
	for _, n := range []string{bundle.ManifestName, bundle.SignatureName} {
		f, err := find(v, vol, name+"/"+n)
		if err != nil {
			return bundle.Manifest{}, err
		}
		b, err := f.read(v)
		if err != nil {
			return bundle.Manifest{}, err
		}
		if err := os.WriteFile(filepath.Join(dir, n), b, 0o600); err != nil {
			return bundle.Manifest{}, err
		}
	}
	set, err := bundle.Open(dir, c.plan.Platform)
	return set.Manifest, err
}

// hash is the SHA-256 of a file's content.
func hash(v *view, f file) (string, error) {
	return remember(v, fmt.Sprint("hash of ", f), func(v *view) (string, error) {
		h := sha256.New()
		if _, err := io.CopyBuffer(h, f.reader(v), make([]byte, 1<<20)); err != nil {
			return "", err
		}
		return hex.EncodeToString(h.Sum(nil)), nil
	})
}

// holds compares sda3 with the root file system of a set, piece by piece.
func holds(v *view, rootfs partitions.Partition, m bundle.Manifest) error {
	for i, p := range m.Rootfs.Pieces {
		at := int64(rootfs.Start) + int64(i)*m.Rootfs.PieceSize
		sum, err := hash(v, file{[]piece{{at, p.RawSize}}, p.RawSize})
		if err != nil {
			return fmt.Errorf("cannot read sda3: %w", err)
		}
		if sum != p.RawSHA256 {
			return fmt.Errorf("piece %d of sda3 is not that of the image", i)
		}
	}
	return nil
}
