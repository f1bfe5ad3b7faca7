package vmtest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"appplatform/partitions"
	"appplatform/vmtest"
)

var healingSeed = flag.Uint64("healing-seed", 0, "seed of the moments at which TestHealing cuts the power (0: the time)")

// healWithin is from the power button to a login: two minutes, and as for all
// limits here four times as much.
const healWithin = 8 * time.Minute

// settles is how long a system that has come up needs at most to go on with an
// update.
const settles = 30 * time.Second

// Whatever was damaged, the machine comes up by itself with all that was on
// sda2, and tells in its log and status what it has done.
func TestHealing(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		heal func(t *testing.T)
	}{
		{"rescue default", healRescueDefault},
		{"boot loader", healBootLoader},
		{"kernel and ramdisk", healKernel},
		{"journal", healJournal},
		{"superblock", healSuperblock},
		{"sda3 zeroed", healZeroedSystem},
		{"sda3 altered", healAlteredSystem},
		{"running image damaged", healRunningImage},
		{"other image damaged", healOtherImage},
		{"new image damaged", healNewImage},
		{"download cut", healDownload},
		{"full disk", healFullDisk},
		{"larger disk", healLargerDisk},
		{"database", healDatabase},
		{"wrong clock", healWrongClock},
		{"power cuts", healPowerCuts},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.heal(t)
		})
	}
}

// comesUp starts a machine and waits until it runs with its data. On the way it
// says what is given.
func comesUp(t *testing.T, o vmtest.Options, says ...string) (*vmtest.Machine, root) {
	t.Helper()
	began := time.Now()
	m := start(t, o)
	for _, s := range append(says, loginPrompt) {
		expect(t, m, s, healWithin-time.Since(began))
	}
	t.Logf("up after %v", time.Since(began).Round(time.Second))
	r := rootLogin(t, m, rootPassword)
	wantSynced(r)
	return m, r
}

// keepSynced puts something on sda2 that must not get lost.
func keepSynced(r root) {
	r.Helper()
	r.run("echo precious > /home/admin/kept")
	r.run(asPostgres + `psql -q -c "create table kept as select i, md5(i::text) m from generate_series(1, 10000) i"; cd; sync`)
}

func wantSynced(r root) {
	r.Helper()
	r.want("cat /home/admin/kept", "precious")
	r.want(asPostgres+`psql -At -c "select count(*) from kept where m = md5(i::text)"; cd`, "10000")
}

// wantHealed looks for what was done in the status and in the log, which is
// complete again.
func wantHealed(r root, what string) {
	r.Helper()
	if out := r.run("apagent status"); !strings.Contains(out, what) {
		r.Errorf("apagent status prints\n%s\nwant what was healed: %q", out, what)
	}
	r.want("grep -F '"+what+"' /apps/install_step1.log", what)
	r.want("tail -n 1 /apps/install_step1.log", "finished")
	r.want("apagent status", "trial         committed")
}

// wantUpdated is for an update that went through.
func wantUpdated(r root) {
	r.Helper()
	if out := r.run("apagent status"); !strings.Contains(out, ", committed\n") || !strings.Contains(out, "trial         committed") {
		r.Errorf("apagent status prints\n%s\nwant an update that is committed", out)
	}
	r.want("tail -n 1 /apps/install_step1.log", "finished")
}

// on1 is a machine with one disk.
func on1(disk string) vmtest.Options {
	return vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}, Watchdog: true}
}

// keptDisk is an installed disk with data on it.
func keptDisk(t *testing.T) string {
	t.Helper()
	return newDisk(t, keptOnce.get(t, "kept", func(disk string) {
		must(t, vmtest.CopyDisk(disk, installedDisk(t), 0))
		m := start(t, on1(disk))
		expect(t, m, loginPrompt, menuWithin+bootWithin)
		keepSynced(rootLogin(t, m, rootPassword))
		powerOff(t, m)
	}), 0)
}

// updatedDisk is a keptDisk that was updated: image b runs and a is the former.
func updatedDisk(t *testing.T) string {
	t.Helper()
	return newDisk(t, updatedOnce.get(t, "updated", func(disk string) {
		must(t, vmtest.CopyDisk(disk, keptDisk(t), 0))
		m := start(t, on1(disk))
		expect(t, m, loginPrompt, menuWithin+bootWithin)
		rootLogin(t, m, rootPassword)
		update(t, m, "")
		powerOff(t, m)
	}), 0)
}

// A sharedDisk is made once for all tests, which work on copies.
type sharedDisk struct {
	sync.Mutex
	made, failed bool
}

