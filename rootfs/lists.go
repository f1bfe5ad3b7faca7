package rootfs

import (
	"bufio"
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"appplatform/boards"
)

// The folders of the repository this package reads. The two systems, "system"
// and "ramdisk", each have a file of their own name in the first group.
const (
	packagesDir    = "rootfs/packages"
	rulesDir       = "rootfs/rules"
	permissionsDir = "rootfs/permissions"
	linksDir       = "rootfs/links"
	accountsDir    = "rootfs/accounts"
	sharedOverlay  = "rootfs/shared" // for both
	systemOverlay  = "rootfs/overlay"
	ramdiskOverlay = "rootfs/ramdisk"
	overlaysDir    = "rootfs" // those that boards name
)

// SystemPackages names the packages that the installed system is resolved
// from: the common ones and the board's own.
func SystemPackages(repo fs.FS, b boards.Board) ([]string, error) {
	names, err := readNames(repo, path.Join(packagesDir, "system"))
	if err != nil {
		return nil, err
	}
	own, err := readNames(repo, path.Join(boards.Dir, b.Name, "packages"))
	if err != nil {
		return nil, err
	}
	return append(names, own...), nil
}

// RamdiskPackages names the packages that the ramdisk is resolved from.
func RamdiskPackages(repo fs.FS, _ boards.Board) ([]string, error) {
	return readNames(repo, path.Join(packagesDir, "ramdisk"))
}

func readNames(repo fs.FS, file string) ([]string, error) {
	lines, err := readList(repo, file)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, l := range lines {
		if len(l.fields) != 1 {
			return nil, l.errorf("want one package name")
		}
		if slices.Contains(names, l.fields[0]) {
			return nil, l.errorf("%s is listed twice", l.fields[0])
		}
		names = append(names, l.fields[0])
	}
	return names, nil
}

// A line is one entry of a list: fields, and the comment behind them.
type line struct {
	file    string
	number  int
	fields  []string
	comment string
}

func (l line) errorf(format string, args ...any) error {
	return fmt.Errorf("%s:%d: "+format, append([]any{l.file, l.number}, args...)...)
}

// readList reads a file of one entry a line; "#" starts a comment.
func readList(repo fs.FS, file string) ([]line, error) {
	text, err := fs.ReadFile(repo, file)
	if err != nil {
		return nil, fmt.Errorf("cannot read list: %w", err)
	}
	var lines []line
	in := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; in.Scan(); n++ {
		entry, comment, _ := strings.Cut(in.Text(), "#")
		if fields := strings.Fields(entry); len(fields) > 0 {
			lines = append(lines, line{file, n, fields, strings.TrimSpace(comment)})
		}
	}
	return lines, in.Err()
}
