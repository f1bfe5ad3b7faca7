package vmtest_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"appplatform/partitions"
	"appplatform/vmtest"
)

// typicalResize is how long a resize works here; the power cuts are spread over
// it. What comes behind its end must do no harm either.
const typicalResize = 6 * time.Second

// OS-F1: a disk that is enlarged while the system runs is used without a
// restart; one that is enlarged while it is off is used by the manual's
// procedure, word for word. The data stay the same, also when the power fails.
func TestResize(t *testing.T) {
	t.Parallel()
	disk := installedDisk(t)
	o := vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}}
	m := start(t, o)
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	r := rootLogin(t, m, rootPassword)
	sum := fillDatabase(r)
	r.want("apagent resize", "nothing to do: sda2 (14.6 GiB) takes all that /dev/sda (16 GiB) has")
	if out, ok := r.try("apagent resize --reboot"); ok {
		r.Errorf("apagent resize --reboot succeeds in the installed system and prints %s", out)
	}

	if out, err := m.Monitor("block_resize disk0 32G"); err != nil || strings.Contains(out, "rror") {
		t.Fatalf("cannot enlarge the disk: %v %s", err, out)
	}
	r.want("apagent resize --dry-run --log /tmp/log && cat /tmp/log", "step 1 of 4: write the partition table of /dev/sda (32 GiB), sda2 gets 30.6 GiB")
	send(t, m.Serial, "apagent resize; echo 'e''nd' $?\n")
	running := cutResize(t, m, disk)
	expect(t, m, `now has 30\.6 GiB\nfinished\nend 0\n`, commandWithin)
	wantData(r, sum, 32*partitions.GiB)
	powerOff(t, m)
	checkResized(t, disk)

	if err := os.Truncate(disk, int64(64*partitions.GiB)); err != nil {
		t.Fatal(err)
	}
	m = start(t, o)
	rescueFromMenu(t, m)
	r = rootLogin(t, m, rootPassword)
	for _, wrong := range []string{"", " log.txt", " log.txt install", " resize", " log.txt resize now"} {
		if out, ok := r.try("/home/root/install_step1.sh" + wrong); ok || !strings.Contains(out, "usage: /home/root/install_step1.sh LOG resize") {
			t.Errorf("install_step1.sh%s prints %q and succeeds: %v; want its usage", wrong, out, ok)
		}
	}
	r.run("test ! -e log.txt")
	send(t, m.Serial, "/home/root/install_step1.sh log.txt resize\n")
	rescue := cutResize(t, m, disk)
	expect(t, m, `now has 62\.6 GiB\nfinished`, commandWithin)
	expect(t, m, saysSystem, menuWithin)
	expect(t, m, loginPrompt, bootWithin)
	r = rootLogin(t, m, rootPassword)
	wantData(r, sum, 64*partitions.GiB)
	r.want("tail -n 2 /apps/install_step1.log", "the file system of sda2 had 30.6 GiB and now has 62.6 GiB\nfinished\n")
	powerOff(t, m)
	checkResized(t, disk)

	for i, disk := range append(running, rescue...) {
		t.Run(fmt.Sprintf("power cut %d", i), func(t *testing.T) {
			testResizeCut(t, disk, sum, i == len(running))
		})
	}
}

