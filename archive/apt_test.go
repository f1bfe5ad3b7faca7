package archive

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"appplatform/internal/run"
)

// versions are the resolved packages as NAME=VERSION.
func versions(r *Resolution) []string {
	var out []string
	for _, p := range r.Packages {
		out = append(out, p.Name+"="+p.Version)
	}
	return out
}

func TestResolve(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	m.add("trixie", "lib1", "0.9-1", "") // Older versions do not matter.
	m.publish("trixie")
	for _, base := range []string{"file:" + m.dir, m.serve(nil)} {
		a := m.open(base)
		for _, c := range []struct {
			name    string
			request Request
			want    []string
		}{
			{"with what it depends on, security first, without what is recommended",
				Request{Names: []string{"tool"}}, []string{"lib1=1.0-1", "tool=1.0-1+deb13u1"}},
			{"alone", Request{Names: []string{"tool"}, Alone: true}, []string{"tool=1.0-1+deb13u1"}},
			{"updates", Request{Names: []string{"zone", "extra"}}, []string{"extra=1.0-1", "zone=2026b"}},
		} {
			c.request.Arch = "amd64"
			got, err := a.Resolve(t.Context(), c.request)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if !slices.Equal(versions(got), c.want) || len(got.Missing) != 0 {
				t.Errorf("%s: Resolve() = %v, missing %v; want %v", c.name, versions(got), got.Missing, c.want)
			}
			again, err := a.Resolve(t.Context(), c.request)
			if err != nil || !reflect.DeepEqual(again, got) {
				t.Errorf("%s: the second time Resolve() = %v, %v; want %v", c.name, again, err, got)
			}
		}
	}
}

// What a lock keeps of a package is enough to fetch the same bytes later.
func TestLockedPackageSurvives(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	res, err := m.open("").Resolve(t.Context(), Request{Arch: "amd64", Names: []string{"tool"}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(res.Packages)
	if err != nil {
		t.Fatal(err)
	}
	var pkgs []Package
	if err := json.Unmarshal(text, &pkgs); err != nil || !slices.Equal(pkgs, res.Packages) {
		t.Fatalf("read back %v, %v; want %v", pkgs, err, res.Packages)
	}
	want := Package{Name: "lib1", Version: "1.0-1", Arch: "amd64", Source: "lib", SourceVersion: "1.0", Section: "misc",
		Filename: "pool/main/l/lib1_1.0-1_amd64.deb", Size: pkgs[0].Size, SHA256: pkgs[0].SHA256}
	if pkgs[0] != want {
		t.Errorf("Resolve() = %+v; want %+v", pkgs[0], want)
	}
	a := m.open("") // another machine
	for _, p := range pkgs {
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
	}
	if err := a.Fetch(t.Context(), pkgs, nil); err != nil {
		t.Fatal(err)
	}
	if err := a.Verify(t.Context(), pkgs); err != nil {
		t.Error(err)
	}
	if n := a.Lacking(pkgs); n != 0 {
		t.Errorf("Lacking() = %d after Fetch; want 0", n)
	}
}

func TestValidateRefuses(t *testing.T) {
	good := Package{Name: "a", Version: "1", Arch: "all", SHA256: strings.Repeat("0a", 32), Size: 1, Filename: "pool/main/a/a.deb"}
	if err := good.Validate(); err != nil {
		t.Errorf("Validate(%v) = %v", good, err)
	}
	for _, c := range []struct {
		want   string
		damage func(*Package)
	}{
		{"no name", func(p *Package) { p.Name = "" }},
		{"no SHA-256", func(p *Package) { p.SHA256 = p.SHA256[:62] }},
		{"no SHA-256", func(p *Package) { p.SHA256 = strings.Repeat("xy", 32) }},
		{"no size", func(p *Package) { p.Size = 0 }},
		{"file name", func(p *Package) { p.Filename = "pool/../../etc/passwd" }},
		{"file name", func(p *Package) { p.Filename = "/pool/main/a.deb" }},
		{"file name", func(p *Package) { p.Filename = "a.deb" }},
	} {
		p := good
		c.damage(&p)
		if err := p.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Validate(%+v) = %v; want %q", p, err, c.want)
		}
	}
}

func TestUnknownPackage(t *testing.T) {
	t.Parallel()
	a := newMirror(t).open("")
	for _, alone := range []bool{false, true} {
		_, err := a.Resolve(t.Context(), Request{Arch: "amd64", Names: []string{"lib1", "no-such-package"}, Alone: alone})
		checkHint(t, err, "no-such-package", "amd64")
	}
}

// TestIndexFaults damages the mirror in one way each.
func TestIndexFaults(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(*mirror)
		want   []string
	}{
		{"signed by somebody else", func(m *mirror) {
			m.signer = newSigner(m.t)
			m.publish("trixie")
		}, []string{"trixie", "NO_PUBKEY", "not signed by Debian"}},
		{"signature of another text", func(m *mirror) {
			alter(m.t, m.inRelease("trixie"), "Label: Debian", "Label: Debiam")
		}, []string{"trixie", "BADSIG", "not signed by Debian"}},
		{"not signed", func(m *mirror) {
			m.write(m.inRelease("trixie"), []byte("Codename: trixie\n"))
		}, []string{"trixie", "not signed by Debian"}},
		{"index altered", func(m *mirror) {
			alter(m.t, m.index("trixie"), "Version: 1.0-1", "Version: 6.6-6")
		}, []string{"trixie", "Packages", "try again later"}},
		{"index of another size", func(m *mirror) {
			alter(m.t, m.index("trixie"), "Version: 1.0-1", "Version: 1.0-1+evil")
		}, []string{"trixie", "Packages", "try again later"}},
		{"security archive gone", func(m *mirror) {
			if err := os.RemoveAll(m.root("trixie-security")); err != nil {
				m.t.Fatal(err)
			}
		}, []string{"trixie-security", "check the mirror"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m := newMirror(t)
			c.damage(m)
			a := m.open("")
			_, err := a.Resolve(t.Context(), Request{Arch: "amd64", Names: []string{"tool"}})
			checkHint(t, err, append(c.want, "cannot read the package index")...)
		})
	}
}

