package vmtest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"appplatform/bundle"
	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
	"appplatform/vmtest"
)

// The tests here start the image that `make build` has made. TCG on a slow
// core takes these times; the limits allow for four times as much.
const (
	menuWithin    = 60 * time.Second // 4 s
	installWithin = 8 * time.Minute  // 70 s
	bootWithin    = 4 * time.Minute  // 12 s, the first time 25 s
	commandWithin = 2 * time.Minute
	offWithin     = time.Minute
)

// What a login and the menu say.
const (
	loginPrompt = `login: $`
	saysRescue  = "Booting `rescue/setup'"
	saysSystem  = "Booting `App Platform'"
)

// factoryImage is the built image; without one there is nothing to test.
func factoryImage(t *testing.T) string { return builtImage(t, "x86_64") }

func builtImage(t *testing.T, board string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("starts virtual machines")
	}
	img, err := filepath.Abs(fmt.Sprintf("../out/%[1]s/app-platform-%[1]s.img", board))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(img); err != nil {
		t.Fatalf("cannot find the image: %v\nhint: make %s", err, board)
	}
	return img
}

// logDir is where the serial log of a test stays, for a look after a failure.
func logDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("../out/vmtest", strings.ReplaceAll(t.Name(), "/", "-")))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start starts a machine that ends with the test, whatever happens.
func start(t *testing.T, o vmtest.Options) *vmtest.Machine {
	t.Helper()
	if o.Tools = testtools.Open(t, tooltree.VM); o.Arch != "" && o.Arch != vmtest.X86 {
		o.Tools = testtools.Open(t, tooltree.Gateway)
	}
	if o.Dir == "" {
		o.Dir = logDir(t)
	}
	o.Forward = map[int]int{22: 0, 443: 0}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	m, err := vmtest.Start(ctx, o)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Kill()
		cancel()
		if t.Failed() {
			t.Logf("%s ends with:\n%s", m.SerialLog(), m.Serial.Tail(40))
		}
	})
	return m
}

// expect waits for something on the serial console.
func expect(t *testing.T, m *vmtest.Machine, pattern string, within time.Duration) {
	t.Helper()
	if _, err := m.Serial.Expect(pattern, within); err != nil {
		t.Fatal(err)
	}
}

// login logs in over SSH as admin.
func login(t *testing.T, m *vmtest.Machine) *vmtest.SSH {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootWithin)
	defer cancel()
	s, err := vmtest.DialSSH(ctx, m.Addr(22), "admin", "ipapps")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// powerOff presses the power button and waits.
func powerOff(t *testing.T, m *vmtest.Machine) {
	t.Helper()
	if err := m.PowerButton(); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitFor(offWithin); err != nil {
		t.Fatal(err)
	}
}

// newDisk copies an image to a disk of this test.
func newDisk(t *testing.T, from string, size partitions.Size) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "disk.img")
	if err := vmtest.CopyDisk(to, from, size); err != nil {
		t.Fatal(err)
	}
	return to
}

var installedOnce struct {
	sync.Mutex
	disk   string
	failed bool
}

// installedDisk is an installed disk of 16 GiB, switched off cleanly after its
// first start. It is made once for all tests, which work on copies.
func installedDisk(t *testing.T) string {
	t.Helper()
	img := factoryImage(t)
	installedOnce.Lock()
	defer installedOnce.Unlock()
	if installedOnce.failed {
		t.Fatal("cannot install the disk for this test; see the first test that failed")
	}
	if installedOnce.disk == "" {
		installedOnce.failed = true // until it is not
		disk := filepath.Join(sharedDir, "installed.img")
		if err := vmtest.CopyDisk(disk, img, 16*partitions.GiB); err != nil {
			t.Fatal(err)
		}
		m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}})
		expect(t, m, saysSystem, installWithin)
		expect(t, m, loginPrompt, bootWithin)
		powerOff(t, m)
		installedOnce.disk, installedOnce.failed = disk, false
	}
	return newDisk(t, installedOnce.disk, 0)
}

// sharedDir outlives single tests.
var sharedDir string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "vmtest")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		sharedDir = dir
		return m.Run()
	}())
}

