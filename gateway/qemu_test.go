package gateway

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"appplatform/internal/browsertest"
	"appplatform/internal/testtools"
	"appplatform/tooltree"
	"appplatform/vmtest"
)

// Limits of what takes a minute and a half under TCG.
const (
	installWithin = 10 * time.Minute
	bootWithin    = 4 * time.Minute
	commandWithin = 2 * time.Minute
)

// builtImage is what `make build` has made for the board.
func builtImage(t *testing.T, board string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts a gateway")
	}
	img, err := filepath.Abs("../out/" + board + "/app-platform-" + board + ".img")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(img); err != nil {
		t.Fatalf("cannot find the image: %v\nhint: make %s", err, board)
	}
	return img
}

// OS-A2, OS-C3, OS-C5, OS-D3, OS-D4, OS-E3, OS-F2: an administrator installs an
// App Platform through the pages, in each of the three ways that they offer,
// and follows the manual's two procedures for one that does not start.
func TestAdministrator(t *testing.T) {
	for _, test := range []struct {
		model, rootfs, data string
		choose              func(u browsertest.User, image string)
		procedures          []func(u browsertest.User, g *Gateway, rootfs, data string)
	}{
		{"IPx10", "/dev/sda3", "/dev/sda2", upload, nil},
		{"IPx11", "/dev/sda3", "/dev/sda2", namePath, []func(browsertest.User, *Gateway, string, string){recoverFileSystem, startsAfterUpdate}},
		{"IPx13", "/dev/nvme0n1p3", "/dev/nvme0n1p2", chooseVersion, []func(browsertest.User, *Gateway, string, string){recoverFileSystem, startsAfterUpdate}},
	} {
		t.Run(test.model, func(t *testing.T) {
			t.Parallel()
			preset, err := FindPreset(test.model)
			if err != nil {
				t.Fatal(err)
			}
			image := builtImage(t, preset.Board)
			g, err := Open(context.Background(), Options{Preset: preset, Dir: t.TempDir(), Store: serveStore(t, preset.Name, image),
				Tools: testtools.Open(t, tooltree.Gateway), Log: func(line string) { t.Log(line) }})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(g.Close)
			server := httptest.NewServer(g.Handler(""))
			t.Cleanup(server.Close)
			u := browsertest.Open(t, browsertest.Options{
				Base: server.URL, Pictures: "../out/gateway-pictures", Name: test.model, Files: []string{filepath.Dir(image)},
			})
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("the console ends with:\n%s", g.Console())
				}
			})
			install(u, g, func() { test.choose(u, image) }, test.rootfs)
			for _, follow := range test.procedures {
				follow(u, g, test.rootfs, test.data)
			}
		})
	}
}

