package vmtest_test

import (
	"context"
	"os"
	"testing"
	"time"

	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
	"appplatform/vmtest"
)

func TestProbe(t *testing.T) {
	dir := "/tmp/boottree/probe"
	os.RemoveAll(dir)
	os.MkdirAll(dir, 0o755)
	if err := vmtest.CopyDisk(dir+"/d.img", "../out/x86_64/app-platform-x86_64.img", 4*partitions.GiB); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	start := time.Now()
	m, err := vmtest.Start(ctx, vmtest.Options{Tools: testtools.Open(t, tooltree.VM), Dir: dir, Forward: map[int]int{22: 0},
		Disks: []vmtest.Disk{{Path: dir + "/d.img", Controller: vmtest.Controller(os.Getenv("CTRL"))}}, Firmware: vmtest.Firmware(os.Getenv("FW"))})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	for _, p := range []string{"GRUB", "Booting `rescue", "step 10", "step 11", "step 12", "Booting `App Platform", "login:"} {
		got, err := m.Serial.Expect(p, 3*time.Minute)
		t.Log(time.Since(start), got, err)
		if err != nil {
			return
		}
	}
	t.Log(m.Serial.Tail(60))
}
