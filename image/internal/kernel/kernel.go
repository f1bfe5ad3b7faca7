// Package kernel builds a board's Linux from Debian's source package: one
// monolithic image, the same bytes on every machine.
package kernel

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"appplatform/archive"
	"appplatform/internal/cache"
	"appplatform/internal/hint"
	"appplatform/tooltree"
)

// SourcePackage is the Debian package that the kernel is built from.
const SourcePackage = "linux-source-6.12"

// A Spec says what to build; equal specs give equal kernels.
type Spec struct {
	Source    archive.Package // SourcePackage at some version
	Arch      string          // the kernel's ARCH: x86_64, arm, arm64
	Cross     string          // CROSS_COMPILE, empty for the build machine's own
	Target    string          // make target and file name: bzImage, zImage, Image.gz
	Fragments []Fragment
	// Objects is about how many objects the build compiles, for the progress.
	Objects int
}

// recipe changes when Build makes kernels in another way.
const recipe = "1"

// Key names the kernel in the cache.
func (s Spec) Key(tools string) string {
	parts := []string{recipe, s.Source.SHA256, s.Arch, s.Cross, s.Target, tools}
	for _, f := range s.Fragments {
		parts = append(parts, f.Text)
	}
	return cache.Key(parts...)
}

// A Kernel is a finished build.
type Kernel struct {
	Image  string // host path of the boot image
	Config string // host path of the full configuration
	Key    string
}

// A Builder has what a build needs. Tools and SourceDeb are not looked at when
// the cache has the kernel.
type Builder struct {
	Cache *cache.Dir
	Tools *tooltree.Tree
	// SourceDeb is the host path of the source package.
	SourceDeb string
	Log       func(string)
	// Progress is told how many objects of how many are compiled.
	Progress func(done, expected int)
}

