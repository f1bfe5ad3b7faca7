package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"appplatform/archive"
	"appplatform/bundle"
	"appplatform/image/internal/disk"
	"appplatform/image/internal/ext4"
	"appplatform/image/internal/kernel"
	"appplatform/internal/atomicfile"
	"appplatform/internal/cache"
	"appplatform/internal/extlinux"
	"appplatform/internal/hint"
	"appplatform/partitions"
	"appplatform/rootfs"
	"appplatform/tooltree"
)

// A Part is the size of one part of a finished image, in bytes.
type Part struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// A Result is a finished build.
type Result struct {
	Files    []string `json:"files"`
	Parts    []Part   `json:"parts"`
	UpToDate bool     `json:"up_to_date"` // nothing had changed
}

// Build makes the image of the plan. Finished files appear under their names
// whole; an interrupted build leaves the former ones.
func (p *Plan) Build(ctx context.Context) (*Result, error) {
	if p.upToDate() {
		var r record
		if err := readJSON(p.recordPath(), &r); err == nil && r.Result != nil {
			r.Result.UpToDate, r.Result.Files = true, p.allFiles() // The folder may have moved.
			return r.Result, nil
		}
	}
	// Two builds of a board into the same folder take turns.
	if err := os.MkdirAll(p.Out, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the output folder: %w", err)
	}
	unlock, err := p.cache.Lock("out-"+cache.Key(p.Out), func() { p.report.note("waiting for another build into " + p.Out) })
	if err != nil {
		return nil, err
	}
	defer unlock()
	p.announce()
	b := &build{Plan: p}
	return b.run(ctx)
}

// announce says what the build takes, before it takes time.
func (p *Plan) announce() {
	p.report.note(fmt.Sprintf("%s image %s from %d packages (%s)", p.Board.Name, p.Label, len(p.Lock.System), p.origin()))
	for _, s := range p.Lock.MissingSuites {
		p.report.note("WARNING: without " + s + ", which cannot be verified: security fixes may be missing")
	}
	if p.Signing.Development {
		p.report.note("signed with this machine's development key: not for release (--key)")
	}
}

// A build is a plan being carried out.
type build struct {
	*Plan
	tools    *tooltree.Tree
	kernel   *kernel.Kernel
	programs [len(programs)]string // host paths of finished parts
	ramdisk  string
	raw      string // the root file system
	packed   packedRootfs
	signed   struct{ manifest, signature []byte }
}

type packedRootfs struct {
	path string
	info bundle.Rootfs
}

func (b *build) run(ctx context.Context) (*Result, error) {
	steps := []struct {
		name, text string
		do         func(context.Context, func(done, total int64, unit string)) error
	}{
		{"tools", "set up the build tools", b.openTools},
		{"kernel", "build the kernel", b.buildKernel},
		{"fetch", "fetch packages", b.fetch},
		{"programs", "compile the programs", b.buildPrograms},
		{"ramdisk", "make the ramdisk", b.buildRamdisk},
		{"rootfs", "make the root file system", b.buildRootfs},
		{"pack", "compress the root file system", b.packRootfs},
		{"disk", "write the disk image", b.writeDisk},
		{"formats", "write the other disk formats", b.writeFormats},
		{"update", "write the update file", b.writeUpdate},
		{"sbom", "list what is in the image", b.attest},
	}
	defer b.removeParts()
	for _, s := range steps {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := b.report.step(s.name, s.text, func(progress func(done, total int64, unit string)) error { return s.do(ctx, progress) }); err != nil {
			return nil, err
		}
	}
	if err := b.publish(); err != nil {
		return nil, err
	}
	return b.finish()
}

// fetching counts the bytes of packages that arrive.
func (b *build) fetching(progress func(done, total int64, unit string), pkgs ...[]archive.Package) func(int64) {
	var total int64
	for _, list := range pkgs {
		total += b.archive.Lacking(list)
	}
	var done atomic.Int64
	return func(n int64) { progress(done.Add(n), total, "bytes") }
}

func (b *build) openTools(ctx context.Context, progress func(done, total int64, unit string)) (err error) {
	b.tools, err = tooltree.Open(ctx, b.archive, tooltree.Image, b.Lock.ImageTools, b.fetching(progress, b.Lock.ImageTools))
	return err
}

