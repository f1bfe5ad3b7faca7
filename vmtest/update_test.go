package vmtest_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appplatform/bundle"
	"appplatform/image"
	"appplatform/internal/cache"
	"appplatform/vmtest"
)

// nextLabel is the image that `make test` builds to update to.
const nextLabel = "999999"

// changedPassword is root's during an update.
const changedPassword = "Changed-4-us"

// updateWithin is long enough for a download, two starts and writing sda3.
const updateWithin = 10 * time.Minute

// nextImage is the update file of a board.
func nextImage(t *testing.T, board string) string {
	t.Helper()
	file, err := filepath.Abs(fmt.Sprintf("../out/%[1]s/next/app-platform-%[1]s-%[2]s.update", board, nextLabel))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("cannot find the update: %v\nhint: make next-%s", err, board)
	}
	return file
}

// serveFile offers a file to virtual machines and returns its address there.
func serveFile(t *testing.T, file string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.FileServer(http.Dir(filepath.Dir(file))), ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	// QEMU's user network shows the host's loopback there.
	return fmt.Sprintf("http://10.0.2.2:%d/%s", l.Addr().(*net.TCPAddr).Port, filepath.Base(file))
}

// OS-E1, OS-E2, OS-E5: an update from a web server, with its progress to be read
// meanwhile, and the way back. What was changed on the device stays.
func TestUpdate(t *testing.T) {
	t.Parallel()
	for _, firmware := range []vmtest.Firmware{vmtest.BIOS, vmtest.UEFI} {
		t.Run(string(firmware), func(t *testing.T) {
			t.Parallel()
			disk := installedDisk(t)
			m := start(t, vmtest.Options{Firmware: firmware, Disks: []vmtest.Disk{{Path: disk}}, Watchdog: true})
			expect(t, m, loginPrompt, menuWithin+bootWithin)
			testUpdate(t, m, rootLogin(t, m, rootPassword), "x86_64")
			powerOff(t, m)
			checkDisk(t, disk)
		})
	}
}

// testUpdate takes a running machine to the next image and back.
func testUpdate(t *testing.T, m *vmtest.Machine, r root, board string) {
	t.Helper()
	const password = changedPassword
	changePassword(r, password)
	r.run("echo update-test > /etc/hostname; echo kept > /home/admin/kept; sync")
	r.run(`su postgres -c "psql -d postgres -qc 'create table kept as select i, md5(i::text) m from generate_series(1, 10000) i'"`)
	key := r.run("cat /etc/ssh/ssh_host_ed25519_key.pub")
	before := strings.TrimSpace(r.run("cat /mnt/sda1/label"))

	send(t, m.Serial, "apagent update "+serveFile(t, nextImage(t, board))+"\n")
	expect(t, m, `step \d+ of \d+: restart`, updateWithin)
	expect(t, m, `writing App Platform `+nextLabel+` \(before: `+before, bootWithin)
	testProgress(t, m, nextLabel)
	r = commits(t, m, nextLabel, password)
	r.want("apagent status", "image         "+nextLabel)
	r.want("apagent status", "trial         committed")
	r.want("apagent status", "last update   from "+before+" to "+nextLabel+", committed")
	r.want("cat /mnt/sda1/label", nextLabel)
	r.want("tail -n 1 /apps/install_step1.log", "finished")
	testKept(r, key)

	// The firmware starts the new image from now on.
	send(t, m.Serial, "reboot\n")
	expect(t, m, loginPrompt, offWithin+menuWithin+bootWithin)
	r = rootLogin(t, m, password)
	r.want("apagent status", "image         "+nextLabel)

	send(t, m.Serial, "apagent rollback\n")
	r = commits(t, m, before, password)
	r.want("apagent status", "image         "+before)
	testKept(r, key)
}

// commits waits until an image is the one that starts from now on, and logs in.
// The log's last words may stand behind the prompt.
func commits(t *testing.T, m *vmtest.Machine, label, password string) root {
	t.Helper()
	expect(t, m, `App Platform `+label+` is on trial(?s:.*)the update is committed(?s:.*)finished`, updateWithin)
	send(t, m.Serial, "\n")
	expect(t, m, loginPrompt, commandWithin)
	return rootLogin(t, m, password)
}

// testKept looks for everything that an update leaves alone.
func testKept(r root, key string) {
	r.Helper()
	r.want("cat /etc/hostname /home/admin/kept", "update-test\nkept")
	r.want("cat /etc/ssh/ssh_host_ed25519_key.pub", key)
	r.want(`su postgres -c "psql -d postgres -Atc 'select count(*) from kept where m = md5(i::text)'"`, "10000")
}

// testProgress reads the progress page as a program does.
func testProgress(t *testing.T, m *vmtest.Machine, label string) {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	var err error
	for range 60 {
		var r *http.Response
		if r, err = client.Get("https://" + m.Addr(443) + "/manager/ramdisk.log"); err == nil {
			text, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if !strings.Contains(string(text), "writing App Platform "+label) {
				t.Errorf("the progress page says\n%s", text)
			}
			return
		}
		time.Sleep(500 * time.Millisecond)
	}
	t.Errorf("cannot read the progress page: %v", err)
}

// A new kernel that hangs at once is reset by the watchdog. After three attempts
// the image is given up, and the old one has run in between.
func TestUpdateToADeadKernel(t *testing.T) {
	t.Parallel()
	disk := installedDisk(t)
	m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}, Watchdog: true})
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	rootLogin(t, m, rootPassword)
	send(t, m.Serial, "apagent update "+serveFile(t, deadImage(t))+"\n")
	for range 3 {
		expect(t, m, saysSystem, updateWithin)
	}
	expect(t, m, `image `+nextLabel+` is given up: its ramdisk did not come up in 3 attempts`, bootWithin)
	send(t, m.Serial, "\n")
	expect(t, m, loginPrompt, commandWithin)
	r := rootLogin(t, m, rootPassword)
	r.want("apagent status", "trial         committed")
	r.want("apagent update --status", "not started: its ramdisk did not come up in 3 attempts")
	powerOff(t, m)
	checkInstalled(t, disk)
}

// deadImage is an update whose kernel is damaged where it is packed, and signed
// all the same.
func deadImage(t *testing.T) string {
	t.Helper()
	in, err := os.Open(nextImage(t, "x86_64"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	c, err := cache.Default()
	if err != nil {
		t.Fatal(err)
	}
	private, err := os.ReadFile(c.Path("keys", "development", "image.key"))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := image.DevelopmentKeys(c)
	if err != nil {
		t.Fatal(err)
	}
	u, err := bundle.OpenUpdate(in, keys)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	paths := map[string]string{}
	err = u.Extract(t.Context(), func(f bundle.File) (io.WriteCloser, error) {
		paths[f.Name] = filepath.Join(dir, f.Name)
		return os.Create(paths[f.Name])
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := os.ReadFile(paths[bundle.KernelName])
	if err != nil {
		t.Fatal(err)
	}
	clear(kernel[len(kernel)/2:][:4096])
	if err := os.WriteFile(paths[bundle.KernelName], kernel, 0o644); err != nil {
		t.Fatal(err)
	}
	man := u.Manifest
	if man.Kernel, err = bundle.Describe(bundle.KernelName, paths[bundle.KernelName]); err != nil {
		t.Fatal(err)
	}
	text, err := man.Encode()
	if err != nil {
		t.Fatal(err)
	}
	signature, err := bundle.Sign(private, "", text)
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, "dead.update"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(bundle.WriteUpdate(out, text, signature, paths), out.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}
