// Package sbomtest judges SBOMs by the official JSON schemas and by libraries of
// other people. It is for tests only.
package sbomtest

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"strings"

	"github.com/github/go-spdx/v2/spdxexp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdxlib"
)

//go:embed schema/*.json
var schemas embed.FS

// valid judges a text by one of the schemas, with the formats in it.
func valid(schema string, text []byte) (any, error) {
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	files, err := fs.Glob(schemas, "schema/*.json")
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		f, err := schemas.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		doc, err := jsonschema.UnmarshalJSON(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if err := c.AddResource(doc.(map[string]any)["$id"].(string), doc); err != nil {
			return nil, err
		}
	}
	s, err := c.Compile(schema)
	if err != nil {
		return nil, err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	return doc, s.Validate(doc)
}

// SPDX judges an SPDX 2.3 document: the schema, the elements of relationships,
// and every licence expression.
func SPDX(text []byte) (*spdx.Document, error) {
	if _, err := valid("http://spdx.org/rdf/terms/2.3", text); err != nil {
		return nil, err
	}
	doc, err := spdxjson.Read(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	if err := spdxlib.ValidateDocument(doc); err != nil {
		return nil, err
	}
	known := map[string]bool{}
	for _, l := range doc.OtherLicenses {
		known[l.LicenseIdentifier] = true
	}
	for _, p := range doc.Packages {
		if p.PackageLicenseDeclared == "NOASSERTION" {
			continue
		}
		names, err := spdxexp.ExtractLicenses(p.PackageLicenseDeclared)
		if err != nil {
			return nil, fmt.Errorf("%s: licence %q: %w", p.PackageName, p.PackageLicenseDeclared, err)
		}
		for _, name := range names {
			if strings.HasPrefix(name, "LicenseRef-") && !known[name] {
				return nil, fmt.Errorf("%s: the document lacks the text of the licence %s", p.PackageName, name)
			}
		}
	}
	return doc, nil
}

// Files judges an SPDX document and returns the SHA-256 of the files in it, by
// their names. Each must be contained in a package.
func Files(text []byte) (map[string]string, error) {
	doc, err := SPDX(text)
	if err != nil {
		return nil, err
	}
	owned := map[common.ElementID]bool{}
	for _, r := range doc.Relationships {
		if r.Relationship == common.TypeRelationshipContains {
			owned[r.RefB.ElementRefID] = true
		}
	}
	files := map[string]string{}
	for _, f := range doc.Files {
		if !owned[f.FileSPDXIdentifier] {
			return nil, fmt.Errorf("%s is of no package", f.FileName)
		}
		for _, sum := range f.Checksums {
			if sum.Algorithm == common.SHA256 {
				files[strings.TrimPrefix(f.FileName, "./")] = sum.Value
			}
		}
	}
	return files, nil
}

// CycloneDX judges a CycloneDX 1.6 document: the schema, and that each reference
// is to one component.
func CycloneDX(text []byte) error {
	doc, err := valid("http://cyclonedx.org/schema/bom-1.6.schema.json", text)
	if err != nil {
		return err
	}
	bom := doc.(map[string]any)
	refs := map[string]bool{}
	if err := collect(refs, bom["metadata"].(map[string]any)["component"]); err != nil {
		return err
	}
	for _, c := range bom["components"].([]any) {
		if err := collect(refs, c); err != nil {
			return err
		}
	}
	for _, d := range bom["dependencies"].([]any) {
		on, _ := d.(map[string]any)["dependsOn"].([]any)
		for _, ref := range append(on, d.(map[string]any)["ref"]) {
			if !refs[ref.(string)] {
				return fmt.Errorf("dependency on %v, which is not listed", ref)
			}
		}
	}
	return nil
}

func collect(refs map[string]bool, component any) error {
	c := component.(map[string]any)
	ref := c["bom-ref"].(string)
	if refs[ref] {
		return fmt.Errorf("%s is listed twice", ref)
	}
	refs[ref] = true
	parts, _ := c["components"].([]any)
	for _, part := range parts {
		if err := collect(refs, part); err != nil {
			return err
		}
	}
	return nil
}
