package sbom

import (
	"slices"
	"strings"
	"testing"
)

const format = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: tool\n"

func TestLicence(t *testing.T) {
	files := func(licence string) string {
		return format + "\nFiles: *\nCopyright: 2020 A\nLicense: " + licence + "\n"
	}
	for _, c := range []struct{ name, copyright, want string }{
		{"name of SPDX", files("GPL-2+"), "GPL-2.0-or-later"},
		{"version with a zero", files("LGPL-3.0"), "LGPL-3.0-only"},
		{"name as SPDX has it", files("GPL-2.0-only"), "GPL-2.0-only"},
		{"version with a digit", files("LGPL-2.1"), "LGPL-2.1-only"},
		{"Debian's name for MIT", files("Expat"), "MIT"},
		{"name with several meanings", files("MIT"), "LicenseRef-tool-MIT"},
		{"no version", files("GPL"), "LicenseRef-tool-GPL"},
		{"choice", files("GPL-1+ or Expat"), "GPL-1.0-or-later OR MIT"},
		{"and binds closer", files("ISC or Expat and GPL-2"), "ISC OR MIT AND GPL-2.0-only"},
		{"comma binds less", files("GPL-1+ or Expat, and ISC"), "(GPL-1.0-or-later OR MIT) AND ISC"},
		{"comma alone", files("ISC, Expat"), "LicenseRef-tool-ISC.2c.-Expat"},
		{"exception", files("GPL-2 with Linux-syscall-note exception OR BSD-3-Clause"), "GPL-2.0-only WITH Linux-syscall-note OR BSD-3-Clause"},
		{"exception without a name", files("GPL-2+ with OpenSSL exception and ISC"), "LicenseRef-tool-GPL-2.2b.-with-OpenSSL-exception AND ISC"},
		{"all files", format + "\nFiles: *\nLicense: ISC\n\nFiles:\n a.c\n b.c\nLicense: GPL-2 or Expat\n\nFiles: c.c\nLicense: ISC\n\nLicense: GPL-2\n Text.\n", "(GPL-2.0-only OR MIT) AND ISC"},
		{"files without a name", format + "\nFiles: *\nLicense: ISC\n\nFiles: a.c\nLicense:\n Do what you like.\n", ""},
		{"words for people", "This package was debianized by A.\n\nLicense: GPL-2\n", ""},
		{"empty", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got, _ := Licence("tool", c.copyright); got != c.want {
				t.Errorf("Licence() = %q; want %q", got, c.want)
			}
		})
	}
}

func TestLicenceTexts(t *testing.T) {
	const copyright = format + `
Files: a.c
License: mine
 Do as I say.
 .
   Not as I do.

Files: b.c
License: yours

License: yours
 Do as you like.
`
	expression, texts := Licence("tool", copyright)
	if want := "LicenseRef-tool-mine AND LicenseRef-tool-yours"; expression != want {
		t.Errorf("Licence() = %q; want %q", expression, want)
	}
	slices.SortFunc(texts, func(a, b Text) int { return strings.Compare(a.ID, b.ID) })
	want := []Text{
		{"LicenseRef-tool-mine", "mine", "Do as I say.\n\n  Not as I do."},
		{"LicenseRef-tool-yours", "yours", "Do as you like."},
	}
	if !slices.Equal(texts, want) {
		t.Errorf("Licence() has the texts %q; want %q", texts, want)
	}
}
