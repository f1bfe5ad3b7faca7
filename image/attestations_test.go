package image

import (
	"archive/zip"
	"bytes"
	"encoding/gob"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"appplatform/archive"
	"appplatform/bundle"
	"appplatform/image/internal/kernel"
	"appplatform/image/internal/sbom"
	"appplatform/image/internal/sbom/sbomtest"
	"appplatform/internal/cache"
	"appplatform/rootfs"
)

// attested makes the folder of a finished build, and what lies beside its image.
// The programs in it are this test.
func attested(t *testing.T) *build {
	t.Helper()
	l := testLock()
	l.System = append(l.System, pkg("perl"))
	l.ImageTools = append(l.ImageTools, pkg("grub-common"), pkg("grub-pc-bin"), pkg("grub-efi-amd64-bin"))
	b := &build{Plan: plan(t, Options{Dir: checkout(t), Board: "vm", Archive: sharedKey, Lock: l, Out: t.TempDir()})}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i := range b.programs {
		b.programs[i] = self
	}
	dir := t.TempDir()
	b.kernel = &kernel.Kernel{Image: filepath.Join(dir, "kernel"), Config: filepath.Join(dir, "config")}
	put(t, b.kernel.Image, "kernel")
	put(t, b.kernel.Config, "CONFIG_A=y\n")
	for _, f := range b.products() {
		put(t, part(f), "content of "+filepath.Base(f))
	}
	lock, err := l.Encode()
	if err != nil {
		t.Fatal(err)
	}
	put(t, part(filepath.Join(b.Out, b.imageName(".lock"))), string(lock))

	file := func(system, path string, from rootfs.Origin) listed {
		return listed{sbom.File{System: system, Path: path, SHA1: strings.Repeat("0a", 20), SHA256: strings.Repeat("0b", 32)}, from}
	}
	keep(t, b.cache, "listings/"+b.keys.rootfs, listing{
		Files: []listed{
			file("system", "usr/bin/bash", rootfs.Origin{Package: "bash"}), file("system", "usr/bin/apagent", rootfs.Origin{Source: "cmd/apagent"}),
			file("system", "etc/motd", rootfs.Origin{Source: "rootfs/overlay/etc/motd"}),
		},
		Copyrights: map[string]string{"bash": "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: mine\n Text.\n"},
		Common:     map[string]string{"GPL-3": "GNU"},
	})
	keep(t, b.cache, "listings/"+b.keys.ramdisk, listing{
		Files:      []listed{file("ramdisk", "usr/bin/busybox", rootfs.Origin{Package: "busybox", Made: true})},
		Copyrights: map[string]string{"busybox": "free"},
	})
	keep(t, b.cache, "licences/"+cache.Key(slices.Concat([]string{"1", l.KernelSource[0].SHA256}, b.keys.programs[:], []string{l.ImageTools[1].SHA256})...),
		licences{"go/LICENSE": "BSD", "linux/copyright": "GPL", grubLicence: "GPL"})
	if err := b.attest(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := b.publish(); err != nil {
		t.Fatal(err)
	}
	return b
}

// attestAgain makes a statement about files that were changed.
func attestAgain(t *testing.T, b *build) {
	t.Helper()
	for _, f := range b.products() {
		if err := os.Rename(f, part(f)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.writeProvenance(); err != nil {
		t.Fatal(err)
	}
	if err := b.publish(); err != nil {
		t.Fatal(err)
	}
}

func keep(t *testing.T, c *cache.Dir, name string, v any) {
	t.Helper()
	if err := os.RemoveAll(c.Path(name)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.File(name, func(w io.Writer) error { return gob.NewEncoder(w).Encode(v) }); err != nil {
		t.Fatal(err)
	}
}

func TestVerifyAttestations(t *testing.T) {
	b := attested(t)
	if err := VerifyAttestations(t.Context(), b.Out, "vm", []string{b.Signing.Public}); err != nil {
		t.Errorf("VerifyAttestations() = %v", err)
	}
	text, err := os.ReadFile(filepath.Join(b.Out, b.imageName(spdxName)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sbomtest.SPDX(text); err != nil {
		t.Error(err)
	}
	if text, err = os.ReadFile(filepath.Join(b.Out, b.imageName(cyclonedxName))); err != nil {
		t.Fatal(err)
	}
	if err := sbomtest.CycloneDX(text); err != nil {
		t.Error(err)
	}
}

func TestVerifyAttestationsRefuses(t *testing.T) {
	pair, err := bundle.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	other, err := bundle.PublicKey(pair.Public)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(extension, old, new string) func(*testing.T, *build) {
		return func(t *testing.T, b *build) {
			path := filepath.Join(b.Out, b.imageName(extension))
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(text), old) {
				t.Fatalf("no %q in %s:\n%s", old, path, text)
			}
			put(t, path, strings.ReplaceAll(string(text), old, new))
		}
	}
	bash := strings.Repeat("0", 56) + hexOf("bash")
	for _, c := range []struct {
		name   string
		change func(*testing.T, *build)
		sign   bool // the changed files get a statement of their own
		want   string
	}{
		{"other image", replace(".img", "content", "CONTENT"), false, "app-platform-vm.img is not the file that was built"},
		{"other list", replace(spdxName, "bash", "dash"), false, "app-platform-vm.spdx.json is not the file"},
		{"image gone", func(t *testing.T, b *build) { remove(t, b.diskImages()[0]) }, false, "app-platform-vm.img: no such file"},
		{"other statement", replace(provenanceName, "160001", "160002"), false, "signature is not from a known key"},
		{"statement gone", func(t *testing.T, b *build) { remove(t, b.provenancePath()) }, false, "provenance.json: no such file"},
		{"unknown key", func(_ *testing.T, b *build) { b.Signing.Public = other }, false, "\nhint: name the .pub file"},
		{"hash of a package", replace(spdxName, bash, strings.Repeat("1", 64)), true, "it lists other packages than"},
		{"hash of a package in both", func(t *testing.T, b *build) {
			replace(spdxName, bash, strings.Repeat("1", 64))(t, b)
			replace(cyclonedxName, bash, strings.Repeat("1", 64))(t, b)
		}, true, `bash_1_amd64 has the SHA-256 "1111`},
		{"hash of a file", replace(cyclonedxName, strings.Repeat("0b", 32), strings.Repeat("0c", 32)), true, "it lists other files than"},
		{"lists of two builds", replace(cyclonedxName, "urn:uuid:", "urn:uuid:0"), true, "it is not about the same image"},
		{"file of nobody", replace(spdxName, `"relatedSpdxElement": "SPDXRef-File-system..etc..motd"`, `"relatedSpdxElement": "SPDXRef-Image"`), true, "./system/etc/motd is of no package"},
		{"cut list", replace(spdxName, "}", ""), true, "app-platform-vm.spdx.json: "},
		{"list of another image", replace(spdxName, `"versionInfo": "160001"`, `"versionInfo": "160002"`), true, "it is about app-platform-vm 160002"},
		{"package without a licence", rezip(map[string]string{"debian/busybox/copyright": ""}), true, "there is no debian/busybox/copyright in it"},
		{"empty licence", rezip(map[string]string{"debian/bash/copyright": " \n"}), true, "there is no debian/bash/copyright in it"},
		{"not an archive of licences", replace(licencesName, "PK", "KP"), true, "app-platform-vm-licences.zip: cannot read it"},
		{"another package in the lock", func(t *testing.T, b *build) {
			l := *b.Lock
			l.ImageTools = []archive.Package{pkg("other")}
			text, err := l.Encode()
			if err != nil {
				t.Fatal(err)
			}
			put(t, filepath.Join(b.Out, b.imageName(".lock")), string(text))
		}, true, "other_1_amd64 is in the lock and not"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := attested(t)
			c.change(t, b)
			if c.sign {
				attestAgain(t, b)
			}
			err := VerifyAttestations(t.Context(), b.Out, "vm", []string{b.Signing.Public})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("VerifyAttestations() = %v; want %q", err, c.want)
			}
		})
	}
	t.Run("another board", func(t *testing.T) {
		b := attested(t)
		for _, name := range []string{provenanceName, provenanceName + signatureExt} {
			if err := os.Rename(filepath.Join(b.Out, b.imageName(name)), filepath.Join(b.Out, "app-platform-other"+name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := VerifyAttestations(t.Context(), b.Out, "other", []string{b.Signing.Public}); err == nil || !strings.Contains(err.Error(), "about board vm, not other") {
			t.Errorf("VerifyAttestations() = %v; want that it is about another board", err)
		}
	})
	t.Run("file outside", func(t *testing.T) {
		b := attested(t)
		resign(t, b, func(s *statement) { s.Subject[0].Name = "../" + s.Subject[0].Name })
		if err := VerifyAttestations(t.Context(), b.Out, "vm", []string{b.Signing.Public}); err == nil || !strings.Contains(err.Error(), "not a file beside it") {
			t.Errorf("VerifyAttestations() = %v; want that the file is not beside it", err)
		}
	})
	t.Run("image not named", func(t *testing.T) {
		b := attested(t)
		resign(t, b, func(s *statement) { s.Subject = s.Subject[1:] })
		if err := VerifyAttestations(t.Context(), b.Out, "vm", []string{b.Signing.Public}); err == nil || !strings.Contains(err.Error(), "nothing about app-platform-vm.img") {
			t.Errorf("VerifyAttestations() = %v; want that the image is not named", err)
		}
	})
}

// resign changes the statement as one who has the key can.
func resign(t *testing.T, b *build, change func(*statement)) {
	t.Helper()
	text, err := os.ReadFile(b.provenancePath())
	if err != nil {
		t.Fatal(err)
	}
	var s statement
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	change(&s)
	if text, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	signature, err := signProvenance(b.Signing.private, "", s, text)
	if err != nil {
		t.Fatal(err)
	}
	put(t, b.provenancePath(), string(text))
	put(t, b.provenancePath()+signatureExt, string(signature))
}

// rezip replaces texts in the archive of licences; empty ones are left out.
func rezip(texts map[string]string) func(*testing.T, *build) {
	return func(t *testing.T, b *build) {
		path := filepath.Join(b.Out, b.imageName(licencesName))
		z, err := zip.OpenReader(path)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		all := map[string]string{}
		for _, f := range z.File {
			all[f.Name] = "text"
		}
		maps.Copy(all, texts)
		maps.DeleteFunc(all, func(_, text string) bool { return text == "" })
		var out bytes.Buffer
		w := zip.NewWriter(&out)
		for _, name := range slices.Sorted(maps.Keys(all)) {
			f, err := w.Create(name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(f, all[name]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		put(t, path, out.String())
	}
}
