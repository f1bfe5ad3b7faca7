package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// skeleton are the folders of the data partition that the system needs before
// anything else runs. PostgreSQL makes its own.
var skeleton = []struct {
	name string
	mode fs.FileMode
}{
	{"etc-overlay/upper", 0o755},
	{"etc-overlay/work", 0o755},
	{"var-lib-overlay/upper", 0o755},
	{"var-lib-overlay/work", 0o755},
	{"home", 0o755},
	{"apps", 0o755},
	{"log", 0o755},
	{"log/apps", 0o755},
	{"update", 0o755}, // A full disk has no room for it any more.
	{coreDumps, 0o750},
}

// coreDumps holds memory of programs, passwords included, and is written by
// root: nobody else may read it or put links there.
const coreDumps = "log/core_dumps"

// makeSkeleton makes what is missing and leaves the rest as it is.
func makeSkeleton(data string) error {
	for _, s := range skeleton {
		path := filepath.Join(data, s.name)
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		if err := os.MkdirAll(path, 0o755); err != nil {
			return fmt.Errorf("cannot make the folders of the data partition: %w", err)
		}
		if err := os.Chmod(path, s.mode); err != nil { // The umask does not count.
			return fmt.Errorf("cannot make the folders of the data partition: %w", err)
		}
	}
	return nil
}

// closeCoreDumps closes the folder that earlier images let everybody write.
func closeCoreDumps(path string) error {
	info, err := os.Lstat(path)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a folder", path)
	}
	if err == nil && os.Geteuid() == 0 {
		err = os.Chown(path, 0, 0)
	}
	if err == nil {
		err = os.Chmod(path, 0o750)
	}
	if err != nil {
		return fmt.Errorf("cannot close the folder of core dumps: %w", err)
	}
	return nil
}

// copyMissing copies the entries that the image has in a folder and the data
// partition has not, with owners and modes. Those that exist are the
// administrator's. An entry appears whole or not at all.
func copyMissing(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("cannot fill the data partition: %w", err)
	}
	for _, e := range entries {
		target, part := filepath.Join(to, e.Name()), filepath.Join(to, "."+e.Name()+".part")
		if _, err := os.Lstat(target); err == nil {
			continue
		}
		if err := os.RemoveAll(part); err != nil {
			return fmt.Errorf("cannot fill the data partition: %w", err)
		}
		if err := copyTree(filepath.Join(from, e.Name()), part); err != nil {
			return fmt.Errorf("cannot fill the data partition: %w", err)
		}
		if err := os.Rename(part, target); err != nil {
			return fmt.Errorf("cannot fill the data partition: %w", err)
		}
	}
	return nil
}

func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return copyEntry(path, filepath.Join(to, name), e)
	})
}

func copyEntry(path, target string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	switch info.Mode().Type() {
	case fs.ModeDir:
		err = os.Mkdir(target, 0o700)
	case fs.ModeSymlink:
		var link string
		if link, err = os.Readlink(path); err == nil {
			err = os.Symlink(link, target)
		}
	case 0:
		err = copyFile(path, target)
	default:
		return nil // No image has sockets or devices there.
	}
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		if err := os.Lchown(target, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if info.Mode().Type() == fs.ModeSymlink {
		return nil
	}
	return os.Chmod(target, info.Mode())
}

// copyFile is on the disk before the entry it belongs to gets its name.
func copyFile(path, target string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err = io.Copy(out, in); err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}
