package sbom

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"appplatform/image/internal/sbom/sbomtest"
)

var (
	someSHA1   = strings.Repeat("0a", 20)
	someSHA256 = strings.Repeat("0b", 32)
)

// sample has one of everything.
func sample() Document {
	file := func(system, path, link, pkg string) File {
		return File{System: system, Path: path, SHA1: someSHA1, SHA256: someSHA256, Link: link, Package: pkg, Comment: "it"}
	}
	return Document{
		Name: "app-platform-vm", Version: "160001", Comment: "an image", Time: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		Packages: []Package{
			{ID: "deb-libstdc++6-1:2~3", Name: "libstdc++6", Version: "1:2~3", URL: DebianURL("libstdc++6", "1:2~3", "amd64", "trixie"),
				SHA256: someSHA256, Supplier: "Debian", Source: "gcc-14 1:2~3", Licence: "LicenseRef-gcc-14-mine AND (MIT OR GPL-2.0-only WITH Linux-syscall-note)"},
			{ID: "deb-perl-5", Name: "perl", Version: "5", SHA256: someSHA256, Left: true, Comment: "left out"},
			{ID: "source", Name: "linux-source", Version: "6.12", Kind: Source, Left: true},
			{ID: "linux", Name: "linux", Version: "6.12", URL: GenericURL("linux", "6.12"), Kind: Application, MadeFrom: []string{"source"}},
			{ID: "agent", Name: "agent", Version: "160001", Kind: Application, Links: []string{"go-golang.org/x/sys"}},
			{ID: "go-golang.org/x/sys", Name: "golang.org/x/sys", Version: "v0.1.0", URL: GoURL("golang.org/x/sys", "v0.1.0")},
		},
		Files: []File{
			file("system", "usr/bin/[", "", "agent"), file("ramdisk", "usr/bin/[", "", "agent"),
			file("system", "usr/lib/libstdc++.so.6", "libstdc++.so.6.0", "deb-libstdc++6-1:2~3"), file("system", "usr/lib/ä_b", "", "deb-libstdc++6-1:2~3"),
		},
		Texts: []Text{{"LicenseRef-gcc-14-mine", "mine", "Do as I say."}},
	}
}

func TestValidators(t *testing.T) {
	text, err := SPDX(sample())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := sbomtest.SPDX(text)
	if err != nil {
		t.Fatalf("SPDX() is refused: %v\n%s", err, text)
	}
	files := len(doc.Files)
	for _, p := range doc.Packages {
		files += len(p.Files)
	}
	if len(doc.Packages) != 7 || files != 4 {
		t.Errorf("SPDX() has %d packages and %d files; want 7 and 4", len(doc.Packages), files)
	}
	if text, err = CycloneDX(sample()); err != nil {
		t.Fatal(err)
	}
	if err := sbomtest.CycloneDX(text); err != nil {
		t.Errorf("CycloneDX() is refused: %v\n%s", err, text)
	}
}

// What is read back is the same from both formats.
func TestRead(t *testing.T) {
	var all []Contents
	for _, format := range []struct {
		write func(Document) ([]byte, error)
		read  func([]byte) (Contents, error)
	}{{SPDX, ReadSPDX}, {CycloneDX, ReadCycloneDX}} {
		text, err := format.write(sample())
		if err != nil {
			t.Fatal(err)
		}
		c, err := format.read(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	if diff := cmp.Diff(all[0], all[1]); diff != "" {
		t.Errorf("SPDX and CycloneDX differ: %s", diff)
	}
	if c := all[0]; !slices.Equal(c.Shipped, []string{"libstdc++6"}) || c.Packages["perl"] != someSHA256 || c.Files["system/usr/bin/["] != someSHA256 {
		t.Errorf("ReadSPDX() = %+v; want libstdc++6 shipped, and the hashes of perl and usr/bin/[", c)
	}
}

// The order in which things were found does not matter.
func TestSameBytes(t *testing.T) {
	other := sample()
	slices.Reverse(other.Packages)
	slices.Reverse(other.Files)
	for name, write := range map[string]func(Document) ([]byte, error){"SPDX": SPDX, "CycloneDX": CycloneDX} {
		a, err := write(sample())
		if err != nil {
			t.Fatal(err)
		}
		b, err := write(other)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(a, b) {
			t.Errorf("%s() of the same in another order differs", name)
		}
	}
}

func TestNameFollowsContent(t *testing.T) {
	first, other := sample(), sample()
	other.Files[0].SHA256 = strings.Repeat("0c", 32)
	var names []string
	for _, d := range []Document{first, other} {
		name, err := d.uuid()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	if names[0] == names[1] {
		t.Errorf("both documents are called %s", names[0])
	}
}

func TestRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Document)
	}{
		{"file of nobody", func(d *Document) { d.Files[0].Package = "" }},
		{"file of an unknown package", func(d *Document) { d.Files[0].Package = "other" }},
		{"file without a hash", func(d *Document) { d.Files[0].SHA256 = "" }},
		{"file twice", func(d *Document) { d.Files = append(d.Files, d.Files[0]) }},
		{"package twice", func(d *Document) { d.Packages = append(d.Packages, d.Packages[0]) }},
		{"made from something unknown", func(d *Document) { d.Packages[0].MadeFrom = []string{"other"} }},
		{"linked with something unknown", func(d *Document) { d.Packages[0].Links = []string{"other"} }},
	} {
		d := sample()
		c.change(&d)
		if _, err := SPDX(d); err == nil {
			t.Errorf("SPDX() with a %s succeeds", c.name)
		}
		if _, err := CycloneDX(d); err == nil {
			t.Errorf("CycloneDX() with a %s succeeds", c.name)
		}
	}
}

// The examples of purl-spec's type definitions, and what Debian's names have.
func TestURLs(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{DebianURL("curl", "7.50.3-1", "i386", "jessie"), "pkg:deb/debian/curl@7.50.3-1?arch=i386&distro=jessie"},
		{DebianURL("libstdc++6", "1:14.2~0+b1", "all", "trixie"), "pkg:deb/debian/libstdc%2B%2B6@1:14.2~0%2Bb1?arch=all&distro=trixie"},
		{GoURL("google.golang.org/genproto", "v0.1.0"), "pkg:golang/google.golang.org/genproto@v0.1.0"},
		{GenericURL("linux", "6.12+x"), "pkg:generic/linux@6.12%2Bx"},
	} {
		if c.got != c.want {
			t.Errorf("package URL %s; want %s", c.got, c.want)
		}
	}
}
