package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/agent/internal/boot"
	"appplatform/bundle"
	"appplatform/partitions"
)

// An updatable machine runs the installed image 160001 and has an update file
// of 160002.
type updatable struct {
	*testMachine
	file     string
	old, new testSet
	starts   int
	hangs    bool   // the new system does not come to the end of its start
	taken    func() // unlocks what somebody else is at
}

func newUpdatable(t *testing.T, gateway bool) *updatable {
	t.Helper()
	size := 4 * partitions.GiB
	m := newMachine(t, "sda", size)
	if gateway {
		m = newGateway(t, "sda", size)
	}
	must(t, Start(t.Context(), m.Machine, nobody{}))
	u := &updatable{testMachine: m}
	u.old = u.set("160001", 1)
	u.new = u.set("160002", 2)
	m.Platform.Keys = []string{u.old.key, u.new.key}
	u.file = u.writeUpdate(u.new)
	u.hard = true
	u.health = time.Millisecond
	u.size = 3 * partitions.GiB
	u.firmware()
	return u
}

func (u *updatable) set(label string, seed uint64) testSet {
	made, ok := sets.Load(seed)
	if !ok {
		made, _ = sets.LoadOrStore(seed, makeSet(u.t, label, seed))
	}
	return made.(testSet)
}

func (u *updatable) writeUpdate(s testSet) string {
	u.t.Helper()
	dir := u.t.TempDir()
	writeFiles(u.t, dir, s.files)
	paths := map[string]string{}
	for _, name := range []string{bundle.KernelName, bundle.RamdiskName, bundle.RootfsName} {
		paths[name] = filepath.Join(dir, name)
	}
	var b bytes.Buffer
	must(u.t, bundle.WriteUpdate(&b, []byte(s.files[bundle.ManifestName]), []byte(s.files[bundle.SignatureName]), paths))
	file := filepath.Join(dir, "x.update")
	must(u.t, os.WriteFile(file, b.Bytes(), 0o644))
	return file
}

// firmwareLoader is the boot loader as the firmware sees it.
func (u *updatable) firmwareLoader() boot.Loader {
	return boot.Loaders[u.Platform.Boot](u.path("content/mnt/sda1"), u.Platform.DiskUUID)
}

// firmware starts what the boot loader's files say, kexec what was loaded.
func (u *updatable) firmware() {
	u.t.Helper()
	by := u.started
	u.testMachine.start()
	u.starts++
	loader := u.firmwareLoader()
	entry, err := loader.Default()
	if err != nil { // GRUB does, and boot.scr on gateways.
		entry, err = boot.Rescue, nil
	}
	must(u.t, err)
	set, err := loader.CurrentSet()
	must(u.t, err)
	u.Ramdisk = entry == boot.Rescue
	u.Cmdline += " ap.set=" + set
	if by != nil {
		u.Ramdisk, u.Cmdline = by.ramdisk != "", by.arguments
		set = filepath.Base(filepath.Dir(by.kernel))
	}
	u.Platform.Label = "none"
	if u.Ramdisk {
		u.Platform.Label = u.labelOf(set)
	} else {
		u.Platform.Label = u.labelOfRootfs()
	}
	must(u.t, os.WriteFile(u.path("proc/cmdline"), []byte(u.Cmdline), 0o644))
	must(u.t, ignoreMissing(os.Remove(u.path(startedFile))))
	if !u.hangs || u.Platform.Label != "160002" {
		writeFiles(u.t, u.Root, map[string]string{startedFile: ""})
	}
}

// labelOf is the image in a folder of sda1.
func (u *updatable) labelOf(set string) string {
	text, err := os.ReadFile(u.path("content/mnt/sda1/" + set + "/" + bundle.ManifestName))
	if err != nil {
		u.t.Fatalf("the firmware starts image %s, which is not there: %v", set, err)
	}
	for label, s := range map[string]testSet{"160001": u.old, "160002": u.new} {
		if string(text) == s.files[bundle.ManifestName] {
			return label
		}
	}
	u.t.Fatalf("image %s is none of the two", set)
	return ""
}