var keptOnce, updatedOnce sharedDisk

func (s *sharedDisk) get(t *testing.T, name string, make func(disk string)) string {
	t.Helper()
	disk := filepath.Join(sharedDir, name+".img")
	s.Lock()
	defer s.Unlock()
	if s.failed {
		t.Fatal("cannot make the disk for this test; see the first test that failed")
	}
	if !s.made {
		s.failed = true // until it is not
		make(disk)
		s.made, s.failed = true, false
		_ = os.WriteFile(sharedDir+"/"+name+".ok", nil, 0o644)
		_ = os.WriteFile(sharedDir+"/"+name+".ok", nil, 0o644)
	}
	return disk
}

// update takes a machine whose console is root's to the next image.
func update(t *testing.T, m *vmtest.Machine, options string) {
	t.Helper()
	send(t, m.Serial, "apagent update "+options+" "+serveFile(t, nextImage(t, "x86_64"))+"\n")
	expect(t, m, `the update is committed(?s:.*)finished`, updateWithin)
}

// again logs in on a console where somebody may be typing.
func again(t *testing.T, m *vmtest.Machine) root {
	t.Helper()
	send(t, m.Serial, "\n")
	expect(t, m, loginPrompt, bootWithin)
	return rootLogin(t, m, rootPassword)
}

