package rootfs

import (
	"archive/tar"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"appplatform/archive"
)

// A Deb is a package and the place of its .deb file.
type Deb struct {
	archive.Package
	Path string
}

// file is one entry of a package, with the path it has in the tree.
type file struct {
	path string
	*Entry
}

// unpack puts the files of all packages that the rules take into a new tree.
// Packages skipped whole are not even opened.
func unpack(ctx context.Context, debs []Deb, r *rules, m memo) (*Tree, error) {
	taken := slices.DeleteFunc(slices.Clone(debs), func(d Deb) bool { return !r.takes(d.Name) })
	slices.SortFunc(taken, func(a, b Deb) int { return strings.Compare(a.Name, b.Name) })
	unpacked := make([][]file, len(taken))

	// The biggest packages start first: one of them alone at the end would
	// leave the other processors idle.
	queue := make([]int, len(taken))
	for i := range queue {
		queue[i] = i
	}
	slices.SortStableFunc(queue, func(a, b int) int { return cmp.Compare(taken[b].Size, taken[a].Size) })
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for _, i := range queue {
		group.Go(func() (err error) {
			unpacked[i], err = m.readDeb(ctx, taken[i], r)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}

	t := newTree()
	for _, files := range unpacked {
		for _, f := range files {
			if other, ok := t.entries[f.path]; ok {
				return nil, fmt.Errorf("cannot merge packages: /%s is in %s and in %s", f.path, other.owner, f.owner)
			}
			t.put(f.path, f.Entry)
		}
	}
	return t, nil
}

// readDeb reads the files of one package that the rules keep, and the names of
// all. Folders are not among them: they follow from the files, and their modes
// from the permissions table.
func readDeb(ctx context.Context, d Deb, r *rules) (files []file, names []string, err error) {
	deb, err := archive.OpenDeb(d.Path)
	if err != nil {
		return nil, nil, err
	}
	defer deb.Close()
	for data := deb.Data(); ctx.Err() == nil; {
		h, err := data.Next()
		if errors.Is(err, io.EOF) {
			return files, names, nil
		}
		if err != nil {
			return nil, nil, fmt.Errorf("cannot unpack %s: %w", d.Package, err)
		}
		name := merged(h.Name)
		if h.Typeflag == tar.TypeDir {
			continue
		}
		names = append(names, name)
		kept, loaded := r.keeps(name)
		if !kept {
			continue
		}
		e := &Entry{UID: h.Uid, GID: h.Gid, owner: d.Name, loaded: loaded}
		switch h.Typeflag {
		case tar.TypeReg:
			e.Mode = fileMode(uint32(h.Mode), 0)
			e.Content = make([]byte, h.Size)
			_, err = io.ReadFull(data, e.Content)
		case tar.TypeSymlink:
			e.Mode, e.Link = fs.ModeSymlink|0o777, h.Linkname
		case tar.TypeLink:
			e.HardLink = merged(h.Linkname)
			i := slices.IndexFunc(files, func(f file) bool { return f.path == e.HardLink })
			if i < 0 {
				return nil, nil, fmt.Errorf("cannot unpack %s: rules keep /%s and drop /%s, of which it is another name", d.Package, name, e.HardLink)
			}
			e.Mode = files[i].Mode
		default:
			err = fmt.Errorf("unknown type %q", h.Typeflag)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("cannot unpack %s: %s: %w", d.Package, name, err)
		}
		files = append(files, file{name, e})
	}
	return nil, nil, ctx.Err()
}

// merged is the path of a package's file after Debian's merge of /bin, /sbin
// and /lib* into /usr. The links in their old places come from base-files.
func merged(name string) string {
	name = path.Clean(strings.TrimLeft(strings.TrimPrefix(name, "."), "/"))
	top, rest, below := strings.Cut(name, "/")
	if below && (top == "bin" || top == "sbin" || strings.HasPrefix(top, "lib")) {
		return "usr/" + top + "/" + rest
	}
	return name
}
