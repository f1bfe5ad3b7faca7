package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"appplatform/agent/internal/block"
	"appplatform/bundle"
	"appplatform/internal/run"
	"appplatform/partitions"
)

// A testMachine is a folder with a disk as a sparse file and the part of /sys
// that describes it. Partitions are files of their own, made when the kernel
// is told of them, and sda1 and sda2 are folders when they are mounted.
type testMachine struct {
	Machine
	t       *testing.T
	disk    string
	out     bytes.Buffer
	mounted map[string]string
	events  []string
	// powerCut makes every event from this one on fail; 0 never. The event
	// itself has its effect if late is set.
	powerCut int
	late     bool
	// hard makes a power cut end everything at once, and lets it fall between
	// two lines of the log, too.
	hard     bool
	rebooted bool
	raw      []byte

	loaded  *loadedKernel
	started *loadedKernel   // by kexec, when rebooted
	sick    bool            // the database does not answer
	size    partitions.Size // of sda2; what is on it takes as much as it is long
}

// A loadedKernel is what kexec starts.
type loadedKernel struct{ kernel, ramdisk, arguments string }

var errPower = errors.New("the power is off")

// event notes what the machine is asked to do and does it, unless the power
// is off.
func (m *testMachine) event(do func() error, format string, args ...any) error {
	m.events = append(m.events, fmt.Sprintf(format, args...))
	n := len(m.events)
	if m.powerCut > 0 && (n > m.powerCut || n == m.powerCut && !m.late) {
		return m.off()
	}
	if err := do(); err != nil {
		return err
	}
	if n == m.powerCut {
		return m.off()
	}
	return nil
}

func (m *testMachine) off() error {
	if !m.hard {
		return errPower
	}
	if last := m.events[len(m.events)-1]; strings.Contains(last, ": write the system to") {
		// The step has begun: sda3 is neither what it was nor what it will be.
		path, _ := m.part(partitions.Rootfs)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		must(m.t, err)
		_, err = f.WriteAt([]byte("half written"), 4096)
		must(m.t, errors.Join(err, f.Close()))
	}
	panic(errPower)
}

// Write is the console.
func (m *testMachine) Write(b []byte) (int, error) {
	// How far a step is comes from its own goroutines, and not always.
	if m.hard && !bytes.HasPrefix(b, []byte("  ")) {
		_ = m.event(func() error { return nil }, "log %s", strings.TrimSpace(string(b)))
	}
	return m.out.Write(b)
}

func (m *testMachine) Load(kernel, ramdisk, arguments string) error {
	return m.event(func() error {
		for _, name := range []string{kernel, ramdisk} {
			if _, err := os.Stat(name); name != "" && err != nil {
				return err
			}
		}
		m.loaded = &loadedKernel{kernel, ramdisk, arguments}
		return nil
	}, "load %s", strings.TrimPrefix(kernel, m.Root))
}

func (m *testMachine) StartLoaded() error {
	return m.event(func() error {
		m.rebooted, m.started = true, m.loaded
		return nil
	}, "start the loaded kernel")
}

func (m *testMachine) HasAddress() bool { return true }

func (m *testMachine) part(number int) (path, sys string) {
	d := block.Disk{Name: m.disk}
	return m.path("dev/" + d.PartName(number)), m.path("sys/class/block/" + d.PartName(number))
}

func (m *testMachine) Add(_ *os.File, p partitions.Partition) error {
	return m.event(func() error {
		path, sys := m.part(p.Number)
		writeFiles(m.t, sys, map[string]string{
			"partition": fmt.Sprint(p.Number),
			"start":     fmt.Sprint(int64(p.Start / partitions.Sector)),
			"size":      fmt.Sprint(int64(p.Size / partitions.Sector)),
		})
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Truncate(int64(p.Size))
	}, "add %d", p.Number)
}

func (m *testMachine) Resize(f *os.File, p partitions.Partition) error { return m.Add(f, p) }

func (m *testMachine) Delete(_ *os.File, number int) error {
	return m.event(func() error {
		path, sys := m.part(number)
		return errors.Join(os.RemoveAll(sys), os.Remove(path))
	}, "delete %d", number)
}

// badStick is the label of a file system that cannot be mounted.
const badStick = "BROKEN"

const (
	msRemount = 0x20
	msBind    = 0x1000
)