// overwrite changes what lies on a partition; nil is zeros from its first byte.
func overwrite(t *testing.T, disk string, number int, size partitions.Size) {
	t.Helper()
	p, ok := readTable(t, disk).Part(number)
	if !ok || size > p.Size {
		t.Fatalf("cannot overwrite %v of sda%d", size, number)
	}
	f, err := os.OpenFile(disk, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	for at := partitions.Size(0); at < size; at += partitions.MiB {
		_, err := f.WriteAt(bytes.Repeat([]byte{0}, int(min(partitions.MiB, size-at))), int64(p.Start+at))
		must(t, err)
	}
}

// zap makes a block in the middle of a file noise.
func zap(t *testing.T, disk string, number int, file, block string) {
	t.Helper()
	p, _ := readTable(t, disk).Part(number)
	change(t, filepath.Dir(disk), "debugfs", "-w", "-R", "zap_block -f "+file+" -p 0x5a "+block, on(disk, p))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// OS-E4: the update has finished, and the rescue system still is what boots.
func healRescueDefault(t *testing.T) {
	disk := updatedDisk(t)
	patchBoot(t, disk, "\nset default=1\n", "\nset default=0\n")
	m, r := comesUp(t, on1(disk), saysRescue, `nobody came: starting the installed system`, saysSystem)
	wantHealed(r, "the rescue system was what the firmware starts, with nothing to do")
	r.want("apagent status", "image         "+nextLabel)
	powerOff(t, m)
}

// Both files that GRUB reads are damaged: which image, and what of it.
func healBootLoader(t *testing.T) {
	disk := updatedDisk(t)
	for _, file := range []string{"grub.cfg", "grubenv"} {
		zap(t, disk, partitions.Boot, "/boot/grub/"+file, "0")
	}
	m, r := comesUp(t, on1(disk), saysRescue, saysSystem)
	wantHealed(r, "the boot loader had forgotten which image is the current one: it is b")
	wantHealed(r, "grub.cfg: no line")
	r.want("apagent status", "image         "+nextLabel)
	powerOff(t, m)
	comesUp(t, on1(disk), saysSystem)
}

// The kernel of the image that runs is damaged, then its ramdisk as well: the
// other image's take their place, until an update brings whole ones.
func healKernel(t *testing.T) {
	disk := updatedDisk(t)
	zap(t, disk, partitions.Boot, "/b/kernel", "100")
	m, r := comesUp(t, on1(disk), `The image in /b cannot start\.`)
	r.want("apagent status", "problem: the firmware has started image a, because image b on the boot partition is damaged")
	r.want("apagent status", "image         "+nextLabel)
	powerOff(t, m)
	zap(t, disk, partitions.Boot, "/b/ramdisk.ext2.xz", "100")
	patchBoot(t, disk, "\nset default=1\n", "\nset default=0\n")
	m, r = comesUp(t, on1(disk), `The image in /b cannot start\.`, `rescue system on`, saysSystem)
	r.want("apagent status", "image         "+nextLabel)
	update(t, m, "--force")
	r = again(t, m)
	wantSynced(r)
	if out := r.run("apagent status --verify"); strings.Contains(out, "problem: ") {
		r.Errorf("after an update, apagent status --verify prints\n%s", out)
	}
	powerOff(t, m)
	comesUp(t, on1(disk), saysSystem)
}

// OS-F2.
func healJournal(t *testing.T) {
	disk := keptDisk(t)
	m, r := comesUp(t, on1(disk))
	r.run(asPostgres + `psql -q -c "create table later as select 42 n"; cd`)
	r.run("echo later > /home/admin/later; sync")
	send(t, m.Serial, "while :; do cp -r /etc /home/admin/copy; rm -r /home/admin/copy; done\n")
	time.Sleep(5 * time.Second)
	m.Kill()
	m, r = comesUp(t, on1(disk), saysSystem)
	wantHealed(r, "completed sda2 from its journal")
	r.want("cat /home/admin/later", "later")
	r.want(asPostgres+`psql -At -c "select n from later"; cd`, "42")
	powerOff(t, m)
	checkInstalled(t, disk)
}

// OS-F2.
func healSuperblock(t *testing.T) {
	disk := keptDisk(t)
	overwrite(t, disk, partitions.Data, 4*partitions.KiB)
	m, r := comesUp(t, on1(disk), saysSystem)
	wantHealed(r, "repaired sda2, with every repair allowed")
	r.want("apagent status --json", `"what": "repaired sda2, with every repair allowed"`)
	powerOff(t, m)
	checkInstalled(t, disk)
}

// GRUB does not start a system that is not there.
func healZeroedSystem(t *testing.T) {
	disk := keptDisk(t)
	rootfs, _ := readTable(t, disk).Part(partitions.Rootfs)
	overwrite(t, disk, partitions.Rootfs, rootfs.Size)
	m, r := comesUp(t, on1(disk), "The system cannot be read", `rescue system on`, `sda3 was altered and is written again`, saysSystem)
	wantHealed(r, "sda3 was altered and is written again")
	powerOff(t, m)
	checkInstalled(t, disk)
}

// The system starts without its database, and finds out why.
func healAlteredSystem(t *testing.T) {
	disk := keptDisk(t)
	zap(t, disk, partitions.Rootfs, "/usr/lib/postgresql/17/bin/postgres", "0")
	m, r := comesUp(t, on1(disk), saysSystem, `sda3 was altered, and the rescue system is to write it again`,
		saysRescue, `installing App Platform`, saysSystem)
	wantHealed(r, "the rescue system is to write it again: PostgreSQL does not answer")
	powerOff(t, m)
	checkInstalled(t, disk)
}

// The installed system does not need the image that it was written from. An
// update that could not go back is refused; told to, it goes through.
func healRunningImage(t *testing.T) {
	disk := updatedDisk(t)
	zap(t, disk, partitions.Boot, "/b/rootfs.ext4.xz", "100")
	m, r := comesUp(t, on1(disk), saysSystem)
	r.want("apagent status --verify", "problem: image b is damaged: ")
	if out, ok := r.try("apagent update --force=false " + nextImage(t, "x86_64")); ok || !strings.Contains(out, "the running image could not be put back") {
		r.Errorf("an update from a damaged image prints %s", out)
	}
	powerOff(t, m)
	zap(t, disk, partitions.Boot, "/b/manifest.json", "0")
	m, r = comesUp(t, on1(disk), saysSystem)
	r.want("apagent status", "problem: cannot use the image set in /mnt/sda1/b")
	update(t, m, "--force")
	r = again(t, m)
	wantSynced(r)
	wantUpdated(r)
	if out := r.run("apagent status --verify"); !strings.Contains(out, "(current)") || strings.Contains(out, "image a is damaged") {
		r.Errorf("apagent status --verify prints\n%s", out)
	}
	powerOff(t, m)
}

// Nothing leads to a damaged image, and the next update replaces it.
func healOtherImage(t *testing.T) {
	disk := updatedDisk(t)
	zap(t, disk, partitions.Boot, "/a/kernel", "100")
	zap(t, disk, partitions.Boot, "/a/ramdisk.ext2.xz", "100")
	m, r := comesUp(t, on1(disk), saysSystem)
	r.want("apagent status --verify", "problem: image a is damaged: /mnt/sda1/a/kernel is not what was signed")
	if out, ok := r.try("apagent rollback"); ok || !strings.Contains(out, "there is no former image to go back to: /mnt/sda1/a/kernel is not what was signed") {
		r.Errorf("apagent rollback to a damaged image prints %s", out)
	}
	update(t, m, "--force")
	r = again(t, m)
	wantSynced(r)
	wantUpdated(r)
	if out := r.run("apagent status --verify"); strings.Contains(out, "problem: ") {
		r.Errorf("after an update, apagent status --verify prints\n%s", out)
	}
	powerOff(t, m)
}

// The new image is damaged after the restart into it has begun.
func healNewImage(t *testing.T) {
	disk := keptDisk(t)
	m, _ := comesUp(t, on1(disk))
	send(t, m.Serial, "apagent update "+serveFile(t, nextImage(t, "x86_64"))+"\n")
	expect(t, m, `writing App Platform `+nextLabel, updateWithin)
	m.Kill()
	zap(t, disk, partitions.Boot, "/b/rootfs.ext4.xz", "100")
	m = start(t, on1(disk))
	expect(t, m, `is given up: |is rolled back`, healWithin)
	r := again(t, m)
	wantSynced(r)
	wantHealed(r, "is not what was signed")
	r.want("apagent update --status", "rootfs.ext4.xz is not what was signed")
	powerOff(t, m)
	checkInstalled(t, disk)
}

func healDownload(t *testing.T) {
	disk := keptDisk(t)
	address := serveFile(t, nextImage(t, "x86_64"))
	m, r := comesUp(t, on1(disk))
	r.run("(apagent update --limit-rate=1M " + address + " > /dev/null 2>&1 &)")
	r.run("until [ $(stat -c %s /mnt/sda2/update/incoming.part || echo 0) -ge 5000000 ]; do sleep 1; done; sync")
	m.Kill()
	m, r = comesUp(t, on1(disk), saysSystem)
	r.want("apagent update --status", "under way     nothing")
	send(t, m.Serial, "apagent update "+address+"\n")
	expect(t, m, `going on with a download of which .* are here`, commandWithin)
	expect(t, m, `the update is committed(?s:.*)finished`, updateWithin)
	r = again(t, m)
	wantSynced(r)
	r.want("apagent status", "image         "+nextLabel)
	powerOff(t, m)
}

// OS-F3: what is kept for a full disk is enough to update; without it the update
// is refused, and the machine starts nevertheless.
func healFullDisk(t *testing.T) {
	disk := keptDisk(t)
	m, r := comesUp(t, on1(disk))
	r.run(fillData)
	r.want("df -h /mnt/sda2", "100%")
	update(t, m, "")
	r = again(t, m)
	wantSynced(r)
	wantUpdated(r)
	r.want("apagent status", "image         "+nextLabel)

	r.run("rm -f /mnt/sda2/empty_if_no_space")
	r.run(strings.ReplaceAll(fillData, "film.", "more."))
	if out, ok := r.try("apagent update --force " + serveFile(t, nextImage(t, "x86_64"))); ok || !strings.Contains(out, "hint: run apagent diskfree") {
		r.Errorf("an update on a full disk prints %s", out)
	}
	m.Kill()
	m = start(t, on1(disk))
	expect(t, m, loginPrompt, healWithin)
	r = rootLogin(t, m, rootPassword)
	r.want("cat /home/admin/kept", "precious")
	r.want("apagent status", "problem: the data partition is nearly full")
	r.run("rm /home/admin/more.*; apagent diskfree; /etc/init.d/S50postgresql restart")
	wantSynced(r)
	powerOff(t, m)
}

// OS-F1.
func healLargerDisk(t *testing.T) {
	disk := keptDisk(t)
	m, _ := comesUp(t, on1(disk))
	send(t, m.Serial, "apagent update "+serveFile(t, nextImage(t, "x86_64"))+"\n")
	expect(t, m, `writing App Platform `+nextLabel, updateWithin)
	m.Kill()
	must(t, os.Truncate(disk, int64(20*partitions.GiB)))
	m = start(t, on1(disk))
	expect(t, m, `the update is committed(?s:.*)finished`, healWithin)
	r := again(t, m)
	wantUpdated(r)
	r.want("apagent status", "image         "+nextLabel)
	r.want("apagent resize", "now has 18.6 GiB")
	wantSynced(r)
	powerOff(t, m)
	checkDisk(t, disk)
}

// A database that the new image cannot start is one that the former image runs.
func healDatabase(t *testing.T) {
	disk := keptDisk(t)
	m, r := comesUp(t, on1(disk))
	label := strings.TrimSpace(r.run("cat /mnt/sda1/label"))
	r.run(`sed -i '/^log=/a grep -q ` + nextLabel + ` /etc/platform.json \&\& bin=/usr/lib/postgresql/18/bin' /etc/init.d/S50postgresql`)
	r.run("cp /etc/init.d/S50postgresql /etc/init.d/S50postgresql.new && mv /etc/init.d/S50postgresql.new /etc/init.d/S50postgresql; sync")
	send(t, m.Serial, "apagent update "+serveFile(t, nextImage(t, "x86_64"))+"\n")
	expect(t, m, `App Platform `+nextLabel+` does not work: PostgreSQL does not answer`, updateWithin)
	expect(t, m, `the update is rolled back`, healWithin)
	expect(t, m, saysSystem, menuWithin)
	expect(t, m, loginPrompt, bootWithin)
	r = rootLogin(t, m, rootPassword)
	wantSynced(r)
	wantHealed(r, "PostgreSQL does not answer")
	r.want("apagent status", "image         "+label)
	r.want("apagent status", nextLabel+", rolled back: PostgreSQL does not answer")
	powerOff(t, m)
	checkInstalled(t, disk)
}

// No signature, certificate or counter of attempts cares about the clock.
func healWrongClock(t *testing.T) {
	disk := keptDisk(t)
	o := on1(disk)
	o.Clock = "1999-01-01"
	m, r := comesUp(t, o)
	r.run("/etc/init.d/S70chrony stop; date -s '1999-01-01 12:00:00'") // A time server may have been reached.
	address, certificate := serveSecurely(t, nextImage(t, "x86_64"))
	r.run("printf '" + strings.ReplaceAll(certificate, "\n", `\n`) + "' >> /etc/ssl/certs/ca-certificates.crt")
	send(t, m.Serial, "apagent update "+address+"\n")
	expect(t, m, `not counting the date of the server's certificate`, updateWithin)
	expect(t, m, `the update is committed(?s:.*)finished`, updateWithin)
	r = again(t, m)
	wantSynced(r)
	r.want("apagent status", "image         "+nextLabel)
	m.Kill()

	o.Clock = "2099-12-31"
	m, r = comesUp(t, o)
	r.run("/etc/init.d/S70chrony stop; date -s '2099-12-31 12:00:00'")
	send(t, m.Serial, "apagent rollback\n")
	expect(t, m, `the update is committed(?s:.*)finished`, updateWithin)
	r = again(t, m)
	wantSynced(r)
	r.want("apagent status", "last update   from "+nextLabel+" to ")
	r.want("apagent status", ", committed: by hand")
	powerOff(t, m)
	checkInstalled(t, disk)
}

// serveSecurely is serveFile over HTTPS, with a certificate that is valid today.
func serveSecurely(t *testing.T, file string) (address, certificate string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "update server"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(10, 0, 2, 2)},
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	must(t, err)
	s := &http.Server{Handler: http.FileServer(http.Dir(filepath.Dir(file))), ReadHeaderTimeout: time.Minute,
		ErrorLog: log.New(io.Discard, "", 0)} // It is refused at first.
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return fmt.Sprintf("https://10.0.2.2:%d/%s", l.Addr().(*net.TCPAddr).Port, filepath.Base(file)),
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// OS-E4: the power fails at four moments of an update, one after the other.
func healPowerCuts(t *testing.T) {
	seed := *healingSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d (-healing-seed)", seed)
	random := mathrand.New(mathrand.NewPCG(seed, 0))
	disk := keptDisk(t)
	m, r := comesUp(t, on1(disk))
	label := strings.TrimSpace(r.run("cat /mnt/sda1/label"))
	address := serveFile(t, nextImage(t, "x86_64"))
	command := "apagent update " + address + "\n"
	send(t, m.Serial, command)
	expect(t, m, `step 2 of \d+`, updateWithin)
	for i := range 4 {
		time.Sleep(time.Duration(random.Int64N(int64(typicalInstall))))
		m.Kill()
		m = start(t, on1(disk))
		got, err := m.Serial.Expect(`step \d+ of \d+|`+loginPrompt, menuWithin+bootWithin)
		must(t, err)
		t.Logf("after cut %d it says %q", i+1, got[0])
	}
	for quiet := false; !quiet; {
		send(t, m.Serial, "\n")
		expect(t, m, loginPrompt, healWithin)
		_, err := m.Serial.Expect(`step \d+ of \d+`, 2*settles)
		quiet = err != nil
	}
	r = rootLogin(t, m, rootPassword)
	wantSynced(r)
	out := r.run("apagent status")
	if !strings.Contains(out, "image         "+label) && !strings.Contains(out, "image         "+nextLabel) || !strings.Contains(out, "trial         committed") {
		t.Errorf("after four power cuts apagent status prints\n%s", out)
	}
	r.want("tail -n 1 /apps/install_step1.log", "finished")
	powerOff(t, m)
	checkDisk(t, disk)
}
