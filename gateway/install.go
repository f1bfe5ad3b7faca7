package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/download"
	"appplatform/internal/hint"
	"appplatform/internal/store"
	"appplatform/partitions"
)

// Progress is how far an installation is, in bytes; Total is 0 when nobody
// knows it.
type Progress struct {
	Source  string
	Copied  int64
	Total   int64
	Writing bool // what was copied goes to the disk
	Done    bool
	Err     string
	Took    time.Duration
}

// An installation writes an image to the beginning of the disk.
type installation struct {
	mu     sync.Mutex
	p      Progress
	began  time.Time
	cancel context.CancelCauseFunc // until the disk is written
}

func (i *installation) progress() Progress {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.p
	if !p.Done {
		p.Took = time.Since(i.began)
	}
	return p
}

func (i *installation) Write(b []byte) (int, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.p.Copied += int64(len(b))
	return len(b), nil
}

// Install writes the image from a URL or a file of the host to the disk and
// starts the platform. It returns when that has begun.
func (g *Gateway) Install(source string) error {
	source = strings.TrimSpace(source)
	if source == "" {
		return hint.Errorf("give the address or the path of an .img file", "no image was named")
	}
	return g.begin(source, func(ctx context.Context) (io.ReadCloser, int64, error) { return open(ctx, source) })
}

// Upload is Install with the image in hand; it returns when the disk holds it.
func (g *Gateway) Upload(name string, r io.Reader, size int64) error {
	done := make(chan struct{})
	err := g.begin("upload "+name, func(context.Context) (io.ReadCloser, int64, error) {
		return closing{r, func() { close(done) }}, size, nil
	})
	if err != nil {
		return err
	}
	<-done
	g.mu.Lock()
	defer g.mu.Unlock()
	if text := g.install.progress().Err; text != "" {
		return errors.New(text)
	}
	return nil
}

type closing struct {
	io.Reader
	close func()
}

func (c closing) Close() error { c.close(); return nil }

// open reads a file or an address.
func open(ctx context.Context, source string) (io.ReadCloser, int64, error) {
	if isURL(source) {
		f, err := download.Open(ctx, source, download.Options{})
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", source, err)
		}
		return f, f.Size(), nil
	}
	f, err := os.Open(source)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, 0, fmt.Errorf("%s is not a file", source)
	}
	return f, info.Size(), nil
}

func isURL(source string) bool {
	return strings.HasPrefix(source, "http://") || strings.HasPrefix(source, "https://")
}

func (g *Gateway) begin(source string, open func(context.Context) (io.ReadCloser, int64, error)) error {
	g.mu.Lock()
	switch g.state() {
	case Installing:
		g.mu.Unlock()
		return errBusy
	case Off:
		g.mu.Unlock()
		return hint.Errorf("tick Enable Linux Support on the page General and save", "the App Platform is not enabled")
	}
	ctx, cancel := context.WithCancelCause(g.ctx)
	in := &installation{p: Progress{Source: source}, began: time.Now(), cancel: cancel}
	g.install = in
	g.logf("installing %s", source)
	g.mu.Unlock()
	g.wg.Add(1)
	go func() {
		defer g.wg.Done()
		defer cancel(nil)
		r, size, err := open(ctx)
		if err == nil {
			in.mu.Lock()
			in.p.Total = size
			in.mu.Unlock()
			err = g.write(ctx, r, in)
		}
		g.finish(in, err)
		if r != nil {
			r.Close()
		}
	}()
	return nil
}

var errCanceled = errors.New("canceled; the disk is as it was")

// Cancel ends an installation that has not changed the disk yet.
func (g *Gateway) Cancel() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.state() != Installing {
		return errors.New("no installation is running")
	}
	if g.install.progress().Writing {
		return errors.New("the disk is being written; this takes seconds")
	}
	g.install.cancel(errCanceled)
	return nil
}

// finish ends an installation; a good one is started.
func (g *Gateway) finish(in *installation, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if errors.Is(err, errCanceled) {
		err = errCanceled
	}
	in.mu.Lock()
	in.p.Done, in.p.Took = true, time.Since(in.began)
	if err != nil {
		in.p.Err = err.Error()
	}
	in.mu.Unlock()
	if err != nil {
		g.logf("cannot install: %v", err)
		return
	}
	g.logf("the image is on the disk (%d MB)", in.progress().Copied/1e6)
	s := g.settings
	s.setEntry(true, g.opts.Preset)
	if err = g.save(s); err == nil {
		err = g.start()
	}
	if err != nil {
		g.logf("cannot start the App Platform: %v", err)
	}
}