func (b *build) buildKernel(ctx context.Context, progress func(done, total int64, unit string)) error {
	builder := &kernel.Builder{
		Cache: b.cache, Log: b.report.note,
		SourceDeb: b.archive.Path(b.linux.Source),
		Progress:  func(done, expected int) { progress(int64(done), int64(expected), "objects") },
	}
	if !b.cache.Has("kernels", b.keys.kernel) {
		fetched := b.fetching(progress, b.Lock.KernelTools, b.Lock.KernelSource)
		tools, err := tooltree.Open(ctx, b.archive, made[b.Board.Arch].tools, b.Lock.KernelTools, fetched)
		if err != nil {
			return err
		}
		builder.Tools = tools
		if err := b.archive.Fetch(ctx, b.Lock.KernelSource, fetched); err != nil {
			return err
		}
		if err := b.archive.Verify(ctx, b.Lock.KernelSource); err != nil {
			return err
		}
	}
	var err error
	b.kernel, err = builder.Build(ctx, b.linux, b.keys.kernel)
	return err
}

// fetch brings the packages of both systems into the pool. What comes from the
// pool is read again, so that an altered file is found before it is used.
func (b *build) fetch(ctx context.Context, progress func(done, total int64, unit string)) error {
	if b.cache.Has("rootfs", b.keys.rootfs) && b.cache.Has("ramdisks", b.keys.ramdisk) &&
		b.cache.Has("listings", b.keys.rootfs) && b.cache.Has("listings", b.keys.ramdisk) {
		return nil
	}
	fetched := b.fetching(progress, b.Lock.System, b.Lock.Ramdisk)
	for _, list := range [][]archive.Package{b.Lock.System, b.Lock.Ramdisk} {
		if err := b.archive.Fetch(ctx, list, fetched); err != nil {
			return err
		}
		if err := b.archive.Verify(ctx, list); err != nil {
			return err
		}
	}
	return nil
}

// files are the ones of a system that only this build knows.
func (b *build) files(system string) ([]rootfs.File, error) {
	var files []rootfs.File
	for i, prog := range programs {
		if system == ramdiskTree && !prog.Ramdisk {
			continue
		}
		content, err := os.ReadFile(b.programs[i])
		if err != nil {
			return nil, err
		}
		files = append(files, rootfs.File{Path: prog.Path, Mode: 0o755, Content: content, From: prog.folder()})
	}
	platform, err := b.platform().Encode()
	if err != nil {
		return nil, err
	}
	return append(files, rootfs.File{Path: bundle.PlatformFile, Mode: 0o644, Content: platform, From: builderFolder}), nil
}

func (b *build) input(system string, pkgs []archive.Package) (rootfs.Input, error) {
	files, err := b.files(system)
	return rootfs.Input{Repo: b.repo.fs, Board: b.Board, Debs: b.debs(pkgs), Files: files, Memo: b.cache.Path("unpacked"), Log: b.report.note}, err
}

// ramdiskOptions describe the ramdisk's file system. Its full size costs the
// machine memory, so it has little room to spare.
func (b *build) ramdiskOptions(tree *rootfs.Tree) ext4.Options {
	size := partitions.Size(tree.Size())*5/4 + 8*partitions.MiB
	size = (size + partitions.MiB - 1) / partitions.MiB * partitions.MiB
	return ext4.Options{Type: ext4.Ext2, Label: "ramdisk", UUID: "6b1d8e5e-2f2c-4b60-9f0c-7a1d3f0c9a01", Size: size, Inodes: len(tree.Paths()) + 1024, Time: imageTime}
}

func (b *build) buildRamdisk(ctx context.Context, progress func(done, total int64, unit string)) error {
	var err error
	b.ramdisk, err = b.cache.File(filepath.Join("ramdisks", b.keys.ramdisk), func(w io.Writer) error {
		tree, err := b.ramdiskTree(ctx)
		if err != nil {
			return err
		}
		return b.withImage(ctx, tree, b.ramdiskOptions(tree), func(raw *os.File) error {
			if err := b.unchanged(); err != nil {
				return err
			}
			// Blocks let both processors work. The kernel reads them, but no
			// check other than CRC32.
			return b.tools.Run(ctx, tooltree.Cmd{
				Args:  []string{"xz", "-T0", b.xzLevel(), "--block-size=8MiB", "--check=crc32", "-c"},
				Stdin: raw, Stdout: w,
			})
		})
	})
	return err
}

// unchanged compares the checkout with what it was when the plan was made: what
// is kept under a key must have been made from what the key names.
func (b *build) unchanged() error {
	now, err := b.repo.sources(b.Board.Name)
	if err != nil {
		return err
	}
	if now != b.sources {
		return hint.Errorf("start the build again", "the checkout was changed during the build")
	}
	return nil
}

func (b *build) xzLevel() string {
	if b.Draft {
		return "-0"
	}
	return "-6"
}

// withImage writes the tree as a file system into a temporary file.
func (b *build) withImage(ctx context.Context, tree *rootfs.Tree, o ext4.Options, use func(*os.File) error) error {
	dir, remove, err := b.cache.Temp()
	if err != nil {
		return fmt.Errorf("cannot make a file system: %w", err)
	}
	defer remove()
	path := filepath.Join(dir, "raw")
	if err := writeTree(ctx, b.tools, tree, o, path); err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return use(f)
}

