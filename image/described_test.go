package image_test

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/bundle"
	"appplatform/image"
	"appplatform/image/internal/sbom/sbomtest"
)

// checkDescribed judges what a real build has written beside its image: the lists
// by the schemas of their formats, the signature by minisign, hashes by sha256sum,
// and that every file of both systems is attributed by taking them out of the
// update file with xz and debugfs.
func checkDescribed(t *testing.T, dir, board, public string) {
	t.Helper()
	name := func(extension string) string { return filepath.Join(dir, "app-platform-"+board+extension) }
	text, err := os.ReadFile(public)
	if err != nil {
		t.Fatal(err)
	}
	key, err := bundle.PublicKey(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := image.VerifyAttestations(t.Context(), dir, board, []string{key}); err != nil {
		t.Error(err)
	}
	run(t, exec.Command("minisign", "-V", "-p", public, "-m", name(".provenance.json")))
	sums := exec.Command("sha256sum", "--check", "--strict", "-")
	sums.Dir, sums.Stdin = dir, strings.NewReader(subjects(t, name(".provenance.json")))
	run(t, sums)

	cdx, err := os.ReadFile(name(".cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := sbomtest.CycloneDX(cdx); err != nil {
		t.Errorf("the CycloneDX list is refused: %v", err)
	}
	spdx, err := os.ReadFile(name(".spdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := sbomtest.Files(spdx)
	if err != nil {
		t.Fatalf("the SPDX list is refused: %v", err)
	}
	updates, err := filepath.Glob(name("-*.update"))
	if err != nil || len(updates) != 1 {
		t.Fatalf("the build made the update files %v (%v)", updates, err)
	}
	found := 0
	for system, packed := range map[string]string{"system": bundle.RootfsName, "ramdisk": bundle.RamdiskName} {
		found += checkFiles(t, updates[0], packed, system, files)
	}
	if found != len(files) {
		t.Errorf("the SPDX list has %d files, the image %d", len(files), found)
	}
	onDevice, err := os.ReadFile(filepath.Join(dir, "system", "usr/share/doc/app-platform/sbom.spdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sbomtest.Files(onDevice); err != nil {
		t.Errorf("the list on the device is refused: %v", err)
	}
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "system")), os.RemoveAll(filepath.Join(dir, "ramdisk"))); err != nil {
		t.Error(err)
	}
}

// subjects are the files of a statement as sha256sum wants them.
func subjects(t *testing.T, statement string) string {
	t.Helper()
	text, err := os.ReadFile(statement)
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Subject []struct {
			Name   string
			Digest struct{ SHA256 string }
		}
	}
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for _, f := range s.Subject {
		if f.Digest.SHA256 != "" {
			fmt.Fprintf(&lines, "%s  %s\n", f.Digest.SHA256, f.Name)
		}
	}
	return lines.String()
}

// checkFiles unpacks a system of the update file below the folder and looks up
// each of its files and links. It returns how many there are.
func checkFiles(t *testing.T, update, packed, system string, want map[string]string) int {
	t.Helper()
	dir := filepath.Join(filepath.Dir(update), system)
	raw := dir + ".raw"
	unpack(t, update, packed, raw)
	defer os.Remove(raw)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, exec.Command("debugfs", "-R", "rdump / "+dir, raw))
	n := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		var content []byte
		if e.Type()&fs.ModeSymlink != 0 {
			var to string
			to, err = os.Readlink(path)
			content = []byte(to)
		} else {
			content, err = os.ReadFile(path)
		}
		if err != nil {
			return err
		}
		n++
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(content)
		if got := hex.EncodeToString(sum[:]); want[system+"/"+rel] != got {
			t.Errorf("/%s of the %s has the SHA-256 %s, and %q in the SPDX list", rel, system, got, want[system+"/"+rel])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// unpack writes an unpacked file of the update file.
func unpack(t *testing.T, update, name, to string) {
	t.Helper()
	in, err := os.Open(update)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if err == io.EOF {
			err = fmt.Errorf("no %s in %s", name, update)
		}
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(h.Name) == name {
			cmd := exec.Command("xz", "-dc")
			cmd.Stdin, cmd.Stdout = r, out
			if err := cmd.Run(); err != nil {
				t.Fatalf("xz cannot unpack %s: %v", name, err)
			}
			return
		}
	}
}
