package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"appplatform/bundle"
	"appplatform/internal/download"
	"appplatform/internal/smallfile"
	"appplatform/partitions"
)

// An updateFile is an update file on this machine. Somebody may exchange the
// file behind the path: what was accepted is the manifest.
type updateFile struct {
	bundle.Manifest
	manifest []byte // its text
	path     string
	fetch    bool // it was downloaded and is removed when it was used
}

// An openUpdate is one that is being read.
type openUpdate struct {
	*bundle.Update
	io.Closer
}

func (f updateFile) open(keys []string) (*openUpdate, error) {
	in, err := os.Open(f.path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the update file: %w", err)
	}
	u, err := bundle.OpenUpdate(in, keys)
	if err != nil {
		in.Close()
		return nil, err
	}
	return &openUpdate{u, in}, nil
}

// An incoming is what is known about a file that is being fetched to sda2, so
// that another attempt, also after a restart, goes on with it.
type incoming struct {
	Address string `json:"address"`
	Version string `json:"version"` // as the server names it
}

const (
	incomingFile = updateDir + "/incoming.part"
	incomingInfo = updateDir + "/incoming.json"
)

// fetchUpdate brings the update file here and reads all of it: what it returns
// is whole, signed and meant for this machine.
func (m Machine) fetchUpdate(ctx context.Context, d disk, o UpdateOptions) (updateFile, error) {
	f := updateFile{path: o.Source}
	if strings.HasPrefix(o.Source, "http://") || strings.HasPrefix(o.Source, "https://") {
		f = updateFile{path: m.path(incomingFile), fetch: true}
		if err := m.download(ctx, d, o); err != nil {
			return f, err
		}
	}
	err := m.checkUpdate(ctx, d, &f, o.Force)
	if err != nil && ctx.Err() == nil {
		err = refused(err)
		if f.fetch {
			err = errors.Join(err, f.remove(m)) // Nothing that is worth being continued.
		}
	}
	return f, err
}

// refused names the way out of an update file that cannot be used.
func refused(err error) error {
	way := "nothing was changed; fetch or copy the update file again, and name it by its path or address"
	switch {
	case errors.As(err, new(hinted)):
		return err
	case errors.Is(err, bundle.ErrSignature):
		way = "nothing was changed; take a file from whoever made the installed image, or fetch it again if it is one"
	}
	return hinted{err, way}
}

func (m Machine) checkUpdate(ctx context.Context, d disk, f *updateFile, force bool) error {
	u, err := f.open(m.Platform.Keys)
	if err != nil {
		return err
	}
	defer u.Close()
	if err := m.accept(d, u.Manifest, force); err != nil {
		return err
	}
	f.Manifest, f.manifest = u.Manifest, u.Text
	m.Log.Printf("checking image %s for %s", u.Label, u.Board)
	return u.Extract(ctx, func(bundle.File) (io.WriteCloser, error) { return nowhere{}, nil },
		func(done, total int64) { m.Log.Progress("checked", done, total) })
}

type nowhere struct{}

func (nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (nowhere) Close() error                { return nil }

// headSize is enough of an update file to refuse it.
const headSize = 256 << 10

func (m Machine) download(ctx context.Context, d disk, o UpdateOptions) (err error) {
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = withHint("run it again: it goes on where it stopped", "interrupted")
		} else if err != nil && !errors.As(err, new(hinted)) {
			err = withHint("nothing was changed; run it again, what has arrived is kept", "cannot download the update: %w", err)
		}
	}()
	if err := os.MkdirAll(m.path(updateDir), 0o755); err != nil {
		return err
	}
	var before incoming
	if text, err := smallfile.Read(m.path(incomingInfo), smallfile.Most); err == nil {
		_ = json.Unmarshal(text, &before) // Damaged: from the beginning.
	}
	f, err := os.OpenFile(m.path(incomingFile), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	length := have
	if before.Address != o.Source || before.Version == "" {
		have = 0
	}
	from, err := m.ask(ctx, o.Source, download.Options{From: have, Version: before.Version})
	if errors.Is(err, download.ErrChanged) {
		m.Log.Printf("the file on the server has changed: from the beginning")
		have = 0
		from, err = m.ask(ctx, o.Source, download.Options{})
	}
	if err != nil {
		return err
	}
	defer from.Close()
	if have > 0 {
		m.Log.Printf("going on with a download of which %v are here", partitions.Size(have))
	}
	// A wrong file is refused before it takes room from anything.
	in := &limited{Reader: from, perSecond: o.Limit, began: time.Now()}
	head, err := io.ReadAll(io.LimitReader(io.MultiReader(io.NewSectionReader(f, 0, have), in), headSize))
	if err != nil {
		return err
	}
	size, err := m.checkHead(d, head, o.Force)
	if err != nil {
		if have > 0 { // What is here may be the rest of another file.
			err = errors.Join(err, updateFile{}.remove(m))
		}
		return err
	}
	if err := m.makeRoom(size - length); err != nil {
		return err
	}
	// The old content is gone before the file counts as the new one's beginning.
	if err := errors.Join(f.Truncate(have), f.Sync()); err != nil {
		return err
	}
	if err := m.writeState(incomingInfo, incoming{o.Source, from.Version()}); err != nil {
		return err
	}
	if _, err := f.Seek(have, io.SeekStart); err != nil {
		return err
	}
	if _, err := f.Write(head[min(have, int64(len(head))):]); err != nil {
		return err
	}
	have, in.n = have+in.n, 0
	// One byte too many is enough to tell that it is another file.
	rest := io.LimitReader(in, max(0, size-have)+1)
	if _, err := io.Copy(f, progressReader{rest, func() { m.Log.Progress("downloaded", have+in.n, size) }}); err != nil {
		return err
	}
	return f.Sync()
}

