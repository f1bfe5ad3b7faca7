// Package image builds the disk images of a board. New makes a plan, which is a
// value that can be printed; Build carries it out.
package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"appplatform/archive"
	"appplatform/boards"
	"appplatform/bundle"
	"appplatform/image/internal/kernel"
	"appplatform/internal/cache"
	"appplatform/internal/hint"
	"appplatform/partitions"
	"appplatform/rootfs"
	"appplatform/tooltree"
)

// Options say what to build.
type Options struct {
	// Dir is a folder inside the checkout; Board is one of its boards.
	Dir   string
	Board string
	// Out is where the finished files go, by default out/BOARD of the checkout.
	Out string
	// Label is the image number, by default that of the checkout.
	Label string
	// Key is the path of a minisign private key and Password its password;
	// without one a development key is made in the cache.
	Key, Password string
	// Draft compresses lightly: larger files, seconds earlier.
	Draft bool
	// Lock names exact packages; without it the archive's newest are taken.
	Lock *Lock
	// Archive is where packages come from.
	Archive *archive.Archive
	// Report is told what happens; it may be nil.
	Report func(Event)
}

// A Plan is everything that decides what an image will be.
type Plan struct {
	Board   boards.Board
	Label   string
	Out     string
	Draft   bool
	Lock    *Lock
	Locked  bool // the lock was given, not resolved
	Signing Signing

	repo    *repository
	archive *archive.Archive
	cache   *cache.Dir
	linux   kernel.Spec
	sources sources
	source  string // hash of all the source, for the provenance
	keys    keys
	report  *reporter
}

// keys name the intermediate results by what goes into them.
type keys struct {
	builder                 string
	programs                [len(programs)]string
	kernel, ramdisk, rootfs string
	image                   string
}

// New finds out what there is to build, from the newest packages or from the
// lock. It fetches package indexes but no packages.
func New(ctx context.Context, o Options) (*Plan, error) {
	repo, err := openRepository(o.Dir)
	if err != nil {
		return nil, err
	}
	p := &Plan{Label: o.Label, Out: o.Out, Draft: o.Draft, Lock: o.Lock, Locked: o.Lock != nil, repo: repo, archive: o.Archive, cache: o.Archive.Cache}
	p.report = &reporter{board: o.Board, to: o.Report}
	if p.Board, err = boards.Load(repo.fs, o.Board); err != nil {
		return nil, err
	}
	for _, format := range p.Board.Formats {
		if _, err := diskFormat("." + format); err != nil {
			return nil, fmt.Errorf("cannot build %s: %w", p.Board.Name, err)
		}
	}
	if p.Out == "" {
		p.Out = filepath.Join(repo.dir, "out", p.Board.Name)
	}
	if p.Label == "" {
		if p.Label, err = readLabel(repo.fs); err != nil {
			return nil, err
		}
	}
	if err := checkLabel(p.Label); err != nil {
		return nil, err
	}
	if p.Signing, err = openKey(p.cache, o.Key, o.Password); err != nil {
		return nil, err
	}
	if p.Lock == nil {
		p.Lock, err = resolveLock(ctx, o.Archive, repo, p.Board)
	} else if p.Lock.Board != p.Board.Name {
		err = fmt.Errorf("cannot use the lock: it is for board %s, not %s", p.Lock.Board, p.Board.Name)
	}
	if err != nil {
		return nil, err
	}
	if p.linux, err = p.kernelSpec(); err != nil {
		return nil, err
	}
	if p.sources, err = repo.sources(p.Board.Name); err != nil {
		return nil, err
	}
	if p.source, err = repo.sourceHash(); err != nil {
		return nil, err
	}
	return p, p.setKeys()
}

// setKeys names every intermediate result by its inputs.
func (p *Plan) setKeys() (err error) {
	k := &p.keys
	if k.builder, err = self(); err != nil {
		return err
	}
	k.programs = p.programKeys()
	k.kernel = p.linux.Key(tooltree.Key(p.Lock.KernelTools))
	platform, err := p.platform().Encode()
	if err != nil {
		return err
	}
	tools := archive.Key(p.Lock.ImageTools)
	same := []string{k.builder, string(platform), tools, p.Board.Name}
	var rescue []string
	for i, prog := range programs {
		if prog.Ramdisk {
			rescue = append(rescue, k.programs[i])
		}
	}
	ramdiskKey := func(draft bool) string {
		return cache.Key(slices.Concat([]string{"ramdisk", p.sources.ramdisk, archive.Key(p.Lock.Ramdisk), fmt.Sprint(draft)}, same, rescue)...)
	}
	k.ramdisk = ramdiskKey(false)
	if p.Draft && !p.cache.Has("ramdisks", k.ramdisk) {
		k.ramdisk = ramdiskKey(true) // A draft takes a well packed one where there is one.
	}
	// The system tells what the kernel and the ramdisk are made from, too.
	k.rootfs = cache.Key(slices.Concat([]string{"rootfs", p.sources.system, archive.Key(p.Lock.System), k.kernel, ramdiskKey(false)}, same, k.programs[:])...)
	// The statement about the build tells its source, whichever part of it counts.
	k.image = cache.Key("image", k.kernel, k.ramdisk, k.rootfs, p.Signing.id(), fmt.Sprint(p.Draft), p.source)
	return nil
}