func (u *updatable) labelOfRootfs() string {
	u.t.Helper()
	rootfs, _ := u.part(partitions.Rootfs)
	got := make([]byte, len(u.old.raw))
	f, err := os.Open(rootfs)
	must(u.t, err)
	defer f.Close()
	_, err = f.ReadAt(got, 0)
	must(u.t, err)
	for label, s := range map[string]testSet{"160001": u.old, "160002": u.new} {
		if bytes.Equal(got, s.raw) {
			return label
		}
	}
	u.t.Fatal("the system that was started is half written")
	return ""
}

// run is one start, up to the end of it or a power cut, of which it tells.
func (u *updatable) run(ctx context.Context) (done bool) {
	defer func() {
		if p := recover(); p != nil && p != errPower {
			panic(p)
		} else if p != nil {
			u.started = nil // A kernel that was loaded is gone.
		}
	}()
	if u.Ramdisk {
		if err := Start(ctx, u.Machine, nobody{}); err != nil {
			u.t.Fatalf("the ramdisk needs a human: %v\n%s", err, u.out.String())
		}
		return false
	}
	d, err := u.findDisk(ctx)
	must(u.t, err)
	must(u.t, d.Announce(u, d.table.Parts...))
	must(u.t, errors.Join(u.mountBoot(ctx, d), u.mountChecked(ctx, d, partitions.Data, dataDir)))
	if err := Confirm(ctx, u.Machine); err != nil {
		u.t.Fatalf("Confirm() = %v\n%s", err, u.out.String())
	}
	return !u.rebooted
}

// settle starts the machine until a system stays up.
func (u *updatable) settle(ctx context.Context) {
	u.t.Helper()
	for first := true; first || !u.run(ctx); first = false {
		if u.starts++; u.starts > 30 {
			u.t.Fatalf("the machine does not settle; it said at last\n%s", u.out.String())
		}
		u.firmware()
	}
}

// settleSick is settle with a database that does not answer on the new image.
func (u *updatable) settleSick() {
	u.t.Helper()
	for range 20 {
		u.firmware()
		u.sick = !u.Ramdisk && u.Platform.Label == "160002"
		if u.run(u.t.Context()) {
			return
		}
	}
}

// up mounts what the system has mounted.
func (u *updatable) up() {
	u.t.Helper()
	if done := u.run(u.t.Context()); !done {
		u.t.Fatalf("the system does not stay up:\n%s", u.out.String())
	}
}

// checkSettled makes sure that one image runs, whole, and nothing is under way.
func (u *updatable) checkSettled(context, label string) {
	u.t.Helper()
	fail := func(format string, args ...any) {
		u.t.Helper()
		u.t.Errorf("%s: %s\nlog:\n%s", context, fmt.Sprintf(format, args...), u.out.String())
	}
	loader := u.firmwareLoader()
	e, err := loader.Default()
	set, err2 := loader.CurrentSet()
	if e != boot.System || err != nil || err2 != nil {
		fail("the firmware starts the %v (%v, %v)", e, err, err2)
	}
	if got := u.labelOf(set); got != label {
		fail("the firmware starts image %s; want %s", got, label)
	}
	if got := u.labelOfRootfs(); got != label {
		fail("sda3 holds image %s; want %s", got, label)
	}
	if text, err := os.ReadFile(u.path("content/" + labelFile)); err != nil && label == "160002" || err == nil && strings.TrimSpace(string(text)) != label {
		fail("the label is %q, %v; want %s", text, err, label)
	}
	if u.Ramdisk || u.Platform.Label != label {
		fail("what runs is %s (ramdisk: %v); want the system of %s", u.Platform.Label, u.Ramdisk, label)
	}
	if s := GetUpdateStatus(u.Machine); s.UnderWay != nil || s.Problem != "" {
		fail("under way: %+v, %s", s.UnderWay, s.Problem)
	}
}

func both(t *testing.T, do func(t *testing.T, gateway bool)) {
	for name, gateway := range map[string]bool{"grub": false, "extlinux": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			do(t, gateway)
		})
	}
}

