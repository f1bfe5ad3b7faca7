package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"appplatform/archive"
	"appplatform/bundle"
	"appplatform/image/internal/fsverity"
	"appplatform/image/internal/sbom"
	"appplatform/internal/atomicfile"
)

// What the names of the files that describe an image end in.
const (
	spdxName       = ".spdx.json"
	cyclonedxName  = ".cdx.json"
	licencesName   = "-licences.zip"
	provenanceName = ".provenance.json"
	signatureExt   = ".minisig"
)

// attest writes what is in the image, the licences, and the signed statement of
// what all files of the build were made from.
func (b *build) attest(ctx context.Context, _ func(done, total int64, unit string)) error {
	system, err := b.listing(ctx, b.keys.rootfs, b.systemTree)
	if err != nil {
		return err
	}
	ramdisk, err := b.listing(ctx, b.keys.ramdisk, b.ramdiskTree)
	if err != nil {
		return err
	}
	texts, err := b.licences(ctx)
	if err != nil {
		return err
	}
	doc, err := b.document(system, ramdisk, texts)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name  string
		write func(sbom.Document) ([]byte, error)
	}{{spdxName, sbom.SPDX}, {cyclonedxName, sbom.CycloneDX}} {
		text, err := f.write(doc)
		if err != nil {
			return err
		}
		if err := atomicfile.Write(part(filepath.Join(b.Out, b.imageName(f.name))), text, 0o644); err != nil {
			return err
		}
	}
	err = atomicfile.WriteFunc(part(filepath.Join(b.Out, b.imageName(licencesName))), 0o644, func(w io.Writer) error {
		return writeLicences(w, texts, system, ramdisk)
	})
	if err != nil {
		return err
	}
	return b.writeProvenance()
}

func (p *Plan) provenancePath() string { return filepath.Join(p.Out, p.imageName(provenanceName)) }

// A statement is an in-toto Statement v1 with SLSA's provenance v1
// (slsa.dev/spec/v1.0/provenance) in it. It has no times: they would differ from
// one build to the next.
type statement struct {
	Type          string     `json:"_type"`
	Subject       []resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     predicate  `json:"predicate"`
}

// A resource is something with a name and hashes, by their algorithms.
type resource struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest"`
}

