package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"appplatform/archive"
	"appplatform/boards"
	"appplatform/image/internal/kernel"
	"appplatform/internal/hint"
	"appplatform/rootfs"
	"appplatform/tooltree"
)

// lockFormat is the version of the lock file.
const lockFormat = 1

// A Lock lists every package that goes into an image or makes it. Two builds
// from the same lock, sources and key are the same bytes.
type Lock struct {
	Format  int    `json:"format"`
	Release string `json:"release"`
	Board   string `json:"board"`
	// MissingSuites could not be verified when the lock was made: packages are
	// older than they should be.
	MissingSuites []string          `json:"missing_suites,omitempty"`
	System        []archive.Package `json:"system"`
	Ramdisk       []archive.Package `json:"ramdisk"`
	KernelSource  []archive.Package `json:"kernel_source"`
	ImageTools    []archive.Package `json:"image_tools"`
	KernelTools   []archive.Package `json:"kernel_tools"`

	// indexed is when the package indexes were fetched; zero for a lock that
	// was read from a file.
	indexed time.Time
}

// resolveLock asks the archive for today's packages of the board.
func resolveLock(ctx context.Context, a *archive.Archive, repo *repository, b boards.Board) (*Lock, error) {
	l := &Lock{Format: lockFormat, Release: archive.Release, Board: b.Name}
	system, err := rootfs.SystemPackages(repo.fs, b)
	if err != nil {
		return nil, err
	}
	ramdisk, err := rootfs.RamdiskPackages(repo.fs, b)
	if err != nil {
		return nil, err
	}
	for _, q := range []struct {
		to      *[]archive.Package
		request archive.Request
	}{
		{&l.System, archive.Request{Arch: b.Arch, Names: system, Optional: b.OptionalSuites}},
		{&l.Ramdisk, archive.Request{Arch: b.Arch, Names: ramdisk, Optional: b.OptionalSuites}},
		{&l.KernelSource, archive.Request{Arch: tooltree.Arch, Names: []string{kernel.SourcePackage}, Alone: true}},
		{&l.ImageTools, archive.Request{Arch: tooltree.Arch, Names: tooltree.Image.Packages}},
		{&l.KernelTools, archive.Request{Arch: tooltree.Arch, Names: made[b.Arch].tools.Packages}},
	} {
		res, err := a.Resolve(ctx, q.request)
		if err != nil {
			return nil, err
		}
		*q.to = res.Packages
		for _, s := range res.Missing {
			if !slices.Contains(l.MissingSuites, s) {
				l.MissingSuites = append(l.MissingSuites, s)
			}
		}
		if l.indexed.IsZero() || res.Fetched.Before(l.indexed) {
			l.indexed = res.Fetched
		}
	}
	return l, nil
}

// Encode is the text of the lock file.
func (l *Lock) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(l, "", " ")
	if err != nil {
		return nil, fmt.Errorf("internal error: %w", err)
	}
	return append(b, '\n'), nil
}

// ReadLock reads a lock file.
func ReadLock(path string) (*Lock, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, hint.Errorf("apimage lock BOARD writes one, and every build puts one beside its image", "cannot read the lock: %w", err)
	}
	l, err := parseLock(text)
	if err != nil {
		return nil, hint.Errorf("a lock is not for editing: apimage lock BOARD writes a new one", "cannot use the lock %s: %w", path, err)
	}
	return l, nil
}

func parseLock(text []byte) (*Lock, error) {
	var l Lock
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("text behind the closing brace")
	}
	return &l, l.check()
}

func (l *Lock) check() error {
	switch {
	case l.Format != lockFormat:
		return fmt.Errorf("its format is %d and this apimage knows %d", l.Format, lockFormat)
	case l.Release != archive.Release:
		return fmt.Errorf("it is for Debian %s and this apimage builds from %s", l.Release, archive.Release)
	case len(l.KernelSource) != 1:
		return errors.New("it does not name one kernel source")
	}
	for _, pkgs := range l.sets() {
		if len(pkgs) == 0 {
			return errors.New("a list of packages is empty")
		}
		for _, p := range pkgs {
			if err := p.Validate(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *Lock) sets() [][]archive.Package {
	return [][]archive.Package{l.System, l.Ramdisk, l.KernelSource, l.ImageTools, l.KernelTools}
}

// age says how old the package index is that the lock was made from.
func (l *Lock) age(now time.Time) string {
	d := now.Sub(l.indexed)
	text := "just now"
	if d >= time.Minute {
		text = strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s") + " ago"
	}
	return text
}