// OS-E1: to the new image, back by hand, and forward again.
func TestUpdateAndRollback(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		u := newUpdatable(t, gateway)
		u.up()
		must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file}))
		if u.started == nil || !strings.HasSuffix(u.started.kernel, "/mnt/sda1/b/kernel") || !strings.HasSuffix(u.started.ramdisk, "/b/ramdisk.ext2.xz") {
			t.Fatalf("the update starts %+v; want the ramdisk of b by kexec", u.started)
		}
		u.settle(t.Context())
		u.checkSettled("updated", "160002")
		for _, name := range []string{bundle.KernelName, bundle.RamdiskName} {
			sum := exec.Command("sha256sum", "--check", "--strict", name+".sha256")
			sum.Dir = u.path("content/mnt/sda1/b")
			if out, err := sum.CombinedOutput(); err != nil {
				t.Errorf("what GRUB compares: %v: %s", err, out)
			}
		}
		if o := GetUpdateStatus(u.Machine).Last; o == nil || o.Result != committed || o.To != "160002" {
			t.Errorf("the last update is %+v", o)
		}
		must(t, Rollback(t.Context(), u.Machine))
		u.settle(t.Context())
		u.checkSettled("rolled back", "160001")
		must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file}))
		u.settle(t.Context())
		u.checkSettled("updated again", "160002")
		u.Cmdline = strings.Replace(u.Cmdline, "ap.set=b", "ap.set=a", 1)
		problems := strings.Join(GetStatus(t.Context(), u.Machine).Problems, "\n")
		if !strings.Contains(problems, "image b on the boot partition is damaged") {
			t.Errorf("the firmware has started the other image, and the problems are %q", problems)
		}
	})
}

// A new image that does not work is given up without anybody's help.
func TestUpdateOfASickImage(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		u := newUpdatable(t, gateway)
		u.up()
		must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file}))
		u.settleSick()
		u.checkSettled("rolled back", "160001")
		if o := GetUpdateStatus(u.Machine).Last; o == nil || o.Result != rolledBack || !strings.Contains(o.Reason, "PostgreSQL does not answer") {
			t.Errorf("the last update is %+v", o)
		}
	})
}

// A start that hangs is given up, too.
func TestUpdateThatHangs(t *testing.T) {
	u := newUpdatable(t, false)
	u.up()
	u.hangs = true
	must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file}))
	u.settle(t.Context())
	u.checkSettled("rolled back", "160001")
	if o := GetUpdateStatus(u.Machine).Last; o == nil || o.Result != rolledBack || !strings.Contains(o.Reason, "not everything in /etc/init.d has started") {
		t.Errorf("the last update is %+v", o)
	}
	// What hangs is reset.
	u.grace = time.Millisecond
	u.events = nil
	must(t, shutDown{}.Do(t.Context(), u.Machine))
	if !u.ran("reboot") {
		t.Errorf("a shutdown that hangs: %v", u.events)
	}
}

// begin runs an update or a rollback on the running system, up to its restart
// or a power cut.
func (u *updatable) begin(do func() error) {
	u.t.Helper()
	defer func() {
		if p := recover(); p != nil && p != errPower {
			panic(p)
		} else if p != nil {
			u.started = nil
		}
	}()
	if err := do(); err != nil {
		u.t.Fatal(err)
	}
}

// A journey is the way from one image to another: what begins it, and in which
// of the starts that follow the new image is sick.
type journey struct {
	name  string
	begin func(u *updatable) error
	sick  bool
}

var journeys = []journey{
	{"update", func(u *updatable) error {
		return Update(u.t.Context(), u.Machine, UpdateOptions{Source: u.file})
	}, false},
	{"update that does not work", func(u *updatable) error {
		return Update(u.t.Context(), u.Machine, UpdateOptions{Source: u.file})
	}, true},
}

// travel goes all the way, with the power failing after an event of one of the
// starts; it returns the events of every start.
func (u *updatable) travel(j journey, cutStart, cutEvent int) (events [][]string) {
	u.t.Helper()
	ctx := u.t.Context()
	u.up()
	for n := 0; ; n++ {
		if n > 25 {
			u.t.Fatalf("the machine does not settle; it said at last\n%s", u.out.String())
		}
		u.events = nil
		if n == cutStart {
			u.powerCut = cutEvent
		}
		done := false
		if n == 0 {
			u.begin(func() error { return j.begin(u) })
		} else {
			u.sick = j.sick && !u.Ramdisk && u.Platform.Label == "160002"
			done = u.run(ctx)
		}
		events = append(events, u.events)
		if done {
			return events
		}
		u.firmware()
	}
}