func (m *testMachine) Mount(source, target, fstype string, flags uintptr, data string) error {
	what := strings.TrimSpace(fmt.Sprintf("%s %s", fstype, data))
	switch {
	case flags&msRemount != 0:
		what = fmt.Sprintf("remount %#x", flags&^uintptr(msRemount|unix.MS_SYNCHRONOUS|unix.MS_DIRSYNC))
	case flags&msBind != 0:
		what = "bind"
	}
	if flags&(unix.MS_SYNCHRONOUS|unix.MS_DIRSYNC) == unix.MS_SYNCHRONOUS|unix.MS_DIRSYNC {
		what += " sync"
	}
	if flags&(msRemount|unix.MS_RDONLY) == unix.MS_RDONLY {
		what += " ro"
	}
	source = strings.TrimPrefix(source, m.Root)
	return m.event(func() error {
		if flags&msRemount != 0 {
			return nil
		}
		if target == "/"+mediaDir {
			if head, err := os.ReadFile(m.path(source)); err == nil && len(head) < 1<<20 && bytes.Contains(head, []byte(badStick)) {
				return unix.EINVAL
			}
		}
		m.mounted[target] = source
		content := m.path("content" + target)
		if target == "/"+mediaDir {
			if content = m.path("content" + source); source == "/dev/"+filepath.Base(first(m.part(partitions.Boot))) {
				content = m.path("content/" + bootDir)
			}
		} else if target != "/"+bootDir && target != "/"+dataDir {
			return nil
		}
		if target == "/"+dataDir {
			m.markMounted()
		}
		return errors.Join(os.MkdirAll(content, 0o755), os.Remove(m.path(target)), os.Symlink(content, m.path(target)))
	}, "mount %s %s %s", source, target, what)
}

// markMounted does what the kernel does to a superblock.
func (m *testMachine) markMounted() {
	path, _ := m.part(partitions.Data)
	out, err := exec.Command(lookPath(m.t, "debugfs"), "-w", "-R", "ssv mtime 20260101", path).CombinedOutput()
	if err != nil {
		m.t.Fatalf("debugfs: %v\n%s", err, out)
	}
	m.mirror()
}

func lookPath(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("cannot test without the program %q (Debian packages e2fsprogs and gdisk)", name)
	}
	return path
}

// mirror shows the superblock of sda2 on the disk that contains it.
func (m *testMachine) mirror() {
	path, _ := m.part(partitions.Data)
	b := make([]byte, 4096)
	part, err := os.Open(path)
	if err != nil {
		return
	}
	defer part.Close()
	if _, err := part.ReadAt(b, 0); err != nil {
		m.t.Fatal(err)
	}
	layout, err := partitions.Layout(m.Platform.Scheme, partitions.LeastDisk(m.Platform.Scheme))
	if err != nil {
		m.t.Fatal(err)
	}
	data, _ := layout.Part(partitions.Data)
	m.writeDisk(int64(data.Start), b)
}

func (m *testMachine) writeDisk(offset int64, b []byte) {
	f, err := os.OpenFile(m.path("dev/"+m.disk), os.O_RDWR, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, offset); err != nil {
		m.t.Fatal(err)
	}
}

func (m *testMachine) Unmount(target string) error {
	return m.event(func() error {
		delete(m.mounted, target)
		if target == "/"+bootDir || target == "/"+dataDir || target == "/"+mediaDir {
			return errors.Join(os.Remove(m.path(target)), os.Mkdir(m.path(target), 0o755))
		}
		return nil
	}, "unmount %s", target)
}

func (m *testMachine) Mounted(target string) bool { return m.mounted[target] != "" }

func (m *testMachine) Swapon(path string) error {
	return m.event(func() error { return nil }, "swapon %s", filepath.Base(path))
}

func (m *testMachine) Space(path string) (Space, error) {
	size, used := m.size, treeSize(m.path("content/"+path))
	if path == "/"+bootDir {
		size = 350 * partitions.MiB
	}
	return Space{Total: size, Used: used, Free: max(0, size-used)}, nil
}

// treeSize is what the files in a folder hold.
func treeSize(dir string) (size partitions.Size) {
	_ = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				size += partitions.Size(info.Size())
			}
		}
		return nil
	})
	return size
}

// Allocate gets half of it done when the power fails.
func (m *testMachine) Allocate(f *os.File, size partitions.Size) error {
	if space, _ := m.Space("/" + dataDir); space.Free < size {
		return unix.ENOSPC
	}
	must(m.t, f.Truncate(int64(size/2)))
	return m.event(func() error { return f.Truncate(int64(size)) }, "allocate %v", size)
}

func (m *testMachine) Reboot() error {
	return m.event(func() error { m.rebooted = true; return nil }, "reboot")
}

