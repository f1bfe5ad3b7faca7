package vmtest_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appplatform/bundle"
	"appplatform/partitions"
	"appplatform/vmtest"
	"appplatform/vmtest/powercut"
)

// bootSample starts states of a phase, two of three with one or two more cuts.
func bootSample(t *testing.T, r replayed, phase string, states []powercut.State, seed uint64) (again, failed int) {
	t.Helper()
	for i, s := range states {
		random := rand.New(rand.NewPCG(seed, uint64(s.Cut)))
		cuts := make([]time.Duration, i%3)
		for j := range cuts {
			cuts[j] = time.Duration(random.Int64N(int64(typicalInstall)))
		}
		if len(cuts) > 0 {
			again++
		}
		if !t.Run(fmt.Sprintf("%s boot %d", phase, i), func(t *testing.T) { bootState(t, r, s, cuts) }) {
			failed++
		}
	}
	return again, failed
}

// bootState starts a state, with more power cuts before it gets to its end, and
// wants what the checker says to start, and in the end a system that runs and
// that the firmware starts again.
func bootState(t *testing.T, r replayed, s powercut.State, cuts []time.Duration) {
	t.Helper()
	t.Logf("state %v, then cuts after %v", s, cuts)
	choice, err := r.checker.Check(s)
	if err != nil {
		t.Error(err)
	}
	disk := filepath.Join(t.TempDir(), "disk.img")
	if err := r.checker.WriteTo(disk, s); err != nil {
		t.Fatal(err)
	}
	o := r.board.on(vmtest.Disk{Path: disk})
	o.Dir = logDir(t) // one log for all starts
	m := start(t, o)
	wantChoice(t, r.board, m, choice)
	for _, after := range cuts {
		time.Sleep(after)
		m.Kill()
		m = start(t, o)
	}

	shell := settled(t, m)
	shell.want(asPostgres+"psql -At -c 'select 6*7'; cd", "42")
	for _, p := range r.rec.Promises {
		if p.HoldsAt(s) && strings.HasPrefix(p.Path, "/home/") {
			shell.want("cat /mnt/sda2"+p.Path, p.Text)
		}
	}
	if r.plan.again != "" {
		shell.run(r.plan.again)
	}
	label := strings.TrimSpace(shell.run("cat /mnt/sda1/label"))
	if r.rec.Settled > 0 && s.Cut >= r.rec.Settled && label != r.rec.Platform.Label {
		t.Errorf("image %s is installed, although the plan had come to its end with %s", label, r.rec.Platform.Label)
	}
	shell.want("apagent status", "image         "+label)
	powerOff(t, m)
	checkSettled(t, r, disk, label)
}

// wantChoice compares what the firmware starts with what the checker says.
func wantChoice(t *testing.T, b replayBoard, m *vmtest.Machine, want powercut.Choice) {
	t.Helper()
	got, err := m.Serial.Expect(b.firmware, menuWithin)
	if err != nil {
		t.Fatal(err)
	}
	if system := got[1] != b.ramdisk; system != want.System || got[2] != "" && got[2] != want.Set {
		t.Errorf("the firmware says %q; want %v", got[0], want)
	}
}

// settled waits until nothing is under way, through all restarts, and logs in.
// Nothing is typed but an answer to a login: a key makes a rescue system stay.
func settled(t *testing.T, m *vmtest.Machine) root {
	t.Helper()
	const wait = `until [ -e /run/app-platform/started ] && apagent update --status | grep -q 'under way  *nothing'; do sleep 1; done; echo 'set''tled'`
	answers := map[string]string{"login: ": "root", "Password: ": rootPassword, "# ": wait}
	const most = 40 // A machine that restarts for ever comes to an end here.
	for range most {
		got, err := m.Serial.Expect(`(?m)^[a-z-]+ (login: )|(Password: )|:~(# )|^settled\n`, updateWithin)
		if err != nil {
			t.Fatal(err)
		}
		asked := got[1] + got[2] + got[3]
		if asked == "" {
			r := root{t, m}
			r.run("stty -echo; PS1=")
			return r
		}
		send(t, m.Serial, answers[asked]+"\n")
	}
	t.Fatalf("the machine is not settled after %d questions", most)
	return root{}
}

// checkSettled judges a disk that was switched off: what the firmware starts is
// the system whose label it shows, complete by hash.
func checkSettled(t *testing.T, r replayed, disk, label string) {
	t.Helper()
	table := checkParts(t, disk, r.rec.Platform.Scheme)
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	checker, err := powercut.NewChecker(powercut.Plan{Size: r.rec.Size, Platform: r.rec.Platform, Base: f, Log: &powercut.Log{}})
	if err != nil {
		t.Fatal(err)
	}
	choice, err := checker.Check(powercut.State{})
	if err != nil || !choice.System {
		t.Errorf("%v starts, %v; want a system", choice, err)
	}
	boot, _ := table.Part(partitions.Boot)
	var manifest bundle.Manifest
	if err := json.Unmarshal([]byte(readBoot(t, disk, boot, "/"+choice.Set+"/manifest.json")), &manifest); err != nil {
		t.Error(err)
	}
	if manifest.Label != label {
		t.Errorf("sda1 says that image %s is installed; %v starts, which is %s", label, choice, manifest.Label)
	}
	if r.plan.boots && !r.plan.back && label == r.rec.Platform.Label { // It was carried out.
		data, _ := table.Part(partitions.Data)
		checkLog(t, disk, data)
	}
}