// OS-E4: wherever the power fails, the machine ends by itself in the old image or
// in the new one, whole. It never starts what is half written, and the firmware
// never starts an image that has not shown that it works.
func TestUpdateSurvivesPowerCut(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		for _, j := range journeys {
			every := 1
			if testing.Short() {
				every = 13
			}
			whole := newUpdatable(t, gateway).travel(j, -1, 0)
			for start, events := range whole {
				for event := 1; event <= len(events); event++ {
					// Never left out: what the order of the steps is about.
					if event%every != start%every && !strings.Contains(events[event-1], ": write the system to") {
						continue
					}
					t.Run(fmt.Sprintf("%s/start %d/event %d", j.name, start, event), func(t *testing.T) {
						u := newUpdatable(t, gateway)
						u.travel(j, start, event)
						label := u.Platform.Label
						if j.sick {
							label = "160001"
						}
						u.checkSettled(fmt.Sprintf("after the event %q", events[event-1]), label)
					})
				}
			}
		}
	})
}

// apagent boot: not while what it would lead to is half written.
func TestSetBoot(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		u := newUpdatable(t, gateway)
		u.up()
		loader := u.loader()
		for _, rescue := range []bool{true, false} {
			must(t, SetBoot(t.Context(), u.Machine, rescue))
			if e, err := loader.Default(); err != nil || (e == boot.Rescue) != rescue {
				t.Errorf("SetBoot(rescue: %v) makes %v the default, %v", rescue, e, err)
			}
		}
		must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file}))
		if err := SetBoot(t.Context(), u.Machine, false); err == nil || !strings.Contains(err.Error(), "under way") {
			t.Errorf("SetBoot() during an update = %v", err)
		}
	})
}

// damage changes a file of an image on sda1.
func (u *updatable) damage(set, name string) {
	u.t.Helper()
	path := u.path("content/mnt/sda1/" + set + "/" + name)
	b, err := os.ReadFile(path)
	must(u.t, err)
	b[len(b)/2] ^= 1
	must(u.t, os.WriteFile(path, b, 0o644))
}

// What goes wrong with a new image on its way, besides the power.
func TestUpdateGoesWrong(t *testing.T) {
	for _, test := range []struct {
		name   string
		spoil  func(u *updatable) // after the restart that the update begins
		result string             // "" if nothing can be known of it
	}{
		{"damaged behind the new ramdisk's back", func(u *updatable) { u.firmware(); u.damage("b", bundle.RootfsName) }, rolledBack},
		{"power cut, then damaged", func(u *updatable) { u.started = nil; u.firmware(); u.damage("b", bundle.KernelName) }, abandoned},
		{"power cut, then gone", func(u *updatable) {
			u.started = nil
			u.firmware()
			must(u.t, os.RemoveAll(u.path("content/mnt/sda1/b")))
		}, abandoned},
		{"of an unknown stage on trial", func(u *updatable) {
			u.firmware()
			u.run(u.t.Context())
			u.firmware()
			must(u.t, os.WriteFile(u.path("content/"+transitionFile), []byte(`{"format": 9}`), 0o644))
		}, ""},
		{"forgotten while sda3 is written", func(u *updatable) {
			u.firmware()
			u.powerCut = 100
			for i := range 100 { // up to writing sda3
				u.powerCut = i + 1
				if u.run(u.t.Context()); strings.Contains(u.events[len(u.events)-1], ": write the system to") {
					break
				}
				u.started = &loadedKernel{u.path("mnt/sda1/b/kernel"), u.path("mnt/sda1/b/ramdisk.ext2.xz"), u.Cmdline}
				u.firmware()
			}
			must(u.t, os.Remove(u.path("content/"+transitionFile)))
			u.started = nil
			u.firmware()
		}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			u := newUpdatable(t, false)
			u.up()
			must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file}))
			test.spoil(u)
			for !u.run(t.Context()) {
				if u.starts++; u.starts > 250 {
					t.Fatalf("the machine does not settle; it said at last\n%s", u.out.String())
				}
				u.firmware()
			}
			u.checkSettled(test.name, "160001")
			if log := u.lastLogLine(); log != finished {
				t.Errorf("the last line of the log is %q; want %s", log, finished)
			}
			if o := GetUpdateStatus(u.Machine).Last; test.result != "" && (o == nil || o.Result != test.result || o.Reason == "") {
				t.Errorf("the last update is %+v; want %s and why", o, test.result)
			}
		})
	}
}

