package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"appplatform/agent/internal/boot"
	"appplatform/partitions"
)

// toRescue starts the rescue system, as people choose it.
func (u *updatable) toRescue() {
	u.t.Helper()
	loader := u.firmwareLoader()
	set, err := loader.CurrentSet()
	must(u.t, err)
	must(u.t, loader.SetBoot(boot.Rescue, set))
	u.started = nil
	u.firmware()
	must(u.t, Mount(u.t.Context(), u.Machine))
	u.events = nil
}

// updated has gone from 160001 to 160002, and is in the rescue system.
func updated(t *testing.T, gateway bool) *updatable {
	t.Helper()
	u := newUpdatable(t, gateway)
	u.up()
	must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file}))
	u.settle(t.Context())
	u.toRescue()
	return u
}

// spoilRootfs overwrites a part of sda3.
func (m *testMachine) spoilRootfs() {
	m.t.Helper()
	path, _ := m.part(partitions.Rootfs)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(m.t, err)
	_, err = f.WriteAt(make([]byte, 100000), 50000)
	must(m.t, errors.Join(err, f.Close()))
}

func TestReinstall(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		u := updated(t, gateway)
		u.spoilRootfs()
		before := u.path("content/mnt/sda2/kept")
		must(t, os.WriteFile(before, nil, 0o644))
		if steps, err := PlanReinstall(t.Context(), u.Machine, ""); err != nil || len(steps) != 9 || u.rebooted {
			t.Fatalf("PlanReinstall() = %v, %v", steps, err)
		}
		must(t, Reinstall(t.Context(), u.Machine, ""))
		u.settle(t.Context())
		u.checkSettled("re-installed", "160002")
		if _, err := os.Stat(before); err != nil {
			t.Error(err)
		}
		if got := u.lastLogLine(); got != finished {
			t.Errorf("the last line of the log is %q", got)
		}
		u.toRescue()
		must(t, Reinstall(t.Context(), u.Machine, "a"))
		u.settle(t.Context())
		u.checkSettled("the other image", "160001")
	})
}

// A rescueJourney is what people do in the rescue system and may be interrupted;
// to is where it leads from 160002.
type rescueJourney struct {
	name, to string
	begin    func(ctx context.Context, m Machine) error
}

var rescueJourneys = []rescueJourney{
	{"re-install", "160002", func(ctx context.Context, m Machine) error { return Reinstall(ctx, m, "") }},
	{"re-install the other image", "160001", func(ctx context.Context, m Machine) error { return Reinstall(ctx, m, "a") }},
	{"previous image", "160001", Rollback},
}

// travelFromRescue goes all the way, with the power failing after an event of
// one of the starts.
func (u *updatable) travelFromRescue(j rescueJourney, cutStart, cutEvent int) (events [][]string) {
	u.t.Helper()
	ctx := u.t.Context()
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
			u.begin(func() error { return j.begin(ctx, u.Machine) })
		} else {
			done = u.run(ctx)
		}
		events = append(events, u.events)
		if done {
			return events
		}
		u.firmware()
	}
}

// OS-E4: wherever the power fails, one of the two images runs, whole, and its
// number is the one that is written down.
func TestRescueSurvivesPowerCut(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		for _, j := range rescueJourneys {
			every := 3
			if testing.Short() {
				every = 13
			}
			u := updated(t, gateway)
			whole := u.travelFromRescue(j, -1, 0)
			u.checkSettled(j.name, j.to)
			for start, events := range whole {
				for event := 1; event <= len(events); event++ {
					if event%every != start%every && !strings.Contains(events[event-1], ": write the system to") {
						continue
					}
					t.Run(fmt.Sprintf("%s/start %d/event %d", j.name, start, event), func(t *testing.T) {
						u := updated(t, gateway)
						u.travelFromRescue(j, start, event)
						if u.Platform.Label != "160002" {
							u.checkSettled(fmt.Sprintf("after the event %q", events[event-1]), j.to)
							return
						}
						u.checkSettled(fmt.Sprintf("after the event %q", events[event-1]), "160002")
					})
				}
			}
		}
	})
}

