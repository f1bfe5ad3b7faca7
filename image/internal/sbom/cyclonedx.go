package sbom

import "time"

// The parts of CycloneDX 1.6 (cyclonedx.org/docs/1.6/json) that are written, in
// its JSON names.
type (
	cdxDocument struct {
		Schema       string          `json:"$schema"`
		Format       string          `json:"bomFormat"`
		Spec         string          `json:"specVersion"`
		Serial       string          `json:"serialNumber"`
		Version      int             `json:"version"`
		Metadata     cdxMetadata     `json:"metadata"`
		Components   []cdxComponent  `json:"components"`
		Dependencies []cdxDependency `json:"dependencies"`
	}
	cdxMetadata struct {
		Time       string         `json:"timestamp"`
		Lifecycles []cdxLifecycle `json:"lifecycles"`
		Tools      cdxTools       `json:"tools"`
		Component  cdxComponent   `json:"component"`
	}
	cdxLifecycle struct {
		Phase string `json:"phase"`
	}
	cdxTools struct {
		Components []cdxComponent `json:"components"`
	}
	cdxComponent struct {
		Type        string         `json:"type"`
		Ref         string         `json:"bom-ref,omitempty"`
		Supplier    *cdxSupplier   `json:"supplier,omitempty"`
		Name        string         `json:"name"`
		Version     string         `json:"version,omitempty"`
		Description string         `json:"description,omitempty"`
		Scope       string         `json:"scope,omitempty"`
		Hashes      []cdxHash      `json:"hashes,omitempty"`
		Licenses    []cdxLicense   `json:"licenses,omitempty"`
		URL         string         `json:"purl,omitempty"`
		Pedigree    *cdxPedigree   `json:"pedigree,omitempty"`
		Properties  []cdxProperty  `json:"properties,omitempty"`
		Components  []cdxComponent `json:"components,omitempty"`
	}
	cdxSupplier struct {
		Name string `json:"name"`
	}
	cdxHash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	cdxLicense struct {
		Expression      string `json:"expression"`
		Acknowledgement string `json:"acknowledgement"`
	}
	cdxPedigree struct {
		Ancestors []cdxComponent `json:"ancestors"`
	}
	cdxProperty struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	cdxDependency struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn,omitempty"`
	}
)

const (
	cdxImageRef = "image"
	// cdxExcluded is the scope of what is listed and not in the image.
	cdxExcluded = "excluded"
	// The names of our properties, of a package and of a file.
	cdxSourceName = "app-platform:source"
	cdxSystemName = "app-platform:system"
)

var cdxTypes = map[Kind]string{Library: "library", Application: "application", Source: "library"}

// CycloneDX writes the document as CycloneDX 1.6 in JSON.
func CycloneDX(d Document) ([]byte, error) {
	d.sort()
	if err := d.check(); err != nil {
		return nil, err
	}
	uuid, err := d.uuid()
	if err != nil {
		return nil, err
	}
	out := cdxDocument{
		Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", Format: "CycloneDX", Spec: "1.6",
		Serial: "urn:uuid:" + uuid, Version: 1,
		Metadata: cdxMetadata{
			Time:       d.Time.UTC().Format(time.RFC3339),
			Lifecycles: []cdxLifecycle{{"build"}},
			Tools:      cdxTools{[]cdxComponent{{Type: "application", Name: "apimage"}}},
			Component:  cdxComponent{Type: "operating-system", Ref: cdxImageRef, Name: d.Name, Version: d.Version, Description: d.Comment},
		},
	}
	byID := map[string]Package{}
	for _, p := range d.Packages {
		byID[p.ID] = p
	}
	files := d.files()
	image := cdxDependency{Ref: cdxImageRef}
	var others []cdxDependency
	for _, p := range d.Packages {
		c := p.cyclonedx(files[p.ID])
		for _, id := range p.MadeFrom {
			if c.Pedigree == nil {
				c.Pedigree = &cdxPedigree{}
			}
			from := byID[id]
			c.Pedigree.Ancestors = append(c.Pedigree.Ancestors, cdxComponent{Type: cdxTypes[from.Kind], Name: from.Name, Version: from.Version, URL: from.URL})
		}
		out.Components = append(out.Components, c)
		if !p.Left {
			image.DependsOn = append(image.DependsOn, p.ID)
		}
		others = append(others, cdxDependency{p.ID, p.Links})
	}
	out.Dependencies = append([]cdxDependency{image}, others...)
	return encode(out)
}

func (p Package) cyclonedx(files []File) cdxComponent {
	c := cdxComponent{Type: cdxTypes[p.Kind], Ref: p.ID, Name: p.Name, Version: p.Version, Description: p.Comment, URL: p.URL}
	if p.Supplier != "" {
		c.Supplier = &cdxSupplier{p.Supplier}
	}
	if p.Left {
		c.Scope = cdxExcluded
	}
	if p.SHA256 != "" {
		c.Hashes = []cdxHash{{"SHA-256", p.SHA256}}
	}
	if p.Licence != "" {
		c.Licenses = []cdxLicense{{p.Licence, "declared"}}
	}
	if p.Source != "" {
		c.Properties = []cdxProperty{{cdxSourceName, p.Source}}
	}
	for _, f := range files {
		c.Components = append(c.Components, cdxComponent{
			Type: "file", Ref: f.name(), Name: "/" + f.Path, Description: f.note(),
			Hashes:     []cdxHash{{"SHA-1", f.SHA1}, {"SHA-256", f.SHA256}},
			Properties: []cdxProperty{{cdxSystemName, f.System}},
		})
	}
	return c
}