// What was checked is what is written.
func TestUpdateFileIsExchanged(t *testing.T) {
	u := newUpdatable(t, false)
	u.up()
	d, err := u.findDisk(t.Context())
	must(t, err)
	file, err := u.fetchUpdate(t.Context(), d, UpdateOptions{Source: u.file})
	must(t, err)
	other := u.writeUpdate(u.old)
	must(t, os.Rename(other, u.file))
	if err := (writeSet{file, "b"}).Do(t.Context(), u.Machine); err == nil || !strings.Contains(err.Error(), "was exchanged after it had been checked") {
		t.Errorf("writing an exchanged file = %v", err)
	}
	if _, err := os.Stat(u.path("mnt/sda1/b")); err == nil {
		t.Error("something of it was written")
	}
}

// An image that restarts the machine again and again before it has shown that it
// works is given up, too; a person may do so some times.
func TestTrialIsInterrupted(t *testing.T) {
	u := newUpdatable(t, false)
	u.up()
	must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file}))
	u.firmware()
	u.run(t.Context())
	u.firmware()
	d, err := u.findDisk(t.Context())
	must(t, err)
	must(t, d.Announce(u, d.table.Parts...))
	must(t, errors.Join(u.mountBoot(t.Context(), d), u.mountChecked(t.Context(), d, partitions.Data, dataDir)))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for n := range 10 {
		tries := GetUpdateStatus(u.Machine).UnderWay.Tries
		if err := Confirm(ctx, u.Machine); err == nil {
			t.Fatal("an interrupted trial succeeds")
		}
		counts := GetUpdateStatus(u.Machine).UnderWay.Tries == tries
		if tries == 0 || counts != (n >= maxInterruptions) {
			t.Errorf("interruption %d is an attempt: %v", n+1, counts)
		}
		tr := *GetUpdateStatus(u.Machine).UnderWay
		tr.Tries = tries
		must(t, u.keep(tr))
	}
}

// What is reset when it hangs is a system on trial, and no other one.
func TestSettled(t *testing.T) {
	u := newUpdatable(t, false)
	u.up()
	must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file}))
	must(t, os.RemoveAll(u.path(settledFile)))
	u.sick = true
	for !u.Ramdisk {
		u.firmware()
	}
	u.run(t.Context())
	u.firmware()
	u.run(t.Context())
	if _, err := os.Stat(u.path(settledFile)); err == nil {
		t.Error("a system that is given up says that it is settled")
	}
	u.sick = false
	u.settle(t.Context())
	if _, err := os.Stat(u.path(settledFile)); err != nil {
		t.Errorf("a system with nothing under way: %v", err)
	}
}

// Two people do not update at the same time.
func TestUpdateIsLocked(t *testing.T) {
	u := newUpdatable(t, false)
	u.up()
	unlock, err := u.lockUpdates()
	must(t, err)
	if err := Update(t.Context(), u.Machine, UpdateOptions{Source: u.file}); err == nil || !strings.Contains(err.Error(), "somebody else is updating") {
		t.Errorf("a second update = %v", err)
	}
	unlock()
	must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file}))
}

// What has to be recorded on a full disk takes the room that is kept for that, and
// no line of the log gets lost.
func TestEvenFull(t *testing.T) {
	u := newUpdatable(t, false)
	u.up()
	must(t, makeReserve{}.Do(t.Context(), u.Machine))
	tries := 0
	must(t, u.evenFull(func() error {
		if tries++; tries == 1 {
			return fmt.Errorf("wrapped: %w", unix.ENOSPC)
		}
		return nil
	}))
	if _, err := os.Stat(u.path(reserveFile)); err == nil || tries != 2 {
		t.Errorf("after %d tries the reserve: %v; want it gone after 2", tries, err)
	}
	l := NewLog(io.Discard)
	l.Printf("one")
	if err := l.Open("/dev/full"); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("Open() of a full disk = %v", err)
	}
	l.file.Close()
	path := filepath.Join(t.TempDir(), "log")
	var err error
	l.file, err = os.Create(path)
	must(t, err)
	must(t, errors.Join(l.Flush(), l.Close()))
	if text, err := os.ReadFile(path); err != nil || strings.Count(string(text), " one\n") != 1 {
		t.Errorf("with room again the log is %q, %v", text, err)
	}
}
