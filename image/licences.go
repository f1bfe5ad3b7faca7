package image

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	_ "embed"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/therootcompany/xz"

	"appplatform/archive"
	"appplatform/image/internal/grub"
	"appplatform/internal/cache"
	"appplatform/internal/hint"
	"appplatform/internal/run"
)

// licences are the texts of what is in an image and is not a Debian package, by
// their place in the archive of licences: "linux/COPYING".
type licences map[string]string

// licenceFile is this project's own.
const licenceFile = "LICENSE"

// grubLicence is the place of the one text that is read for its names, too.
const grubLicence = "grub/copyright"

// goLicence is that of Go's standard library. Not every Go that is installed
// has it at the same place.
//
//go:embed go-licence.txt
var goLicence string

// licences are read from where each thing comes from, once.
func (b *build) licences(ctx context.Context) (licences, error) {
	parts := append([]string{"1", b.linux.Source.SHA256}, b.keys.programs[:]...)
	if b.Board.Boot == "grub" {
		p, err := b.tool(grub.LicencePackage)
		if err != nil {
			return nil, err
		}
		parts = append(parts, p.SHA256)
	}
	file, err := b.cache.File(filepath.Join("licences", cache.Key(parts...)), func(w io.Writer) error {
		all, err := b.readLicences(ctx)
		if err != nil {
			return fmt.Errorf("cannot read licences: %w", err)
		}
		return gob.NewEncoder(w).Encode(all)
	})
	if err != nil {
		return nil, err
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all licences
	if err := gob.NewDecoder(f).Decode(&all); err != nil {
		return nil, fmt.Errorf("cannot read the kept licences: %w", err)
	}
	own, err := fs.ReadFile(b.repo.fs, licenceFile)
	if err != nil {
		return nil, fmt.Errorf("cannot read licences: %w", err)
	}
	all["app-platform/"+licenceFile] = string(own)
	return all, nil
}

func (b *build) readLicences(ctx context.Context) (licences, error) {
	all := licences{"go/LICENSE": goLicence}
	if err := b.readModuleLicences(ctx, all); err != nil {
		return nil, err
	}
	if err := b.readPackageLicences(ctx, b.linux.Source, "linux/", all, "COPYING"); err != nil {
		return nil, err
	}
	if b.Board.Boot != "grub" {
		return all, nil
	}
	p, err := b.tool(grub.LicencePackage)
	if err != nil {
		return nil, err
	}
	return all, b.readPackageLicences(ctx, p, path.Dir(grubLicence)+"/", all)
}

// modulePatterns are the names under which Go modules keep their licences.
var modulePatterns = []string{"LICEN[CS]E*", "COPYING*", "NOTICE*", "PATENTS*"}

// readModuleLicences reads those of the modules that the programs list.
func (b *build) readModuleLicences(ctx context.Context, all licences) error {
	modules, _, _, err := b.modules()
	if err != nil {
		return err
	}
	args := []string{"mod", "download", "-json"}
	for _, m := range modules {
		args = append(args, m.Path+"@"+m.Version)
	}
	cmd := run.Command(ctx, "go", args...)
	cmd.Dir = b.repo.dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off")
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := run.Wait(cmd); errors.Is(err, exec.ErrNotFound) {
		return hint.Errorf("install Go and put its bin folder on the PATH", "%w", err)
	} else if err != nil {
		return err
	}
	for dec := json.NewDecoder(&out); dec.More(); {
		var m struct{ Path, Version, Dir string }
		if err := dec.Decode(&m); err != nil {
			return err
		}
		n := len(all)
		for _, pattern := range modulePatterns {
			files, _ := filepath.Glob(filepath.Join(m.Dir, pattern))
			for _, f := range files {
				text, err := os.ReadFile(f)
				if err != nil {
					return err
				}
				all[path.Join("go", m.Path+"@"+m.Version, filepath.Base(f))] = string(text)
			}
		}
		if len(all) == n {
			return fmt.Errorf("the Go module %s has none", m.Path)
		}
	}
	return nil
}

// readPackageLicences reads the copyright file of a package and, if inside is
// not empty, the file of that name of the source archive that the package holds.
func (b *build) readPackageLicences(ctx context.Context, p archive.Package, to string, all licences, inside ...string) error {
	pkgs := []archive.Package{p}
	if err := errors.Join(b.archive.Fetch(ctx, pkgs, func(int64) {}), b.archive.Verify(ctx, pkgs)); err != nil {
		return err
	}
	deb, err := archive.OpenDeb(b.archive.Path(p))
	if err != nil {
		return err
	}
	defer deb.Close()
	for want := len(all) + 1 + len(inside); len(all) < want; {
		h, err := deb.Data().Next()
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("%s lacks some", p)
		}
		if err != nil {
			return fmt.Errorf("cannot read %s: %w", p, err)
		}
		switch name := path.Clean(h.Name); {
		case name == path.Join(docDir, p.Name, "copyright"):
			text, err := io.ReadAll(deb.Data())
			if err != nil {
				return err
			}
			all[to+"copyright"] = string(text)
		case len(inside) > 0 && strings.HasSuffix(name, ".tar.xz"):
			if err := readInside(deb.Data(), to, all, inside); err != nil {
				return fmt.Errorf("cannot read %s: %w", p, err)
			}
		}
	}
	return nil
}

// readInside reads files from the top folder of a packed archive.
func readInside(packed io.Reader, to string, all licences, names []string) error {
	plain, err := xz.NewReader(packed, 0)
	if err != nil {
		return err
	}
	found := 0
	for t := tar.NewReader(plain); found < len(names); {
		h, err := t.Next()
		if err != nil {
			return err
		}
		_, name, _ := strings.Cut(path.Clean(h.Name), "/")
		if !slices.Contains(names, name) {
			continue
		}
		text, err := io.ReadAll(t)
		if err != nil {
			return err
		}
		all[to+name] = string(text)
		found++
	}
	return nil
}

// byFolder joins the texts for the device, where each thing has one file. Those
// of the programs' modules are beside App Platform's own.
func (l licences) byFolder() map[string]string {
	joined := map[string]string{}
	seen := map[string]string{} // where a text stands already
	for _, name := range slices.Sorted(maps.Keys(l)) {
		top, _, _ := strings.Cut(name, "/")
		if top == "go" {
			top = "app-platform"
		}
		text := l[name]
		if first, ok := seen[top+text]; ok {
			text = "the same text as " + first + "\n"
		} else {
			seen[top+text] = name
		}
		joined[top] += "--- " + name + "\n\n" + strings.TrimRight(text, "\n") + "\n\n"
	}
	return joined
}

// writeLicences writes the archive of all licences, always the same bytes for
// the same texts.
func writeLicences(w io.Writer, all licences, listings ...listing) error {
	all = maps.Clone(all)
	for _, l := range listings {
		for pkg, text := range l.Copyrights {
			all[licencePath(pkg)] = text
		}
		for name, text := range l.Common {
			all["common-licenses/"+name] = text
		}
	}
	z := zip.NewWriter(w)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		f, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate, Modified: imageTime.UTC()})
		if err != nil {
			return err
		}
		if _, err := io.WriteString(f, all[name]); err != nil {
			return err
		}
	}
	return z.Close()
}

// licencePath is the place of a Debian package's text in the archive.
func licencePath(pkg string) string { return "debian/" + pkg + "/copyright" }
