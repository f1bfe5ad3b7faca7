package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
)

// image is a file like app-platform-BOARD.img, made by other tools than the
// builder's.
func image(t *testing.T, board string) string {
	t.Helper()
	dir := t.TempDir()
	out := filepath.Join(dir, "app-platform-"+board+".img")
	table := partitions.Factory(partitions.MBR, 4*partitions.GiB)
	boot, _ := table.Part(partitions.Boot)
	writes, err := table.Writes(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(out, writes[0].Data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(out, int64(boot.End())); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"extlinux/extlinux.conf": sample, "b/kernel": "kernel", "b/ramdisk.ext2.xz": strings.Repeat("ramdisk", 4463),
		"a/kernel": "other kernel", "b/manifest.json": fmt.Sprintf(`{"board": %q, "label": "160002"}`, board),
	}
	commands := [][]string{{"mkfs.vfat", "-F", "32", "-s", "4", fmt.Sprintf("--offset=%d", boot.Start/partitions.Sector), out, fmt.Sprint(int64(boot.Size / partitions.KiB))}}
	at := fmt.Sprintf("%s@@%d", out, boot.Start)
	for _, d := range []string{"extlinux", "a", "b"} {
		commands = append(commands, []string{"mmd", "-i", at, "::/" + d})
	}
	for name, text := range files {
		from := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(from, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		commands = append(commands, []string{"mcopy", "-i", at, from, "::/" + name})
	}
	for _, args := range commands {
		tool(t, dir, args...)
	}
	return out
}

func tool(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := testtools.Open(t, tooltree.Image).Output(t.Context(), tooltree.Cmd{Args: args, Writable: []string{dir}, Env: []string{"MTOOLS_SKIP_CHECK=1"}})
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// The firmware's change of DEFAULT is one of a few bytes in place, which other
// tools see, and leaves the file system whole.
func TestCardSetDefault(t *testing.T) {
	disk := image(t, "armel")
	before, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	c, err := openCard(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := c.read("/b/ramdisk.ext2.xz"); err != nil || string(b) != strings.Repeat("ramdisk", 4463) {
		t.Errorf("read() = %d bytes, %v", len(b), err)
	}
	if !c.exists("/b/kernel") || c.exists("/b/kernal") {
		t.Error("exists() does not tell /b/kernel from /b/kernal")
	}
	if err := c.setDefault("rescue-b"); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if want := bytes.Replace(before, []byte("DEFAULT normal-b"), []byte("DEFAULT rescue-b"), 1); !bytes.Equal(after, want) {
		t.Error("something else than the word has changed")
	}
	if got := tool(t, filepath.Dir(disk), "mtype", "-i", disk+"@@1048576", "::/extlinux/extlinux.conf"); !strings.Contains(got, "DEFAULT rescue-b\n") {
		t.Errorf("mtype prints %q", got)
	}
}

func opened(t *testing.T, model string) *Gateway {
	t.Helper()
	p, err := FindPreset(model)
	if err != nil {
		t.Fatal(err)
	}
	g, err := Open(t.Context(), Options{Preset: p, Dir: t.TempDir(), Tools: testtools.Open(t, tooltree.Gateway), Log: func(line string) { t.Log(line) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

func enable(t *testing.T, g *Gateway) {
	t.Helper()
	if err := g.Save(Settings{Enabled: true}); err != nil {
		t.Fatal(err)
	}
}

func installed(t *testing.T, g *Gateway) Progress {
	t.Helper()
	for range 600 {
		if p := g.Status().Installed; p != nil && p.Done {
			return *p
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("the installation does not end")
	return Progress{}
}

// What is no image for this gateway is refused by name, and the one on the disk
// stays.
func TestInstallRefuses(t *testing.T) {
	g := opened(t, "IPx11")
	if err := g.Install("/nowhere.img"); err == nil || !strings.Contains(err.Error(), "not enabled") {
		t.Errorf("Install() while it is not enabled = %v", err)
	}
	enable(t, g)
	if err := g.Install(image(t, "armel")); err != nil {
		t.Fatal(err)
	}
	if p := installed(t, g); p.Err != "" {
		t.Fatalf("installing an image: %s", p.Err)
	}
	g.Stop()
	if info, err := os.Stat(g.Disk()); err != nil || info.Size() != int64(g.opts.Preset.Disk) {
		t.Errorf("the disk has %v, %v; want %v", info.Size(), err, g.opts.Preset.Disk)
	}
	before := head(t, g.Disk())

	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, err := os.ReadFile(image(t, "armel"))
	if err != nil {
		t.Fatal(err)
	}
	writes, err := partitions.Factory(partitions.GPT, 16*partitions.GiB).GPTWrites(nil)
	if err != nil {
		t.Fatal(err)
	}
	gpt := make([]byte, 2<<20)
	for _, w := range writes {
		if int(w.Offset) < len(gpt) {
			copy(gpt[w.Offset:], w.Data)
		}
	}
	notFound := httptest.NewServer(http.NotFoundHandler())
	defer notFound.Close()
	for _, test := range []struct{ name, source, want string }{
		{"missing", "/nowhere.img", "no such file"},
		{"folder", dir, "is not a file"},
		{"address", notFound.URL + "/x.img", "404 Not Found"},
		{"text", file("text", bytes.Repeat([]byte("hello\n"), 1<<20)), "not the image of a gateway"},
		{"short", file("short", good[:4096]), "it ends after 4096 bytes"},
		{"cut off", file("cut", good[:1<<20+4096]), "cannot read the boot partition"},
		{"virtual machine", file("gpt", gpt), "of a virtual machine\nhint: take app-platform-armel.img"},
		{"other board", image(t, "arm64"), "is for arm64, and an IPx11 needs armel"},
	} {
		err := g.Install(test.source)
		if err == nil {
			err = fmt.Errorf("%s", installed(t, g).Err)
		}
		if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Install() = %v; want %q", test.name, err, test.want)
		}
		if !bytes.Equal(head(t, g.Disk()), before) {
			t.Fatalf("%s: the disk was changed", test.name)
		}
	}
	checkNothingLeft(t, g)
}

// A download that hangs can be canceled, and the disk is as it was.
func TestCancel(t *testing.T) {
	g := opened(t, "IPx11")
	if err := g.Cancel(); err == nil || !strings.Contains(err.Error(), "no installation is running") {
		t.Errorf("Cancel() of nothing = %v", err)
	}
	enable(t, g)
	good, err := os.ReadFile(image(t, "armel"))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(good)))
		_, _ = w.Write(good[:2<<20])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	defer server.Close()
	if err := g.Install(server.URL + "/x.img"); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if g.Status().Installed.Copied >= 2<<20 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if p := g.Status().Installed; p.Copied != 2<<20 || p.Total != int64(len(good)) {
		t.Errorf("the installation is at %d of %d bytes; want %d of %d", p.Copied, p.Total, 2<<20, len(good))
	}
	if err := g.Install("/other.img"); !errors.Is(err, errBusy) {
		t.Errorf("a second installation = %v; want %v", err, errBusy)
	}
	if err := g.Cancel(); err != nil {
		t.Fatal(err)
	}
	if p := installed(t, g); p.Err != errCanceled.Error() {
		t.Errorf("the canceled installation says %q", p.Err)
	}
	checkNothingLeft(t, g)
	if s := g.Status().State; s != Empty {
		t.Errorf("the gateway is %q; want %q", s, Empty)
	}
}

// Two on one disk would destroy it; one that was killed leaves no rubbish.
func TestOpenTakesTheFolder(t *testing.T) {
	g := opened(t, "IPx11")
	if _, err := Open(t.Context(), g.opts); err == nil || !strings.Contains(err.Error(), "belongs to one that runs\nhint: give this one another folder (--dir)") {
		t.Errorf("Open() of a folder in use = %v", err)
	}
	g.Close()
	if err := os.WriteFile(g.path("upload123.part"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := Open(t.Context(), g.opts)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	checkNothingLeft(t, again)
}

// A second gateway beside the first finds the ports taken, and says what to do.
func TestPortInUse(t *testing.T) {
	g := opened(t, "IPx11")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	g.opts.SSH = taken.Addr().(*net.TCPAddr).Port
	enable(t, g)
	if err := g.Install(image(t, "armel")); err != nil {
		t.Fatal(err)
	}
	if p := installed(t, g); p.Err != "" {
		t.Fatal(p.Err)
	}
	for range 100 {
		if log := strings.Join(g.Status().Log, "\n"); strings.Contains(log, "the App Platform has stopped") {
			if !strings.Contains(log, "address already in use\nhint: another gateway may use it: --ssh 0") {
				t.Errorf("the log is\n%s", log)
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("the gateway runs with a port that another has")
}

// A full disk of the host is noticed before the gateway's disk is touched.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount a small disk")
	}
	source := image(t, "armel")
	info, err := os.Stat(source)
	if err != nil {
		t.Fatal(err)
	}
	for want, room := range map[string]int64{
		"cannot keep the image: ": info.Size() / 2,
		"cannot write ":           info.Size() * 3 / 2,
	} {
		t.Run(want, func(t *testing.T) {
			g := opened(t, "IPx11")
			dir := t.TempDir()
			if err := unix.Mount("small", dir, "tmpfs", 0, fmt.Sprintf("size=%d", room)); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			g.opts.Dir = dir
			enable(t, g)
			before := bytes.Repeat([]byte("disk"), 4096)
			if err := os.WriteFile(g.Disk(), before, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := g.Install(source); err != nil {
				t.Fatal(err)
			}
			if p := installed(t, g); !strings.Contains(p.Err, want) || !strings.Contains(p.Err, "no space left on device\nhint: make room there") {
				t.Errorf("the installation says %q; want %q", p.Err, want)
			}
			checkNothingLeft(t, g)
			if b, err := os.ReadFile(g.Disk()); err != nil || !bytes.Equal(b, before) {
				t.Errorf("the disk was changed (%v)", err)
			}
		})
	}
}

func checkNothingLeft(t *testing.T, g *Gateway) {
	t.Helper()
	if left, _ := filepath.Glob(g.path(uploads)); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func head(t *testing.T, path string) []byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 4<<20)
	if _, err := io.ReadFull(f, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// The pages without a browser: what is typed wrong is shown again with the
// reason, and pages of others cannot press buttons.
func TestPages(t *testing.T) {
	g := opened(t, "IPx10")
	server := httptest.NewServer(g.Handler("secret"))
	defer server.Close()
	ask := func(method, path, body string, header ...string) (int, string) {
		t.Helper()
		req, err := http.NewRequest(method, server.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("", "secret")
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(text)
	}
	form := func(pairs ...string) string {
		v := url.Values{}
		for i := 0; i < len(pairs); i += 2 {
			v.Set(pairs[i], pairs[i+1])
		}
		return v.Encode()
	}
	for _, page := range []string{"/", "/general", "/ip", "/installation"} {
		if code, text := ask("GET", page, ""); code != 200 || !strings.Contains(text, "IPx10") {
			t.Errorf("GET %s = %d", page, code)
		}
		if code, _ := ask("GET", page, "", "Authorization", "Basic eDp4"); code != 401 {
			t.Errorf("GET %s with another password = %d; want 401", page, code)
		}
	}
	if code, text := ask("POST", "/general", form("do", "save", "enabled", "on", "cmdline", "root=/dev/ram0", "ramdisk_size", "<100 MB>")); code != 422 ||
		!strings.Contains(text, "Ramdisk size: &#34;&lt;100 MB&gt;&#34;") || !strings.Contains(text, `value="&lt;100 MB&gt;"`) || !strings.Contains(text, "takes 100000") {
		t.Errorf("a wrong ramdisk size = %d\n%s", code, text)
	}
	if g.Status().Settings != (Settings{}) {
		t.Errorf("refused settings were kept: %+v", g.Status().Settings)
	}
	if code, _ := ask("POST", "/general", form("do", "save", "enabled", "on"), "Origin", "http://evil.example", "Sec-Fetch-Site", "cross-site"); code != 403 {
		t.Errorf("a button on another site = %d; want 403", code)
	}
	if code, text := ask("POST", "/general", form("do", "start")); code != 422 || !strings.Contains(text, "tick Enable Linux Support") {
		t.Errorf("start while disabled = %d\n%s", code, text)
	}
	ask("POST", "/general", form("do", "save", "enabled", "on"))
	ask("POST", "/ip", form("address", " 10.0.2.20 ", "mask", "255.255.255.0"))
	if s := g.Status(); !s.Settings.Enabled || s.Settings.IP.Address != "10.0.2.20" || s.State != Empty {
		t.Errorf("the gateway is %+v", s)
	}
	if code, text := ask("POST", "/general", form("do", "start", "enabled", "on")); code != 422 || !strings.Contains(text, "install one on the page Installation") {
		t.Errorf("start without an image = %d\n%s", code, text)
	}

	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	part, _ := w.CreateFormFile("file", "x.img")
	fmt.Fprint(part, "not an image")
	w.Close()
	if code, text := ask("POST", "/installation", body.String(), "Content-Type", w.FormDataContentType()); code != 422 || !strings.Contains(text, "it ends after 12 bytes") {
		t.Errorf("an upload of text = %d\n%s", code, text)
	}
}

// The store's list may lie on a server or in a folder.
func TestVersions(t *testing.T) {
	dir := t.TempDir()
	const list = `{
		"platforms": [
			{"id": "arm", "text": "App Platform", "file": "old.img", "version": "160001", "zip2": "unknown"},
			{"id": "arm", "text": "App Platform", "file": "app-platform-armel.img", "update": "app-platform-armel-160002.update", "version": "160002"},
			{"id": "arm64", "file": "app-platform-arm64.img", "version": "160002"}],
		"devices": [{"id": "IPx13", "platforms": ["arm64"]}, {"id": "IPx11", "platforms": ["arm"]}]}`
	if err := os.WriteFile(filepath.Join(dir, "linux.json"), []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	g := &Gateway{}
	g.opts.Preset = Presets[0]
	for store, want := range map[string]string{
		server.URL + "/linux.json":       server.URL + "/app-platform-armel.img",
		filepath.Join(dir, "linux.json"): filepath.Join(dir, "app-platform-armel.img"),
	} {
		g.opts.Store = store
		got, err := g.Versions(t.Context())
		if err != nil || len(got) != 2 || got[0] != (Version{"160002", want}) {
			t.Errorf("Versions() of %s = %v, %v; want %s", store, got, err, want)
		}
	}
	g.opts.Store = filepath.Join(dir, "gone.json")
	if _, err := g.Versions(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot read the store") {
		t.Errorf("Versions() of nothing = %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "page.json"), []byte("<html>"), 0o644); err != nil {
		t.Fatal(err)
	}
	g.opts.Store = filepath.Join(dir, "page.json")
	if _, err := g.Versions(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot read the list of images") {
		t.Errorf("Versions() of a page = %v", err)
	}
}
