package image

import (
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"

	"appplatform/internal/atomicfile"
)

// A record says which plan the files in the output folder are from.
type record struct {
	Key    string           `json:"key"`
	Stamps map[string]stamp `json:"stamps"`
	Result *Result          `json:"result"`
	Kernel string           `json:"kernel"` // in the cache
}

// BuiltKernel is the path of the kernel that the image in an output folder was
// made with.
func BuiltKernel(out string) (string, error) {
	var r record
	if err := readJSON(filepath.Join(out, recordName), &r); err != nil {
		return "", err
	}
	return r.Kernel, nil
}

const recordName = ".built.json"

type stamp struct {
	Size     int64 `json:"size"`
	Modified int64 `json:"modified"` // nanoseconds
}

func (p *Plan) recordPath() string { return filepath.Join(p.Out, recordName) }

// upToDate reports whether the output folder holds just what the plan makes.
func (p *Plan) upToDate() bool {
	var r record
	if readJSON(p.recordPath(), &r) != nil || r.Key != p.keys.image || len(r.Stamps) == 0 {
		return false
	}
	for name, want := range r.Stamps {
		if got, err := stampOf(filepath.Join(p.Out, name)); err != nil || got != want {
			return false
		}
	}
	return true
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	return stamp{info.Size(), info.ModTime().UnixNano()}, nil
}

// finish records what was made and removes what no build will ask for soon.
func (b *build) finish() (*Result, error) {
	r := &Result{}
	rec := record{Key: b.keys.image, Stamps: map[string]stamp{}, Result: r, Kernel: b.kernel.Image}
	r.Files = b.allFiles()
	for _, f := range r.Files {
		s, err := stampOf(f)
		if err != nil {
			return nil, err
		}
		rec.Stamps[filepath.Base(f)] = s
	}
	var err error
	if r.Parts, err = b.parts(); err != nil {
		return nil, err
	}
	for _, f := range b.diskImages() {
		used, err := usedBytes(f)
		if err != nil {
			return nil, err
		}
		r.Parts = append(r.Parts, Part{filepath.Ext(f)[1:] + " (on disk)", used})
	}
	text, err := json.MarshalIndent(rec, "", " ")
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Write(b.recordPath(), append(text, '\n'), 0o644); err != nil {
		return nil, err
	}
	b.cache.Keep("rootfs", 6)
	b.cache.Keep("packed", 6)
	b.cache.Keep("ramdisks", 12)
	b.cache.Keep("programs", 24)
	b.cache.Keep("unpacked", 18)
	b.cache.Keep("pieces", 2000)
	b.cache.Keep("listings", 18)
	b.cache.Keep("licences", 12)
	return r, nil
}

// allFiles are the paths of everything that a build makes.
func (p *Plan) allFiles() []string {
	return append(p.products(), p.provenancePath(), p.provenancePath()+signatureExt)
}

// products are the paths of the finished files, but for the statement about them.
func (p *Plan) products() []string {
	files := append(p.diskImages(), p.updatePath())
	for _, name := range []string{".manifest.json", ".manifest.json" + signatureExt, ".lock", spdxName, cyclonedxName, licencesName} {
		files = append(files, filepath.Join(p.Out, p.imageName(name)))
	}
	return files
}

// parts are the sizes of what the image carries.
func (b *build) parts() ([]Part, error) {
	var parts []Part
	for _, f := range []struct{ name, path string }{
		{"kernel", b.kernel.Image}, {"ramdisk", b.ramdisk}, {"packed rootfs", b.packed.path},
	} {
		info, err := os.Stat(f.path)
		if err != nil {
			return nil, err
		}
		parts = append(parts, Part{f.name, info.Size()})
	}
	return parts, nil
}

func readJSON(path string, v any) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, v)
}

// usedBytes is how much of the disk a sparse file takes.
func usedBytes(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Blocks * 512, nil
	}
	return info.Size(), nil
}