// serveStore serves the image as a store does, beside a version that is gone.
func serveStore(t *testing.T, device, image string) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/linux.json", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"platforms": [{"id": "p", "file": "old/gone.img", "version": "159999"}, {"id": "p", "file": "new/platform.img", "version": "160001"}],
			"devices": [{"id": %q, "platforms": ["p"]}]}`, device)
	})
	mux.HandleFunc("/new/platform.img", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, image) })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL + "/linux.json"
}

func upload(u browsertest.User, image string) {
	u.Helper()
	u.Do(chromedp.SetUploadFiles("#file", []string{image}, chromedp.ByQuery))
	u.Press("Upload and install")
}

func namePath(u browsertest.User, image string) {
	u.Helper()
	u.Fill("path", image)
	u.Press("Install")
}

// chooseVersion takes the one that is gone first: the page says so, and the
// next one is installed all the same.
func chooseVersion(u browsertest.User, _ string) {
	u.Helper()
	for _, c := range []struct{ label, see string }{{"159999", "404 Not Found"}, {"160001", "MB"}} {
		var ok bool
		u.Do(chromedp.Evaluate(fmt.Sprintf(`[...document.getElementById("version").options].some(o => o.label == %q && (o.selected = true))`, c.label), &ok))
		if !ok {
			u.Fatalf("the page offers no version %s", c.label)
		}
		u.Press("Install")
		u.See("#progress", c.see, time.Minute)
	}
}

// install is the manual's "ARM Gateway": the App Platform is enabled, its
// address set and the image named; "the installation runs without any further
// required step".
func install(u browsertest.User, g *Gateway, choose func(), rootfs string) {
	u.Helper()
	u.Open("general")
	u.Do(chromedp.Click(`input[name=enabled]`, chromedp.ByQuery))
	u.Press("OK")
	u.See("#state", "no image installed", time.Second)
	u.Open("ip")
	u.Fill("address", "10.0.2.15")
	u.Fill("mask", "255.255.255.0")
	u.Fill("gateway", "10.0.2.2")
	u.Fill("dns1", "10.0.2.3")
	u.Press("OK")
	u.Picture("ip")
	u.Open("installation")
	choose()
	u.See("#progress", "Done: [0-9.]+ MB", time.Minute)
	u.See("#log", "the App Platform sets the Kernel command line to root="+rootfs, installWithin)
	u.Picture("installation")
	u.Open("general")
	u.See("#console", "App Platform on(?s:.*)login: $", bootWithin)
	if got := u.Value("cmdline"); got != "root="+rootfs {
		u.Errorf("the Kernel command line is %q after the installation; want root=%s", got, rootfs)
	}
	u.Picture("general")
	s := ssh(u.T, g)
	want(u.T, s, "cat /proc/mounts /proc/cmdline", "root="+rootfs)
	want(u.T, s, "ip route", "default via 10.0.2.2")
	want(u.T, s, "tail -n 1 /apps/install_step1.log", "finished")
	asRoot(u.T, s, "psql -At -d postgres -c 'select 6*7'", `(?m)^42`)
}

// recoverFileSystem is "How to recover from a broken File System / Gateway".
func recoverFileSystem(u browsertest.User, g *Gateway, rootfs, data string) {
	u.Helper()
	u.Open("general")
	u.Press("Stop")
	u.See("#state", "stopped", time.Second)
	u.Fill("cmdline", "root=/dev/ram0")
	u.Fill("initrd", "ramdisk.ext2.xz")
	u.Fill("ramdisk_size", "100000")
	u.Press("Start")
	u.See("#console", "Press a key here or log in over SSH", bootWithin)
	s := ssh(u.T, g) // and no key: somebody is logged in, so it stays
	asRoot(u.T, s, "e2fsck -p -f "+data+"; echo code $?", `code [01]\b`)
	asRoot(u.T, s, "e2fsck -p -f "+rootfs+"; echo code $?", `code [01]\b`)
	u.Open("general")
	u.Press("Stop")
	u.Fill("cmdline", "root="+rootfs)
	u.Fill("initrd", "")
	u.Fill("ramdisk_size", "")
	u.Press("Start")
	want(u.T, ssh(u.T, g), "cat /proc/cmdline", "root="+rootfs)
}

// startsAfterUpdate is "App Platform doesn't start after an update / Gateway",
// with the other way to write the root: nothing is pending and nobody there, so
// that it starts the old image and "automatically change[s] the Kernel command
// line value".
func startsAfterUpdate(u browsertest.User, g *Gateway, rootfs, _ string) {
	u.Helper()
	u.Open("general")
	u.Press("Shutdown")
	u.See("#state", "stopped", bootWithin)
	u.Open("general")
	u.Press("Stop")
	u.Fill("cmdline", "/dev/ram0")
	u.Fill("initrd", "ramdisk.ext2.xz")
	u.Fill("ramdisk_size", "100000")
	u.Press("Start")
	u.See("#console", "Press a key here", bootWithin)
	began := time.Now()
	u.Open("installation") // where the log is
	// A manual's e2fsck has left its time on sda3, which is written again first.
	u.See("#log", "(?s)sets the Kernel command line.*sets the Kernel command line to root="+rootfs, installWithin)
	if took := time.Since(began); took < 50*time.Second {
		u.Errorf("the rescue system waited only %v", took)
	}
	want(u.T, ssh(u.T, g), "cat /proc/cmdline", "root="+rootfs)
	u.Open("general")
	if got := u.Value("cmdline"); got != "root="+rootfs {
		u.Errorf("the Kernel command line is %q; want root=%s", got, rootfs)
	}
}

// ssh logs in as admin as soon as the platform lets in.
func ssh(t *testing.T, g *Gateway) *vmtest.SSH {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootWithin)
	defer cancel()
	for ctx.Err() == nil {
		if port := g.Status().SSH; port != 0 {
			s, err := vmtest.DialSSH(ctx, net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), "admin", "ipapps")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return s
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatal("the App Platform does not run")
	return nil
}

func want(t *testing.T, s *vmtest.SSH, command, part string) {
	t.Helper()
	if out, err := s.Run(command, "", commandWithin); err != nil || !strings.Contains(out, part) {
		t.Errorf("%s prints\n%s, %v; want %q", command, out, err, part)
	}
}

// asRoot does what people do in their SSH window.
func asRoot(t *testing.T, s *vmtest.SSH, command, pattern string) {
	t.Helper()
	shell, err := s.Shell()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct{ send, see string }{
		{"su - root\n", `assword:`}, {"iplinux\n", `# $`}, {command + "\n", pattern}, {"exit\nexit\n", ""},
	} {
		if err := shell.Send(step.send); err != nil {
			t.Fatal(err)
		}
		if _, err := shell.Expect(step.see, commandWithin); err != nil {
			t.Fatal(err)
		}
	}
}