func writeTree(ctx context.Context, tools *tooltree.Tree, tree *rootfs.Tree, o ext4.Options, out string) error {
	read, write := io.Pipe()
	go func() { write.CloseWithError(tree.WriteTar(write)) }()
	err := ext4.Write(ctx, tools, o, read, out)
	read.CloseWithError(errors.New("the file system is not written any further"))
	return err
}

// rootfsOptions describe sda3's file system: as large as the partition, so that
// its layout stays the same while the system grows, and without a journal,
// because it is mounted read-only.
func rootfsOptions(p partitions.Partition) ext4.Options {
	return ext4.Options{Type: ext4.Ext4, Label: "rootfs", UUID: "6b1d8e5e-2f2c-4b60-9f0c-7a1d3f0c9a03", Size: p.Size, Inodes: 16384, Time: imageTime}
}

// buildRootfs makes the system's file system.
func (b *build) buildRootfs(ctx context.Context, _ func(done, total int64, unit string)) error {
	target, ok := b.fullTable().Part(partitions.Rootfs)
	if !ok {
		return errors.New("internal error: no partition for the root file system")
	}
	dir, err := b.cache.Folder(filepath.Join("rootfs", b.keys.rootfs), nil, func(dir string) error {
		tree, err := b.systemTree(ctx)
		if err != nil {
			return err
		}
		if err := writeTree(ctx, b.tools, tree, rootfsOptions(target), filepath.Join(dir, "raw")); err != nil {
			return err
		}
		return b.unchanged()
	})
	b.raw = filepath.Join(dir, "raw")
	return err
}

// packRootfs compresses the root file system piece by piece.
func (b *build) packRootfs(ctx context.Context, progress func(done, total int64, unit string)) error {
	f, err := os.Open(b.raw)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	level := b.xzLevel()
	packer := bundle.Packer{
		Compress: func(ctx context.Context, raw []byte) ([]byte, error) {
			return b.tools.Output(ctx, tooltree.Cmd{
				Args:  []string{"xz", "-T1", "--check=crc32", "--lzma2=preset=" + level[1:] + ",dict=4MiB", "-c"},
				Stdin: bytes.NewReader(raw),
			})
		},
		Cached:   func(sum string, pack func() ([]byte, error)) ([]byte, error) { return b.cachedPiece(sum, level, pack) },
		Progress: func(done, total int64) { progress(done, total, "bytes") },
	}
	b.packed.path = b.cache.Path("packed", b.keys.rootfs+level)
	if err := os.MkdirAll(filepath.Dir(b.packed.path), 0o755); err != nil {
		return err
	}
	return atomicfile.WriteFunc(b.packed.path, 0o644, func(w io.Writer) (err error) {
		b.packed.info, err = packer.Pack(ctx, f, info.Size(), w)
		return err
	})
}

