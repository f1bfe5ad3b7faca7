// Package sbom describes an image: what is in it, what that was made from, and
// where each file comes from. A Document is a value; SPDX and CycloneDX write it
// in the two common formats, always the same bytes for the same value.
package sbom

import (
	"cmp"
	"crypto/sha1"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Document describes one image.
type Document struct {
	Name    string // of the image
	Version string // its label
	Comment string
	Time    time.Time
	// Packages by their ID, and Files, each of one of them.
	Packages []Package
	Files    []File
	// Texts are the licences that Licence names and SPDX has no name for.
	Texts []Text
}

// A Package is something with a name and a version that is in the image, or
// that something in it was made from.
type Package struct {
	ID, Name, Version string
	// URL is a package URL (purl), the name that scanners look for.
	URL      string
	SHA256   string // of the package's file, hex
	Supplier string
	Licence  string // an SPDX expression; empty if nobody has said it in words for machines
	Source   string // what it is built from elsewhere: "glibc 2.41-12"
	Comment  string
	Kind     Kind
	// Left is not in the image: it is listed because something is made from it,
	// or because it was asked for and all of it left out.
	Left bool
	// MadeFrom are the IDs of what the builder has made it from, and Links those
	// of what is linked into it.
	MadeFrom, Links []string
}

// A Kind says what a package is.
type Kind int

// The kinds of package.
const (
	Library Kind = iota
	Application
	Source
)

// A File is one file or link of the image.
type File struct {
	System string // the file system that it is in: "system", "ramdisk"
	Path   string // in there, "usr/bin/su"
	Size   int64
	// SHA1 and SHA256 are of the content, hex; of a symbolic link, of what it says.
	SHA1, SHA256 string
	Link         string `json:",omitempty"` // what a symbolic link says
	Package      string // the ID of its package
	Comment      string `json:",omitempty"`
}

// A Text is a licence under a name that this document gives it.
type Text struct{ ID, Name, Text string }

// sort puts everything into the one order that documents have.
func (d *Document) sort() {
	d.Packages, d.Files, d.Texts = slices.Clone(d.Packages), slices.Clone(d.Files), slices.Clone(d.Texts)
	slices.SortFunc(d.Packages, func(a, b Package) int { return strings.Compare(a.ID, b.ID) })
	slices.SortFunc(d.Files, func(a, b File) int {
		return cmp.Or(strings.Compare(a.System, b.System), strings.Compare(a.Path, b.Path))
	})
	slices.SortFunc(d.Texts, func(a, b Text) int { return strings.Compare(a.ID, b.ID) })
}

// uuidSpace is the name space of our documents.
var uuidSpace = [16]byte{0x4d, 0x2e, 0x0b, 0x5c, 0x91, 0x7a, 0x4c, 0x3e, 0x8f, 0x10, 0x6b, 0xd2, 0x35, 0xe8, 0xa7, 0x41}

// uuid names the document by its content: a UUID of version 5 (RFC 4122, 4.3),
// because CycloneDX asks for one of that RFC.
func (d *Document) uuid() (string, error) {
	text, err := json.Marshal(d)
	if err != nil {
		return "", fmt.Errorf("internal error: %w", err)
	}
	b := sha1.Sum(append(uuidSpace[:], text...))
	b[6], b[8] = b[6]&0x0f|0x50, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16]), nil
}

// check finds what a document must not have; the formats would hide it.
func (d *Document) check() error {
	known := map[string]bool{}
	for _, p := range d.Packages {
		if p.ID == "" || p.Name == "" || known[p.ID] {
			return fmt.Errorf("internal error: SBOM: package %q (%s) has no name, or an ID that is not its own", p.Name, p.ID)
		}
		known[p.ID] = true
	}
	for _, p := range d.Packages {
		for _, id := range slices.Concat(p.MadeFrom, p.Links) {
			if !known[id] {
				return fmt.Errorf("internal error: SBOM: %s is made from %s, which is not listed", p.ID, id)
			}
		}
	}
	paths := map[string]bool{}
	for _, f := range d.Files {
		if !known[f.Package] || f.SHA1 == "" || f.SHA256 == "" || paths[f.name()] {
			return fmt.Errorf("internal error: SBOM: %s has no package or hash, or is listed twice", f.name())
		}
		paths[f.name()] = true
	}
	return nil
}

func (f File) name() string { return f.System + "/" + f.Path }

// note is what is to be said about the file beside its hashes.
func (f File) note() string {
	if f.Link == "" {
		return f.Comment
	}
	return strings.TrimSuffix("symbolic link to "+f.Link+"; "+f.Comment, "; ")
}

// files are the document's by package.
func (d *Document) files() map[string][]File {
	of := map[string][]File{}
	for _, f := range d.Files {
		of[f.Package] = append(of[f.Package], f)
	}
	return of
}

// debianURL begins the package URLs of Debian's packages.
const debianURL = "pkg:deb/debian/"

// DebianURL is the package URL of a Debian package.
func DebianURL(name, version, arch, release string) string {
	return fmt.Sprintf(debianURL+"%s@%s?arch=%s&distro=%s", quote(name), quote(version), arch, release)
}

// GoURL is the package URL of a Go module.
func GoURL(path, version string) string {
	return fmt.Sprintf("pkg:golang/%s@%s", strings.ReplaceAll(quote(path), "%2F", "/"), quote(version))
}

// GenericURL is the package URL of something that is made here.
func GenericURL(name, version string) string {
	return "pkg:generic/" + quote(name) + "@" + quote(version)
}

// quote percent-encodes what may not stand in a part of a package URL: all but
// letters, digits, ".-_~" and ":" (purl-spec, "character encoding").
func quote(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if plain(c) || strings.IndexByte("_~:", c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// plain are the characters that every kind of name may have.
func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '-'
}

func encode(v any) ([]byte, error) {
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return nil, fmt.Errorf("internal error: %w", err)
	}
	return append(text, '\n'), nil
}
