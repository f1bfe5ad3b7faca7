package vmtest_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"appplatform/partitions"
	"appplatform/vmtest"
)

var cuts = flag.Int("cuts", 20, "number of moments at which TestPowerCutDuringInstall cuts the power")

// typicalInstall is how long the ramdisk works here; the moments are spread
// over it. Where the machine is faster, the last ones lie after the end, where
// a cut must do no harm either.
const typicalInstall = 70 * time.Second

// OS-C1, OS-E4: the power fails at random moments of the first installation.
// Started again, the machine completes it without help.
func TestPowerCutDuringInstall(t *testing.T) {
	t.Parallel()
	o := vmtest.Options{NoReboot: true, Disks: []vmtest.Disk{{Path: newDisk(t, factoryImage(t), 4*partitions.GiB)}}}
	cutInstall(t, o, saysRescue, *cuts, checkInstalled)
}

// cutInstall cuts the power of a machine that installs itself, so often from
// the moment on that it says something, and judges what becomes of its disk.
func cutInstall(t *testing.T, o vmtest.Options, begins string, times int, check func(*testing.T, string)) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	moments := make([]time.Duration, times)
	for i := range moments {
		moments[i] = time.Duration(random.Int64N(int64(typicalInstall)))
	}
	slices.Sort(moments)
	for i, disk := range cutDisks(t, o, begins, moments) {
		t.Run(fmt.Sprintf("after %v", moments[i].Round(time.Second)), func(t *testing.T) {
			t.Parallel()
			again := o
			again.Disks = []vmtest.Disk{{Path: disk, Controller: o.Disks[0].Controller}}
			finish(t, start(t, again))
			check(t, disk)
		})
	}
}

// cutDisks is what the power cuts leave. The contents of the disk at a moment
// are those after a cut at that moment, so one run gives all of them.
func cutDisks(t *testing.T, o vmtest.Options, begins string, moments []time.Duration) []string {
	t.Helper()
	dir, disk := t.TempDir(), o.Disks[0].Path
	m := start(t, o)
	expect(t, m, begins, menuWithin)
	began := time.Now()
	var disks []string
	for i, moment := range moments {
		to := filepath.Join(dir, fmt.Sprintf("cut%d.img", i))
		select {
		case <-time.After(moment - time.Since(began)):
		case <-m.Done():
		}
		if err := m.Snapshot(to, disk); err != nil {
			select {
			case <-m.Done():
				err = vmtest.CopyDisk(to, disk, 0)
			default:
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		disks = append(disks, to)
	}
	m.Kill()
	return disks
}

// finish waits for a machine that does not reboot to have installed itself, or
// to show that it is installed already.
func finish(t *testing.T, m *vmtest.Machine) {
	t.Helper()
	got, err := m.Serial.Expect(`(?m)^finished|`+loginPrompt, menuWithin+installWithin)
	if err != nil {
		t.Fatal(err)
	}
	if got[0] != "finished" {
		powerOff(t, m)
		return
	}
	if err := m.WaitFor(offWithin); err != nil {
		t.Fatal(err)
	}
}