// cachedPiece keeps packed pieces by the hash of what they hold. A draft takes
// a well packed piece where there is one.
func (b *build) cachedPiece(sum, level string, pack func() ([]byte, error)) ([]byte, error) {
	for _, l := range slices.Compact([]string{"-6", level}) {
		if b.cache.Use("pieces", sum+l) {
			return os.ReadFile(b.cache.Path("pieces", sum+l))
		}
	}
	path, err := b.cache.File(filepath.Join("pieces", sum+level), func(w io.Writer) error {
		data, err := pack()
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// fullTable is the table of the board's default disk once it is installed.
func (p *Plan) fullTable() partitions.Table {
	t, err := partitions.Layout(p.Board.Scheme, p.Board.Disk)
	if err != nil {
		return partitions.Table{} // Load has checked that the disk is large enough.
	}
	return t
}

// manifest describes and signs the set.
func (b *build) manifest() (m bundle.Manifest, text, signature []byte, err error) {
	m = bundle.Manifest{Format: bundle.Format, Board: b.Board.Name, Arch: b.Board.Arch, Label: b.Label, Rootfs: b.packed.info}
	if m.Kernel, err = bundle.Describe(bundle.KernelName, b.kernel.Image); err != nil {
		return m, nil, nil, err
	}
	if m.Ramdisk, err = bundle.Describe(bundle.RamdiskName, b.ramdisk); err != nil {
		return m, nil, nil, err
	}
	if text, err = m.Encode(); err != nil {
		return m, nil, nil, err
	}
	signature, err = bundle.Sign(b.Signing.private, b.Signing.password, text)
	return m, text, signature, err
}

func (b *build) writeDisk(ctx context.Context, _ func(done, total int64, unit string)) (err error) {
	var m bundle.Manifest
	if m, b.signed.manifest, b.signed.signature, err = b.manifest(); err != nil {
		return err
	}
	o := disk.Options{Table: b.table(), Time: imageTime, Boot: map[string]disk.Source{
		"a/" + bundle.KernelName:    {Path: b.kernel.Image},
		"a/" + bundle.RamdiskName:   {Path: b.ramdisk},
		"a/" + bundle.RootfsName:    {Path: b.packed.path},
		"a/" + bundle.ManifestName:  {Data: b.signed.manifest},
		"a/" + bundle.SignatureName: {Data: b.signed.signature},
		"label":                     {Data: []byte(b.Label + "\n")},
	}}
	for _, f := range m.Started() {
		o.Boot["a/"+f.SumName()] = disk.Source{Data: f.Sum()}
	}
	if b.Board.Boot == "extlinux" {
		o.Boot[extlinux.ScriptPath] = disk.Source{Data: extlinux.Script(b.Board.Arch, o.Table.DiskUUID)}
	}
	raw := part(b.diskImages()[0])
	if err := os.Remove(raw); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return disk.Write(ctx, b.tools, o, raw)
}

// writeFormats writes what the raw image holds in the formats of the board.
func (b *build) writeFormats(ctx context.Context, progress func(done, total int64, unit string)) error {
	images := b.diskImages()
	if len(images) > 1 {
		err := writeDisks(ctx, part(images[0]), images[1:], b.machine(), func(done, total int64) { progress(done, total, "bytes") })
		if err != nil {
			return err
		}
	}
	return b.checkSize(images)
}

// writeUpdate writes the update file, and what else describes the image set.
func (b *build) writeUpdate(context.Context, func(done, total int64, unit string)) error {
	lock, err := b.Lock.Encode()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{{".manifest.json", b.signed.manifest}, {".manifest.json" + signatureExt, b.signed.signature}, {".lock", lock}} {
		if err := atomicfile.Write(part(filepath.Join(b.Out, b.imageName(f.name))), f.data, 0o644); err != nil {
			return err
		}
	}
	return atomicfile.WriteFunc(part(b.updatePath()), 0o644, func(w io.Writer) error {
		return bundle.WriteUpdate(w, b.signed.manifest, b.signed.signature, map[string]string{
			bundle.KernelName: b.kernel.Image, bundle.RamdiskName: b.ramdisk, bundle.RootfsName: b.packed.path,
		})
	})
}

// publish gives all files their names when every one of them is finished. From
// here on the folder is not what the last record says.
func (b *build) publish() error {
	if err := os.Remove(b.recordPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, f := range b.allFiles() {
		if err := publish(part(f), f); err != nil {
			return err
		}
	}
	return nil
}

// removeParts removes what a build that failed has begun.
func (b *build) removeParts() {
	for _, f := range b.allFiles() {
		os.Remove(part(f)) // What is published is not there any more.
	}
}

// updatePath is the file that installed machines update themselves from. Its
// name says the image, because people keep several of them.
func (p *Plan) updatePath() string {
	return filepath.Join(p.Out, p.imageName("-"+p.Label+".update"))
}

// diskImages are the paths of the finished disk images, the raw one first.
func (p *Plan) diskImages() []string {
	images := []string{filepath.Join(p.Out, p.imageName(".img"))}
	for _, format := range p.Board.Formats {
		images = append(images, filepath.Join(p.Out, p.imageName("."+format)))
	}
	return images
}

// checkSize holds what people fetch to the board's limit (OS-A3).
func (b *build) checkSize(images []string) error {
	path := part(images[0])
	for _, image := range images {
		if filepath.Ext(image) == "."+formatOVA {
			path = part(image)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if limit := b.Board.ImageLimit; limit > 0 && info.Size() > int64(limit) {
		parts, err := b.parts()
		if err != nil {
			return err
		}
		var list []string
		for _, p := range parts {
			list = append(list, fmt.Sprintf("%s %.2f MB", p.Name, float64(p.Size)/1e6))
		}
		return hint.Errorf("leave something out (rootfs/rules), or raise image_limit in boards/"+b.Board.Name+"/board.json",
			"the image has %.2f MB and may have %.2f MB: %s", float64(info.Size())/1e6, float64(limit)/1e6, strings.Join(list, ", "))
	}
	return nil
}

// publish gives a finished file its name.
func publish(part, name string) error {
	f, err := os.OpenFile(part, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = errors.Join(f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", name, err)
	}
	if err := os.Rename(part, name); err != nil {
		return fmt.Errorf("cannot write %s: %w", name, err)
	}
	return atomicfile.SyncDir(filepath.Dir(name))
}
