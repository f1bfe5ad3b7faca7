package boot

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"appplatform/internal/extlinux"
)

// Extlinux is the file that U-Boot reads from sda1, /extlinux/extlinux.conf, in
// the format of SYSLINUX. Its line "DEFAULT rescue-a" names entry and image set
// in one word, whose length never changes.
type Extlinux struct {
	Dir       string
	Signature string // of the disk's MBR
}

func (x Extlinux) config() string { return filepath.Join(x.Dir, extlinux.ConfigPath) }

// words are the names of the entries in extlinux.conf.
var words = map[Entry]string{Rescue: "rescue", System: "normal"}

// Default is what boots when nobody touches the menu.
func (x Extlinux) Default() (Entry, error) {
	l, err := x.read()
	if err != nil {
		return 0, fmt.Errorf("cannot read the boot default: %w", err)
	}
	return l.entry, nil
}

// CurrentSet is the folder of sda1 whose image is booted: a or b.
func (x Extlinux) CurrentSet() (string, error) {
	l, err := x.read()
	if damaged(err) {
		return "a", nil // What boot.scr takes then.
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the boot default: %w", err)
	}
	return l.set, nil
}

// Forgotten reports whether extlinux.conf is damaged or gone.
func (x Extlinux) Forgotten() bool {
	_, err := x.read()
	return damaged(err)
}

// ByHand tells people how to make the installed system the default.
func (x Extlinux) ByHand() string {
	return "clear Initrd file and Ramdisk size on the gateway's page General and set Kernel command line to root= with sda3's device there, " +
		"or write DEFAULT normal-a in " + x.config()
}

// SetBoot changes one word of extlinux.conf in place and returns when it is on
// the disk. The file keeps its size and its clusters, so at every moment U-Boot
// reads the old word or the new one. A file that is damaged is made anew: boot.scr
// starts the rescue system until then.
func (x Extlinux) SetBoot(e Entry, set string) error {
	l, err := x.read()
	if damaged(err) {
		text := bytes.Replace(extlinux.Config(x.Signature), []byte(extlinux.Default), []byte(words[e]+"-"+set), 1)
		err = renew(x.config(), text)
		l = defaultLine{entry: e, set: set}
	}
	if err != nil {
		return fmt.Errorf("cannot set what boots: %w", err)
	}
	f, err := os.OpenFile(x.config(), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("cannot set what boots: %w", err)
	}
	defer f.Close()
	if l.entry != e || l.set != set {
		if _, err := f.WriteAt([]byte(words[e]+"-"+set), l.at); err != nil {
			return fmt.Errorf("cannot set what boots: %w", err)
		}
	}
	if err := f.Sync(); err != nil { // Whoever wrote it before may not have waited.
		return fmt.Errorf("cannot set what boots: %w", err)
	}
	return nil
}

// A defaultLine is what stands behind DEFAULT, and where.
type defaultLine struct {
	entry Entry
	set   string
	at    int64
}

func (x Extlinux) read() (defaultLine, error) {
	f, err := os.Open(x.config())
	if err != nil {
		return defaultLine{}, err
	}
	defer f.Close()
	l, ok := findDefault(firstLines(f))
	if !ok {
		return defaultLine{}, fmt.Errorf("%s: no line \"DEFAULT rescue-a\" (or normal, or -b): %w", x.config(), errNoLine)
	}
	return l, nil
}

func findDefault(head []byte) (defaultLine, bool) {
	start := 0
	for line := range bytes.Lines(head) {
		rest, found := bytes.CutPrefix(bytes.TrimLeft(line, " \t"), []byte("DEFAULT "))
		word := string(bytes.TrimSpace(rest))
		for entry, name := range words {
			for _, set := range []string{"a", "b"} {
				if found && word == name+"-"+set {
					return defaultLine{entry, set, int64(start + bytes.Index(line, []byte(word)))}, true
				}
			}
		}
		start += len(line)
	}
	return defaultLine{}, false
}
