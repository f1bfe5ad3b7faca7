package archive

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"appplatform/internal/atomicfile"
	"appplatform/internal/cache"
	"appplatform/internal/hint"
	"appplatform/internal/run"
)

// indexAge is how long a fetched package index is taken for today's: Debian
// publishes four times a day.
const indexAge = 6 * time.Hour

// A Request says which packages are wanted.
type Request struct {
	Arch  string   // Debian's name of the architecture
	Names []string // package names
	// Alone takes just the named packages, without what they depend on.
	Alone bool
	// Optional suites may be missing or unverifiable; the rest goes on without
	// them, and says so.
	Optional []string
	// AnyAge takes the indexes that are there however old they are: enough for
	// tools used by hand, and it needs no network.
	AnyAge bool `json:"-"`
}

// A Resolution is what a Request came to.
type Resolution struct {
	Packages []Package `json:"packages"` // by name
	// Missing are the optional suites that could not be verified.
	Missing []string `json:"missing,omitempty"`
	// Fetched is when the package indexes were fetched.
	Fetched time.Time `json:"fetched"`
}

// Resolve asks apt for the exact packages that satisfy the request today.
func (a *Archive) Resolve(ctx context.Context, r Request) (*Resolution, error) {
	dir := a.aptDir(r.Arch)
	unlock, err := a.Cache.Lock("apt-"+filepath.Base(dir), func() { a.logf("waiting for another build that reads the package index of %s", r.Arch) })
	if err != nil {
		return nil, err
	}
	defer unlock()
	index, err := a.update(ctx, dir, r)
	if err != nil {
		return nil, err
	}
	// The answer depends on the index and the question only.
	question, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	memo := filepath.Join(dir, "resolved", cache.Key(index.ID, string(question))+".json")
	if b, err := os.ReadFile(memo); err == nil {
		var res Resolution
		if json.Unmarshal(b, &res) == nil {
			res.Fetched = index.Fetched
			return &res, nil
		}
	}
	pkgs, err := a.ask(ctx, dir, r)
	if err != nil {
		return nil, err
	}
	res := &Resolution{Packages: pkgs, Missing: index.Missing, Fetched: index.Fetched}
	if b, err := json.Marshal(res); err == nil {
		_ = os.MkdirAll(filepath.Dir(memo), 0o755)
		_ = atomicfile.Write(memo, b, 0o644)
	}
	return res, nil
}

// aptDir is where apt works for an architecture.
func (a *Archive) aptDir(arch string) string {
	return a.Cache.Path("apt", arch+"-"+cache.Key(a.Main, a.Security)[:8])
}

// An indexState is what the last `apt-get update` left.
type indexState struct {
	ID      string    `json:"id"`
	Fetched time.Time `json:"fetched"`
	Missing []string  `json:"missing,omitempty"`
}

// serves reports whether the indexes are fresh, are those that apt left there,
// and lack only what the request may do without.
func (s indexState) serves(dir string, r Request) bool {
	if age := time.Since(s.Fetched); !r.AnyAge && (age < 0 || age >= indexAge) {
		return false
	}
	for _, suite := range s.Missing {
		if !slices.Contains(r.Optional, suite) {
			return false
		}
	}
	id, err := indexID(dir)
	return err == nil && id == s.ID
}

// update fetches and verifies the package indexes, unless they are fresh.
func (a *Archive) update(ctx context.Context, dir string, r Request) (indexState, error) {
	statePath := filepath.Join(dir, "index.json")
	var state indexState
	if b, err := os.ReadFile(statePath); err == nil && json.Unmarshal(b, &state) == nil {
		if !a.Refresh && state.serves(dir, r) {
			return state, nil
		}
	}
	if a.noMirror != nil {
		return state, a.noMirror
	}
	if err := a.configure(dir, r.Arch, Suites); err != nil {
		return state, err
	}
	a.logf("reading the package indexes of %s", r.Arch)
	var missing []string
	if err := a.apt(ctx, dir, "apt-get", "update", "-q", "--error-on=any"); err != nil {
		if ctx.Err() != nil {
			return state, ctx.Err()
		}
		// Which suite is at fault? Each optional one is tried without.
		good := Suites
		for _, suite := range r.Optional {
			if a.configure(dir, r.Arch, []string{suite}) == nil && a.apt(ctx, dir, "apt-get", "update", "-q", "--error-on=any") == nil {
				continue
			}
			missing = append(missing, suite)
			good = slices.DeleteFunc(slices.Clone(good), func(s string) bool { return s == suite })
		}
		if len(missing) == 0 {
			return state, explainUpdate(err)
		}
		if err := a.configure(dir, r.Arch, good); err != nil {
			return state, err
		}
		if err := a.apt(ctx, dir, "apt-get", "update", "-q", "--error-on=any"); err != nil {
			return state, explainUpdate(err)
		}
		a.logf("WARNING: %s of %s cannot be verified and is left out: packages from it are missing", strings.Join(missing, " and "), r.Arch)
	}
	id, err := indexID(dir)
	if err != nil {
		return state, err
	}
	state = indexState{ID: id, Fetched: time.Now().UTC().Truncate(time.Second), Missing: missing}
	b, err := json.Marshal(state)
	if err != nil {
		return state, err
	}
	return state, atomicfile.Write(statePath, b, 0o644)
}