// ask opens a file on a server. To a machine whose clock is wrong every
// certificate has expired or is not valid yet. Then a time will do at which the
// server's is valid: what is fetched is signed and has a number.
func (m Machine) ask(ctx context.Context, address string, o download.Options) (*download.File, error) {
	f, err := download.Open(ctx, address, o)
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
		return f, err
	}
	m.Log.Printf("not counting the date of the server's certificate: %v", err)
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, Time: func() time.Time { return invalid.Cert.NotBefore.Add(time.Second) }}
	o.Client = &http.Client{Transport: t}
	return download.Open(ctx, address, o)
}

// checkHead refuses a wrong file by how it begins, and tells how long a right one
// is.
func (m Machine) checkHead(d disk, head []byte, force bool) (size int64, err error) {
	u, err := bundle.OpenUpdate(bytes.NewReader(head), m.Platform.Keys)
	if err == nil {
		err = m.accept(d, u.Manifest, force)
	}
	if err == nil {
		return u.FileSize(), nil
	}
	return 0, refused(err)
}

// makeRoom refuses a download for which sda2 has no room, after the reserve was
// taken: it is kept for this, too, and apagent tidy makes it again.
func (m Machine) makeRoom(need int64) error {
	least := partitions.Size(need) + NearlyFull // The database goes on meanwhile.
	space, err := m.dataSpace()
	if err != nil {
		return err
	}
	if space.Free < least {
		if err := os.Remove(m.path(reserveFile)); ignoreMissing(err) != nil {
			return err
		}
		if space, err = m.dataSpace(); err != nil {
			return err
		}
	}
	if space.Free < least {
		whole := (least + partitions.MiB - 1) / partitions.MiB * partitions.MiB
		return withHint(fmt.Sprintf("run apagent diskfree --need='%v', then this again", whole),
			"the update needs %s on the data partition, and there are %s", least.Short(), space.Free.Short())
	}
	return nil
}

// limited reads no faster than it is told to.
type limited struct {
	io.Reader
	perSecond int64
	n         int64
	began     time.Time
}

func (l *limited) Read(b []byte) (int, error) {
	if l.perSecond > 0 {
		b = b[:min(int64(len(b)), max(l.perSecond/10, 1))]
		due := l.began.Add(time.Duration(float64(l.n) / float64(l.perSecond) * float64(time.Second)))
		time.Sleep(time.Until(due))
	}
	n, err := l.Reader.Read(b)
	l.n += int64(n)
	return n, err
}

type progressReader struct {
	io.Reader
	report func()
}

func (p progressReader) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	p.report()
	return n, err
}

func (f updateFile) remove(m Machine) error {
	for _, name := range []string{m.path(incomingFile), m.path(incomingInfo)} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// dropDownload gives the room on sda2 back.
type dropDownload struct{ file updateFile }

func (s dropDownload) String() string { return "remove the download" }

func (s dropDownload) Do(_ context.Context, m Machine) error {
	if !s.file.fetch {
		return nil
	}
	return s.file.remove(m)
}
