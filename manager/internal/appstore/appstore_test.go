package appstore

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// program is the head of an x86_64 program and some bytes that differ.
func program(what string, size int) []byte {
	b := make([]byte, max(size, 64))
	copy(b, "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x3e\x00")
	copy(b[32:], what)
	return b
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// A store on the developer's machine.
type store struct {
	*httptest.Server
	files map[string][]byte
	asked atomic.Int64
	// answer may do something else; it says whether it did.
	answer func(w http.ResponseWriter, r *http.Request) bool
}

func newStore(t *testing.T, sha string, bin []byte) *store {
	s := &store{files: map[string][]byte{
		"/s/apps.json": []byte(`{"apps":[{"id":"apidemo","folder":"api","binary":"demo","support":"x",
			"versions":[{"id":"16r1","build":"160001","label":"dvl","minImage":3,"sha256":{"x86_64":"` + sha + `"}}],
			"manufacturer":"us","title":"Demo","description":"d"},
			{"id":"../evil","versions":[]}, {"id":"evil2","path":"../..","versions":[]}, {"id":"evil3","binary":"../x"}, 7,
			{"id":"evil4","versions":[{"build":"../1"}]}]}`),
		"/s/160001/apidemo_files":       []byte("demo.bin, demo.debug,demo.png,x86_64/api/httpfiles.zip"),
		"/s/160001/x86_64/api/demo.bin": bin, "/s/160001/x86_64/api/httpfiles.zip": []byte("zip"),
	}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		if s.answer != nil && s.answer(w, r) {
			return
		}
		b, ok := s.files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("ETag", `"`+hash(b)[:8]+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *store) client() Client {
	return Client{URL: s.URL + "/s/", Arch: "x86_64", HTTP: s.Client(), Patience: 150 * time.Millisecond}
}

func ignore(string, int64, int64) {}

// P8, L6: what is fetched and where from.
func TestFetch(t *testing.T) {
	bin := program("one", 300_000)
	s := newStore(t, hash(bin), bin)
	c := s.client()
	apps, err := c.Apps(t.Context())
	if err != nil || len(apps) != 1 || apps[0].Title != "Demo" || apps[0].Versions[0].MinImage != 3 {
		t.Fatalf("Apps() = %+v, %v; want the one that makes sense", apps, err)
	}
	d := Disk(t.TempDir())
	dir, err := d.Stage("apidemo")
	if err != nil {
		t.Fatal(err)
	}
	v, err := apps[0].Version("160001")
	if err != nil {
		t.Fatal(err)
	}
	var last, total int64
	err = c.Fetch(t.Context(), apps[0], v, NewCache(filepath.Join(string(d), ".download")), dir, func(step string, done, all int64) {
		if strings.Contains(step, "apidemo") {
			last, total = done, all
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if last != 300_000 || total != 300_000 {
		t.Errorf("progress ended at %d of %d; want 300000", last, total)
	}
	if err := Apply(d.PlanInstall("apidemo", Record{Build: v.Build})); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"apidemo": string(bin), "httpfiles.zip": "zip"} {
		got, err := os.ReadFile(filepath.Join(string(d), "apidemo", name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(want))
		}
	}
	if info, err := os.Stat(d.Program("apidemo")); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the program: %v, %v; want 0755 (A7)", info, err)
	}
	if d.Current("apidemo").Build != "160001" {
		t.Errorf("Current = %+v", d.Current("apidemo"))
	}
}

// A store that is down, cuts, is silent or lies changes nothing, and the error
// says what it did.
func TestFetchRefuses(t *testing.T) {
	bin := program("one", 300_000)
	isBin := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, ".bin") }
	for _, test := range []struct {
		name, sha, want string
		bin             []byte
		answer          func(http.ResponseWriter, *http.Request) bool
	}{
		{name: "another hash", sha: strings.Repeat("0", 64), bin: bin, want: "not the one that the store's list promises"},
		{name: "a web page", bin: []byte("<html>not here, but 200</html>"), want: "not a Linux program"},
		{name: "another machine", bin: append([]byte("\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x28\x00"), bin...), want: "not a program for x86_64"},
		{name: "empty", bin: []byte{}, want: "not a Linux program"},
		{name: "missing", bin: bin, want: "404", answer: func(w http.ResponseWriter, r *http.Request) bool {
			if isBin(r) {
				http.NotFound(w, r)
			}
			return isBin(r)
		}},
		{name: "broken", bin: bin, want: "500", answer: func(w http.ResponseWriter, r *http.Request) bool {
			if isBin(r) {
				w.WriteHeader(500)
			}
			return isBin(r)
		}},
		{name: "always cut at the same place", bin: bin, want: "cannot fetch apidemo", answer: func(w http.ResponseWriter, r *http.Request) bool {
			if isBin(r) {
				w.Header().Set("Content-Length", "300000")
				_, _ = w.Write(bin[:1000])
				panic(http.ErrAbortHandler)
			}
			return false
		}},
		{name: "silent", bin: bin, want: "nothing arrived", answer: func(w http.ResponseWriter, r *http.Request) bool {
			if isBin(r) {
				<-r.Context().Done()
			}
			return isBin(r)
		}},
		{name: "endless list of files", bin: bin, want: "apidemo_files", answer: func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "_files") {
				return false
			}
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					break
				}
			}
			return true
		}},
		{name: "files that lead elsewhere", bin: bin, want: "not a list of files", answer: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "_files") {
				fmt.Fprint(w, "<html>oops</html>")
				return true
			}
			return false
		}},
		{name: "larger than allowed", bin: bin, want: "are allowed", answer: func(w http.ResponseWriter, r *http.Request) bool {
			if isBin(r) {
				w.Header().Set("Content-Length", fmt.Sprint(maxProgram+1))
				_, _ = w.Write(bin)
			}
			return isBin(r)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, test.sha, test.bin)
			s.answer = test.answer
			d := Disk(t.TempDir())
			dir, err := d.Stage("apidemo")
			if err != nil {
				t.Fatal(err)
			}
			apps, err := s.client().Apps(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			err = s.client().Fetch(t.Context(), apps[0], apps[0].Versions[0], NewCache(filepath.Join(string(d), ".download")), dir, ignore)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Count(err.Error(), "\nhint: ") != 1 {
				t.Errorf("Fetch() = %v; want %q and one way out", err, test.want)
			}
			if _, err := os.Stat(filepath.Join(dir, "apidemo")); err == nil {
				t.Error("the program is there all the same")
			}
		})
	}
}