func explainUpdate(err error) error {
	words := err.Error()
	way := "check the mirror (MIRROR=) and the network; a locked build (--locked FILE) needs neither once its packages are in the pool"
	switch {
	case errors.Is(err, exec.ErrNotFound):
		way = "install apt, which finds and verifies the packages"
	case strings.Contains(words, "No space left"):
		way = hint.NoSpace
	case strings.Contains(words, "NO_PUBKEY"), strings.Contains(words, "not signed"), strings.Contains(words, "signature"), strings.Contains(words, "GPG error"):
		way = "the mirror's index is not signed by Debian: use another mirror (MIRROR=), or install a newer debian-archive-keyring"
	case strings.Contains(words, "unexpected size"), strings.Contains(words, "Hash Sum mismatch"):
		way = "the mirror is being updated or is broken: try again later or use another one (MIRROR=)"
	}
	return hint.Errorf(way, "cannot read the package index: %w", err)
}

// indexID is a name for the content of the fetched indexes.
func indexID(dir string) (string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "lists", "*InRelease"))
	if err != nil || len(files) == 0 {
		return "", errors.New("cannot find the package indexes that apt fetched")
	}
	slices.Sort(files)
	h := sha256.New()
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		h.Write(b)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// configure writes an apt configuration that knows only this folder.
func (a *Archive) configure(dir, arch string, suites []string) error {
	for _, d := range []string{"lists/partial", "archives/partial", "etc/preferences.d", "etc/apt.conf.d", "state", "log"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return fmt.Errorf("cannot set up apt: %w", err)
		}
	}
	var sources bytes.Buffer
	for _, suite := range suites {
		root := a.Main
		if strings.HasSuffix(suite, "-security") {
			root = a.Security
		}
		fmt.Fprintf(&sources, "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nArchitectures: %s\nSigned-By: %s\n\n", root, suite, arch, a.Keyring)
	}
	conf := fmt.Sprintf(`// Made by apimage: apt sees nothing outside this folder.
Dir "%[1]s";
Dir::Etc "%[1]s/etc";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "%[1]s/sources";
Dir::Etc::Trusted "/dev/null";
Dir::Etc::TrustedParts "/dev/null";
Dir::State "%[1]s/state";
Dir::State::Lists "%[1]s/lists";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s";
Dir::Cache::Archives "%[1]s/archives";
Dir::Log "%[1]s/log";
Dir::Bin::Methods "/usr/lib/apt/methods";
APT::Architecture "%[2]s";
APT::Architectures { "%[2]s"; };
APT::Install-Recommends "false";
APT::Sandbox::User "%[3]s";
APT::Get::List-Cleanup "true";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Proxy "%[4]s";
Acquire::http::Timeout "30";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
`, dir, arch, sandboxUser(), a.Proxy)
	if err := os.MkdirAll(filepath.Join(dir, "sources"), 0o755); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"sources/debian.sources": sources.Bytes(), "apt.conf": []byte(conf), "status": nil} {
		if err := atomicfile.Write(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// sandboxUser stops apt, when run by root, from changing to a user who may not
// enter the cache.
func sandboxUser() string {
	if os.Geteuid() == 0 {
		return "root"
	}
	return ""
}

// apt runs one of apt's programs on the folder's configuration.
func (a *Archive) apt(ctx context.Context, dir, name string, args ...string) error {
	_, err := a.aptOutput(ctx, dir, name, args...)
	return err
}

func (a *Archive) aptOutput(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	var out, said bytes.Buffer
	cmd := run.Command(ctx, name, args...)
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(dir, "apt.conf"), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdout, cmd.Stderr = &out, &said
	err := run.Wait(cmd)
	if complaints := complaints(said.String()); err != nil && complaints != "" {
		err = fmt.Errorf("%s: %s", name, complaints)
	}
	return out.Bytes(), err
}

// complaints are apt's errors and warnings, without the table of hashes and
// sizes that follows some.
func complaints(stderr string) string {
	var found []string
	for line := range strings.Lines(stderr) {
		if strings.HasPrefix(line, "E: ") || strings.HasPrefix(line, "W: ") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return strings.Join(found, "; ")
}

// ask has apt resolve the request against the indexes in dir.
func (a *Archive) ask(ctx context.Context, dir string, r Request) ([]Package, error) {
	names := r.Names
	if !r.Alone {
		out, err := a.aptOutput(ctx, dir, "apt-get", append([]string{"install", "--simulate", "-qq", "--no-install-recommends"}, r.Names...)...)
		if err != nil {
			return nil, explainLookup(r, err)
		}
		names = nil
		for line := range strings.Lines(string(out)) {
			// Inst NAME (VERSION Debian:13.1/stable [ARCH])
			f := strings.Fields(line)
			if len(f) < 3 || f[0] != "Inst" {
				continue
			}
			names = append(names, strings.SplitN(f[1], ":", 2)[0]+"="+strings.TrimPrefix(f[2], "("))
		}
	}
	out, err := a.aptOutput(ctx, dir, "apt-cache", append([]string{"show", "--no-all-versions"}, names...)...)
	if err != nil {
		return nil, explainLookup(r, err)
	}
	pkgs, err := parseStanzas(bytes.NewReader(out))
	if err != nil {
		return nil, err
	}
	slices.SortFunc(pkgs, func(x, y Package) int { return strings.Compare(x.Name, y.Name) })
	// A version that two suites carry is described twice.
	pkgs = slices.CompactFunc(pkgs, func(x, y Package) bool { return x.SHA256 == y.SHA256 })
	if r.Alone {
		// apt-cache passes over a name that it does not know beside one it knows.
		for _, name := range names {
			if !slices.ContainsFunc(pkgs, func(p Package) bool { return p.Name == name }) {
				return nil, explainLookup(r, fmt.Errorf("no package %s", name))
			}
		}
	}
	if len(pkgs) != len(names) {
		return nil, fmt.Errorf("internal error: apt described %d of %d packages", len(pkgs), len(names))
	}
	return pkgs, nil
}

func explainLookup(r Request, err error) error {
	return hint.Errorf("a name may be wrong, or the package does not exist on this architecture; --update reads the newest index",
		"cannot find the packages for %s: %w", r.Arch, err)
}

// parseStanzas reads what `apt-cache show` prints (deb822, one line a field but
// for continuations, which are not needed here).
func parseStanzas(r io.Reader) ([]Package, error) {
	var pkgs []Package
	var p Package
	flush := func() error {
		defer func() { p = Package{} }()
		if p.Name == "" {
			return nil
		}
		if p.Source == "" {
			p.Source = p.Name
		}
		if p.SourceVersion == "" {
			p.SourceVersion = p.Version
		}
		if err := p.Validate(); err != nil {
			return fmt.Errorf("cannot use the index: %w", err)
		}
		pkgs = append(pkgs, p)
		return nil
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		line := lines.Text()
		if line == "" {
			if err := flush(); err != nil {
				return nil, err
			}
			continue
		}
		key, value, ok := strings.Cut(line, ": ")
		if !ok {
			continue
		}
		switch key {
		case "Package":
			p.Name = value
		case "Version":
			p.Version = value
		case "Architecture":
			p.Arch = value
		case "Section":
			p.Section = value
		case "Filename":
			p.Filename = value
		case "SHA256":
			p.SHA256 = value
		case "Size":
			n, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("the index gives the size %q for %s", value, p.Name)
			}
			p.Size = n
		case "Source":
			p.Source, p.SourceVersion, _ = strings.Cut(strings.TrimSuffix(value, ")"), " (")
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return pkgs, flush()
}
