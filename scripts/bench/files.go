package main

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// copyTree copies files, folders and links, but not those whose path below from
// fits one of the patterns.
func copyTree(to, from string, but ...string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(but, func(pattern string) bool { m, _ := filepath.Match(pattern, below); return m }) {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		target := filepath.Join(to, below)
		switch {
		case e.IsDir():
			return os.MkdirAll(target, 0o755)
		case e.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target)
		case e.Type().IsRegular():
			return copyFile(target, path)
		}
		return nil
	})
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	// apt takes its index for a new one if it has another time.
	return errors.Join(err, out.Close(), os.Chtimes(to, info.ModTime(), info.ModTime()))
}

// moveSettings corrects the folder names in apt's settings in a copied index.
func moveSettings(to, from string) error {
	files, err := filepath.Glob(filepath.Join(to, "*", "apt.conf"))
	if err != nil {
		return err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(f, bytes.ReplaceAll(text, []byte(from), []byte(to)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// contentSize is how much a file system must hold: the size of a file, or the
// blocks of all files of a folder.
func contentSize(path string) (int64, error) {
	const block = 4096
	var sum int64
	err := filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		sum += (info.Size() + block - 1) / block * block
		return nil
	})
	return sum, err
}
