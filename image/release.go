package image

import (
	"archive/zip"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"appplatform/bundle"
	"appplatform/internal/atomicfile"
	"appplatform/internal/hint"
	"appplatform/internal/store"
)

// Names of files in a release.
const (
	sumsName = "SHA256SUMS"
	// zipName is what manuals call the file for virtual machines (OS-A1).
	zipName = "app-platform-ova.zip"
)

// A Built is a board with what was built for it.
type Built struct {
	Plan   *Plan
	Result *Result
}

// Release puts the files of several boards with the same number and key into one
// folder, with what tells people and machines what is in it and that it is
// genuine. The folder is replaced when everything is there; the same builds give
// the same bytes.
func Release(ctx context.Context, dir string, builds []Built) ([]string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	files, err := release(ctx, dir, builds)
	if err != nil {
		return nil, fmt.Errorf("cannot make the release: %w", err)
	}
	return files, nil
}

func release(ctx context.Context, dir string, builds []Built) ([]string, error) {
	if len(builds) == 0 {
		return nil, errors.New("internal error: no boards")
	}
	if err := checkReplaceable(dir); err != nil {
		return nil, err
	}
	tmp := filepath.Join(filepath.Dir(dir), "."+filepath.Base(dir)+".part")
	if err := os.RemoveAll(tmp); err != nil { // of an interrupted release
		return nil, err
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp) // What is published is not there any more.
	first := builds[0].Plan
	var list store.List
	for _, b := range builds {
		if b.Plan.Label != first.Label || b.Plan.Signing.Public != first.Signing.Public {
			return nil, errors.New("internal error: builds of different numbers or keys")
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := b.release(tmp, &list); err != nil {
			return nil, err
		}
	}
	text, err := list.Encode()
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Write(filepath.Join(tmp, store.Name), text, 0o644); err != nil {
		return nil, err
	}
	if err := signSums(tmp, first.Label, first.Signing); err != nil {
		return nil, err
	}
	// Whatever is wrong is found here and not by who fetches it.
	if err := VerifyFolder(ctx, tmp, []string{first.Signing.Public}, nil); err != nil {
		return nil, err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return nil, err
	}
	if err := replaceFolder(tmp, dir); err != nil {
		return nil, err
	}
	return listFiles(dir)
}

// checkReplaceable wants a folder in the place of a release to be an older one, and
// nothing besides.
func checkReplaceable(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	sums, err := readSums(filepath.Join(dir, sumsName))
	if err != nil {
		return hint.Errorf("name a folder of its own", "%s is there and is not a release: %w", dir, err)
	}
	for _, e := range entries {
		if _, listed := sums[e.Name()]; !listed && e.Name() != sumsName && e.Name() != sumsName+signatureExt {
			return hint.Errorf("move it away, or name another folder", "%s has something that is not of a release: %s", dir, e.Name())
		}
	}
	return nil
}

// release adds one board's files.
func (b Built) release(dir string, list *store.List) error {
	names := map[string]string{} // by extension
	for _, file := range b.Result.Files {
		name := filepath.Base(file)
		if ext := filepath.Ext(name); ext != ".json" {
			names[ext] = name
		}
		// The raw disk of a virtual machine is as large as the disk. Its other
		// formats hold the same.
		if filepath.Ext(name) == ".img" && len(b.Plan.Board.Formats) > 0 {
			continue
		}
		if err := linkOrCopy(file, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	p := store.Platform{
		ID: b.Plan.Board.Platform, Text: product + " " + b.Plan.Label + " for " + strings.Join(b.Plan.Board.Devices, ", "),
		File: names[".img"], Update: names[".update"], Version: b.Plan.Label,
	}
	if machine := names["."+formatOVA]; machine != "" {
		p.File, p.Zip = machine, zipName
		if err := writeZip(filepath.Join(dir, zipName), filepath.Join(dir, machine)); err != nil {
			return err
		}
	}
	list.Platforms = append(list.Platforms, p)
	for _, name := range b.Plan.Board.Devices {
		list.Devices = append(list.Devices, store.Device{ID: name, Platforms: []string{p.ID}})
	}
	return nil
}

// linkOrCopy gives a finished file a second name, or copies it to another file
// system.
func linkOrCopy(from, to string) error {
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return atomicfile.WriteFunc(to, 0o644, func(w io.Writer) error {
		_, err := io.Copy(w, in)
		return err
	})
}

//go:embed import.txt
var importNote []byte

// writeZip packs the OVA with a note how to import it. The OVA is compressed
// already.
func writeZip(name, machine string) error {
	return atomicfile.WriteFunc(name, 0o644, func(w io.Writer) error {
		z := zip.NewWriter(w)
		note, err := z.CreateHeader(&zip.FileHeader{Name: "README.txt", Method: zip.Deflate, Modified: imageTime})
		if err != nil {
			return err
		}
		if _, err := note.Write(importNote); err != nil {
			return err
		}
		in, err := os.Open(machine)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := z.CreateHeader(&zip.FileHeader{Name: filepath.Base(machine), Method: zip.Store, Modified: imageTime})
		if err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
		return z.Close()
	})
}

// listFiles are the files of a folder, sorted. There are folders beside the
// files of a build, but not beside those of a release.
func listFiles(dir string) (files []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var others []string
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch {
		case e.Type().IsRegular():
			files = append(files, name)
		case !e.IsDir():
			return nil, fmt.Errorf("%s is not a file", name)
		default:
			others = append(others, name)
		}
	}
	if len(others) > 0 && slices.Contains(files, filepath.Join(dir, sumsName)) {
		return nil, fmt.Errorf("%s is a folder in a release", others[0])
	}
	return files, nil
}

// signSums writes the hashes of all files, as sha256sum does, and their
// signature.
func signSums(dir, label string, key Signing) error {
	files, err := listFiles(dir)
	if err != nil {
		return err
	}
	var sums strings.Builder
	for _, file := range files {
		sum, err := fileSum(file)
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%s  %s\n", sum, filepath.Base(file))
	}
	signature, err := bundle.SignText(key.private, key.password, []byte(sums.String()), product+" release "+label,
		"App Platform release, check with minisign -Vm "+sumsName)
	if err != nil {
		return err
	}
	return errors.Join(
		atomicfile.Write(filepath.Join(dir, sumsName), []byte(sums.String()), 0o644),
		atomicfile.Write(filepath.Join(dir, sumsName+signatureExt), signature, 0o644))
}

// readSums reads a list of hashes, by name.
func readSums(name string) (map[string]string, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	sums := map[string]string{}
	for line := range strings.Lines(string(text)) {
		sum, file, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if !ok || filepath.Base(file) != file {
			return nil, fmt.Errorf("%s: a line that says nothing: %q", name, line)
		}
		sums[file] = sum
	}
	return sums, nil
}

// replaceFolder puts a finished folder in the place of another one. They change
// places at once, so that one of them is there whatever happens.
func replaceFolder(from, to string) error {
	if err := atomicfile.SyncDir(from); err != nil {
		return err
	}
	err := os.Rename(from, to) // over nothing, or an empty folder
	if errors.Is(err, os.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		err = unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	}
	if err != nil {
		return fmt.Errorf("cannot put the release into its place: %w", err)
	}
	return atomicfile.SyncDir(filepath.Dir(to))
}
