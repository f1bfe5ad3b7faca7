package image

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/gob"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"appplatform/archive"
	"appplatform/image/internal/grub"
	"appplatform/image/internal/sbom"
	"appplatform/rootfs"
)

// builderFolder is where files come from that the build itself makes.
const builderFolder = "image"

// The two trees that an image carries, as the SBOM calls them.
const (
	systemTree  = "system"
	ramdiskTree = "ramdisk"
)

// A listing is what is kept of a tree beside its file system: each file's
// hashes and origin, and the texts of its licences.
type listing struct {
	Files      []listed
	Copyrights map[string]string // by package
	Common     map[string]string // texts that these refer to, by name
}

type listed struct {
	sbom.File // without its package
	Origin    rootfs.Origin
}

// commonLicences is where Debian keeps the texts that many packages refer to.
const commonLicences = "usr/share/common-licenses"

func list(system string, t *rootfs.Tree) listing {
	l := listing{Copyrights: map[string]string{}, Common: map[string]string{}}
	for _, name := range t.Paths() {
		e, _ := t.Get(name)
		if e.Mode.IsDir() {
			continue
		}
		content, comment := e.Content, ""
		switch {
		case e.Mode&fs.ModeSymlink != 0:
			content = []byte(e.Link)
		case e.HardLink != "":
			other, _ := t.Get(e.HardLink)
			content, comment = other.Content, "another name of /"+e.HardLink
		}
		short, long := sha1.Sum(content), sha256.Sum256(content)
		l.Files = append(l.Files, listed{sbom.File{
			System: system, Path: name, Size: int64(len(content)), Link: e.Link, Comment: comment,
			SHA1: hex.EncodeToString(short[:]), SHA256: hex.EncodeToString(long[:]),
		}, e.Origin()})
	}
	for _, name := range t.Paths() {
		if path.Dir(name) != commonLicences {
			continue
		}
		e, _ := t.Get(name)
		if e.Mode&fs.ModeSymlink != 0 { // The newest version of a licence has its name without a version, too.
			e, _ = t.Get(path.Join(commonLicences, e.Link))
		}
		if e != nil {
			l.Common[path.Base(name)] = string(e.Content)
		}
	}
	for _, pkg := range t.Packages() {
		if name, ok := t.CopyrightFile(pkg); ok {
			e, _ := t.Get(name)
			l.Copyrights[pkg] = string(e.Content)
		}
	}
	return l
}

func (b *build) ramdiskTree(ctx context.Context) (*rootfs.Tree, error) {
	in, err := b.input(ramdiskTree, b.Lock.Ramdisk)
	if err != nil {
		return nil, err
	}
	tree, err := rootfs.Ramdisk(ctx, in)
	if err != nil {
		return nil, err
	}
	return tree, b.keepListing(b.keys.ramdisk, list(ramdiskTree, tree))
}

// systemTree makes the system's tree, with a list of what is in the image and
// the licences of what is not from packages.
func (b *build) systemTree(ctx context.Context) (*rootfs.Tree, error) {
	in, err := b.input(systemTree, b.Lock.System)
	if err != nil {
		return nil, err
	}
	in.Describe = func(t *rootfs.Tree) ([]rootfs.File, error) { return b.onDevice(ctx, t) }
	tree, err := rootfs.System(ctx, in)
	if err != nil {
		return nil, err
	}
	return tree, b.keepListing(b.keys.rootfs, list(systemTree, tree))
}

func (b *build) keepListing(key string, l listing) error {
	_, err := b.cache.File(filepath.Join("listings", key), func(w io.Writer) error { return gob.NewEncoder(w).Encode(l) })
	return err
}

// listing reads what was kept of a tree, which is made again if that is gone.
func (b *build) listing(ctx context.Context, key string, tree func(context.Context) (*rootfs.Tree, error)) (l listing, err error) {
	if !b.cache.Use("listings", key) {
		if _, err := tree(ctx); err != nil {
			return l, err
		}
	}
	f, err := os.Open(b.cache.Path("listings", key))
	if err != nil {
		return l, err
	}
	defer f.Close()
	if err := gob.NewDecoder(f).Decode(&l); err != nil {
		return l, fmt.Errorf("cannot read the list of files: %w", err)
	}
	return l, nil
}

// docDir is where the device has the licences of packages, and these.
const docDir = "usr/share/doc"