// write checks the image while it is copied: what is no image of a gateway
// never reaches the disk, nor does anything of one that ends too early, until
// the table is written last.
func (g *Gateway) write(ctx context.Context, r io.Reader, in *installation) error {
	head := make([]byte, partitions.MiB)
	r = cancelable{ctx, r}
	n, err := io.ReadFull(io.TeeReader(r, in), head)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("cannot read the image: it ends after %d bytes", n)
	}
	if err != nil {
		return fmt.Errorf("cannot read the image: %w", err)
	}
	table, err := partitions.Read(head)
	if err != nil {
		return hint.Errorf("it is a file like app-platform-"+g.opts.Preset.Board+".img", "this is not the image of a gateway: %w", err)
	}
	boot, ok := table.Part(partitions.Boot)
	if table.Scheme != partitions.MBR || !ok {
		return hint.Errorf("take app-platform-"+g.opts.Preset.Board+".img", "this is not the image of a gateway, but of a virtual machine")
	}
	// A file beside the disk takes the image first: it may be cut short, and
	// what is installed must survive that.
	f, err := os.CreateTemp(g.opts.Dir, uploads)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(head); err != nil {
		return err
	}
	copied, err := io.Copy(f, io.TeeReader(r, in))
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return hint.Errorf(noSpace, "cannot keep the image: %w", err)
	}
	if err != nil {
		return fmt.Errorf("cannot read the image: %w", err)
	}
	size := copied + int64(len(head))
	if total := in.progress().Total; total > 0 && size != total {
		return fmt.Errorf("the image ends after %d of %d bytes", size, total)
	}
	if err := f.Truncate(int64(boot.End())); err != nil {
		return err
	}
	if err := g.checkImage(f.Name()); err != nil {
		return err
	}
	if err := g.reserve(size); err != nil {
		return err
	}
	if err := in.beginWriting(ctx); err != nil {
		return err
	}
	// The platform runs until there is something to replace it.
	g.Stop()
	return g.writeDisk(f, size)
}

// beginWriting is the point of no return.
func (i *installation) beginWriting(ctx context.Context) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	i.p.Writing = true
	return nil
}

const noSpace = "make room there, or give --dir a folder on another disk; what is installed is as it was"

// reserve makes sure that a full disk of the host is found before anything is
// changed on the gateway's.
func (g *Gateway) reserve(size int64) error {
	disk, err := os.OpenFile(g.Disk(), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer disk.Close()
	err = unix.Fallocate(int(disk.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return hint.Errorf(noSpace, "cannot write %s: %w", g.Disk(), err)
	}
	return nil
}

// checkImage looks into the boot partition of what is to be installed.
func (g *Gateway) checkImage(file string) error {
	card, err := openCard(file)
	if err != nil {
		return err
	}
	defer card.Close()
	entry, _ := card.config.entry(card.config.def)
	text, err := card.read(filepath.Join(filepath.Dir(entry.kernel), "manifest.json"))
	if err != nil {
		return fmt.Errorf("cannot read the image: %w", err)
	}
	var m struct{ Board, Label string }
	if err := json.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("cannot read the image: manifest.json: %w", err)
	}
	if want := g.opts.Preset.Board; m.Board != want {
		return hint.Errorf("take app-platform-"+want+".img", "this image is for %s, and an %s needs %s", m.Board, g.opts.Preset.Name, want)
	}
	g.note("the image is %s for %s", m.Label, m.Board)
	return nil
}

// writeDisk copies the image to the beginning of the disk, which keeps its
// size; the first sector, which makes it one, comes last.
func (g *Gateway) writeDisk(image *os.File, size int64) error {
	disk, err := os.OpenFile(g.Disk(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	info, err := disk.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		if err := disk.Truncate(int64(g.opts.Preset.Disk)); err != nil {
			return err
		}
	}
	sector := int64(partitions.Sector)
	if _, err := disk.WriteAt(bytes.Repeat([]byte{0}, int(sector)), 0); err != nil {
		return err
	}
	if _, err := disk.Seek(sector, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(disk, io.NewSectionReader(image, sector, size-sector)); err != nil {
		return fmt.Errorf("cannot write the disk: %w", err)
	}
	if err := disk.Sync(); err != nil {
		return fmt.Errorf("cannot write the disk: %w", err)
	}
	first := make([]byte, sector)
	if _, err := image.ReadAt(first, 0); err != nil {
		return err
	}
	if _, err := disk.WriteAt(first, 0); err != nil {
		return fmt.Errorf("cannot write the disk: %w", err)
	}
	return errors.Join(disk.Sync(), disk.Close())
}

// cancelable ends with a context.
type cancelable struct {
	ctx context.Context
	io.Reader
}

func (c cancelable) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.Reader.Read(b)
}

// A Version is an image that the store offers.
type Version struct{ Label, Image string }

// Versions asks the store (linux.json) for the images of this gateway, the newest
// first.
func (g *Gateway) Versions(ctx context.Context) ([]Version, error) {
	if g.opts.Store == "" {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, _, err := open(ctx, g.opts.Store)
	if err != nil {
		return nil, fmt.Errorf("cannot read the store: %w", err)
	}
	defer r.Close()
	list, err := store.Decode(r)
	if err != nil {
		return nil, fmt.Errorf("cannot read the store: %s: %w", g.opts.Store, err)
	}
	var versions []Version
	for _, p := range list.For(g.opts.Preset.Name) {
		image, err := resolve(g.opts.Store, p.File)
		if err != nil {
			return nil, fmt.Errorf("cannot read the store: %w", err)
		}
		versions = append(versions, Version{p.Version, image})
	}
	slices.SortStableFunc(versions, func(a, b Version) int { return strings.Compare(b.Label, a.Label) })
	return versions, nil
}

// resolve reads an address relative to the list that it stands in.
func resolve(list, image string) (string, error) {
	if !isURL(list) {
		if filepath.IsAbs(image) || isURL(image) {
			return image, nil
		}
		return filepath.Join(filepath.Dir(list), image), nil
	}
	base, err := url.Parse(list)
	if err != nil {
		return "", err
	}
	u, err := base.Parse(image)
	if err != nil {
		return "", err
	}
	return u.String(), nil
}
