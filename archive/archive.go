// Package archive turns names of Debian packages into verified .deb files. apt
// resolves and verifies, in a folder of its own that knows nothing of the
// host's packages; the files are kept in a pool named by their SHA-256.
package archive

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"appplatform/internal/cache"
)

// A Package is one exact package, as a signed index lists it.
type Package struct {
	Name          string `json:"name"`
	Version       string `json:"version"`
	Arch          string `json:"arch"` // Debian's name, "all" included
	Source        string `json:"source"`
	SourceVersion string `json:"source_version"`
	Section       string `json:"section,omitempty"`
	Filename      string `json:"filename"` // below the archive's root
	Size          int64  `json:"size"`     // of the .deb, bytes
	SHA256        string `json:"sha256"`   // of the .deb, hex
}

func (p Package) String() string { return p.Name + "_" + p.Version + "_" + p.Arch }

// Validate says what is wrong with an entry of a lock that somebody may have
// edited.
func (p Package) Validate() error {
	sum, err := hex.DecodeString(p.SHA256)
	switch {
	case p.Name == "" || p.Version == "" || p.Arch == "":
		return fmt.Errorf("a package has no name, version or architecture")
	case err != nil || len(sum) != 32:
		return fmt.Errorf("package %s has no SHA-256", p)
	case p.Size <= 0:
		return fmt.Errorf("package %s has no size", p)
	case !filepath.IsLocal(p.Filename) || !strings.HasPrefix(p.Filename, "pool/"):
		return fmt.Errorf("package %s has the file name %q", p, p.Filename)
	}
	return nil
}

// security tells whether the package lies in Debian's security archive, which
// has a root of its own and names its pool so.
func (p Package) security() bool { return strings.HasPrefix(p.Filename, "pool/updates/") }

// Release is the Debian release that everything is taken from.
const Release = "trixie"

// Suites are the parts of the release, in the order they are named in reports.
var Suites = []string{Release, Release + "-updates", Release + "-security"}

// An Archive is Debian's archive as this machine reaches it, with the pool of
// what has been fetched from it.
type Archive struct {
	Cache *cache.Dir
	// Main and Security are the roots (URLs) of the two archives.
	Main, Security string
	// Proxy is the http proxy of the host's apt, or empty.
	Proxy string
	// Keyring verifies the archives' signatures.
	Keyring string
	// Refresh asks for the package indexes again even if they are fresh.
	Refresh bool
	// Log is told what happens, a line each.
	Log func(string)

	noMirror   error // why no mirror is known
	clientOnce sync.Once
	httpClient *http.Client

	// patience is how long a mirror may send nothing; tests have less of it.
	patience time.Duration
}

// Key names a set of packages by content: the same key, the same files.
func Key(pkgs []Package) string {
	sums := make([]string, len(pkgs))
	for i, p := range pkgs {
		sums[i] = p.SHA256
	}
	slices.Sort(sums)
	return cache.Key(sums...)
}

// Path is where the pool keeps p, whether or not it is there.
func (a *Archive) Path(p Package) string {
	return a.Cache.Path("pool", p.SHA256[:2], p.SHA256+".deb")
}

func (a *Archive) logf(format string, args ...any) {
	if a.Log != nil {
		a.Log(fmt.Sprintf(format, args...))
	}
}