// onDevice are the list of what is in the image, without its files, and the
// licences of what is not from packages of the tree.
func (b *build) onDevice(ctx context.Context, t *rootfs.Tree) ([]rootfs.File, error) {
	ramdisk, err := b.listing(ctx, b.keys.ramdisk, b.ramdiskTree)
	if err != nil {
		return nil, err
	}
	texts, err := b.licences(ctx)
	if err != nil {
		return nil, err
	}
	doc, err := b.document(list(systemTree, t), ramdisk, texts)
	if err != nil {
		return nil, err
	}
	doc.Comment += " This list lies inside the image, so it does not name the files; the one beside the image does. The licences are the copyright files in /" + docDir + "."
	doc.Files, doc.Texts = nil, nil
	for i := range doc.Packages {
		doc.Packages[i].Licence = "" // They need the texts.
	}
	text, err := sbom.SPDX(doc)
	if err != nil {
		return nil, err
	}
	files := []rootfs.File{{Path: path.Join(docDir, "app-platform", "sbom.spdx.json"), Mode: 0o644, Content: text, From: builderFolder}}
	for name, text := range texts.byFolder() {
		files = append(files, rootfs.File{Path: path.Join(docDir, name, "copyright"), Mode: 0o644, Content: []byte(text), From: builderFolder})
	}
	return files, nil
}

// The IDs of what is not a Debian package.
const (
	ownID    = "app-platform"
	kernelID = "linux"
	grubID   = "grub"
	goID     = "go-std"
)

func debID(p archive.Package) string { return "deb-" + p.Name + "-" + p.Version }

// document describes the image by the files of its two systems.
func (b *build) document(system, ramdisk listing, texts licences) (sbom.Document, error) {
	d := sbom.Document{Name: b.imageName(""), Version: b.Label, Time: imageTime, Comment: b.bootComment()}
	b.addDebian(&d, system, b.Lock.System)
	b.addDebian(&d, ramdisk, b.Lock.Ramdisk)
	d.Packages = append(d.Packages, sbom.Package{
		ID: ownID, Name: "app-platform", Version: b.Label, Kind: sbom.Application, Licence: "Apache-2.0",
		Comment: "App Platform's own files, and those that its builder makes",
	})
	if err := b.addPrograms(&d); err != nil {
		return d, err
	}
	if err := b.addKernel(&d); err != nil {
		return d, err
	}
	return d, b.addGRUB(&d, texts)
}

// bootComment says what starts the image.
func (p *Plan) bootComment() string {
	if p.Board.Boot == "grub" {
		return "The machine starts the image by GRUB, which is in it."
	}
	return "There is no boot loader in the image: the machine's own U-Boot reads extlinux/extlinux.conf and boot.scr, which the builder writes."
}

// addDebian adds the packages that a system was asked to have, and its files.
func (b *build) addDebian(d *sbom.Document, l listing, pkgs []archive.Package) {
	ids := map[string]string{}
	for _, p := range pkgs {
		ids[p.Name] = debID(p)
	}
	shipped := map[string]bool{}
	for _, f := range l.Files {
		file := f.File
		file.Package = ids[f.Origin.Package]
		switch {
		case f.Origin.Package != "":
			shipped[f.Origin.Package] = true
			if f.Origin.Made {
				file.Comment = "made or changed by the builder"
			}
		case slices.ContainsFunc(programs[:], func(p program) bool { return p.folder() == f.Origin.Source }):
			file.Package = path.Base(f.Origin.Source)
		default:
			file.Package = ownID
			file.Comment = "from " + f.Origin.Source
		}
		d.Files = append(d.Files, file)
	}
	for _, p := range pkgs {
		out := debian(p)
		out.Left = !shipped[p.Name]
		if out.Left {
			out.Comment = "nothing of it is in the image: the builder's rules leave all of it out"
		} else {
			var texts []sbom.Text
			out.Licence, texts = sbom.Licence(p.Source, l.Copyrights[p.Name])
			addTexts(d, texts)
		}
		i := slices.IndexFunc(d.Packages, func(o sbom.Package) bool { return o.ID == out.ID })
		switch {
		case i < 0:
			d.Packages = append(d.Packages, out)
		case d.Packages[i].Left: // The other system has left it out.
			d.Packages[i] = out
		}
	}
}