func TestStoreIsDown(t *testing.T) {
	s := newStore(t, "", nil)
	for _, test := range []struct{ name, url, want string }{
		{"nobody listens", s.URL + "/s", "cannot read"},
		{"not set", "", "it is not set"},
		{"no address", "/etc/passwd", "does not begin with http"},
		{"a file", "file:///etc", "does not begin with http"},
	} {
		c := s.client()
		c.URL = test.url
		s.Close()
		if _, err := c.Apps(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "\nhint: ") {
			t.Errorf("%s: Apps() = %v; want %q and a hint", test.name, err, test.want)
		}
	}
}

// What has arrived before a cut is not fetched again, also by the next try; a
// program that was changed meanwhile is.
func TestFetchResumes(t *testing.T) {
	bin := program("one", 300_000)
	s := newStore(t, "", bin)
	cut := true
	var ranges []string
	s.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, ".bin") {
			return false
		}
		ranges = append(ranges, r.Header.Get("Range"))
		if cut && r.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		if cut {
			w.Header().Set("ETag", `"`+hash(bin)[:8]+`"`)
			w.Header().Set("Content-Length", "300000")
			_, _ = w.Write(bin[:200_000])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		return false
	}
	d := Disk(t.TempDir())
	dir, err := d.Stage("apidemo")
	if err != nil {
		t.Fatal(err)
	}
	apps, err := s.client().Apps(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fetch := func() error {
		return s.client().Fetch(t.Context(), apps[0], apps[0].Versions[0], NewCache(filepath.Join(string(d), ".download")), dir, ignore)
	}
	if err := fetch(); err == nil {
		t.Fatal("Fetch succeeds; want a cut")
	}
	cut, ranges = false, nil
	if err := fetch(); err != nil {
		t.Fatal(err)
	}
	if len(ranges) != 1 || !strings.HasPrefix(ranges[0], "bytes=") || ranges[0] == "bytes=0-" {
		t.Errorf("the second try asks for %q; want the rest only", ranges)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "apidemo")); !bytes.Equal(got, bin) {
		t.Error("the program is not the store's")
	}
}

