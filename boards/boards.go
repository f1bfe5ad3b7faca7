// Package boards describes the machines an image is built for. A board is a
// folder of data: board.json, a list of packages, a kernel fragment and an
// overlay; supporting one more machine needs no code here.
package boards

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"appplatform/internal/hint"
	"appplatform/partitions"
)

// Dir is the folder of the repository that holds one folder per board.
const Dir = "boards"

// A Board is one kind of machine.
type Board struct {
	// Name is the name of the board's folder: "x86_64".
	Name string `json:"-"`
	// Description says in a few words which machines these are.
	Description string `json:"description"`
	// Arch is Debian's name of the architecture: amd64, arm64, armel.
	Arch string `json:"arch"`
	// GOARM selects the arm processor for the Go compiler: "5" for armel.
	GOARM string `json:"goarm,omitempty"`
	// OptionalSuites are the archive's suites that may be missing or
	// unverifiable: the build then says so and goes on without them.
	OptionalSuites []string `json:"optional_suites,omitempty"`
	// Scheme is the kind of partition table.
	Scheme partitions.Scheme `json:"scheme"`
	// Boot is what starts the kernel: grub or extlinux.
	Boot string `json:"boot"`
	// Disk and Memory are what the machine has when nobody says otherwise.
	Disk   partitions.Size `json:"disk"`
	Memory partitions.Size `json:"memory"`
	// RootfsLimit and RamdiskLimit bound what the files of the two systems
	// add up to, so that growth is a decision and not an accident.
	RootfsLimit  partitions.Size `json:"rootfs_limit"`
	RamdiskLimit partitions.Size `json:"ramdisk_limit"`
	// ImageLimit, if any, is how large the file that people fetch may be: the
	// OVA if the board has one, else the raw image.
	ImageLimit partitions.Size `json:"image_limit,omitempty"`
	// Overlay, if any, is a folder of rootfs/ whose files the board's system has
	// together with others': "gateway".
	Overlay string `json:"overlay,omitempty"`
	// Formats are the disk formats that the image is written in besides raw, as
	// the extensions of their files: qcow2, vmdk, vhdx, vhd, ova.
	Formats []string `json:"formats,omitempty"`
	// Platform and Devices are what stores call the board and the machines that
	// it is for (linux.json): arm, IPx10.
	Platform string   `json:"platform"`
	Devices  []string `json:"devices"`
}

// goArch are the architectures this project builds for, as Debian calls them,
// with Go's name for each.
var goArch = map[string]string{"amd64": "amd64", "arm64": "arm64", "armel": "arm"}

// List names the boards of the repository, sorted.
func List(repo fs.FS) ([]string, error) {
	files, err := fs.Glob(repo, path.Join(Dir, "*", "board.json"))
	if err != nil {
		return nil, fmt.Errorf("cannot list boards: %v", err)
	}
	var names []string
	for _, f := range files {
		names = append(names, path.Base(path.Dir(f)))
	}
	return names, nil
}

// Load reads and checks a board of the repository.
func Load(repo fs.FS, name string) (Board, error) {
	file := path.Join(Dir, name, "board.json")
	b, err := fs.ReadFile(repo, file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid) || strings.Contains(name, "/") {
		known, _ := List(repo)
		return Board{}, hint.Errorf("boards are: "+strings.Join(known, ", "), "no board %q", name)
	}
	if err != nil {
		return Board{}, fmt.Errorf("cannot load board: %w", err)
	}
	board, err := parse(b)
	if err != nil {
		return Board{}, fmt.Errorf("cannot load board: %s: %w", file, err)
	}
	board.Name = name
	return board, nil
}

func parse(text []byte) (Board, error) {
	var b Board
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b); err != nil {
		return Board{}, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return Board{}, errors.New("text after the closing brace")
	}
	return b, b.Validate()
}

// Validate says what is wrong with the board, if anything is.
func (b Board) Validate() error {
	_, known := goArch[b.Arch]
	switch {
	case b.Description == "":
		return errors.New("description is empty")
	case !known:
		return fmt.Errorf("arch %q is not one of amd64, arm64, armel", b.Arch)
	case (b.GOARM != "") != (b.GOARCH() == "arm"):
		return errors.New("goarm belongs to arch armel and only there")
	case b.Boot != "grub" && b.Boot != "extlinux":
		return fmt.Errorf("boot %q is not one of grub, extlinux", b.Boot)
	case b.Platform == "" || len(b.Devices) == 0:
		return errors.New("platform or devices are empty")
	case strings.Contains(b.Overlay, "/") || strings.Contains(b.Overlay, ".."):
		return fmt.Errorf("overlay %q is not the name of a folder in rootfs/", b.Overlay)
	case b.Memory <= 0, b.RootfsLimit <= 0, b.RamdiskLimit <= 0:
		return errors.New("memory, rootfs_limit and ramdisk_limit must be more than 0")
	}
	if _, err := partitions.ParseScheme(string(b.Scheme)); err != nil {
		return fmt.Errorf("scheme: %w", err)
	}
	if _, err := partitions.Layout(b.Scheme, b.Disk); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	return nil
}

// GOARCH is Go's name of the board's architecture.
func (b Board) GOARCH() string { return goArch[b.Arch] }
