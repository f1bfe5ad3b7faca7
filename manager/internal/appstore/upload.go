package appstore

import (
	"archive/zip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"appplatform/internal/hint"
	"appplatform/manager/internal/room"
)

// Save puts an uploaded program and, if there is one, the files of a ZIP archive
// into dir, a folder made by [Disk.Stage], as long as there is room left.
func Save(dir, app string, program, archive io.Reader, left room.Left) error {
	target := filepath.Join(dir, app)
	if err := copyTo(target, left.Reader(program), maxProgram); err != nil {
		return fmt.Errorf("cannot take the program: %w", err)
	}
	f, err := os.Open(target)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := CheckELF(f, Arch()); err != nil {
		return hint.Errorf("compile it for this machine: "+Arch(), "cannot take the program: %w", err)
	}
	if archive == nil {
		return nil
	}
	packed := filepath.Join(dir, ".files.zip")
	if err := copyTo(packed, left.Reader(archive), maxFile); err != nil {
		return fmt.Errorf("cannot take the files: %w", err)
	}
	defer os.Remove(packed)
	if err := unpack(packed, dir, app, left); err != nil {
		if hint.In(err) {
			return fmt.Errorf("cannot take the files: %w", err)
		}
		return hint.Errorf("pack the files into a ZIP archive", "cannot take the files: %w", err)
	}
	return nil
}

func copyTo(path string, r io.Reader, most int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	n, err := io.Copy(f, io.LimitReader(r, most+1))
	if n > most {
		err = fmt.Errorf("it has more than %d bytes", most)
	}
	return errors.Join(err, f.Close())
}

// unpack does not let an archive write elsewhere, nor over the program, nor more
// than is sensible.
func unpack(packed, dir, app string, room room.Left) error {
	z, err := zip.OpenReader(packed)
	if err != nil {
		return err
	}
	defer z.Close()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	left := int64(4 * maxFile)
	if len(z.File) > 10000 {
		return errors.New("it has more than 10000 files")
	}
	for _, f := range z.File {
		if strings.HasPrefix(filepath.Base(f.Name), ".") || f.Name == app || !f.Mode().IsRegular() && !f.Mode().IsDir() {
			return fmt.Errorf("it has %q, which does not belong there", f.Name)
		}
		name := filepath.Clean(f.Name)
		if f.Mode().IsDir() {
			if err := root.MkdirAll(name, 0o755); err != nil {
				return err
			}
			continue
		}
		n, err := unpackFile(root, f, name, left, room)
		if err != nil {
			return err
		}
		if left -= n; left <= 0 {
			return errors.New("its files are too large")
		}
	}
	return nil
}

func unpackFile(root *os.Root, f *zip.File, name string, most int64, room room.Left) (int64, error) {
	if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return 0, err
	}
	in, err := f.Open()
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, io.LimitReader(room.Reader(in), most))
	return n, errors.Join(err, out.Close())
}