func stage(t *testing.T, d Disk, what string) {
	t.Helper()
	dir, err := d.Stage("app")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"app": what, "data": what} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// version is what is current, and fails when it is not whole.
func version(t *testing.T, d Disk) (current, previous string) {
	t.Helper()
	read := func(dir string) string {
		app, err := os.ReadFile(filepath.Join(dir, "app"))
		if errors.Is(err, os.ErrNotExist) {
			return ""
		}
		data, _ := os.ReadFile(filepath.Join(dir, "data"))
		if string(app) != string(data) || readRecord(dir).Build != string(app) {
			t.Errorf("%s is made of %q, %q and %+v", dir, app, data, readRecord(dir))
		}
		return string(app)
	}
	return read(string(d) + "/app"), read(string(d) + "/app/.previous")
}

// A power cut behind any step of any change leaves the old version or the new
// one, whole, and recovering leaves nothing else.
func TestPowerCuts(t *testing.T) {
	install := func(what string) func(Disk) ([]Step, error) {
		return func(d Disk) ([]Step, error) {
			stage(t, d, what)
			return d.PlanInstall("app", Record{Build: what}), nil
		}
	}
	for _, test := range []struct {
		name   string
		before []func(Disk) ([]Step, error)
		change func(Disk) ([]Step, error)
		old    string
		new    string
		kept   string // as previous, when it is done
	}{
		{"first install", nil, install("1"), "", "1", ""},
		{"update", []func(Disk) ([]Step, error){install("1")}, install("2"), "1", "2", "1"},
		{"second update", []func(Disk) ([]Step, error){install("1"), install("2")}, install("3"), "2", "3", "2"},
		{"revert", []func(Disk) ([]Step, error){install("1"), install("2")}, func(d Disk) ([]Step, error) { return d.PlanRevert("app") }, "2", "1", "2"},
		{"remove", []func(Disk) ([]Step, error){install("1")}, func(d Disk) ([]Step, error) { return d.PlanRemove("app"), nil }, "1", "", ""},
	} {
		for cut := 0; ; cut++ {
			d := Disk(t.TempDir())
			for _, b := range test.before {
				if steps, err := b(d); err != nil || Apply(steps) != nil {
					t.Fatal(err)
				}
			}
			steps, err := test.change(d)
			if err != nil {
				t.Fatal(err)
			}
			if cut > len(steps) {
				break
			}
			if err := Apply(steps[:cut]); err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
			current, _ := version(t, d)
			if current != test.old && current != test.new {
				t.Errorf("%s, cut behind step %d: %q is current", test.name, cut, current)
			}
			for range 2 { // recovering may be cut, too, and is then repeated
				steps, err := d.PlanRecover()
				if err != nil || Apply(steps) != nil {
					t.Fatalf("%s: recover: %v", test.name, err)
				}
			}
			current, previous := version(t, d)
			if current != test.old && current != test.new || cut == len(steps) && (current != test.new || previous != test.kept) {
				t.Errorf("%s, cut behind step %d and recovered: %q, before %q", test.name, cut, current, previous)
			}
			if left, _ := filepath.Glob(string(d) + "/.*"); len(left) > 0 {
				t.Errorf("%s, cut behind step %d: %q are left", test.name, cut, left)
			}
		}
	}
}