// Ctrl-C in the middle: it says how to go on, and the next start does.
func TestReinstallInterrupted(t *testing.T) {
	u := updated(t, false)
	u.hard = false
	u.spoilRootfs()
	ctx, cancel := context.WithCancel(t.Context())
	u.Log = NewLog(writerFunc(func(b []byte) (int, error) {
		if strings.Contains(string(b), ": write the system to") {
			cancel()
		}
		return u.out.Write(b)
	}))
	err := Reinstall(ctx, u.Machine, "")
	if err == nil || !strings.Contains(Explain(err), "hint: it is not whole now; do it again, or restart") {
		t.Fatalf("Reinstall() = %v; want a way out", err)
	}
	if u.rebooted || u.Mounted("/"+dataDir) {
		t.Errorf("rebooted: %v, sda2 mounted: %v; want the rescue system as it was", u.rebooted, u.Mounted("/"+dataDir))
	}
	u.hard = true
	u.firmware()
	u.settle(t.Context())
	u.checkSettled("after an interrupt", "160002")
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// What is refused changes nothing.
func TestRescueRefuses(t *testing.T) {
	reinstall := func(ctx context.Context, m Machine) error { return Reinstall(ctx, m, "") }
	tests := []struct {
		name    string
		prepare func(u *updatable)
		do      func(ctx context.Context, m Machine) error
		want    string
	}{
		{"re-install what runs", func(u *updatable) { u.Ramdisk = false }, reinstall, "this is the installed system, which is in use\nhint: run it in the rescue system: apagent boot rescue"},
		{"check what runs", func(u *updatable) { u.Ramdisk = false }, CheckDisk, "this is the installed system"},
		{"re-install during an update", func(u *updatable) { u.underWay() }, reinstall, "the way from App Platform 160001 to 160002 is not finished\nhint: restart, and it goes on"},
		{"previous image during an update", func(u *updatable) { u.underWay() }, Rollback, "the way from App Platform 160001 to 160002 is not finished"},
		{"two people", func(u *updatable) { u.taken, _ = u.lockRescue() }, reinstall, "is being worked on right now"},
		{"a resize beside it", func(u *updatable) { u.taken, _ = u.lockRescue() }, func(ctx context.Context, m Machine) error { return Resize(ctx, m, false) }, "is being worked on right now"},
		{"an installation beside it", func(u *updatable) { u.taken, _ = u.lockRescue() }, Install, "is being worked on right now"},
		{"an address beside it", func(u *updatable) { u.taken, _ = u.lockRescue() },
			func(ctx context.Context, m Machine) error { return SetNetwork(ctx, m, NetworkArguments{DHCP: true}) }, "is being worked on right now"},
		{"damaged, the other is whole", func(u *updatable) { u.damage("b", "rootfs.ext4.xz") }, reinstall,
			"image b is damaged: " + "" /* the reason */ + "|image a (160001) is whole and can be used instead: apagent rescue reinstall a"},
		{"both damaged", func(u *updatable) { u.damage("a", "kernel"); u.damage("b", "kernel") }, reinstall,
			"image b is damaged|there is no other image; write the image to the disk again"},
		{"no manifest, the other is whole", func(u *updatable) { must(u.t, os.Remove(u.path("content/mnt/sda1/b/manifest.json"))) }, reinstall,
			"image b is damaged|apagent rescue reinstall a"},
		{"no previous image", func(u *updatable) { must(u.t, os.RemoveAll(u.path("content/mnt/sda1/a"))) }, Rollback, "there is no former image to go back to"},
		{"previous image damaged", func(u *updatable) { u.damage("a", "kernel") }, Rollback, "kernel is not what was signed"},
		{"previous image, the present one damaged", func(u *updatable) { must(u.t, os.Remove(u.path("content/mnt/sda1/b/manifest.json"))) }, Rollback,
			"the present image could not be put back|hint: apagent rescue reinstall a"},
		{"update", func(*updatable) {}, func(ctx context.Context, m Machine) error { return Update(ctx, m, UpdateOptions{Source: "x"}) }, "cannot do this in the rescue system"},
		{"not installed", func(u *updatable) {
			u.addDisk("sda", 4*partitions.GiB, partitions.Factory(partitions.GPT, 16*partitions.GiB))
			u.Cmdline = "root=/dev/ram0"
		}, reinstall, "the App Platform is not installed on /dev/sda yet\nhint: restart"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			u := updated(t, false)
			test.prepare(u)
			err := test.do(t.Context(), u.Machine)
			if err == nil {
				t.Fatal("it is not refused")
			}
			for _, want := range strings.Split(test.want, "|") {
				if !strings.Contains(Explain(err), want) {
					t.Errorf("the error is\n%s\nwant %q", Explain(err), want)
				}
			}
			if u.rebooted || u.started != nil || u.Ramdisk && u.Mounted("/"+dataDir) {
				t.Errorf("rebooted: %v, kexec: %v, sda2 mounted: %v", u.rebooted, u.started, u.Mounted("/"+dataDir))
			}
			if text, err := os.ReadFile(u.path("content/" + installedFile)); err != nil || !strings.Contains(string(text), "160002") {
				t.Errorf("what is installed: %s, %v", text, err)
			}
		})
	}
}