type predicate struct {
	Definition struct {
		BuildType    string            `json:"buildType"`
		External     external          `json:"externalParameters"`
		Internal     map[string]string `json:"internalParameters"`
		Dependencies []resource        `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	Details struct {
		Builder struct {
			ID string `json:"id"`
		} `json:"builder"`
	} `json:"runDetails"`
}

// external is what the person who builds decides.
type external struct {
	Board string `json:"board"`
	Label string `json:"label"`
	Draft bool   `json:"draft"`
}

const (
	statementType  = "https://in-toto.io/Statement/v1"
	provenanceType = "https://slsa.dev/provenance/v1"
	// Who builds and how, as URIs: package URLs, which need no place in the web.
	builderID = "pkg:golang/appplatform#cmd/apimage"
	buildType = "pkg:generic/app-platform-image@1"
)

// The algorithms of digests, as in-toto names them (in-toto attestation, "digest
// set"); fsverity is of disk images that are mostly holes.
const (
	digestSHA256   = "sha256"
	digestDir      = "dirHash"
	digestFSVerity = "fsverity"
)

// sparse is the size from which on a file is named by its tree of hashes:
// SHA-256 of the 16 GiB of a virtual disk would take longer than all the rest.
const sparse = 1 << 30

func digestOf(path string) (map[string]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() >= sparse {
		sum, err := fsverity.Sum(path)
		return map[string]string{digestFSVerity: sum}, err
	}
	sum, err := fileSum(path)
	return map[string]string{digestSHA256: sum}, err
}

// writeProvenance writes the statement about all finished files, and its
// signature.
func (b *build) writeProvenance() error {
	s, err := b.provenance()
	if err != nil {
		return err
	}
	for _, f := range b.products() {
		digest, err := digestOf(part(f))
		if err != nil {
			return err
		}
		s.Subject = append(s.Subject, resource{Name: filepath.Base(f), Digest: digest})
	}
	text, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return fmt.Errorf("internal error: %w", err)
	}
	text = append(text, '\n')
	signature, err := signProvenance(b.Signing.private, b.Signing.password, s, text)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(part(b.provenancePath()), text, 0o644); err != nil {
		return err
	}
	return atomicfile.Write(part(b.provenancePath()+signatureExt), signature, 0o644)
}

func signProvenance(private []byte, password string, s statement, text []byte) ([]byte, error) {
	of := s.Predicate.Definition.External
	return bundle.SignText(private, password, text, fmt.Sprintf("provenance of %s image %s", of.Board, of.Label),
		"App Platform provenance, check with minisign -Vm FILE.provenance.json")
}

// provenance says what everything is made from.
func (b *build) provenance() (s statement, err error) {
	s.Type, s.PredicateType = statementType, provenanceType
	def := &s.Predicate.Definition
	def.BuildType, s.Predicate.Details.Builder.ID = buildType, builderID
	def.External = external{b.Board.Name, b.Label, b.Draft}
	modules, _, goVersion, err := b.modules()
	if err != nil {
		return s, err
	}
	def.Internal = map[string]string{"go": goVersion, "release": archive.Release, "compression": b.xzLevel()}
	def.Dependencies = []resource{{Name: "app-platform", Digest: map[string]string{digestDir: b.source}}}
	seen := map[string]bool{}
	for _, p := range slices.Concat(b.Lock.sets()...) {
		if seen[p.SHA256] {
			continue
		}
		seen[p.SHA256] = true
		def.Dependencies = append(def.Dependencies, resource{
			Name: p.String(), URI: sbom.DebianURL(p.Name, p.Version, p.Arch, archive.Release), Digest: map[string]string{digestSHA256: p.SHA256},
		})
	}
	for _, m := range modules {
		sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:"))
		if err != nil {
			return s, fmt.Errorf("the hash %q of the Go module %s cannot be read", m.Sum, m.Path)
		}
		def.Dependencies = append(def.Dependencies, resource{
			Name: m.Path + "@" + m.Version, URI: sbom.GoURL(m.Path, m.Version), Digest: map[string]string{digestDir: hex.EncodeToString(sum)},
		})
	}
	return s, nil
}

// sourceFolders hold all that images and their builder are made from.
var sourceFolders = []string{
	"LICENSE", "agent", "app", "archive", "boards", "bundle", "cmd", "go.mod", "go.sum", "image", "internal", "manager", "partitions", "rootfs", "tooltree", "webserver",
}

// sourceHash is Go's hash of folders (golang.org/x/mod/sumdb/dirhash, Hash1) over
// the source, without tests: the SHA-256 of what sha256sum prints for the files
// in the order of their names.
func (r *repository) sourceHash() (string, error) {
	var files []string
	for _, name := range sourceFolders {
		err := fs.WalkDir(r.fs, name, func(path string, e fs.DirEntry, err error) error {
			switch {
			case err != nil:
				return err
			case e.IsDir() && e.Name() == "testdata":
				return fs.SkipDir
			case e.Type().IsRegular() && !strings.HasSuffix(path, "_test.go"):
				files = append(files, path)
			}
			return nil
		})
		if err != nil {
			return "", fmt.Errorf("cannot read the source: %w", err)
		}
	}
	slices.Sort(files)
	var lines bytes.Buffer
	for _, name := range files {
		text, err := fs.ReadFile(r.fs, name)
		if err != nil {
			return "", fmt.Errorf("cannot read the source: %w", err)
		}
		fmt.Fprintf(&lines, "%x  %s\n", sha256.Sum256(text), name)
	}
	sum := sha256.Sum256(lines.Bytes())
	return hex.EncodeToString(sum[:]), nil
}
