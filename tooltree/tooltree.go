// Package tooltree keeps the build tools: Debian packages unpacked into the
// cache and run there in a mount namespace of their own, so that every machine
// builds with the same programs and none has to be installed.
package tooltree

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"appplatform/archive"
	"appplatform/internal/cache"
)

// Arch is Debian's name of the architecture that the tools run on.
const Arch = "amd64"

// A Kind is a set of tools for one purpose. They are kept apart so that a new
// QEMU does not mean a new kernel.
type Kind struct {
	Name     string
	Packages []string
}

// base is what every tree needs to be a root folder.
var base = []string{"base-files", "libc-bin", "bash", "dash", "coreutils", "findutils", "grep", "sed", "gawk", "tar", "gzip", "xz-utils", "zstd", "diffutils"}

var kernelTools = []string{
	"gcc", "libc6-dev", "make", "flex", "bison", "bc", "perl", "python3-minimal", "libpython3-stdlib",
	"libelf-dev", "libssl-dev", "openssl", "kmod", "cpio", "bzip2", "patch", "hostname",
}

// The kinds of tool tree.
var (
	// Image has what disks and their contents are made and judged with.
	Image = Kind{"image", append([]string{
		"e2fsprogs", "libarchive13t64", "dosfstools", "mtools", "fdisk", "gdisk", "util-linux",
		"grub-common", "grub-pc-bin", "grub-efi-amd64-bin", "qemu-utils", "minisign", "shellcheck",
		"openssl", "whois", // mkpasswd
	}, base...)}
	// Kernel has what the Linux kernel is built with.
	Kernel = Kind{"kernel", append(kernelTools, base...)}
	// KernelARM and KernelARM64 add a compiler for the gateways.
	KernelARM   = Kind{"kernel-arm", append([]string{"gcc-arm-linux-gnueabi"}, Kernel.Packages...)}
	KernelARM64 = Kind{"kernel-arm64", append([]string{"gcc-aarch64-linux-gnu"}, Kernel.Packages...)}
	// VM has what images are started with.
	VM = Kind{"vm", append([]string{"qemu-system-x86", "ovmf", "seabios", "qemu-utils", "openssh-client"}, base...)}
	// Gateway has what gateways are played with.
	Gateway = Kind{"gateway", append([]string{"qemu-system-arm", "u-boot-qemu", "qemu-utils"}, base...)}
)

// Browser has what web pages are tried with.
var Browser = Kind{"browser", append([]string{"chromium-headless-shell", "fonts-dejavu-core"}, base...)}

// Web has the webserver that ours is measured beside.
var Web = Kind{"web", append([]string{"nginx"}, base...)}

// Formats has what disk images and documents are judged with by tests: readers
// that have nothing in common with ours.
var Formats = Kind{"formats", append([]string{
	"libxml2-utils", "qemu-utils", "python3-minimal", "python3-libvmdk", "python3-libvhdi", "python3-libqcow",
}, base...)}

// Database has the database server of the device, for tests of what talks to it.
// util-linux lends it a user, because it refuses to run as root.
var Database = Kind{"database", append([]string{"postgresql-17", "postgresql-client-17", "util-linux"}, base...)}

// Debug has what core files and running programs are looked into with, those of
// gateways, too.
var Debug = Kind{"debug", append([]string{"gdb-multiarch", "binutils"}, base...)}

// Kinds are all of them, in the order in which a tool is looked for.
var Kinds = []Kind{Image, VM, Kernel, Gateway, KernelARM, KernelARM64, Browser, Formats, Database, Web, Debug}

// A Tree is one unpacked set of tools.
type Tree struct {
	dir  string
	key  string
	pkgs []archive.Package
}

// Key names the tree of these packages: the same key, the same tools.
func Key(pkgs []archive.Package) string { return cache.Key(layout, archive.Key(pkgs)) }

// Key is the name that the function Key gives the tree's packages.
func (t *Tree) Key() string { return t.key }

// Dir is the host path of the unpacked tree.
func (t *Tree) Dir() string { return t.dir }

// Packages are what the tree was unpacked from.
func (t *Tree) Packages() []archive.Package { return t.pkgs }

// Has reports whether the tree has a program of this name.
func (t *Tree) Has(name string) bool {
	_, err := t.find(name)
	return err == nil
}

func (t *Tree) find(name string) (string, error) {
	for _, dir := range []string{"usr/bin", "usr/sbin"} {
		if info, err := os.Stat(filepath.Join(t.dir, dir, name)); err == nil && info.Mode().IsRegular() {
			return "/" + dir + "/" + name, nil
		}
		// A link may be absolute: it then holds inside the tree only.
		if info, err := os.Lstat(filepath.Join(t.dir, dir, name)); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			return "/" + dir + "/" + name, nil
		}
	}
	return "", fmt.Errorf("cannot find the tool %q", name)
}