// testResizeCut starts a disk as a power cut during a resize has left it: the
// data are there, and running the resize again finishes it.
func testResizeCut(t *testing.T, disk, sum string, byScript bool) {
	t.Helper()
	m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}})
	expect(t, m, saysSystem, menuWithin)
	expect(t, m, loginPrompt, bootWithin)
	r := rootLogin(t, m, rootPassword)
	if got := databaseSum(r); got != sum {
		t.Errorf("after the power cut the database holds %s; want %s", got, sum)
	}
	if byScript {
		send(t, m.Serial, "reboot\n")
		rescueFromMenu(t, m)
		rootLogin(t, m, rootPassword)
		// With nothing to do it does not reboot by itself.
		send(t, m.Serial, "/home/root/install_step1.sh log.txt resize && reboot\n")
		expect(t, m, saysSystem, commandWithin+menuWithin)
		expect(t, m, loginPrompt, bootWithin)
		r = rootLogin(t, m, rootPassword)
	} else {
		r.run("apagent resize")
	}
	r.want("apagent resize", "nothing to do")
	info, err := os.Stat(disk)
	if err != nil {
		t.Fatal(err)
	}
	wantData(r, sum, partitions.Size(info.Size()))
	powerOff(t, m)
	checkResized(t, disk)
}

// OS-F1: a controller that tells the kernel of a larger disk, and one that has
// to be asked. (QEMU does not enlarge an NVMe disk that is in use.)
func TestResizeRunning(t *testing.T) {
	t.Parallel()
	for _, controller := range []vmtest.Controller{vmtest.VirtioBlk, vmtest.PVSCSI} {
		t.Run(string(controller), func(t *testing.T) {
			t.Parallel()
			disk := installedDisk(t)
			m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk, Controller: controller}}})
			expect(t, m, loginPrompt, menuWithin+bootWithin)
			r := rootLogin(t, m, rootPassword)
			if out, err := m.Monitor("block_resize disk0 20G"); err != nil || strings.Contains(out, "rror") {
				t.Fatalf("cannot enlarge the disk: %v %s", err, out)
			}
			r.want("apagent resize", "now has 18.6 GiB\nfinished\n")
			powerOff(t, m)
			checkResized(t, disk)
		})
	}
}

// OS-F1 on a card with an MBR: in the running system, with power cuts, and from
// the rescue system, which makes the installed one the boot default again.
func TestResizeGateway(t *testing.T) {
	t.Parallel()
	b := gatewayBoards[0]
	o := b.options(t)
	disk := o.Disks[0].Path
	m := start(t, o)
	expect(t, m, `(?m)^finished`, installWithin)
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	sum := fillDatabase(rootLogin(t, m, rootPassword))
	powerOff(t, m)

	enlarge := func(size partitions.Size) root {
		if err := os.Truncate(disk, int64(size)); err != nil {
			t.Fatal(err)
		}
		m = start(t, o)
		got, err := m.Serial.Expect(saysCountdown+`|`+loginPrompt, menuWithin+bootWithin)
		if err != nil {
			t.Fatal(err)
		}
		if got[0] == saysCountdown {
			send(t, m.Serial, " ")
			expect(t, m, saysStays+`(?s:.*)`+loginPrompt, bootWithin)
		}
		return rootLogin(t, m, rootPassword)
	}
	r := enlarge(8 * partitions.GiB)
	send(t, m.Serial, "apagent resize; echo 'e''nd' $?\n")
	cuts := cutResize(t, m, disk)
	expect(t, m, `now has 6979 MiB\nfinished\nend 0\n`, commandWithin)
	wantData(r, sum, 8*partitions.GiB)
	r.run("sed -i 's/^DEFAULT normal-a/DEFAULT rescue-a/' /mnt/sda1/extlinux/extlinux.conf")
	powerOff(t, m)

	enlarge(16 * partitions.GiB)
	send(t, m.Serial, "/home/root/install_step1.sh log.txt resize\n")
	expect(t, m, `now has 14\.8 GiB\nfinished`, commandWithin)
	expect(t, m, `App Platform \(a\)(?s:.*)`+startsKernel, offWithin+menuWithin)
	expect(t, m, loginPrompt, bootWithin)
	wantData(rootLogin(t, m, rootPassword), sum, 16*partitions.GiB)
	powerOff(t, m)
	checkGateway(t, disk)

	for i, cut := range cuts[:1] {
		t.Run(fmt.Sprintf("power cut %d", i), func(t *testing.T) {
			o := o
			o.Disks = []vmtest.Disk{{Path: cut, Controller: b.controller}}
			m := start(t, o)
			expect(t, m, loginPrompt, menuWithin+bootWithin)
			r := rootLogin(t, m, rootPassword)
			r.run("apagent resize")
			wantData(r, sum, 8*partitions.GiB)
			powerOff(t, m)
			checkGateway(t, cut)
		})
	}
}

