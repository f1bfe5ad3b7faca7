package vmtest_test

import (
	"strings"
	"testing"

	"appplatform/vmtest"
)

// fillData takes every block of sda2, root's included, in next to no time.
const fillData = `n=0; for s in 1G 64M 4M 256K 16K 4K; do while fallocate -l $s /home/admin/film.$n 2> /dev/null; do n=$((n + 1)); done; done; sync; true`

// OS-F3: a disk that is full to the last block starts, lets people in, tells
// the way out, and that way brings the database back with all it held.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	disk := installedDisk(t)
	m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}})
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	r := rootLogin(t, m, rootPassword)
	wantReserve(r)
	testLogRotation(r)
	testCoreDumpLimits(r)

	const as = "cd /tmp && sudo -u postgres PAGER=cat "
	r.run(as + "createdb shop")
	r.run(as + "psql -q shop -c 'create table t as select generate_series(1,1000) n'")
	r.run("mkdir -p /var/log/apps/shop && dd if=/dev/zero of=/var/log/apps/shop/shop.log.1 bs=1M count=30 2> /dev/null")
	r.run("dd if=/dev/zero bs=1M count=20 2> /dev/null | /usr/lib/app-platform/core-dump shop 12 1700000000")
	r.run(fillData)
	r.want("df -h /mnt/sda2", "100%")
	if out, ok := r.try(as + "psql -q shop -c 'create table big as select generate_series(1,1000000) n'"); ok {
		r.Errorf("the full disk takes a large table: %s", out)
	}
	if out, ok := r.try("echo memory | /usr/lib/app-platform/core-dump late 13 1700000001"); ok {
		r.Errorf("the full disk takes a core dump: %s", out)
	}
	r.run("! test -e /var/log/core_dumps/late")

	send(t, m.Serial, "reboot\n")
	expect(t, m, saysSystem, offWithin+menuWithin)
	expect(t, m, `the disk is full; to make room: apagent diskfree`, bootWithin)
	expect(t, m, loginPrompt, bootWithin)
	r = rootLogin(t, m, rootPassword)
	r.want("df -h /mnt/sda2", "100%")
	r.want("apagent status", "problem: the data partition is nearly full")
	if out, ok := r.try("/etc/init.d/S50postgresql status"); ok {
		r.Errorf("the database runs on a full disk: %s", out)
	}
	testFullDiskSSH(t, m)

	r.want("apagent diskfree --dry-run", "step 1 of 4: empty /mnt/sda2/empty_if_no_space (500 MiB)\nstep 2 of 4: delete logs of apps (1 file, 30 MiB)\nstep 3 of 4: delete core dumps (")
	out := r.run("apagent diskfree")
	if !strings.Contains(out, "/etc/init.d/S50postgresql restart") || strings.Contains(out, "step 2") {
		r.Errorf("apagent diskfree prints\n%s\nwant one step, and how to go on", out)
	}
	r.run("/etc/init.d/S50postgresql restart")
	r.want(as+"psql -At shop -c 'select sum(n) from t'", "500500")
	r.run("test -s /var/log/apps/shop/shop.log.1 && test -s /var/log/core_dumps/shop/core.1700000000.12")
	r.run("apagent diskfree")
	if out, ok := r.try("apagent diskfree --need='1 GiB'"); ok || !strings.Contains(out, "hint: delete data") {
		r.Errorf("apagent diskfree --need='1 GiB' prints\n%s\nwant a refusal with a hint", out)
	}
	r.run("! test -e /var/log/apps/shop/shop.log.1 && ! test -e /var/log/core_dumps/shop/core.1700000000.12")
	r.want(as+"psql -At shop -c 'select sum(n) from t'", "500500")

	// As the manual ends it.
	r.run("rm /home/admin/film.*")
	r.want("apagent status", "was emptied")
	r.run("rm /mnt/sda2/empty_if_no_space; apagent tidy")
	wantReserve(r)
	powerOff(t, m)
	checkInstalled(t, disk)
}

// wantReserve wants 500 MiB that are really taken.
func wantReserve(r root) {
	r.Helper()
	r.want("stat -c %s /mnt/sda2/empty_if_no_space", "524288000")
	r.run("test $(du -k /mnt/sda2/empty_if_no_space | cut -f 1) -ge 512000")
	r.want("test -z \"$(apagent tidy --dry-run)\" && echo whole", "whole")
}

// testFullDiskSSH logs in as the manual says, and becomes root.
func testFullDiskSSH(t *testing.T, m *vmtest.Machine) {
	t.Helper()
	shell, err := login(t, m).Shell()
	if err != nil {
		t.Fatal(err)
	}
	become(t, shell, "su root", rootPassword)
}

// testLogRotation shows that what cron runs accepts its rules and keeps a log
// short.
func testLogRotation(r root) {
	r.Helper()
	const rotate = "/usr/sbin/logrotate -s /var/lib/logrotate/status /etc/logrotate.conf"
	r.want("cat /etc/crontabs/root", rotate)
	r.run("mkdir -p /var/log/apps/long && dd if=/dev/zero of=/var/log/apps/long/long.log bs=1M count=51 2> /dev/null")
	r.run("dd if=/dev/zero bs=1M count=2 2> /dev/null >> /var/log/btmp")
	r.run(rotate)
	r.run("test ! -s /var/log/apps/long/long.log && test -s /var/log/apps/long/long.log.1 && test ! -s /var/log/btmp && test -s /var/log/btmp.1")
	r.run("rm -r /var/log/apps/long /var/log/btmp.1")
}

// testCoreDumpLimits shows that the device's own tools keep the three newest.
func testCoreDumpLimits(r root) {
	r.Helper()
	r.run("for i in 1 2 3 4 5; do echo memory | /usr/lib/app-platform/core-dump loop 7 $i || echo FAILED; done")
	r.want("cd /var/log/core_dumps/loop && echo * && cat core.5.7; cd /", "core.3.7 core.4.7 core.5.7\nmemory\n")
	r.run("rm -r /var/log/core_dumps/loop")
}