// judge runs a tool of the tool tree on a disk and returns what it prints.
func judge(t *testing.T, disk string, args ...string) string {
	t.Helper()
	out, err := testtools.Open(t, tooltree.Image).Output(t.Context(), tooltree.Cmd{Args: args, ReadOnly: []string{filepath.Dir(disk)}})
	if err != nil {
		t.Errorf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// on names a partition of a disk for e2fsprogs.
func on(disk string, p partitions.Partition) string {
	return fmt.Sprintf("%s?offset=%d", disk, p.Start)
}

// readTable reads the partition table of a disk.
func readTable(t *testing.T, disk string) partitions.Table {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	head := make([]byte, partitions.HeadSize)
	if _, err := io.ReadFull(f, head); err != nil {
		t.Fatal(err)
	}
	table, err := partitions.Read(head)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// checkTable wants a disk divided as an installed one of its size is.
func checkTable(t *testing.T, disk string, scheme partitions.Scheme) partitions.Table {
	t.Helper()
	info, err := os.Stat(disk)
	if err != nil {
		t.Fatal(err)
	}
	want, err := partitions.Layout(scheme, partitions.Size(info.Size()))
	if err != nil {
		t.Fatal(err)
	}
	got := readTable(t, disk)
	// An MBR does not say how large the disk is.
	if scheme == partitions.GPT && got.DiskSize != want.DiskSize || len(got.Parts) != len(want.Parts) {
		t.Fatalf("the disk is divided as %+v; want %+v", got, want)
	}
	for i, p := range got.Parts {
		if w := want.Parts[i]; p.Number != w.Number || p.Start != w.Start || p.Size != w.Size || p.Type != w.Type {
			t.Errorf("partition %+v; want %+v", p, w)
		}
	}
	return got
}

// checkParts judges the table of a disk, sda1 and sda2 with other people's tools.
func checkParts(t *testing.T, disk string, scheme partitions.Scheme) partitions.Table {
	t.Helper()
	got := checkTable(t, disk, scheme)
	boot, _ := got.Part(partitions.Boot)
	data, _ := got.Part(partitions.Data)
	judge(t, disk, "e2fsck", "-f", "-n", on(disk, data))
	if scheme == partitions.GPT {
		if out := judge(t, disk, "sgdisk", "-v", disk); !strings.Contains(out, "No problems found") {
			t.Errorf("sgdisk says\n%s", out)
		}
		judge(t, disk, "e2fsck", "-f", "-n", on(disk, boot))
		return got
	}
	if out := judge(t, disk, "sfdisk", "--verify", disk); !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk says\n%s", out)
	}
	sda1 := filepath.Join(t.TempDir(), "sda1")
	if err := copyPart(sda1, disk, boot); err != nil {
		t.Fatal(err)
	}
	judge(t, sda1, "fsck.fat", "-n", sda1)
	return got
}

// checkInstalled judges a disk that was switched off after an installation.
func checkInstalled(t *testing.T, disk string) {
	t.Helper()
	checkRootfs(t, disk, checkDisk(t, disk))
}

// checkDisk judges all but sda3 and returns how the disk is divided. OS-B2,
// OS-B3, OS-C2, OS-C4, OS-D2, OS-E2.
func checkDisk(t *testing.T, disk string) partitions.Table {
	t.Helper()
	got := checkParts(t, disk, partitions.GPT)
	boot, _ := got.Part(partitions.Boot)
	data, _ := got.Part(partitions.Data)
	if boot.UUID == partitions.FactoryBootUUID {
		t.Error("sda1 still has the UUID of every image")
	}
	if label := readBoot(t, disk, boot, "/label"); !isLabel(label) {
		t.Errorf("/label of sda1 is %q; want six digits", label)
	}
	if cfg := readBoot(t, disk, boot, "/boot/grub/grub.cfg"); !strings.Contains(cfg, "\nset default=1\n") {
		t.Error("grub.cfg does not start the installed system")
	}
	checkLog(t, disk, data)
	return got
}

// checkLog wants the log of a complete installation on sda2 (OS-C4).
func checkLog(t *testing.T, disk string, data partitions.Partition) {
	t.Helper()
	log := strings.TrimRight(judge(t, disk, "debugfs", "-R", "cat /apps/install_step1.log", on(disk, data)), "\n")
	if last := log[strings.LastIndexByte(log, '\n')+1:]; last != "finished" {
		t.Errorf("the last line of install_step1.log is %q; want finished", last)
	}
}

func isLabel(s string) bool {
	digits := strings.TrimSuffix(s, "\n")
	return len(digits) == 6 && strings.Trim(digits, "0123456789") == ""
}

// readBoot returns a file of sda1.
func readBoot(t *testing.T, disk string, boot partitions.Partition, name string) string {
	t.Helper()
	if boot.Type == partitions.TypeMBRFAT32 {
		return judge(t, disk, "mtype", "-i", fmt.Sprintf("%s@@%d", disk, boot.Start), "::"+name)
	}
	return judge(t, disk, "debugfs", "-R", "cat "+name, on(disk, boot))
}

// checkRootfs compares sda3 with what the manifest says, byte for byte.
func checkRootfs(t *testing.T, disk string, table partitions.Table) {
	t.Helper()
	boot, _ := table.Part(partitions.Boot)
	part, _ := table.Part(partitions.Rootfs)
	text := readBoot(t, disk, boot, "/a/manifest.json")
	var manifest bundle.Manifest
	if err := json.Unmarshal([]byte(text), &manifest); err != nil {
		t.Fatalf("cannot read the manifest on sda1: %v", err)
	}
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	set := bundle.Set{Manifest: manifest}
	if err := set.Compare(t.Context(), io.NewSectionReader(f, int64(part.Start), int64(part.Size)), func(_, _ int64) {}); err != nil {
		t.Errorf("sda3 is not the system of the image: %v", err)
	}
}