// rescueFromMenu chooses the first entry of the boot menu, and stays there.
func rescueFromMenu(t *testing.T, m *vmtest.Machine) {
	t.Helper()
	expect(t, m, `rescue/setup(?s:.*)App Platform`, offWithin+menuWithin)
	send(t, m.Serial, "\x1b[A\r")
	expect(t, m, saysCountdown, bootWithin)
	send(t, m.Serial, " ")
	expect(t, m, saysStays+`(?s:.*)`+loginPrompt, bootWithin)
}

// A serial line has no size, so that psql shows every answer page by page.
const asPostgres = "cd /tmp && sudo -u postgres PAGER=cat "

// fillDatabase makes a table and returns its databaseSum.
func fillDatabase(r root) string {
	r.Helper()
	r.run(asPostgres + "createdb keep")
	r.run(asPostgres + `psql -q keep -c "create table t as select n, md5(n::text) h from generate_series(1, 50000) n" -c "create unique index on t (h)"`)
	r.want(asPostgres+"psql -At -c 'show data_checksums'", "on")
	return databaseSum(r)
}

// databaseSum reads all of the table and its index, whose pages have checksums.
func databaseSum(r root) string {
	r.Helper()
	r.want(asPostgres+`psql -At keep -c "set enable_seqscan = off" -c "select count(*) from (select h from t order by h) s"`, "50000\n")
	out := strings.Fields(r.run(asPostgres + `psql -At keep -c "select md5(string_agg(n || h, ',' order by n)) from t"; cd`))
	if len(out) != 1 || len(out[0]) != 32 {
		r.Fatalf("the database answers %q; want a checksum", out)
	}
	return out[0]
}

// wantData wants the table as it was and the room of a disk of that size.
func wantData(r root, sum string, disk partitions.Size) {
	r.Helper()
	if got := databaseSum(r); got != sum {
		r.Errorf("the database holds %s; want %s", got, sum)
	}
	scheme := partitions.GPT
	if strings.Contains(r.run("cat /etc/platform.json"), `"mbr"`) {
		scheme = partitions.MBR
	}
	table, err := partitions.Layout(scheme, disk)
	if err != nil {
		r.Fatal(err)
	}
	data, _ := table.Part(partitions.Data)
	out := r.run(`df -k /mnt/sda2 | awk 'NR == 2 { print $2 }'`)
	kib, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if total := partitions.Size(kib) * partitions.KiB; err != nil || total > data.Size || total < data.Size*95/100 {
		r.Errorf("df shows %s (%v) for /mnt/sda2; want nearly %s", total.Short(), err, data.Size.Short())
	}
}

// cutResize copies the disk at a few random moments from now on.
func cutResize(t *testing.T, m *vmtest.Machine, disk string) []string {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	dir := t.TempDir()
	times := (*cuts + 6) / 7
	var disks []string
	for i := range times {
		time.Sleep(time.Duration(random.Int64N(2 * int64(typicalResize) / int64(times+1))))
		to := filepath.Join(dir, fmt.Sprintf("cut%d.img", i))
		if err := m.Snapshot(to, disk); err != nil {
			t.Fatal(err)
		}
		disks = append(disks, to)
	}
	return disks
}

// checkResized judges a disk with a GPT that was switched off after a resize.
func checkResized(t *testing.T, disk string) {
	t.Helper()
	checkInstalled(t, disk)
	if out := judge(t, disk, "sfdisk", "--verify", disk); !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk says\n%s", out)
	}
}