// runTool runs the real tools on files. sda1 is a folder, which none of them
// can look at.
func (m *testMachine) runTool(ctx context.Context, name string, args ...string) error {
	switch name {
	case "reboot": // init ends with `apagent boot loaded`.
		return m.StartLoaded()
	case "su":
		if m.sick {
			return errors.New("no answer")
		}
		return nil
	}
	dev := filepath.Base(args[len(args)-1])
	return m.event(func() error {
		if dev == filepath.Base(first(m.part(partitions.Boot))) {
			return nil
		}
		if name == "resize2fs" && m.Mounted("/"+dataDir) {
			args = append([]string{"-f"}, args...) // The kernel asks for no check.
		}
		err := run.Cmd(ctx, lookPath(m.t, name), args...)
		m.mirror()
		return err
	}, "%s %s", name, dev)
}

func first(a, _ string) string { return a }

// start is the next boot after a power cut or reboot: what is on the disks
// stays, all else is gone.
func (m *testMachine) start() {
	for target := range m.mounted {
		if target == "/"+bootDir || target == "/"+dataDir {
			if err := errors.Join(os.Remove(m.path(target)), os.Mkdir(m.path(target), 0o755)); err != nil {
				m.t.Fatal(err)
			}
		}
	}
	m.mounted = map[string]string{}
	m.events, m.powerCut, m.late, m.rebooted = nil, 0, false, false
	m.loaded, m.started = nil, nil
	m.out.Reset()
	m.Log = NewLog(m)
	m.forgetPartitions()
	boot, _ := m.table().Part(partitions.Boot) // GRUB asks the disk.
	m.Cmdline = "root=/dev/ram0 ap.boot=" + strings.ToLower(boot.UUID)
}

// forgetPartitions makes the kernel see only sda1, if it accepts the table.
func (m *testMachine) forgetPartitions() {
	entries, err := filepath.Glob(m.path("sys/class/block/" + m.disk + "*"))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, e := range entries {
		if filepath.Base(e) != m.disk {
			if err := os.RemoveAll(e); err != nil {
				m.t.Fatal(err)
			}
		}
	}
}

func (m *testMachine) ran(event string) bool {
	for _, e := range m.events {
		if strings.HasPrefix(e, event) {
			return true
		}
	}
	return false
}

// A nobody never presses a key; a somebody does.
type nobody struct{}

func (nobody) Ready() {}

func (nobody) Wait(context.Context, time.Duration) bool { return false }

type somebody struct{}

func (somebody) Ready() {}

func (somebody) Wait(context.Context, time.Duration) bool { return true }

// newMachine has one disk with the image as it left the factory, and has been
// started from the ramdisk.
func newMachine(t *testing.T, name string, size partitions.Size) *testMachine {
	t.Helper()
	m := &testMachine{t: t, disk: name, mounted: map[string]string{}, size: 14 * partitions.GiB}
	m.Machine = Machine{Root: t.TempDir(), Kernel: m, Run: m.runTool, Ramdisk: true}
	m.Log = NewLog(&m.out)
	m.Cmdline = "root=/dev/ram0 ap.boot=" + strings.ToLower(partitions.FactoryBootUUID)
	m.addDisk(name, size, partitions.Factory(partitions.GPT, 16*partitions.GiB))
	writeFiles(t, m.Root, map[string]string{
		"mnt/sda1/.empty": "", "mnt/sda2/.empty": "", "etc/.empty": "", "proc/.empty": "", "run/.empty": "",
		"home/admin/.profile": "", "apps/.empty": "", "var/log/.empty": "",
		"content/mnt/sda1/boot/grub/grub.cfg": "set default=0\nset timeout=2\n",
		"content/mnt/sda1/boot/grub/grubenv":  "# GRUB Environment Block\nset=a\n" + strings.Repeat("#", 900),
	})
	for _, dir := range []string{bootDir, dataDir} {
		if err := os.Remove(m.path(dir + "/.empty")); err != nil {
			t.Fatal(err)
		}
	}
	m.Platform = bundle.Platform{Board: "x86_64", Arch: "amd64", Label: "160001", Scheme: partitions.GPT, Boot: "grub",
		DiskUUID: partitions.FactoryDiskUUID, BootUUID: partitions.FactoryBootUUID}
	m.addSet("a", "160001", 1)
	return m
}