// labelFile holds the number of the image that the checkout builds.
const labelFile = "boards/label"

func readLabel(repo fs.FS) (string, error) {
	text, err := fs.ReadFile(repo, labelFile)
	if err != nil {
		return "", fmt.Errorf("cannot read the image number: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// checkLabel accepts what /mnt/sda1/label may hold: a number of six digits, so
// that newer and older can be told (130006).
func checkLabel(label string) error {
	if len(label) != 6 || strings.Trim(label, "0123456789") != "" {
		return hint.Errorf("give one like 160001 with --label, or in "+labelFile, "the label %q is not an image number of six digits", label)
	}
	return nil
}

// platform is what the image says about itself.
func (p *Plan) platform() bundle.Platform {
	table := p.table()
	return bundle.Platform{
		Board: p.Board.Name, Arch: p.Board.Arch, Label: p.Label,
		Scheme: p.Board.Scheme, Boot: p.Board.Boot, DiskUUID: table.DiskUUID, BootUUID: table.UUID(partitions.Boot),
		Keys: []string{p.Signing.Public}, DevKey: p.Signing.Development,
	}
}

func (p *Plan) table() partitions.Table { return partitions.Factory(p.Board.Scheme, p.Board.Disk) }

// made is how the kernel's makefiles name what is built for an architecture,
// and about how many objects it compiles.
var made = map[string]struct {
	kernel.Spec
	tools tooltree.Kind
}{
	"amd64": {kernel.Spec{Arch: "x86_64", Target: "bzImage", Objects: 2150}, tooltree.Kernel},
	"arm64": {kernel.Spec{Arch: "arm64", Cross: "aarch64-linux-gnu-", Target: "Image.gz", Objects: 1900}, tooltree.KernelARM64},
	"armel": {kernel.Spec{Arch: "arm", Cross: "arm-linux-gnueabi-", Target: "zImage", Objects: 1600}, tooltree.KernelARM},
}

func (p *Plan) kernelSpec() (kernel.Spec, error) {
	spec := made[p.Board.Arch].Spec
	spec.Source = p.Lock.KernelSource[0]
	for _, name := range []string{path.Join(boards.Dir, "common.config"), path.Join(boards.Dir, p.Board.Name, "kernel.config")} {
		text, err := fs.ReadFile(p.repo.fs, name)
		if err != nil {
			return spec, fmt.Errorf("cannot read the kernel options: %w", err)
		}
		spec.Fragments = append(spec.Fragments, kernel.Fragment{Name: name, Text: string(text)})
	}
	return spec, nil
}

// A Signing is the key that an image is signed with.
type Signing struct {
	Public      string
	Development bool
	path        string
	private     []byte
	password    string
}

func (s Signing) id() string { return s.Public }

// openKey reads the signing key, or makes the development key of this cache.
func openKey(c *cache.Dir, file, password string) (Signing, error) {
	if file == "" {
		return developmentKey(c)
	}
	s := Signing{path: file, password: password}
	var err error
	if s.private, err = os.ReadFile(file); err != nil {
		return s, fmt.Errorf("cannot read the signing key: %w", err)
	}
	public := strings.TrimSuffix(file, ".key") + ".pub"
	text, err := os.ReadFile(public)
	if err != nil {
		return s, fmt.Errorf("cannot read the public key beside %s: %w", file, err)
	}
	if s.Public, err = bundle.PublicKey(text); err != nil {
		return s, err
	}
	return s, s.check()
}

// check signs something, so that a wrong password or a public key of another pair
// is not found when a device refuses the image.
func (s Signing) check() error {
	probe := []byte("probe")
	signature, err := bundle.SignText(s.private, s.password, probe, "", "")
	if err != nil {
		return hint.Errorf("the password is taken from APIMAGE_KEY_PASSWORD", "%s: %w", s.path, err)
	}
	if err := bundle.CheckSignature([]string{s.Public}, probe, signature); err != nil {
		return fmt.Errorf("the .pub file beside %s is not its public key", s.path)
	}
	return nil
}

func developmentKey(c *cache.Dir) (Signing, error) {
	dir, err := c.Folder("keys/development", nil, func(dir string) error {
		pair, err := bundle.NewKey()
		if err != nil {
			return err
		}
		return errors.Join(
			os.WriteFile(filepath.Join(dir, "image.key"), pair.Private, 0o600),
			os.WriteFile(filepath.Join(dir, "image.pub"), pair.Public, 0o644))
	})
	if err != nil {
		return Signing{}, fmt.Errorf("cannot make the development key: %w", err)
	}
	s, err := openKey(c, filepath.Join(dir, "image.key"), "")
	s.Development = true
	return s, err
}

// made at this time, says every file of an image.
var imageTime = bundle.Time

// A Line is one line of a printed plan.
type Line struct {
	Step   string `json:"step"`
	What   string `json:"what"`
	Key    string `json:"key"`
	Size   int64  `json:"size,omitempty"` // bytes to fetch, or of the result if there
	Cached bool   `json:"cached"`
	Why    string `json:"why"`
}

// Lines are the plan's steps in order, each with what it is made from.
func (p *Plan) Lines() []Line {
	c := p.cache
	lines := []Line{
		p.fetchLine("system packages", p.Lock.System),
		p.fetchLine("ramdisk packages", p.Lock.Ramdisk),
		p.fetchLine("image tools", p.Lock.ImageTools),
	}
	kernelLine := Line{Step: "kernel", Key: p.keys.kernel, Cached: c.Has("kernels", p.keys.kernel),
		What: p.linux.Target + " of " + p.linux.Source.String(),
		Why:  "source, options of boards/common.config and boards/" + p.Board.Name + "/kernel.config, compiler"}
	if !kernelLine.Cached {
		lines = append(lines, p.fetchLine("kernel tools", p.Lock.KernelTools), p.fetchLine("kernel source", p.Lock.KernelSource))
	}
	lines = append(lines, kernelLine)
	for i, prog := range programs {
		key := p.keys.programs[i]
		lines = append(lines, Line{Step: prog.Name, What: prog.Name + " for " + p.Board.GOARCH(), Key: key, Cached: c.Has("programs", key), Why: "Go source, go.mod and the label"})
	}
	lines = append(lines,
		Line{Step: "ramdisk", What: bundle.RamdiskName, Key: p.keys.ramdisk, Cached: c.Has("ramdisks", p.keys.ramdisk), Why: "packages, rootfs/, apagent, platform, builder"},
		Line{Step: "rootfs", What: "the system's ext4 image", Key: p.keys.rootfs, Cached: c.Has("rootfs", p.keys.rootfs), Why: "packages, rootfs/, boards/, all programs, platform, builder"},
		Line{Step: "image", What: p.imageName(".img") + " in " + p.Out, Key: p.keys.image, Cached: p.upToDate(), Why: "all of the above and the signing key"},
	)
	for i := range lines {
		if lines[i].Cached && lines[i].Size == 0 {
			lines[i].Size = p.resultSize(lines[i])
		}
	}
	return lines
}

func (p *Plan) fetchLine(step string, pkgs []archive.Package) Line {
	lacking := p.archive.Lacking(pkgs)
	return Line{Step: step, What: fmt.Sprintf("%d packages", len(pkgs)), Key: archive.Key(pkgs), Size: lacking, Cached: lacking == 0, Why: p.origin()}
}

// origin says where the list of packages comes from.
func (p *Plan) origin() string {
	if p.Locked {
		return "the lock"
	}
	return "Debian " + archive.Release + ", index read " + p.Lock.age(time.Now())
}

func (p *Plan) resultSize(l Line) int64 {
	file, ok := map[string]string{
		"kernel":  p.cache.Path("kernels", l.Key, "kernel"),
		"ramdisk": p.cache.Path("ramdisks", l.Key),
		"rootfs":  p.cache.Path("rootfs", l.Key, "raw"),
		"image":   filepath.Join(p.Out, p.imageName(".img")),
	}[l.Step]
	if !ok {
		file = p.cache.Path("programs", l.Key)
	}
	info, err := os.Stat(file)
	if err != nil {
		return 0
	}
	return info.Size()
}

func (p *Plan) imageName(extension string) string {
	return "app-platform-" + p.Board.Name + extension
}

// debs are packages with their places in the pool.
func (p *Plan) debs(pkgs []archive.Package) []rootfs.Deb {
	out := make([]rootfs.Deb, len(pkgs))
	for i, pkg := range pkgs {
		out[i] = rootfs.Deb{Package: pkg, Path: p.archive.Path(pkg)}
	}
	return out
}