func TestUpload(t *testing.T) {
	archive := func(names ...string) io.Reader {
		var b bytes.Buffer
		z := zip.NewWriter(&b)
		for _, n := range names {
			w, err := z.Create(n)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(w, n)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return &b
	}
	elf := make([]byte, 64)
	m := machines[Arch()]
	copy(elf, "\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00")
	elf[4], elf[18] = m.class, byte(m.number)
	for _, test := range []struct {
		name    string
		program []byte
		archive io.Reader
		want    string
		room    int64 // besides a GiB
	}{
		{"a program", elf, nil, "", 0},
		{"with files", elf, archive("index.html", "js/a.js"), "", 0},
		{"no program", []byte("#!/bin/sh\necho hello, world\n"), nil, "not a Linux program", 0},
		{"no archive", elf, strings.NewReader("tar"), "zip: not a valid zip file", 0},
		{"a way out", elf, archive("../x"), "escapes", 0},
		{"the program itself", elf, archive("app"), "does not belong", 0},
		{"a hidden file", elf, archive(".version.json"), "does not belong", 0},
		{"twice the same", elf, archive("a", "a"), "exist", 0},
		{"no room", elf, archive("index.html"), "does not fit", -1 << 30},
	} {
		d := Disk(t.TempDir())
		dir, err := d.Stage("app")
		if err != nil {
			t.Fatal(err)
		}
		err = Save(dir, "app", bytes.NewReader(test.program), test.archive, func() int64 { return test.room + 1<<30 })
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: Save() = %v; want %q", test.name, err, test.want)
		}
		if left, _ := filepath.Glob(dir + "/.files*"); len(left) > 0 {
			t.Errorf("%s: %q are left", test.name, left)
		}
	}
}

// What was given up is kept for another try, but not for ever; what is being
// downloaded stays, however long that takes.
func TestClean(t *testing.T) {
	dir := filepath.Join(t.TempDir(), ".download")
	c := NewCache(dir)
	if err := c.Clean(time.Hour); err != nil {
		t.Fatalf("without a folder: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(name string, age time.Duration) {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"old", "slow", "busy", "new"} {
		write(name+".part", map[string]time.Duration{"old": 2 * time.Hour, "busy": 2 * time.Hour}[name])
		write(name+".part.json", map[string]time.Duration{"old": 3 * time.Hour, "slow": 3 * time.Hour, "busy": 3 * time.Hour}[name])
	}
	write("without.part.json", 2*time.Hour)
	release, err := c.use(filepath.Join(dir, "busy.part"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.use(filepath.Join(dir, "busy.part")); err == nil {
		t.Error("two downloads write to one file")
	}
	left := func() string {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	for _, test := range []struct {
		age  time.Duration
		want string
	}{
		{time.Hour, "busy.part busy.part.json new.part new.part.json slow.part slow.part.json"},
		{0, "busy.part busy.part.json"},
	} {
		if err := c.Clean(test.age); err != nil || left() != test.want {
			t.Errorf("Clean(%v) = %v leaves %q; want %q", test.age, err, left(), test.want)
		}
	}
	release()
	if err := c.Clean(time.Hour); err != nil || left() != "" {
		t.Errorf("when the download has ended, Clean = %v leaves %q", err, left())
	}
}

// A program that does not fit makes room among what others have given up.
func TestFetchMakesRoom(t *testing.T) {
	bin := program("one", 300_000)
	s := newStore(t, "", bin)
	s.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, ".bin") {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(maxProgram))
		return true
	}
	d := Disk(t.TempDir())
	cache := NewCache(filepath.Join(string(d), ".download"))
	cache.free = func() (int64, error) { return 1 << 20, nil }
	dir, err := d.Stage("apidemo")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(cache.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(cache.dir, "other-1-x86_64.part")
	if err := os.WriteFile(other, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	apps, err := s.client().Apps(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = s.client().Fetch(t.Context(), apps[0], apps[0].Versions[0], cache, dir, ignore)
	if err == nil || !strings.Contains(err.Error(), "more room is needed") || !strings.Contains(err.Error(), "diskfree") {
		t.Errorf("Fetch() = %v; want that there is no room, and what to do", err)
	}
	if _, err := os.Stat(other); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the other download is still there: %v", err)
	}
}
