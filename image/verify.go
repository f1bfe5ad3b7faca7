package image

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"appplatform/bundle"
	"appplatform/internal/hint"
	"appplatform/internal/store"
)

// A Finding is one file of a folder that was found to be whole.
type Finding struct{ File, What string }

// VerifyFolder checks everything that a build or a release has put into a folder,
// and stops at the first thing that is wrong, or that nothing signed vouches for.
// found, if any, is told what is good as soon as it is known.
func VerifyFolder(ctx context.Context, dir string, keys []string, found func(Finding)) error {
	files, err := listFiles(dir)
	if err != nil {
		return err
	}
	v := &folderVerifier{dir: dir, keys: keys, found: found, vouched: map[string]bool{}, contents: map[string]Content{}}
	return v.verify(ctx, files)
}

type folderVerifier struct {
	dir      string
	keys     []string
	found    func(Finding)
	vouched  map[string]bool    // files whose hashes are in something signed
	contents map[string]Content // of disks, by name without extension
	checked  int
}

func (v *folderVerifier) good(file, format string, args ...any) {
	v.checked++
	if v.found != nil {
		v.found(Finding{filepath.Base(file), fmt.Sprintf(format, args...)})
	}
}

func (v *folderVerifier) verify(ctx context.Context, files []string) error {
	if slices.Contains(files, filepath.Join(v.dir, sumsName)) {
		if err := v.sums(files); err != nil {
			return err
		}
	}
	for _, file := range files {
		if err := v.statement(ctx, file); err != nil {
			return err
		}
	}
	for _, file := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := v.file(ctx, file); err != nil {
			return err
		}
	}
	if v.checked == 0 {
		return hint.Errorf("name the folder of a build or a release", "there is nothing in %s that can be verified", v.dir)
	}
	return nil
}

// sums compares every file with the signed list.
func (v *folderVerifier) sums(files []string) error {
	name := filepath.Join(v.dir, sumsName)
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := v.signature(name, text); err != nil {
		return err
	}
	listed, err := readSums(name)
	if err != nil {
		return err
	}
	for _, file := range files {
		base := filepath.Base(file)
		if base == sumsName || base == sumsName+signatureExt {
			continue
		}
		want, ok := listed[base]
		if !ok {
			return fmt.Errorf("%s does not list %s", name, base)
		}
		delete(listed, base)
		if sum, err := fileSum(file); err != nil || sum != want {
			return errors.Join(fmt.Errorf("%s is not what %s says", file, sumsName), err)
		}
		v.vouched[base] = true
	}
	for file := range listed {
		return fmt.Errorf("%s lists %s, which is missing", name, file)
	}
	v.good(name, "signed, and every file is as it says")
	return nil
}

// statement checks what a build has said of its files, if this is it.
func (v *folderVerifier) statement(ctx context.Context, file string) error {
	board, ok := strings.CutSuffix(strings.TrimPrefix(filepath.Base(file), "app-platform-"), provenanceName)
	if !ok {
		return nil
	}
	subjects, err := verifyAttestations(ctx, v.dir, board, v.keys)
	if err != nil {
		return err
	}
	for _, name := range subjects {
		v.vouched[name] = true
	}
	v.good(file, "signed, with the packages, files and licences of board %s", board)
	return nil
}

// signature checks the .minisig beside a file.
func (v *folderVerifier) signature(name string, text []byte) error {
	signature, err := os.ReadFile(name + signatureExt)
	if err != nil {
		return fmt.Errorf("%s is not signed: %w", name, err)
	}
	if err := bundle.CheckSignature(v.keys, text, signature); err != nil {
		return hint.Errorf("name the .pub file of the key it was signed with (--pub)", "%s: %w", name, err)
	}
	return nil
}

func (v *folderVerifier) file(ctx context.Context, file string) error {
	base := filepath.Base(file)
	ext := filepath.Ext(base)
	isDisk := ext == ".img" || slices.Contains(DiskFormats(), strings.TrimPrefix(ext, "."))
	if (isDisk || base == store.Name || base == zipName) && !v.vouched[base] {
		return hint.Errorf("name the file, to have its structure checked alone", "nothing that is signed says what %s is", file)
	}
	switch {
	case ext == ".update":
		m, err := VerifyUpdate(ctx, file, v.keys)
		if err != nil {
			return err
		}
		v.good(file, "image %s for %s, signed", m.Label, m.Board)
	case strings.HasSuffix(base, ".manifest.json"):
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := v.signature(file, text); err != nil {
			return err
		}
		m, err := bundle.Decode(text)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		v.good(file, "of image %s for %s, signed", m.Label, m.Board)
	case base == store.Name:
		return v.store(file)
	case base == zipName:
		return v.zip(file)
	case isDisk:
		return v.disk(file)
	}
	return nil
}

// disk wants all formats of a disk to hold the same.
func (v *folderVerifier) disk(file string) error {
	content, err := VerifyDisk(file)
	if err != nil {
		return err
	}
	name := strings.TrimSuffix(file, filepath.Ext(file))
	if other, ok := v.contents[name]; ok && other != content {
		return fmt.Errorf("%s holds another disk than the files beside it", file)
	}
	v.contents[name] = content
	v.good(file, "disk %.12s of %d bytes", content.ID, content.Size)
	return nil
}

// store wants every file that the list names to be there.
func (v *folderVerifier) store(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	s, err := store.Decode(f)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, p := range s.Platforms {
		for _, name := range []string{p.File, p.Update, p.Zip} {
			if name == "" {
				continue
			}
			if _, err := os.Stat(filepath.Join(v.dir, name)); filepath.Base(name) != name || err != nil {
				return fmt.Errorf("%s names %q, which is not there", file, name)
			}
		}
	}
	v.good(file, "lists %d platforms", len(s.Platforms))
	return nil
}

// zip wants the OVA in it to be the one beside it.
func (v *folderVerifier) zip(file string) error {
	z, err := zip.OpenReader(file)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	defer z.Close()
	for _, f := range z.File {
		if filepath.Ext(f.Name) != "."+formatOVA {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		h := sha256.New()
		_, err = io.Copy(h, r)
		err = errors.Join(err, r.Close())
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		beside := filepath.Join(v.dir, filepath.Base(f.Name))
		if sum, err := fileSum(beside); err != nil || sum != hex.EncodeToString(h.Sum(nil)) {
			return errors.Join(fmt.Errorf("%s holds another %s than the one beside it", file, f.Name), err)
		}
		v.good(file, "holds %s", f.Name)
		return nil
	}
	return fmt.Errorf("%s: there is no OVA in it", file)
}
