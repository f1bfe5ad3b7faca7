package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	diskfs "github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/filesystem"
	"github.com/diskfs/go-diskfs/filesystem/fat12"
	"github.com/diskfs/go-diskfs/filesystem/fat32"

	"appplatform/internal/extlinux"
	"appplatform/internal/hint"
	"appplatform/partitions"
)

// configPath is the file on sda1 that says what there is to start.
const configPath = "/" + extlinux.ConfigPath

// A card is the disk of the gateway, as its firmware reads it: sda1 only, and
// only while no machine runs from it.
type card struct {
	io.Closer
	fs     filesystem.FileSystem
	path   string
	start  partitions.Size // of the boot partition
	config bootConfig
}

var errEmpty = errors.New("no image is installed")

// HasImage tells a disk with an image from a new one, and from one whose
// installation was broken off.
func (g *Gateway) HasImage() bool {
	f, err := os.Open(g.Disk())
	if err != nil {
		return false
	}
	defer f.Close()
	sector := make([]byte, partitions.Sector)
	_, err = io.ReadFull(f, sector)
	return err == nil && !bytes.Equal(sector, make([]byte, len(sector)))
}

// openCard reads the boot partition of a disk file.
func openCard(disk string) (_ *card, err error) {
	defer func() {
		if err != nil && !errors.Is(err, errEmpty) {
			err = hint.Errorf("install an image again", "cannot read the boot partition: %w", err)
		}
	}()
	head := make([]byte, partitions.HeadSize)
	f, err := os.Open(disk)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errEmpty
	}
	if err != nil {
		return nil, err
	}
	_, err = f.ReadAt(head, 0)
	f.Close()
	if err != nil {
		return nil, err
	}
	table, err := partitions.Read(head)
	if errors.Is(err, partitions.ErrNoMBR) {
		return nil, errEmpty
	}
	if err != nil {
		return nil, err
	}
	boot, ok := table.Part(partitions.Boot)
	if !ok || table.Scheme != partitions.MBR {
		return nil, errors.New("it is not the image of a gateway")
	}
	d, err := diskfs.Open(disk, diskfs.WithOpenMode(diskfs.ReadOnly))
	if err != nil {
		return nil, err
	}
	c := &card{Closer: d, path: disk, start: boot.Start}
	if c.fs, err = fat32.Read(d.Backend, int64(boot.Size), int64(boot.Start), int64(partitions.Sector)); err != nil {
		c.Close()
		return nil, err
	}
	text, err := c.read(configPath)
	if err != nil {
		c.Close()
		return nil, err
	}
	if c.config, err = parseBootConfig(string(text)); err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", configPath, err)
	}
	return c, nil
}

// read returns a file of the boot partition.
func (c *card) read(name string) ([]byte, error) {
	f, err := c.fs.OpenFile(name, os.O_RDONLY)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	b := make([]byte, info.Size()) // go-diskfs 1.9.4 may read on into the last cluster.
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

// exists tells a file's name typed wrong from one that is there.
func (c *card) exists(name string) bool {
	f, err := c.fs.OpenFile(name, os.O_RDONLY)
	if err == nil {
		f.Close()
	}
	return err == nil
}

// extract copies a file to a folder of the host and returns its path there.
func (c *card) extract(name, dir string) (string, error) {
	b, err := c.read(name)
	if err != nil {
		return "", err
	}
	to := filepath.Join(dir, path.Base(name))
	return to, os.WriteFile(to, b, 0o644)
}

// setDefault changes the word behind DEFAULT in place, as the device does, so
// that firmware and image agree about what boots.
func (c *card) setDefault(label string) error {
	if label == c.config.def {
		return nil
	}
	if len(label) != len(c.config.def) {
		return fmt.Errorf("cannot start %s: its name is not as long as %s", label, c.config.def)
	}
	f, err := c.fs.OpenFile(configPath, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	places, ok := f.(interface {
		GetDiskRanges() ([]fat12.DiskRange, error)
	})
	if !ok {
		return errors.New("internal error: no place of " + configPath)
	}
	ranges, err := places.GetDiskRanges()
	if err != nil || len(ranges) == 0 {
		return fmt.Errorf("cannot find %s on the disk: %v", configPath, err)
	}
	disk, err := os.OpenFile(c.path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = disk.WriteAt([]byte(label), int64(c.start)+int64(ranges[0].Offset)+int64(c.config.at))
	return errors.Join(err, disk.Close())
}

// A bootEntry is one label of extlinux.conf.
type bootEntry struct{ label, kernel, initrd, options string }

// rescue tells the ramdisk from the installed system.
func (e bootEntry) rescue() bool { return e.initrd != "" }

// A bootConfig is what extlinux.conf says (SYSLINUX's format, as far as U-Boot
// reads it).
type bootConfig struct {
	def     string // the label that boots
	at      int    // where it stands
	entries []bootEntry
}

func parseBootConfig(text string) (bootConfig, error) {
	var c bootConfig
	start := 0
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		value = strings.TrimSpace(value)
		if strings.EqualFold(key, "DEFAULT") && c.def == "" {
			c.def, c.at = value, start+strings.LastIndex(line, value)
		}
		if strings.EqualFold(key, "LABEL") {
			c.entries = append(c.entries, bootEntry{label: value})
		}
		if n := len(c.entries) - 1; n >= 0 {
			switch strings.ToUpper(key) {
			case "LINUX", "KERNEL":
				c.entries[n].kernel = value
			case "INITRD":
				c.entries[n].initrd = value
			case "APPEND":
				c.entries[n].options = value
			}
		}
		start += len(line)
	}
	if _, ok := c.entry(c.def); !ok || c.def == "" {
		return c, fmt.Errorf("no entry of the name %q", c.def)
	}
	return c, nil
}

func (c bootConfig) entry(label string) (bootEntry, bool) {
	for _, e := range c.entries {
		if e.label == label && e.kernel != "" {
			return e, true
		}
	}
	return bootEntry{}, false
}

// current is the entry that boots the rescue system, or the installed one, of
// the image that DEFAULT names.
func (c bootConfig) current(rescue bool) (bootEntry, error) {
	now, _ := c.entry(c.def)
	for _, e := range c.entries {
		if e.rescue() == rescue && e.kernel == now.kernel {
			return e, nil
		}
	}
	return bootEntry{}, fmt.Errorf("%s has no other entry for %s", configPath, now.kernel)
}