// newGateway is newMachine with the disk of a gateway.
func newGateway(t *testing.T, name string, size partitions.Size) *testMachine {
	t.Helper()
	m := newMachine(t, name, size)
	table := partitions.Factory(partitions.MBR, size)
	m.addDisk(name, size, table)
	m.Cmdline = "root=/dev/ram0 ramdisk_size=100000" // as typed by hand
	m.Platform.Scheme, m.Platform.Boot = partitions.MBR, "extlinux"
	m.Platform.DiskUUID, m.Platform.BootUUID = table.DiskUUID, table.UUID(partitions.Boot)
	writeFiles(t, m.path("content/mnt/sda1"), map[string]string{"extlinux/extlinux.conf": "DEFAULT rescue-a\nTIMEOUT 20\n"})
	m.addSet("a", "160001", 1)
	return m
}

func (m *testMachine) addDisk(name string, size partitions.Size, table partitions.Table) {
	m.t.Helper()
	writeFiles(m.t, m.Root, map[string]string{
		"sys/class/block/" + name + "/size":                     fmt.Sprint(int64(size / partitions.Sector)),
		"sys/class/block/" + name + "/device/model":             "test",
		"sys/class/block/" + name + "/queue/logical_block_size": "512",
		"dev/" + name: "",
	})
	if err := os.Truncate(m.path("dev/"+name), int64(size)); err != nil {
		m.t.Fatal(err)
	}
	writes, err := table.Writes(nil)
	if err != nil {
		m.t.Fatal(err)
	}
	f, err := os.OpenFile(m.path("dev/"+name), os.O_RDWR, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	for _, w := range writes {
		if w.Offset+partitions.Size(len(w.Data)) <= size {
			if _, err := f.WriteAt(w.Data, int64(w.Offset)); err != nil {
				m.t.Fatal(err)
			}
		}
	}
}

// addSet puts a signed image set on sda1 whose root file system is noise from
// a seed, with zeros behind it.
func (m *testMachine) addSet(name, label string, seed uint64) {
	m.t.Helper()
	made, ok := sets.Load(seed)
	if !ok {
		made, _ = sets.LoadOrStore(seed, makeSet(m.t, label, seed))
	}
	s := made.(testSet)
	m.raw, m.Platform.Keys = s.raw, []string{s.key}
	writeFiles(m.t, m.path("content/mnt/sda1/"+name), s.files)
}

// A testSet is made once for all tests; nothing changes it.
type testSet struct {
	files map[string]string
	raw   []byte
	key   string
	pair  bundle.KeyPair
}

var sets sync.Map

func makeSet(t *testing.T, label string, seed uint64) testSet {
	t.Helper()
	s := testSet{raw: make([]byte, 2*bundle.PieceSize+4096)}
	noise := rand.New(rand.NewPCG(seed, seed))
	for i := range 300000 {
		s.raw[i] = byte(noise.Uint32())
	}
	var packed bytes.Buffer
	rootfs, err := bundle.Packer{Compress: compress}.Pack(t.Context(), bytes.NewReader(s.raw), int64(len(s.raw)), &packed)
	must(t, err)
	s.files = map[string]string{bundle.KernelName: "kernel", bundle.RamdiskName: "ramdisk", bundle.RootfsName: packed.String()}
	dir := t.TempDir()
	writeFiles(t, dir, s.files)
	man := bundle.Manifest{Format: bundle.Format, Board: "x86_64", Arch: "amd64", Label: label, Rootfs: rootfs}
	man.Kernel, err = bundle.Describe(bundle.KernelName, filepath.Join(dir, bundle.KernelName))
	must(t, err)
	man.Ramdisk, err = bundle.Describe(bundle.RamdiskName, filepath.Join(dir, bundle.RamdiskName))
	must(t, err)
	for _, f := range man.Started() {
		s.files[f.SumName()] = string(f.Sum())
	}
	text, err := man.Encode()
	must(t, err)
	key, err := bundle.NewKey()
	must(t, err)
	signature, err := bundle.Sign(key.Private, "", text)
	must(t, err)
	s.files[bundle.ManifestName], s.files[bundle.SignatureName] = string(text), string(signature)
	s.pair = key
	s.key, err = bundle.PublicKey(key.Public)
	must(t, err)
	return s
}

func compress(_ context.Context, raw []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := xz.WriterConfig{CheckSum: xz.CRC32, DictCap: 1 << 16}.NewWriter(&b)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(raw); err != nil {
		return nil, err
	}
	err = w.Close()
	return b.Bytes(), err
}

func writeFiles(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), 0o644))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rootfs is the hash of the system in a set.
func (s testSet) rootfs(t *testing.T) string {
	t.Helper()
	man, err := bundle.Decode([]byte(s.files[bundle.ManifestName]))
	must(t, err)
	return man.Rootfs.RawSHA256
}
