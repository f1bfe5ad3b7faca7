package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"appplatform/archive"
	"appplatform/internal/run"
	"appplatform/tooltree"
)

// essential are the packages that dpkg takes for granted when it installs
// others. Our own image is made without dpkg and has most, but not all of them.
var essential = []string{
	"base-files", "base-passwd", "bash", "bsdutils", "coreutils", "dash", "debianutils", "diffutils", "dpkg",
	"findutils", "grep", "gzip", "hostname", "init-system-helpers", "libc-bin", "ncurses-base", "ncurses-bin",
	"perl-base", "sed", "sysvinit-utils", "tar", "util-linux",
}

// A peer makes root file systems from our packages with mmdebstrap and mke2fs.
type peer struct {
	*lab
	repository string
	names      []string // our packages
	added      int      // packages that only dpkg needs
	// Bytes of the root file system that was packed last.
	rawSize, packedSize int64
}

// newPeer makes a Debian archive of just our packages, so that mmdebstrap has
// nothing to download and little to search.
func newPeer(ctx context.Context, l *lab) (*peer, error) {
	p := &peer{lab: l, repository: filepath.Join(l.work, "debian")}
	pkgs := slices.Clone(l.lock.System)
	for _, pkg := range pkgs {
		p.names = append(p.names, pkg.Name)
	}
	need, err := l.archive.Resolve(ctx, archive.Request{Arch: tooltree.Arch, Names: essential})
	if err != nil {
		return nil, err
	}
	for _, pkg := range need.Packages {
		if !slices.Contains(p.names, pkg.Name) {
			pkgs = append(pkgs, pkg)
			p.added++
		}
	}
	if err := l.archive.Fetch(ctx, pkgs, nil); err != nil {
		return nil, err
	}
	if err := p.writeRepository(ctx, pkgs); err != nil {
		return nil, fmt.Errorf("cannot make an archive for mmdebstrap: %w", err)
	}
	return p, nil
}

func (p *peer) writeRepository(ctx context.Context, pkgs []archive.Package) error {
	const index = "main/binary-" + tooltree.Arch + "/Packages"
	dist := filepath.Join(p.repository, "dists", archive.Release)
	for _, dir := range []string{filepath.Join(p.repository, "pool"), filepath.Join(dist, filepath.Dir(index))} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	var text strings.Builder
	for _, pkg := range pkgs {
		name := filepath.Join("pool", pkg.SHA256+".deb")
		if err := copyFile(filepath.Join(p.repository, name), p.archive.Path(pkg)); err != nil {
			return err
		}
		control, err := run.Output(ctx, "dpkg-deb", "--field", p.archive.Path(pkg))
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%sFilename: %s\nSize: %d\nSHA256: %s\n\n", control, name, pkg.Size, pkg.SHA256)
	}
	if err := os.WriteFile(filepath.Join(dist, index), []byte(text.String()), 0o644); err != nil {
		return err
	}
	// mmdebstrap finds the essential packages by the name of the suite.
	release := fmt.Sprintf("Suite: %[1]s\nCodename: %[1]s\nArchitectures: %s\nComponents: main\nDate: %s\nSHA256:\n %x %d %s\n",
		archive.Release, tooltree.Arch, time.Now().UTC().Format(time.RFC1123), sha256.Sum256([]byte(text.String())), text.Len(), index)
	return os.WriteFile(filepath.Join(dist, "Release"), []byte(release), 0o644)
}

// bootstrap runs mmdebstrap on the archive of our packages.
func (p *peer) bootstrap(ctx context.Context, variant, to string) error {
	return p.mmdebstrap(ctx, "--variant="+variant, "--include="+strings.Join(p.names, ","), archive.Release, to,
		"deb [trusted=yes] copy://"+p.repository+" "+archive.Release+" main")
}

// mmdebstrap runs that program. What it mounts goes with it, also if it is
// killed.
func (l *lab) mmdebstrap(ctx context.Context, args ...string) error {
	cmd := run.Command(ctx, "mmdebstrap", append([]string{"--quiet"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	}
	return run.Wait(cmd)
}

// target is what mmdebstrap makes: a folder, which is quicker, or an archive
// when an ordinary user could not own the files.
func (p *peer) target() string {
	if os.Geteuid() == 0 {
		return filepath.Join(p.work, "peer", "root")
	}
	return filepath.Join(p.work, "peer", "root.tar")
}

func (l *lab) raw() string { return filepath.Join(l.work, "peer", "raw") }

// mke2fs makes a file system from a folder or a tar file.
func (l *lab) mke2fs(ctx context.Context, from, to string, size int64, flags ...string) error {
	args := append([]string{"mke2fs", "-q", "-F", "-t", "ext4", "-d", from}, flags...)
	return l.tools.Run(ctx, tooltree.Cmd{
		Args:     append(args, to, fmt.Sprintf("%dk", size/1024)),
		ReadOnly: []string{from}, Writable: []string{filepath.Dir(to)},
	})
}

// rootfs makes the root file system and returns how long it took.
func (p *peer) rootfs(ctx context.Context, variant string) (float64, error) {
	dir := filepath.Join(p.work, "peer")
	if err := os.RemoveAll(dir); err != nil {
		return 0, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	bootstrap, err := timed(func() error { return p.bootstrap(ctx, variant, p.target()) })
	if err != nil {
		return 0, err
	}
	size, err := contentSize(p.target())
	if err != nil {
		return 0, err
	}
	// Without a journal, as our own; a tenth is for what the files do not count.
	mkfs, err := timed(func() error {
		return p.mke2fs(ctx, p.target(), p.raw(), size*11/10+32<<20, "-O", "^has_journal")
	})
	return bootstrap + mkfs, err
}

// pack compresses the root file system.
func (p *peer) pack(ctx context.Context) (float64, error) {
	in, err := os.Open(p.raw())
	if err != nil {
		return 0, err
	}
	defer in.Close()
	out, err := os.Create(p.raw() + ".xz")
	if err != nil {
		return 0, err
	}
	defer out.Close()
	took, err := timed(func() error {
		return p.tools.Run(ctx, tooltree.Cmd{Args: []string{"xz", "-6", "-T2", "-c"}, Stdin: in, Stdout: out})
	})
	if err != nil {
		return 0, err
	}
	for _, f := range []struct {
		of *os.File
		to *int64
	}{{in, &p.rawSize}, {out, &p.packedSize}} {
		info, err := f.of.Stat()
		if err != nil {
			return 0, err
		}
		*f.to = info.Size()
	}
	return took, nil
}
