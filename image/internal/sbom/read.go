package sbom

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Contents are what both formats say of an image.
type Contents struct {
	UUID, Name, Version string
	// Packages are the SHA-256 of packages by their package URL; of those without
	// one by name. Shipped are the names of Debian's that are in the image.
	Packages map[string]string
	Shipped  []string
	// Files are the SHA-256 of files, by system and path: "system/usr/bin/su".
	Files map[string]string
}

// ReadSPDX reads what SPDX has written.
func ReadSPDX(text []byte) (Contents, error) {
	c := Contents{Packages: map[string]string{}, Files: map[string]string{}}
	var d spdxDocument
	if err := json.Unmarshal(text, &d); err != nil {
		return c, err
	}
	if d.Version != "SPDX-2.3" || len(d.Packages) == 0 || d.Packages[0].ID != spdxImageID {
		return c, fmt.Errorf("not an SPDX 2.3 document of an image")
	}
	c.Name, c.Version = d.Packages[0].Name, d.Packages[0].Version
	c.UUID = strings.TrimPrefix(d.Namespace, namespace+c.Name+"-"+c.Version+"-")
	contained, attributed := map[string]bool{}, map[string]bool{}
	for _, r := range d.Relationships {
		if r.Type == "CONTAINS" {
			if r.Element == spdxImageID {
				contained[r.Related] = true
			} else {
				attributed[r.Related] = true
			}
		}
	}
	for _, p := range d.Packages[1:] {
		url := ""
		if len(p.Refs) > 0 {
			url = p.Refs[0].Locator
		}
		c.Packages[cmp.Or(url, p.Name)] = spdxSum(p.Checksums)
		if contained[p.ID] && strings.HasPrefix(url, debianURL) {
			c.Shipped = append(c.Shipped, p.Name)
		}
	}
	for _, f := range d.Files {
		if !attributed[f.ID] {
			return c, fmt.Errorf("%s is of no package", f.Name)
		}
		c.Files[path.Clean(f.Name)] = spdxSum(f.Checksums)
	}
	slices.Sort(c.Shipped)
	return c, nil
}

func spdxSum(sums []spdxChecksum) string {
	for _, s := range sums {
		if s.Algorithm == "SHA256" {
			return s.Value
		}
	}
	return ""
}

// ReadCycloneDX reads what CycloneDX has written.
func ReadCycloneDX(text []byte) (Contents, error) {
	c := Contents{Packages: map[string]string{}, Files: map[string]string{}}
	var d cdxDocument
	if err := json.Unmarshal(text, &d); err != nil {
		return c, err
	}
	if d.Format != "CycloneDX" || d.Spec != "1.6" {
		return c, fmt.Errorf("not a CycloneDX 1.6 document")
	}
	c.Name, c.Version = d.Metadata.Component.Name, d.Metadata.Component.Version
	c.UUID = strings.TrimPrefix(d.Serial, "urn:uuid:")
	for _, p := range d.Components {
		c.Packages[cmp.Or(p.URL, p.Name)] = cdxSum(p.Hashes)
		if p.Scope != cdxExcluded && strings.HasPrefix(p.URL, debianURL) {
			c.Shipped = append(c.Shipped, p.Name)
		}
		for _, f := range p.Components {
			c.Files[f.Ref] = cdxSum(f.Hashes)
		}
	}
	slices.Sort(c.Shipped)
	return c, nil
}

func cdxSum(sums []cdxHash) string {
	for _, s := range sums {
		if s.Algorithm == "SHA-256" {
			return s.Content
		}
	}
	return ""
}