// alter replaces text in a file of the mirror.
func alter(t *testing.T, path, old, new string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), old, new, 1)
	if text == string(b) {
		t.Fatalf("no %q in %s", old, path)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestMirrorUnreachable(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	a := m.open("http://127.0.0.1:1") // Nothing listens on tcpmux's port.
	_, err := a.Resolve(t.Context(), Request{Arch: "amd64", Names: []string{"tool"}, Optional: []string{"trixie-updates"}})
	checkHint(t, err, "127.0.0.1:1", "MIRROR=", "--locked")
	p := Package{Name: "tool", Version: "1", Arch: "amd64", Filename: "pool/main/t/tool.deb", SHA256: strings.Repeat("0", 64), Size: 1}
	checkHint(t, a.Fetch(t.Context(), []Package{p}, nil), "tool_1_amd64", "127.0.0.1:1", "MIRROR=")
}

// Tools that are there are used without asking a mirror whether there are newer
// ones.
func TestAnyAge(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	a := m.open("")
	r := Request{Arch: "amd64", Names: []string{"tool"}}
	want, err := a.Resolve(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(a.aptDir("amd64"), "index.json")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Replace(string(text), strconv.Itoa(time.Now().UTC().Year()), "2020", 1)
	if err := os.WriteFile(path, []byte(old), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(m.dir); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Resolve(t.Context(), r); err == nil {
		t.Error("Resolve() from an old index without a mirror succeeds; want an error")
	}
	r.AnyAge = true
	if got, err := a.Resolve(t.Context(), r); err != nil || !slices.Equal(versions(got), versions(want)) {
		t.Errorf("Resolve() of any age = %v, %v; want %v", got, err, versions(want))
	}
}

func TestMissingApt(t *testing.T) {
	a := newMirror(t).open("")
	t.Setenv("PATH", t.TempDir())
	_, err := a.Resolve(t.Context(), Request{Arch: "amd64", Names: []string{"tool"}})
	checkHint(t, err, "apt-get", "install apt")
	if a, err = Open(t.Context(), a.Cache, "", ""); err != nil {
		t.Fatal(err)
	}
	_, err = a.Resolve(t.Context(), Request{Arch: "amd64", Names: []string{"tool"}})
	checkHint(t, err, "apt-get", "MIRROR")
}

func TestOptionalSuite(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	m.signer = newSigner(t)
	m.publish("trixie-updates") // which nobody's keyring verifies
	a := m.open("")
	var said []string
	a.Log = func(line string) { said = append(said, line) }

	optional := Request{Arch: "amd64", Names: []string{"tool"}, Optional: []string{"trixie-updates"}}
	res, err := a.Resolve(t.Context(), optional)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"lib1=1.0-1", "tool=1.0-1+deb13u1"}; !slices.Equal(versions(res), want) || !slices.Equal(res.Missing, optional.Optional) {
		t.Errorf("Resolve() = %v, missing %v; want %v without trixie-updates", versions(res), res.Missing, want)
	}
	warned := func(line string) bool { return strings.Contains(line, "WARNING: trixie-updates") }
	if !slices.ContainsFunc(said, warned) {
		t.Errorf("Resolve() says %q; want a warning", said)
	}

	// Who has not allowed it must not get the same answer from the cache.
	strict := optional
	strict.Optional = nil
	_, err = a.Resolve(t.Context(), strict)
	checkHint(t, err, "trixie-updates", "cannot read the package index")
	// And the failure leaves nothing that passes for a whole index.
	if _, err := a.Resolve(t.Context(), strict); err == nil {
		t.Error("the second strict Resolve() succeeds; want an error")
	}
	if res, err := a.Resolve(t.Context(), optional); err != nil || !slices.Equal(res.Missing, optional.Optional) {
		t.Errorf("Resolve() = %v, %v; want it to go on without trixie-updates", res, err)
	}
}

// A failed update must not spoil the answers for the next six hours.
func TestFailedRefresh(t *testing.T) {
	t.Parallel()
	m := newMirror(t)
	broken := false
	a := m.open(m.serve(func(w http.ResponseWriter, r *http.Request) bool {
		if broken {
			http.Error(w, "down", http.StatusBadGateway)
		}
		return broken
	}))
	r := Request{Arch: "amd64", Names: []string{"tool"}}
	want, err := a.Resolve(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	a.Refresh, broken = true, true
	_, err = a.Resolve(t.Context(), r)
	checkHint(t, err, "502", "cannot read the package index")
	a.Refresh, broken = false, false
	if got, err := a.Resolve(t.Context(), r); err != nil || !slices.Equal(versions(got), versions(want)) {
		t.Errorf("Resolve() = %v, %v after a failed refresh; want %v", got, err, versions(want))
	}
	// A refresh that works finds what is new.
	m.add("trixie-security", "lib1", "1.0-1+deb13u1", "")
	m.publish("trixie-security")
	a.Refresh = true
	got, err := a.Resolve(t.Context(), r)
	if want := []string{"lib1=1.0-1+deb13u1", "tool=1.0-1+deb13u1"}; err != nil || !slices.Equal(versions(got), want) {
		t.Errorf("Resolve() = %v, %v after the security archive got a new package; want %v", got, err, want)
	}
}

// The pool holds what dpkg takes for packages, and apt sees nothing of the host.
func TestHostIsLeftAlone(t *testing.T) {
	t.Parallel()
	a := newMirror(t).open("")
	if _, err := a.Resolve(t.Context(), Request{Arch: "amd64", Names: []string{"tool"}}); err != nil {
		t.Fatal(err)
	}
	out, err := a.aptOutput(t.Context(), a.aptDir("amd64"), "apt-cache", "pkgnames")
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Fields(string(out))
	slices.Sort(names)
	if want := []string{"extra", "lib1", "tool", "zone"}; !slices.Equal(names, want) {
		t.Errorf("apt knows the packages %v; want %v", names, want)
	}
	dump, err := run.Output(t.Context(), "env", "APT_CONFIG="+filepath.Join(a.aptDir("amd64"), "apt.conf"), "apt-config", "dump")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(dump)) {
		for _, dir := range []string{`"/etc/apt`, `"/var/lib/apt`, `"/var/cache/apt`, `"/var/lib/dpkg`} {
			if strings.Contains(line, dir) {
				t.Errorf("apt is set to the host's %s", strings.TrimSpace(line))
			}
		}
	}
}