// Resolve asks the archive which packages a kind consists of, by the package
// index of the last build however old it is.
func Resolve(ctx context.Context, a *archive.Archive, kind Kind) ([]archive.Package, error) {
	res, err := a.Resolve(ctx, archive.Request{Arch: Arch, Names: kind.Packages, AnyAge: true})
	if err != nil {
		return nil, fmt.Errorf("cannot find the %s tools: %w", kind.Name, err)
	}
	return res.Packages, nil
}

// layout changes when Open unpacks trees in another way.
const layout = "1"

// Open returns the tree of these packages, fetched and unpacked if need be.
func Open(ctx context.Context, a *archive.Archive, kind Kind, pkgs []archive.Package, progress func(int64)) (*Tree, error) {
	t := &Tree{key: Key(pkgs), pkgs: pkgs}
	name := "tools/" + kind.Name + "-" + t.key
	var err error
	t.dir, err = a.Cache.Folder(name, func() {
		if a.Log != nil {
			a.Log("waiting for another build that unpacks the " + kind.Name + " tools")
		}
	}, func(dir string) error {
		if err := a.Fetch(ctx, pkgs, progress); err != nil {
			return err
		}
		if err := a.Verify(ctx, pkgs); err != nil {
			return err
		}
		return unpack(ctx, a, pkgs, dir)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot set up the %s tools: %w", kind.Name, err)
	}
	return t, nil
}

// unpack writes the packages' files to dir, two packages at a time.
func unpack(ctx context.Context, a *archive.Archive, pkgs []archive.Package, dir string) error {
	for _, d := range []string{"usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "etc", "var/lib", "mnt"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	u := &unpacker{dir: dir, made: map[string]bool{}}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2)
	for _, p := range pkgs {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := u.deb(a.Path(p)); err != nil {
				return fmt.Errorf("cannot unpack %s: %w", p, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return u.finish()
}

type unpacker struct {
	dir  string
	mu   sync.Mutex
	made map[string]bool
}

// skipped are files that no tool reads.
var skipped = []string{"usr/share/doc/", "usr/share/man/", "usr/share/locale/", "usr/share/info/", "usr/share/lintian/"}

func (u *unpacker) deb(path string) error {
	d, err := archive.OpenDeb(path)
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		h, err := d.Data().Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := u.entry(h, d.Data()); err != nil {
			return err
		}
	}
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	name := merged(h.Name)
	if !filepath.IsLocal(name) {
		if name == "" {
			return nil
		}
		return fmt.Errorf("the package holds the path %q", h.Name)
	}
	for _, s := range skipped {
		if strings.HasPrefix(name+"/", s) {
			return nil
		}
	}
	target := filepath.Join(u.dir, name)
	if err := u.parents(filepath.Dir(name)); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.parents(name)
	case tar.TypeReg:
		mode := fs.FileMode(h.Mode).Perm() | 0o600 // Ours to delete.
		f, err := os.OpenFile(target, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, content); err != nil {
			f.Close()
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		return os.Chtimes(target, h.ModTime, h.ModTime) // make looks at them.
	case tar.TypeSymlink:
		return replace(target, func() error { return os.Symlink(h.Linkname, target) })
	case tar.TypeLink:
		return replace(target, func() error { return os.Link(filepath.Join(u.dir, merged(h.Linkname)), target) })
	default:
		return nil // Devices come from the host's /dev.
	}
}

func (u *unpacker) parents(dir string) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.made[dir] {
		return nil
	}
	u.made[dir] = true
	return os.MkdirAll(filepath.Join(u.dir, dir), 0o755)
}

func replace(target string, make func() error) error {
	err := make()
	if errors.Is(err, fs.ErrExist) {
		if err := os.Remove(target); err != nil {
			return err
		}
		err = make()
	}
	return err
}

// merged is a package's path with /bin, /sbin, /lib and /lib64 below /usr, where
// they have been since Debian 12.
func merged(name string) string {
	name = strings.Trim(strings.TrimPrefix(filepath.Clean("/"+name), "/"), "/")
	top, _, _ := strings.Cut(name, "/")
	switch top {
	case "bin", "sbin", "lib", "lib64":
		if name == top {
			return ""
		}
		return "usr/" + name
	}
	return name
}

// finish does what the packages' scripts would have done for the tools.
func (u *unpacker) finish() error {
	links := map[string]string{"usr/bin/awk": "gawk", "usr/bin/sh": "dash"}
	for name, to := range links {
		if _, err := os.Lstat(filepath.Join(u.dir, name)); err == nil {
			continue
		}
		if err := os.Symlink(to, filepath.Join(u.dir, name)); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/passwd":      "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":       "root:x:0:\nnogroup:x:65534:\n",
		"etc/resolv.conf": "", // the host's is bound over it
		"etc/hosts":       "127.0.0.1 localhost\n",
		"etc/mtab":        "",
	} {
		path := filepath.Join(u.dir, name)
		_ = os.Remove(path)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
