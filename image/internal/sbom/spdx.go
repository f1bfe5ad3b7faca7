package sbom

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The parts of SPDX 2.3 (spdx.github.io/spdx-spec/v2.3) that are written, in its
// JSON names.
type (
	spdxDocument struct {
		Version       string         `json:"spdxVersion"`
		License       string         `json:"dataLicense"`
		ID            string         `json:"SPDXID"`
		Name          string         `json:"name"`
		Namespace     string         `json:"documentNamespace"`
		Creation      spdxCreation   `json:"creationInfo"`
		Packages      []spdxPackage  `json:"packages"`
		Files         []spdxFile     `json:"files,omitempty"`
		Texts         []spdxText     `json:"hasExtractedLicensingInfos,omitempty"`
		Relationships []spdxRelation `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID           string            `json:"SPDXID"`
		Name         string            `json:"name"`
		Version      string            `json:"versionInfo,omitempty"`
		Purpose      string            `json:"primaryPackagePurpose"`
		Supplier     string            `json:"supplier,omitempty"`
		Location     string            `json:"downloadLocation"`
		Analyzed     bool              `json:"filesAnalyzed"`
		Verification *spdxVerification `json:"packageVerificationCode,omitempty"`
		Checksums    []spdxChecksum    `json:"checksums,omitempty"`
		SourceInfo   string            `json:"sourceInfo,omitempty"`
		Concluded    string            `json:"licenseConcluded"`
		Declared     string            `json:"licenseDeclared"`
		Copyright    string            `json:"copyrightText"`
		Comment      string            `json:"comment,omitempty"`
		Refs         []spdxRef         `json:"externalRefs,omitempty"`
	}
	spdxVerification struct {
		Value string `json:"packageVerificationCodeValue"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxRef struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxFile struct {
		ID        string         `json:"SPDXID"`
		Name      string         `json:"fileName"`
		Checksums []spdxChecksum `json:"checksums"`
		Concluded string         `json:"licenseConcluded"`
		Copyright string         `json:"copyrightText"`
		Comment   string         `json:"comment,omitempty"`
	}
	spdxText struct {
		ID   string `json:"licenseId"`
		Name string `json:"name"`
		Text string `json:"extractedText"`
	}
	spdxRelation struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

const (
	spdxDocumentID = "SPDXRef-DOCUMENT"
	spdxImageID    = "SPDXRef-Image"
	noAssertion    = "NOASSERTION"
	// namespace is what SPDX proposes for documents without a home of their own.
	namespace = "https://spdx.org/spdxdocs/"
)

var purposes = map[Kind]string{Library: "LIBRARY", Application: "APPLICATION", Source: "SOURCE"}

// SPDX writes the document as SPDX 2.3 in JSON.
func SPDX(d Document) ([]byte, error) {
	d.sort()
	if err := d.check(); err != nil {
		return nil, err
	}
	uuid, err := d.uuid()
	if err != nil {
		return nil, err
	}
	out := spdxDocument{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: spdxDocumentID,
		Name: d.Name + " " + d.Version, Namespace: namespace + d.Name + "-" + d.Version + "-" + uuid,
		Creation: spdxCreation{d.Time.UTC().Format(time.RFC3339), []string{"Tool: apimage"}},
	}
	relate := func(element, relation, related string) {
		out.Relationships = append(out.Relationships, spdxRelation{element, relation, related})
	}
	out.Packages = append(out.Packages, spdxPackage{
		ID: spdxImageID, Name: d.Name, Version: d.Version, Purpose: "OPERATING_SYSTEM", Location: noAssertion,
		Concluded: noAssertion, Declared: noAssertion, Copyright: noAssertion, Comment: d.Comment,
	})
	relate(spdxDocumentID, "DESCRIBES", spdxImageID)
	files := d.files()
	for _, p := range d.Packages {
		out.Packages = append(out.Packages, p.spdx(files[p.ID]))
		if !p.Left {
			relate(spdxImageID, "CONTAINS", spdxID(p.ID))
		}
		for _, id := range p.MadeFrom {
			relate(spdxID(p.ID), "GENERATED_FROM", spdxID(id))
		}
		for _, id := range p.Links {
			relate(spdxID(p.ID), "STATIC_LINK", spdxID(id))
		}
	}
	for _, f := range d.Files {
		id := spdxID("File-" + f.name())
		out.Files = append(out.Files, spdxFile{
			ID: id, Name: "./" + f.name(), Checksums: []spdxChecksum{{"SHA1", f.SHA1}, {"SHA256", f.SHA256}},
			Concluded: noAssertion, Copyright: noAssertion, Comment: f.note(),
		})
		relate(spdxID(f.Package), "CONTAINS", id)
	}
	for _, t := range d.Texts {
		out.Texts = append(out.Texts, spdxText(t))
	}
	return encode(out)
}

func (p Package) spdx(files []File) spdxPackage {
	out := spdxPackage{
		ID: spdxID(p.ID), Name: p.Name, Version: p.Version, Purpose: purposes[p.Kind], Location: noAssertion,
		Concluded: noAssertion, Declared: p.Licence, Copyright: noAssertion, Comment: p.Comment,
	}
	if p.Supplier != "" {
		out.Supplier = "Organization: " + p.Supplier
	}
	if p.Licence == "" {
		out.Declared = noAssertion
	}
	if p.Source != "" {
		out.SourceInfo = "built from the source package " + p.Source
	}
	if p.SHA256 != "" {
		out.Checksums = []spdxChecksum{{"SHA256", p.SHA256}}
	}
	if p.URL != "" {
		out.Refs = []spdxRef{{"PACKAGE-MANAGER", "purl", p.URL}}
	}
	if len(files) > 0 {
		out.Analyzed, out.Verification = true, &spdxVerification{verificationCode(files)}
	}
	return out
}

// verificationCode is the SHA-1 of the files' sorted SHA-1 (SPDX 2.3, 7.9).
func verificationCode(files []File) string {
	var sums []string
	for _, f := range files {
		sums = append(sums, f.SHA1)
	}
	slices.Sort(sums)
	sum := sha1.Sum([]byte(strings.Join(sums, "")))
	return hex.EncodeToString(sum[:])
}

// spdxID is a name in the letters that SPDX takes: others as their number.
func spdxID(name string) string {
	var b strings.Builder
	for _, c := range []byte(name) {
		switch {
		case plain(c):
			b.WriteByte(c)
		case c == '/':
			b.WriteString("..")
		default:
			fmt.Fprintf(&b, ".%02x.", c)
		}
	}
	return "SPDXRef-" + b.String()
}
