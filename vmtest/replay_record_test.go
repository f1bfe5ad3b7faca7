package vmtest_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/bundle"
	"appplatform/partitions"
	"appplatform/vmtest"
	"appplatform/vmtest/powercut"
)

// record carries out a plan once and keeps, in a folder, the disk as it was
// before, all writes, and what the plan promises.
func record(t *testing.T, b replayBoard, p replayPlan) (dir string) {
	t.Helper()
	dir = filepath.Join(replayDir(t), b.name+"-"+p.name)
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := p.record(t, b, dir).Save(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// replaySize is the size of the disks.
const replaySize = 4 * partitions.GiB

// recordInstall installs a machine. The promises are what it says it has done.
func recordInstall(t *testing.T, b replayBoard, dir string) powercut.Plan {
	t.Helper()
	base, log := filepath.Join(dir, powercut.BaseName), filepath.Join(dir, powercut.LogName)
	if err := vmtest.CopyDisk(base, builtImage(t, b.name), replaySize); err != nil {
		t.Fatal(err)
	}
	disk := newDisk(t, base, 0)
	o := b.on(vmtest.Disk{Path: disk, Log: log})
	o.NoReboot = true
	m := start(t, o)
	said := listenToSteps(t, m, log)
	if err := m.WaitFor(offWithin); err != nil {
		t.Fatal(err)
	}
	b.check(t, disk)
	return powercut.Plan{Phases: []powercut.Phase{{Name: b.name + " install"}}, Size: replaySize,
		Platform: platformOf(t, disk), Promises: installPromises(t, said)}
}

// recordUpdate takes a machine to the next image. The commit is counted by
// itself.
func recordUpdate(t *testing.T, b replayBoard, dir string) powercut.Plan {
	t.Helper()
	return recordTransition(t, b, dir, installedReplay(t, b), updateCommand(t, b), b.name+" update", b.name+" commit")
}

// recordRollback takes a machine that was updated back.
func recordRollback(t *testing.T, b replayBoard, dir string) powercut.Plan {
	t.Helper()
	disk := newDisk(t, installedReplay(t, b), 0)
	m := start(t, b.on(vmtest.Disk{Path: disk}))
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	rootLogin(t, m, rootPassword)
	send(t, m.Serial, updateCommand(t, b))
	expect(t, m, `the update is committed(?s:.*)finished`, updateWithin)
	powerOff(t, m)
	return recordTransition(t, b, dir, disk, "apagent rollback\n", b.name+" rollback")
}

// recordRestore takes a machine to the next image, on which something does not
// run, and lets it go back by itself. Going back is counted by itself.
func recordRestore(t *testing.T, b replayBoard, dir string) powercut.Plan {
	t.Helper()
	const sick = `printf '#!/bin/sh\n[ "$1" != status ] || ! grep -q ` + nextLabel + ` /etc/platform.json\n' > /etc/init.d/S99sick; chmod +x /etc/init.d/S99sick; sync; `
	disk, promises, at := recordCommand(t, b, dir, installedReplay(t, b), replaySize, sick+updateCommand(t, b), true,
		`writing App Platform`, `going back to App Platform`, `the update is rolled back`, loginPrompt)
	return powercut.Plan{Size: replaySize, Platform: platformOf(t, disk), Settled: at[len(at)-1],
		Phases: []powercut.Phase{{Name: b.name + " bad update"}, {Name: b.name + " restore", From: at[1]}},
		Promises: append(promises, powercut.Promise{From: at[0], Until: at[2], Path: "/update/transition.json"},
			powercut.Promise{From: at[len(at)-1], Path: "/apps/install_step1.log", Text: "the update is rolled back\nfinished\n"})}
}

func updateCommand(t *testing.T, b replayBoard) string {
	t.Helper()
	return "apagent update " + serveFile(t, nextImage(t, b.name)) + "\n"
}

// recordTransition records what leads to another image. Its promises are what
// was synced before, and the file that says how far it is.
func recordTransition(t *testing.T, b replayBoard, dir, from, command string, phases ...string) powercut.Plan {
	t.Helper()
	disk, promises, at := recordCommand(t, b, dir, from, replaySize, command, true,
		`writing App Platform`, `is on trial`, `record the stage commit`, `the update is committed(?s:.*)finished`)
	plan := powercut.Plan{Size: replaySize, Platform: platformOf(t, disk), Settled: at[len(at)-1],
		Promises: append(promises, powercut.Promise{From: at[0], Until: at[2], Path: "/update/transition.json"},
			powercut.Promise{From: at[1], Path: "/.installed", Text: installedHash(t, disk)},
			powercut.Promise{From: at[len(at)-1], Path: "/apps/install_step1.log", Text: "the update is committed\nfinished\n"})}
	for i, name := range phases {
		plan.Phases = append(plan.Phases, powercut.Phase{Name: name, From: []int{0, at[1]}[i]})
	}
	if before := platformOf(t, from); plan.Platform.Label == before.Label {
		t.Errorf("%q leads from %s to the same image", command, before.Label)
	}
	return plan
}

// recordResize uses the room of a disk that has become larger.
func recordResize(t *testing.T, b replayBoard, dir string) powercut.Plan {
	t.Helper()
	const size = 2 * replaySize
	disk, promises, _ := recordCommand(t, b, dir, installedReplay(t, b), size, "apagent resize\n", false, `now has (?s:.*)finished`)
	b.check(t, disk)
	return powercut.Plan{Phases: []powercut.Phase{{Name: b.name + " resize"}}, Size: size,
		Platform: platformOf(t, disk), Promises: promises}
}

// recordCommand records what a machine writes from its start to its end, in
// which somebody makes a file and runs a command. It returns the disk, the files
// that must not be lost, and how long the log was when each mark was seen, and
// when, if it restarts the machine, nothing was under way any more.
func recordCommand(t *testing.T, b replayBoard, dir, from string, size partitions.Size, command string, restarts bool, marks ...string) (disk string, promises []powercut.Promise, at []int) {
	t.Helper()
	base, log := filepath.Join(dir, powercut.BaseName), filepath.Join(dir, powercut.LogName)
	if err := vmtest.CopyDisk(base, from, 0); err != nil {
		t.Fatal(err)
	}
	disk = newDisk(t, base, size)
	m := start(t, b.on(vmtest.Disk{Path: disk, Log: log}))
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	rootLogin(t, m, rootPassword).run("echo begun > /home/admin/begun; sync")
	promises = []powercut.Promise{{Path: "/home/admin/kept", Text: "kept"},
		{From: countEntries(t, log), Path: "/home/admin/begun", Text: "begun"}}
	send(t, m.Serial, command)
	for _, mark := range marks {
		expect(t, m, mark, updateWithin)
		at = append(at, countEntries(t, log))
	}
	if restarts {
		send(t, m.Serial, "\n")
		settled(t, m)
		at = append(at, countEntries(t, log))
	}
	powerOff(t, m)
	return disk, promises, at
}

// installedHash is the RawSHA256 of what was installed on a disk.
func installedHash(t *testing.T, disk string) string {
	t.Helper()
	data, _ := readTable(t, disk).Part(partitions.Data)
	var have struct{ Rootfs string }
	text := judge(t, disk, "debugfs", "-R", "cat /.installed", on(disk, data))
	if err := json.Unmarshal([]byte(text), &have); err != nil || have.Rootfs == "" {
		t.Fatalf("/.installed is %q: %v", text, err)
	}
	return have.Rootfs
}

func countEntries(t *testing.T, log string) int {
	t.Helper()
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := powercut.CountEntries(f)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// installedReplay is an installed disk of a board that somebody has used. It is
// made once for all plans, which follow each other, and again for a new image.
func installedReplay(t *testing.T, b replayBoard) string {
	t.Helper()
	img, disk := builtImage(t, b.name), filepath.Join(replayDir(t), b.name+"-installed.img")
	of, err := os.Stat(img)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(disk); err == nil && info.ModTime().After(of.ModTime()) {
		return disk
	}
	making := disk + ".part"
	if err := vmtest.CopyDisk(making, img, replaySize); err != nil {
		t.Fatal(err)
	}
	m := start(t, b.on(vmtest.Disk{Path: making}))
	expect(t, m, `(?m)^finished(?s:.*)`+loginPrompt, installWithin+bootWithin)
	rootLogin(t, m, rootPassword).run("echo kept > /home/admin/kept; sync")
	powerOff(t, m)
	if err := os.Rename(making, disk); err != nil {
		t.Fatal(err)
	}
	return disk
}

// platformOf is what the system on a disk says about itself.
func platformOf(t *testing.T, disk string) bundle.Platform {
	t.Helper()
	rootfs, _ := readTable(t, disk).Part(partitions.Rootfs)
	platform, err := bundle.DecodePlatform([]byte(judge(t, disk, "debugfs", "-R", "cat /"+bundle.PlatformFile, on(disk, rootfs))))
	if err != nil {
		t.Fatal(err)
	}
	return platform
}

// A said is a line on the console, and how many writes and flushes were
// complete when it was seen.
type said struct {
	line string
	at   int
}

func listenToSteps(t *testing.T, m *vmtest.Machine, log string) []said {
	t.Helper()
	var lines []said
	for {
		got, err := m.Serial.Expect(`(?m)^(step \d+ of \d+: .*|finished)\n`, menuWithin+installWithin)
		if err != nil {
			t.Fatal(err)
		}
		if lines = append(lines, said{got[1], countEntries(t, log)}); got[1] == "finished" {
			return lines
		}
	}
}

// installPromises are the files that are on sda2 by the time that a line is
// seen. The agent shows a line and syncs it before it goes on: it is on the disk
// when the next one is seen, and the log is kept from when sda2 is mounted.
func installPromises(t *testing.T, lines []said) []powercut.Promise {
	t.Helper()
	const log, last = "/apps/install_step1.log", "boot the system from now on"
	begin := 0
	for i, l := range lines {
		if strings.HasSuffix(l.line, ": mount sda2") {
			begin = i + 1
		}
	}
	end := len(lines) - 1
	if begin == 0 || !strings.HasSuffix(lines[end-1].line, last) {
		t.Fatalf("the installation said %v; want the steps of one", lines)
	}
	promises := []powercut.Promise{
		{From: lines[begin].at, Until: lines[end].at, Path: "/.installing"},
		{From: lines[end-1].at, Path: "/.installed", Text: `"rootfs": "`},
	}
	for i, l := range lines[:end] {
		promises = append(promises, powercut.Promise{From: lines[max(begin, i+1)].at, Path: log, Text: l.line + "\n"})
	}
	return promises
}