// Build returns the kernel of the spec, compiled first if the cache lacks it.
// key is what the spec's Key gives for the tools.
func (b *Builder) Build(ctx context.Context, s Spec, key string) (*Kernel, error) {
	asked, err := merge(s.Fragments)
	if err != nil {
		return nil, fmt.Errorf("cannot read the kernel options: %w", err)
	}
	dir, err := b.Cache.Folder("kernels/"+key, func() { b.log("waiting for another build of this kernel") }, func(dir string) error {
		return b.compile(ctx, s, asked, dir)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot build the kernel: %w", err)
	}
	return &Kernel{Image: filepath.Join(dir, "kernel"), Config: filepath.Join(dir, "config"), Key: key}, nil
}

func (b *Builder) log(line string) {
	if b.Log != nil {
		b.Log(line)
	}
}

// The kernel sees its source and its objects at these paths on every machine.
const (
	sourceDir = "/kernel/source"
	objectDir = "/kernel/objects"
)

// fixed makes the build the same at any time, by anyone, anywhere.
var fixed = []string{
	"KBUILD_BUILD_TIMESTAMP=2026-01-01 00:00:00 UTC",
	"KBUILD_BUILD_USER=apimage", "KBUILD_BUILD_HOST=app-platform", "KBUILD_BUILD_VERSION=1",
	"SOURCE_DATE_EPOCH=1767225600",
}

func (b *Builder) compile(ctx context.Context, s Spec, asked []option, out string) error {
	source, err := b.source(ctx, s.Source)
	if err != nil {
		return err
	}
	// The objects are kept: a changed option recompiles only what depends on it.
	name := "kernel-objects/" + cache.Key(s.Source.SHA256, s.Arch, b.Tools.Key())
	unlock, err := b.Cache.Lock(name, func() { b.log("waiting for another kernel build") })
	if err != nil {
		return err
	}
	defer unlock()
	objects := b.Cache.Path(name)
	if err := os.MkdirAll(objects, 0o755); err != nil {
		return err
	}
	if err := dropUnfinished(objects); err != nil {
		return fmt.Errorf("cannot clean the objects of the last build: %w", err)
	}
	m := &maker{b: b, spec: s, bind: map[string]string{sourceDir: source, objectDir: objects}}
	if err := m.configure(ctx, asked, objects); err != nil {
		return err
	}
	if err := m.compile(ctx); err != nil {
		return err
	}
	folder := s.Arch
	if folder == "x86_64" {
		folder = "x86" // The one ARCH whose folder has another name.
	}
	image := filepath.Join(objects, "arch", folder, "boot", s.Target)
	if err := copyFile(image, filepath.Join(out, "kernel")); err != nil {
		return err
	}
	return copyFile(filepath.Join(objects, ".config"), filepath.Join(out, "config"))
}

// dropUnfinished removes what a killed build was writing. kbuild notes how it
// made x in .x.cmd when x is finished; with the note of an earlier build it
// would take half an object for a whole one.
func dropUnfinished(objects string) error {
	return filepath.WalkDir(objects, func(note string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, ok := strings.CutSuffix(e.Name(), ".cmd")
		if !ok || !strings.HasPrefix(name, ".") {
			return nil
		}
		made, err := os.Stat(filepath.Join(filepath.Dir(note), name[1:]))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		noted, err := e.Info()
		if err != nil || !made.ModTime().After(noted.ModTime()) {
			return err
		}
		return os.Remove(filepath.Join(filepath.Dir(note), name[1:]))
	})
}

// source unpacks the source package.
func (b *Builder) source(ctx context.Context, p archive.Package) (string, error) {
	return b.Cache.Folder("kernel-source/"+p.SHA256[:32], func() { b.log("waiting for another build that unpacks the kernel source") }, func(dir string) error {
		b.log("unpacking " + p.String())
		tarball, err := extractTarball(b.SourceDeb, dir)
		if err != nil {
			return err
		}
		err = b.Tools.Run(ctx, tooltree.Cmd{
			Args:     []string{"tar", "-xJf", tarball, "--strip-components=1", "--no-same-owner", "-C", dir},
			Writable: []string{dir},
		})
		if err != nil {
			return fmt.Errorf("cannot unpack the source: %w", err)
		}
		return os.Remove(tarball)
	})
}

// extractTarball takes linux-source-*.tar.xz out of the .deb.
func extractTarball(deb, dir string) (string, error) {
	d, err := archive.OpenDeb(deb)
	if err != nil {
		return "", err
	}
	defer d.Close()
	for {
		h, err := d.Data().Next()
		if errors.Is(err, io.EOF) {
			return "", fmt.Errorf("no source archive in %s", deb)
		}
		if err != nil {
			return "", fmt.Errorf("cannot read %s: %w", deb, err)
		}
		if !strings.HasSuffix(h.Name, ".tar.xz") {
			continue
		}
		path := filepath.Join(dir, "source.tar.xz")
		f, err := os.Create(path)
		if err != nil {
			return "", err
		}
		_, err = io.Copy(f, d.Data())
		if err := errors.Join(err, f.Close()); err != nil {
			return "", fmt.Errorf("cannot unpack %s: %w", deb, err)
		}
		return path, nil
	}
}

// A maker calls make for one spec.
type maker struct {
	b    *Builder
	spec Spec
	bind map[string]string
}

func (m *maker) make(ctx context.Context, stdout io.Writer, args ...string) error {
	all := append([]string{"make", "-C", sourceDir, "O=" + objectDir, "ARCH=" + m.spec.Arch, "CROSS_COMPILE=" + m.spec.Cross}, args...)
	return m.b.Tools.Run(ctx, tooltree.Cmd{Args: all, Env: fixed, Bind: m.bind, Stdout: stdout, Family: true, Niceness: 5})
}

// configure writes .config and checks that every asked option took.
func (m *maker) configure(ctx context.Context, asked []option, objects string) error {
	var all strings.Builder
	for _, f := range m.spec.Fragments {
		all.WriteString(f.Text + "\n")
	}
	path := filepath.Join(objects, ".config")
	before, _ := os.Stat(path)
	old, _ := os.ReadFile(path)
	if err := os.WriteFile(filepath.Join(objects, "fragments.config"), []byte(all.String()), 0o644); err != nil {
		return err
	}
	if err := m.make(ctx, io.Discard, "-s", "KCONFIG_ALLCONFIG="+objectDir+"/fragments.config", "allnoconfig"); err != nil {
		return err
	}
	config, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if lost := dropped(asked, string(config)); len(lost) > 0 {
		return hint.Errorf("an option may have been renamed or depends on one that is off: look it up in the kernel's Kconfig files",
			"%d kernel options did not take:\n  %s", len(lost), strings.Join(lost, "\n  "))
	}
	if string(old) == string(config) {
		return os.Chtimes(path, before.ModTime(), before.ModTime())
	}
	return nil
}

func (m *maker) compile(ctx context.Context) error {
	read, write := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.follow(read)
	}()
	err := m.make(ctx, write, fmt.Sprintf("-j%d", runtime.NumCPU()), m.spec.Target)
	write.Close()
	<-done
	return err
}

// follow counts the lines in which kbuild says what it compiles ("  CC  x.o").
func (m *maker) follow(r io.Reader) {
	lines := bufio.NewScanner(r)
	n := 0
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) == 2 && (f[0] == "CC" || f[0] == "AS") {
			n++
			if m.b.Progress != nil {
				m.b.Progress(n, max(n, m.spec.Objects))
			}
		}
	}
	_, _ = io.Copy(io.Discard, r)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
