package appstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"appplatform/internal/atomicfile"
	"appplatform/internal/download"
	"appplatform/internal/hint"
)

// Progress is told which file is being fetched and how far that is, in bytes; total
// is 0 while nobody knows.
type Progress func(file string, done, total int64)

// Fetch downloads a version of an app into dir, which is a folder made by
// [Disk.Stage]. What arrived of the program before a cut is in the cache, and used
// when somebody tries again.
func (c Client) Fetch(ctx context.Context, a App, v Version, cache *Cache, dir string, progress Progress) error {
	arch := c.Arch
	if arch == "" {
		arch = Arch()
	}
	fail := func(err error) error {
		way := "nothing was changed; try again later, or ask who runs the store"
		if errors.Is(err, unix.ENOSPC) {
			way = "nothing was changed; make room: apagent diskfree, or delete data"
		}
		if hint.In(err) {
			return fmt.Errorf("cannot fetch %s %s: %w", a.ID, v.Build, err)
		}
		return hint.Errorf(way, "cannot fetch %s %s: %w", a.ID, v.Build, err)
	}
	base, err := Address(c.URL, path.Join(a.Path, v.Build))
	if err != nil {
		return err
	}
	names, err := c.fileList(ctx, base+"/"+a.ID+"_files", a)
	if err != nil {
		return fail(err)
	}
	from := base + "/" + arch + "/" + a.Folder + "/"
	part := filepath.Join(cache.dir, a.ID+"-"+v.Build+"-"+arch+".part")
	release, err := cache.use(part)
	if err != nil {
		return fail(err)
	}
	defer release()
	if err := c.program(ctx, from+a.Binary+".bin", part, cache, func(done, total int64) { progress(a.ID, done, total) }); err != nil {
		return fail(err)
	}
	if err := checkProgram(part, arch, v.SHA256[arch]); err != nil {
		// It would be no better the next time.
		os.Remove(part)
		os.Remove(part + ".json")
		return fail(err)
	}
	for _, name := range names {
		progress(name, 0, 0)
		text, err := c.read(ctx, from+name, maxFile)
		var gone *download.GoneError
		if errors.As(err, &gone) && name == a.Binary+".png" {
			continue // An app without a picture is still an app.
		}
		if err != nil {
			return fail(fmt.Errorf("%s: %w", name, err))
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return fail(err)
		}
	}
	if err := os.Rename(part, filepath.Join(dir, a.ID)); err != nil {
		return fail(err)
	}
	os.Remove(part + ".json")
	return nil
}

// fileList are the files of an app besides its program. What debuggers need
// stays in the store.
func (c Client) fileList(ctx context.Context, address string, a App) ([]string, error) {
	text, err := c.read(ctx, address, 64<<10)
	var gone *download.GoneError
	if errors.As(err, &gone) {
		return []string{a.Binary + ".png"}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path.Base(address), err)
	}
	var names []string
	for name := range strings.SplitSeq(string(text), ",") {
		// Some lists have the folders, too.
		name = path.Base(strings.TrimSpace(name))
		switch {
		case name == a.Binary+".bin" || strings.HasSuffix(name, ".debug") || name == "." || name == a.ID:
		case !files.MatchString(name) || len(names) == maxFiles:
			return nil, fmt.Errorf("%s is not a list of files", path.Base(address))
		default:
			names = append(names, name)
		}
	}
	return names, nil
}

// A partRecord says what the bytes of a part are from.
type partRecord struct{ Address, Version string }

// program downloads to the file part, going on with what is there if it is of
// the same file on the server.
func (c Client) program(ctx context.Context, address, part string, cache *Cache, progress func(done, total int64)) error {
	if err := os.MkdirAll(filepath.Dir(part), 0o700); err != nil {
		return err
	}
	var record partRecord
	if text, err := os.ReadFile(part + ".json"); err == nil {
		_ = json.Unmarshal(text, &record)
	}
	out, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	o := download.Options{Client: c.HTTP, Patience: c.Patience}
	if info, err := out.Stat(); err == nil && record.Address == address && record.Version != "" {
		o.From, o.Version = info.Size(), record.Version
	}
	in, err := download.Open(ctx, address, o)
	if errors.Is(err, download.ErrChanged) {
		o.From, o.Version = 0, ""
		in, err = download.Open(ctx, address, o)
	}
	if err != nil {
		return err
	}
	defer in.Close()
	if in.Size() > maxProgram {
		return fmt.Errorf("the program has %d bytes; %d are allowed", in.Size(), maxProgram)
	}
	if cache.enoughRoom(in.Size()-o.From) != nil {
		// What somebody may go on with is worth less than what somebody waits for.
		if err := errors.Join(cache.Clean(0), cache.enoughRoom(in.Size()-o.From)); err != nil {
			return err
		}
	}
	if err := errors.Join(out.Truncate(o.From), seek(out, o.From)); err != nil {
		return err
	}
	text, _ := json.Marshal(partRecord{address, in.Version()})
	if err := atomicfile.Write(part+".json", text, 0o600); err != nil {
		return err
	}
	done := o.From
	buffer := make([]byte, 64<<10)
	for {
		n, err := in.Read(buffer)
		if done += int64(n); done > maxProgram {
			return fmt.Errorf("the program has more than %d bytes", maxProgram)
		}
		if _, err := out.Write(buffer[:n]); err != nil {
			return err
		}
		progress(done, in.Size())
		if err == io.EOF {
			return out.Sync()
		}
		if err != nil {
			return err
		}
	}
}

func seek(f *os.File, to int64) error {
	_, err := f.Seek(to, io.SeekStart)
	return err
}

// spare is what is left free, in bytes, so that the database can go on.
const spare = 32 << 20

func (c *Cache) enoughRoom(size int64) error {
	free, err := c.free()
	if err != nil {
		return nil // Writing will tell.
	}
	if size > 0 && free < size+spare {
		return fmt.Errorf("%d MB more room is needed: %w", (size+spare-free)>>20+1, unix.ENOSPC)
	}
	return nil
}

// checkProgram refuses what is not a program of this kind of machine, or not the
// one that the list promises.
func checkProgram(file, arch, hash string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := CheckELF(f, arch); err != nil {
		return err
	}
	if hash == "" {
		return nil
	}
	h := sha256.New()
	if err := seek(f, 0); err != nil {
		return err
	}
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); !strings.EqualFold(got, hash) {
		return fmt.Errorf("the program is not the one that the store's list promises: its SHA-256 is %s instead of %s", got, hash)
	}
	return nil
}

// machines are ELF's e_machine and whether it is a 64-bit one, by kind of machine
// (System V ABI, and its supplements for the processors).
var machines = map[string]struct {
	number uint16
	class  byte
}{"x86_64": {62, 2}, "arm": {40, 1}, "arm64": {183, 2}}

// CheckELF reads the head of a program.
func CheckELF(r io.Reader, arch string) error {
	head := make([]byte, 20)
	if _, err := io.ReadFull(r, head); err != nil || string(head[:4]) != "\x7fELF" {
		return errors.New("it is not a Linux program")
	}
	want := machines[arch]
	kind, machine := binary.LittleEndian.Uint16(head[16:]), binary.LittleEndian.Uint16(head[18:])
	if head[4] != want.class || head[5] != 1 || machine != want.number || kind != 2 && kind != 3 {
		return fmt.Errorf("it is not a program for %s", arch)
	}
	return nil
}