func debian(p archive.Package) sbom.Package {
	return sbom.Package{
		ID: debID(p), Name: p.Name, Version: p.Version, URL: sbom.DebianURL(p.Name, p.Version, p.Arch, archive.Release),
		SHA256: p.SHA256, Supplier: "Debian", Source: p.Source + " " + p.SourceVersion,
	}
}

// addTexts adds the licences that the document does not have yet. Packages of one
// source may have more than one text for a name.
func addTexts(d *sbom.Document, texts []sbom.Text) {
	for _, t := range texts {
		i := slices.IndexFunc(d.Texts, func(o sbom.Text) bool { return o.ID == t.ID })
		switch {
		case i < 0:
			d.Texts = append(d.Texts, t)
		case !strings.Contains(d.Texts[i].Text, t.Text):
			d.Texts[i].Text += "\n\n" + t.Text
		}
	}
}

// addPrograms adds the programs and the modules that are linked into them, which
// the programs themselves list.
func (b *build) addPrograms(d *sbom.Document) error {
	all, of, goVersion, err := b.modules()
	if err != nil {
		return err
	}
	version := strings.TrimPrefix(goVersion, "go")
	d.Packages = append(d.Packages, sbom.Package{
		ID: goID, Name: "std", Version: version, URL: sbom.GoURL("std", version), Licence: "BSD-3-Clause", Comment: "Go's standard library",
	})
	for _, m := range all {
		d.Packages = append(d.Packages, sbom.Package{
			ID: moduleID(m), Name: m.Path, Version: m.Version, URL: sbom.GoURL(m.Path, m.Version), Comment: "go.sum: " + m.Sum,
		})
	}
	for i, prog := range programs {
		p := sbom.Package{
			ID: prog.Name, Name: prog.Name, Version: b.Label, Kind: sbom.Application, Licence: "Apache-2.0", Links: []string{goID},
			Comment: "made from " + prog.folder() + " by " + goVersion,
		}
		for _, m := range of[i] {
			p.Links = append(p.Links, moduleID(m))
		}
		d.Packages = append(d.Packages, p)
	}
	return nil
}

func moduleID(m *debug.Module) string { return "go-" + m.Path + "-" + m.Version }

func (b *build) addKernel(d *sbom.Document) error {
	sum, err := fileSum(b.kernel.Image)
	if err != nil {
		return err
	}
	config, err := fileSum(b.kernel.Config)
	if err != nil {
		return err
	}
	source := debian(b.linux.Source)
	source.Kind, source.Left, source.Comment = sbom.Source, true, "the kernel is built from it"
	d.Packages = append(d.Packages, source, sbom.Package{
		ID: kernelID, Name: "linux", Version: b.linux.Source.SourceVersion, URL: sbom.GenericURL("linux", b.linux.Source.SourceVersion),
		SHA256: sum, Kind: sbom.Application, Licence: "GPL-2.0-only WITH Linux-syscall-note", MadeFrom: []string{source.ID},
		Comment: b.linux.Target + "; the SHA-256 of its configuration is " + config,
	})
	return nil
}

func (b *build) addGRUB(d *sbom.Document, texts licences) error {
	if b.Board.Boot != "grub" {
		return nil
	}
	out := sbom.Package{ID: grubID, Name: "grub", Kind: sbom.Application, Comment: grub.Describe()}
	for _, name := range grub.Packages {
		p, err := b.tool(name)
		if err != nil {
			return err
		}
		source := debian(p)
		source.Left, source.Comment = true, "GRUB's images are made from it"
		d.Packages = append(d.Packages, source)
		out.MadeFrom, out.Source = append(out.MadeFrom, source.ID), source.Source
		out.Version, out.URL = p.SourceVersion, sbom.GenericURL("grub", p.SourceVersion)
	}
	name, _, _ := strings.Cut(out.Source, " ")
	var refs []sbom.Text
	out.Licence, refs = sbom.Licence(name, texts[grubLicence])
	addTexts(d, refs)
	d.Packages = append(d.Packages, out)
	return nil
}

// tool finds one of the packages that images are made with.
func (p *Plan) tool(name string) (archive.Package, error) {
	i := slices.IndexFunc(p.Lock.ImageTools, func(p archive.Package) bool { return p.Name == name })
	if i < 0 {
		return archive.Package{}, fmt.Errorf("internal error: no package %s among the image tools", name)
	}
	return p.Lock.ImageTools[i], nil
}

func fileSum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
