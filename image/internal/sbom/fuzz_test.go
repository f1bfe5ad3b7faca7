package sbom

import (
	"strings"
	"testing"

	"github.com/github/go-spdx/v2/spdxexp"
)

// FuzzLicence: whatever a copyright file says, the expression is one that others
// read, and the document has the text of each name that it gives.
func FuzzLicence(f *testing.F) {
	for _, licence := range []string{"GPL-2+", "GPL-1+ or Artistic, and BSD-3-clause", "GPL-2 with Linux-syscall-note exception", "MIT/X11 (style)", "a, b", "or", ""} {
		f.Add("tool", format+"\nFiles: *\nLicense: "+licence+"\n Text.\n .\n More.\n\nFiles: a b\nLicense: ISC and Expat\n")
	}
	f.Fuzz(func(t *testing.T, source, copyright string) {
		if source == "" || strings.Trim(source, "abcdefghijklmnopqrstuvwxyz0123456789+-.") != "" {
			return // not the name of a source package
		}
		expression, texts := Licence(source, copyright)
		if expression == "" {
			return
		}
		names, err := spdxexp.ExtractLicenses(expression)
		if err != nil {
			t.Fatalf("Licence(%q) = %q: %v", copyright, expression, err)
		}
		known := map[string]bool{}
		for _, text := range texts {
			known[text.ID] = text.Text != ""
		}
		for _, name := range names {
			if strings.HasPrefix(name, "LicenseRef-") && !known[name] {
				t.Errorf("Licence(%q) = %q, without a text of %s", copyright, expression, name)
			}
		}
	})
}
