package image

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"appplatform/archive"
	"appplatform/bundle"
	"appplatform/image/internal/sbom"
	"appplatform/internal/hint"
)

// VerifyAttestations checks what lies beside the finished image of a board in
// dir: that the statement is signed with one of the keys and every file is the
// one that it names, and that the lists of what is in the image and the licences
// agree with the lock and leave nothing out.
func VerifyAttestations(ctx context.Context, dir, board string, keys []string) error {
	_, err := verifyAttestations(ctx, dir, board, keys)
	return err
}

// verifyAttestations returns the names of the files that the statement vouches for.
func verifyAttestations(ctx context.Context, dir, board string, keys []string) (subjects []string, err error) {
	v := verifier{dir: dir, board: board, sums: map[string]bool{}}
	for _, check := range []func() error{
		func() error { return v.checkStatement(keys) },
		func() error { return v.checkSubjects(ctx) },
		v.checkLock, v.checkLists, v.checkLicences,
	} {
		if err := errors.Join(ctx.Err(), check()); err != nil {
			return nil, err
		}
	}
	for _, s := range v.statement.Subject {
		subjects = append(subjects, s.Name)
	}
	return subjects, nil
}

type verifier struct {
	dir, board string
	statement  statement
	sums       map[string]bool // of what the statement says everything is made from
	lock       *Lock
	contents   sbom.Contents
}

func (v *verifier) name(extension string) string { return "app-platform-" + v.board + extension }

func (v *verifier) read(extension string) ([]byte, error) {
	return os.ReadFile(filepath.Join(v.dir, v.name(extension)))
}

func (v *verifier) errorf(extension, format string, args ...any) error {
	return fmt.Errorf("%s: "+format, append([]any{v.name(extension)}, args...)...)
}

func (v *verifier) checkStatement(keys []string) error {
	text, err := v.read(provenanceName)
	if err != nil {
		return err
	}
	signature, err := v.read(provenanceName + signatureExt)
	if err != nil {
		return err
	}
	if err := bundle.CheckSignature(keys, text, signature); err != nil {
		return hint.Errorf("name the .pub file of the key it was signed with (--pub)", "%s: %w", v.name(provenanceName), err)
	}
	if err := json.Unmarshal(text, &v.statement); err != nil {
		return v.errorf(provenanceName, "cannot read it: %v", err)
	}
	s := v.statement
	if s.Type != statementType || s.PredicateType != provenanceType || s.Predicate.Definition.BuildType != buildType {
		return v.errorf(provenanceName, "it is not a statement about the build of an image")
	}
	if of := s.Predicate.Definition.External.Board; of != v.board {
		return v.errorf(provenanceName, "it is about board %s, not %s", of, v.board)
	}
	for _, d := range s.Predicate.Definition.Dependencies {
		v.sums[d.Digest[digestSHA256]] = true
	}
	return nil
}

// checkSubjects compares every file that the statement names, and looks for the
// ones that it must name.
func (v *verifier) checkSubjects(ctx context.Context) error {
	named := map[string]bool{}
	for _, s := range v.statement.Subject {
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.Name != filepath.Base(s.Name) || len(s.Digest) == 0 {
			return v.errorf(provenanceName, "it names %q, which is not a file beside it, or has no hash", s.Name)
		}
		got, err := digestOf(filepath.Join(v.dir, s.Name))
		if errors.Is(err, fs.ErrNotExist) && s.Digest[digestFSVerity] != "" {
			named[s.Name] = true // A release has the disk in its other formats only.
			continue
		}
		if err != nil {
			return err
		}
		if !maps.Equal(got, s.Digest) {
			return fmt.Errorf("%s is not the file that was built: its hash is %v and %s says %v", s.Name, got, v.name(provenanceName), s.Digest)
		}
		named[s.Name] = true
	}
	label := v.statement.Predicate.Definition.External.Label
	for _, name := range []string{".img", "-" + label + ".update", ".manifest.json", ".lock", spdxName, cyclonedxName, licencesName} {
		if !named[v.name(name)] {
			return v.errorf(provenanceName, "it says nothing about %s", v.name(name))
		}
	}
	return nil
}

func (v *verifier) checkLock() (err error) {
	if v.lock, err = ReadLock(filepath.Join(v.dir, v.name(".lock"))); err != nil {
		return err
	}
	for _, p := range slices.Concat(v.lock.sets()...) {
		if !v.sums[p.SHA256] {
			return v.errorf(provenanceName, "%s is in the lock and not among what everything was made from", p)
		}
	}
	return nil
}

// checkLists reads both lists of what is in the image, which must say the same,
// and looks for every package of the lock that is not only a tool.
func (v *verifier) checkLists() error {
	text, err := v.read(spdxName)
	if err != nil {
		return err
	}
	if v.contents, err = sbom.ReadSPDX(text); err != nil {
		return v.errorf(spdxName, "%w", err)
	}
	if text, err = v.read(cyclonedxName); err != nil {
		return err
	}
	other, err := sbom.ReadCycloneDX(text)
	if err != nil {
		return v.errorf(cyclonedxName, "%w", err)
	}
	c := v.contents
	switch label := v.statement.Predicate.Definition.External.Label; {
	case c.Name != v.name("") || c.Version != label:
		return v.errorf(spdxName, "it is about %s %s, not %s %s", c.Name, c.Version, v.name(""), label)
	case c.Name != other.Name || c.Version != other.Version || c.UUID != other.UUID:
		return v.errorf(cyclonedxName, "it is not about the same image as %s", v.name(spdxName))
	case !maps.Equal(c.Packages, other.Packages) || !slices.Equal(c.Shipped, other.Shipped):
		return v.errorf(cyclonedxName, "it lists other packages than %s", v.name(spdxName))
	case !maps.Equal(c.Files, other.Files):
		return v.errorf(cyclonedxName, "it lists other files than %s", v.name(spdxName))
	case len(c.Files) == 0:
		return v.errorf(spdxName, "it lists no files")
	}
	for _, list := range [][]archive.Package{v.lock.System, v.lock.Ramdisk, v.lock.KernelSource} {
		for _, p := range list {
			if got := c.Packages[debian(p).URL]; got != p.SHA256 {
				return v.errorf(spdxName, "%s has the SHA-256 %q there and %q in the lock", p, got, p.SHA256)
			}
		}
	}
	return nil
}

// checkLicences looks for a text for everything that is in the image.
func (v *verifier) checkLicences() error {
	text, err := v.read(licencesName)
	if err != nil {
		return err
	}
	z, err := zip.NewReader(bytes.NewReader(text), int64(len(text)))
	if err != nil {
		return v.errorf(licencesName, "cannot read it: %w", err)
	}
	want := []string{"app-platform/" + licenceFile, "linux/copyright", "go/LICENSE"}
	for _, pkg := range v.contents.Shipped {
		want = append(want, licencePath(pkg))
	}
	for _, name := range want {
		text, err := fs.ReadFile(z, name)
		if err != nil || strings.TrimSpace(string(text)) == "" {
			return v.errorf(licencesName, "there is no %s in it", name)
		}
	}
	return nil
}