// underWay leaves an update behind whose ramdisk has not run yet.
func (u *updatable) underWay() {
	must(u.t, u.writeState("content/"+transitionFile, transition{Format: transitionFormat, Stage: stageApply,
		From: imageID{Set: "a", Label: "160001"}, To: imageID{Set: "b", Label: "160002"}}))
}

// OS-F2: the report of a complete check.
func TestCheckDisk(t *testing.T) {
	tests := []struct {
		name string
		exit map[string]int // of the first look at a partition
		want []string
		ok   bool
	}{
		{"clean", nil, []string{"sda1: clean", "sda2: clean", "sda3: clean, byte for byte the system of image 160002", finished}, true},
		{"repaired", map[string]int{"sda2": 1}, []string{"sda1: clean", "repaired sda2: e2fsck: : inode 12", finished}, true},
		{"repaired by all means", map[string]int{"sda1": 4}, []string{"repaired sda1, with every repair allowed\ne2fsck: ", "sda2: clean"}, true},
		{"cannot be repaired", map[string]int{"sda1": 8}, []string{"cannot repair sda1: e2fsck", "sda2: clean"}, false},
		{"overwritten", map[string]int{"sda3": 4}, []string{"sda3 is damaged: e2fsck", "hint: re-install the root file system: apagent rescue reinstall"}, false},
		{"changed by e2fsck", map[string]int{"sda3": 0}, []string{"sda3: its file system is clean, but it is not as image 160002 has it", finished}, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			u := updated(t, false)
			u.hard = false
			if _, spoil := test.exit["sda3"]; spoil {
				u.spoilRootfs()
			}
			u.Run = fsckThat(test.exit)
			err := CheckDisk(t.Context(), u.Machine)
			if (err == nil) != test.ok {
				t.Errorf("CheckDisk() = %v", err)
			}
			log, err := os.ReadFile(u.path("content/mnt/sda2/" + InstallLog))
			must(t, err)
			for _, want := range test.want {
				if !strings.Contains(u.out.String(), want) || !strings.Contains(string(log), want) {
					t.Errorf("the console has\n%s\nthe log\n%s\nwant %q", u.out.String(), log, want)
				}
			}
			if !u.Mounted("/"+bootDir) || u.Mounted("/"+dataDir) {
				t.Errorf("mounted are %v; want them as they were", u.mounted)
			}
		})
	}
}

// A folder that somebody uses is said so, and nothing is checked below it.
func TestCheckDiskInUse(t *testing.T) {
	u := updated(t, false)
	u.hard = false
	u.Kernel = busy{u.testMachine, "/" + bootDir}
	if err := CheckDisk(t.Context(), u.Machine); err == nil || !strings.Contains(u.out.String(), "leave that folder in every shell") {
		t.Errorf("CheckDisk() = %v\n%s", err, u.out.String())
	}
	if u.ran("e2fsck sda1") {
		t.Errorf("sda1 was checked while it is mounted: %v", u.events)
	}
}

type busy struct {
	*testMachine
	target string
}

func (b busy) Unmount(target string) error {
	if target == b.target {
		return errors.New("device or resource busy")
	}
	return b.testMachine.Unmount(target)
}
