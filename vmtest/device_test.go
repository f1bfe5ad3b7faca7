package vmtest_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"appplatform/internal/testtools"
	"appplatform/tooltree"
	"appplatform/vmtest"
)

// A root is root's shell on the serial console.
type root struct {
	*testing.T
	m *vmtest.Machine
}

// rootPassword is root's until somebody changes it.
const rootPassword = "iplinux"

// rootLogin logs in as root where the console asks for a name (OS-C5). In the
// rescue system the menu comes first, whose first choice is a shell.
func rootLogin(t *testing.T, m *vmtest.Machine, password string) root {
	t.Helper()
	if menu := logIn(t, m, password); menu {
		send(t, m.Serial, "1\n")
		expect(t, m, shellPrompt, commandWithin)
	}
	return rootShell(t, m)
}

// What root sees when it may type a command, or choose.
const (
	shellPrompt = `# $`
	menuPrompt  = `Number, or Enter for the menu: $`
)

// logIn tells whether root gets the menu of the rescue system.
func logIn(t *testing.T, m *vmtest.Machine, password string) (menu bool) {
	t.Helper()
	send(t, m.Serial, "root\n")
	expect(t, m, `assword: ?$`, bootWithin)
	send(t, m.Serial, password+"\n")
	got, err := m.Serial.Expect(shellPrompt+`|(`+menuPrompt+`)`, commandWithin) // login throws away what is typed ahead
	if err != nil {
		t.Fatal(err)
	}
	return got[1] != ""
}

// rootShell is where root may type a command.
func rootShell(t *testing.T, m *vmtest.Machine) root {
	t.Helper()
	r := root{t, m}
	r.run("stty -echo; PS1=")
	return r
}

func send(t *testing.T, c *vmtest.Console, text string) {
	t.Helper()
	if err := c.Send(text); err != nil {
		t.Fatal(err)
	}
}

// try runs a command and returns what it printed and whether it succeeded.
func (r root) try(command string) (string, bool) {
	r.Helper()
	// The quotes keep the echo of the line from looking like its output; one
	// line, since sudo swallows what is typed ahead.
	send(r.T, r.m.Serial, "echo 'be''gin'; "+command+"; echo 'e''nd' $?\n")
	got, err := r.m.Serial.Expect(`(?s)begin\n(.*?)end (\d+)\n`, commandWithin)
	if err != nil {
		r.Fatalf("%s: %v", command, err)
	}
	return got[1], got[2] == "0"
}

// run runs a command that must succeed.
func (r root) run(command string) string {
	r.Helper()
	out, ok := r.try(command)
	if !ok {
		r.Errorf("%s fails and prints\n%s", command, out)
	}
	return out
}

// want runs a command that must succeed and print something.
func (r root) want(command, text string) {
	r.Helper()
	if out := r.run(command); !strings.Contains(out, text) {
		r.Errorf("%s prints\n%s\nwant %q", command, out, text)
	}
}

// One machine shows what people do with the installed system.
func TestDevice(t *testing.T) {
	t.Parallel()
	disk := installedDisk(t)
	m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}, Watchdog: true})
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	r := rootLogin(t, m, rootPassword)
	testSSH(t, m)
	testTools(r)
	r.run("test -s /usr/share/doc/grub/copyright") // which gateways do not have
	testCopies(t, m)
	testServices(r)
	testCoreDump(r)
	testDatabase(r)
	testApp(t, r, m)
	testAdmin(t, m)
	testStatus(r)
	testIPv6(r)
	testPersistence(r)

	if err := m.Agent("guest-shutdown", nil, nil, commandWithin); err != nil {
		t.Fatal(err)
	}
	if err := m.WaitFor(offWithin); err != nil {
		t.Fatal(err)
	}
	checkInstalled(t, disk)
}

// OS-C5.
func testSSH(t *testing.T, m *vmtest.Machine) {
	t.Helper()
	s := login(t, m)
	if out, err := s.Run("id -un", "", commandWithin); err != nil || out != "admin\n" {
		t.Errorf("id -un prints %q, %v; want admin", out, err)
	}
	if v, err := s.SFTPVersion(); err != nil || v < 3 {
		t.Errorf("SFTPVersion() = %d, %v; want 3", v, err)
	}
	shell, err := s.Shell()
	if err != nil {
		t.Fatal(err)
	}
	become(t, shell, "su root", rootPassword)
	wantRootRefused(t, m, rootPassword)
}

// become makes a shell root's.
func become(t *testing.T, shell *vmtest.Console, command, password string) {
	t.Helper()
	send(t, shell, command+"\n")
	listen(t, shell, `assword:`)
	send(t, shell, password+"\n")
	listen(t, shell, `# $`)
	send(t, shell, "echo uid=`id -u`\n")
	listen(t, shell, `uid=0\b(?s:.*)# $`)
}

// listen waits for something that a shell prints.
func listen(t *testing.T, shell *vmtest.Console, pattern string) {
	t.Helper()
	if _, err := shell.Expect(pattern, commandWithin); err != nil {
		t.Fatal(err)
	}
}

// wantRootRefused tries root's password over SSH.
func wantRootRefused(t *testing.T, m *vmtest.Machine, password string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), commandWithin)
	defer cancel()
	if _, err := vmtest.DialSSH(ctx, m.Addr(22), "root", password); !vmtest.IsRefused(err) {
		t.Errorf("DialSSH(root) = %v; want a refusal", err)
	}
}

// OS-F5, OS-F4.
func testTools(r root) {
	r.Helper()
	r.want("df -h", "/mnt/sda2")
	r.want("du -sh /apps", "/apps")
	r.want("ps aux", "postgres")
	r.run("cd /tmp && echo hello > f && tar -cf f.tar f && xz f.tar && tar -xJf f.tar.xz && chown admin f && cd /")
	r.run("command -v scp && command -v wget && command -v reindexdb && command -v vacuumdb")
	r.run("mkdir -p /tmp/web && echo fetched > /tmp/web/f && busybox httpd -p 127.0.0.1:8080 -h /tmp/web")
	r.want("wget -q -O - http://127.0.0.1:8080/f", "fetched")
	r.run("truncate -s 8M /tmp/fs && mke2fs -q /tmp/fs && e2fsck -f -n /tmp/fs && rm /tmp/fs")
	r.want("ip address", "eth0")
	r.run("tcpdump -i lo -c 1 -w /tmp/p.pcap icmp 2> /dev/null & sleep 2; ping -c 2 127.0.0.1 > /dev/null; wait; tcpdump -r /tmp/p.pcap 2> /dev/null | grep -q ICMP")
	r.run("sleep 600 & sleep 1; cd /tmp && gdb --pid $! -ex gcore --batch > gdb.log 2>&1; ls core.* && kill $!; rm -f core.*; cd /")
	r.want("readlink -f /var/log", "log")
	r.run("test -d /mnt/sda2/pgsql && test -d /mnt/sda2/log && test -d /home/admin && test -x /etc/init.d/S50postgresql")
	r.want("cat /mnt/sda1/label", "\n")
	r.want("cat /usr/share/doc/app-platform/sbom.spdx.json", "pkg:deb/debian/postgresql-17@")
	r.run("cd /usr/share/doc && test -s libgcc-s1/copyright && test -s openssh-server/copyright && test -s linux/copyright && grep -q golang.org/x/sys app-platform/copyright && cd /")
}

// OS-F5: files are copied to the machine, by scp's new protocol and its old one.
func testCopies(t *testing.T, m *vmtest.Machine) {
	t.Helper()
	dir := t.TempDir()
	ask := filepath.Join(dir, "ask")
	if err := os.WriteFile(ask, []byte("#!/bin/sh\necho ipapps\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{"-s", "-O"} {
		err := testtools.Open(t, tooltree.VM).Run(t.Context(), tooltree.Cmd{
			Args: []string{"scp", "-q", protocol, "-P", strconv.Itoa(m.Port(22)), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
				ask, "admin@127.0.0.1:copy" + protocol},
			Env: []string{"SSH_ASKPASS=" + ask, "SSH_ASKPASS_REQUIRE=force"}, ReadOnly: []string{dir},
		})
		if err != nil {
			t.Errorf("scp %s: %v", protocol, err)
		}
	}
	if out, err := login(t, m).Run("cat copy-s copy-O", "", commandWithin); err != nil || strings.Count(out, "echo ipapps") != 2 {
		t.Errorf("the copied files hold %q, %v", out, err)
	}
}

// An app's way to its database: TCP on the machine itself, with a password by
// SCRAM; from outside there is none.
func testApp(t *testing.T, r root, m *vmtest.Machine) {
	t.Helper()
	r.run(`cd /tmp && sudo -u postgres psql -q -c "create role app login password 'secret'" -c 'create database app owner app'`)
	s := login(t, m)
	config, err := pgx.ParseConfig("host=127.0.0.1 user=app password=secret dbname=app sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	config.DialFunc = s.Dial
	ctx, cancel := context.WithTimeout(t.Context(), commandWithin)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		t.Fatalf("an app cannot reach its database: %v", err)
	}
	defer conn.Close(ctx)
	var sum, method string
	if err := conn.QueryRow(ctx, "select sum(n)::text, current_setting('password_encryption') from generate_series(1, 10) n").Scan(&sum, &method); err != nil || sum != "55" || method != "scram-sha-256" {
		t.Errorf("the database answers %q, %q, %v; want 55, scram-sha-256", sum, method, err)
	}
	config.Password = "wrong"
	if conn, err := pgx.ConnectConfig(ctx, config); err == nil {
		conn.Close(ctx)
		t.Error("the database accepts a wrong password")
	}
	if conn, err := s.Dial(ctx, "tcp", "10.0.2.15:5432"); err == nil {
		conn.Close()
		t.Error("the database listens on the network")
	}
}

// OS-F5: databases are made, dumped and restored.
func testDatabase(r root) {
	r.Helper()
	// A serial line has no size, so that psql shows every answer page by page.
	const as = "cd /tmp && sudo -u postgres PAGER=cat "
	r.run(as + "createdb one")
	r.run(as + "psql -q one -c 'create table t as select generate_series(1,1000) n'")
	r.run(as + "pg_dump -Fc -f /tmp/one.dump one")
	r.run(as + "createdb two")
	r.run(as + "pg_restore -d two /tmp/one.dump")
	r.want(as+"psql -At two -c 'select sum(n) from t'", "500500")
	r.run(as + "reindexdb -q two")
	r.run(as + "vacuumdb -q two")
	r.want(as+"psql -At -c 'show data_checksums'", "on")
	r.want(as+"psql -At -c 'show server_encoding'", "UTF8")
}

// Every service of the start scripts runs. The watchdog is the machine's own
// one; that it is fed shows in that this test gets further.
func testServices(r root) {
	r.Helper()
	r.run("for s in /etc/init.d/S??*; do $s status || { echo FAILED $s; bad=1; }; done; test -z \"$bad\"")
	r.want("tr '\\0' ' ' < /proc/$(cat /run/watchdog.pid)/cmdline", "watchdog -F")
	r.run("dog=$(ls -l /proc/$(cat /run/watchdog.pid)/fd | grep -o 'watchdog[0-9]*$')")
	r.want("cat /sys/class/watchdog/$dog/identity", "i6300ESB")
}

// OS-F4: what a program leaves that dies is good for gdb.
func testCoreDump(r root) {
	r.Helper()
	const cores = "/mnt/sda2/log/core_dumps/*/core.*"
	r.run("sleep 600 & sleep 1; kill -SEGV $!; for i in 1 2 3 4 5 6 7 8 9 10; do ls " + cores + " 2> /dev/null && break; sleep 1; done; ls " + cores)
	r.want("gdb --batch -c "+cores+" 2>&1", "SIGSEGV")
}

// The administrator works on databases with a password of his own, and is told
// what he needs to be root for.
func testAdmin(t *testing.T, m *vmtest.Machine) {
	t.Helper()
	s := login(t, m)
	if out, err := s.Run("apagent status", "", commandWithin); !strings.Contains(out, "su root") {
		t.Errorf("apagent status prints %q, %v for admin; want the way to the rest: su root", out, err)
	}
	shell, err := s.Shell()
	if err != nil {
		t.Fatal(err)
	}
	send(t, shell, "sudo -u postgres psql -At -c 'select 6*7'\n")
	listen(t, shell, `assword`)
	send(t, shell, "ipapps\n")
	listen(t, shell, `(?m)^42$`)
}

// What the device says about itself.
func testStatus(r root) {
	r.Helper()
	r.want("apagent status", "finished")
	r.want("apagent status --json", `"board"`)
}

// OS-C6: an IPv6 address by hand, and back.
func testIPv6(r root) {
	r.Helper()
	r.run("setip --addr6=2001:db8::20/64 --gateway6=2001:db8::1")
	r.want("ip -6 address show eth0", "2001:db8::20/64")
	r.want("ip -6 route", "default via 2001:db8::1")
	r.run("setip --addr6=auto")
	if out := r.run("ip -6 address show eth0; ip -6 route"); strings.Contains(out, "2001:db8:") {
		r.Errorf("after setip --addr6=auto there is still\n%s", out)
	}
}

// OS-C6, OS-C7: address and keymap survive a restart.
func testPersistence(r root) {
	r.Helper()
	key := login(r.T, r.m).HostKey()
	r.want("setip --help 2>&1", "--gateway")
	if out, ok := r.try("setip --addr=10.0.2.300 --mask=255.255.255.0"); ok {
		r.Errorf("setip takes the address 10.0.2.300 and prints %s", out)
	}
	r.run("setip --addr=10.0.2.77 --mask=255.255.255.0 --gateway=10.0.2.2 --dns1=10.0.2.3")
	r.want("ip -4 address show eth0", "10.0.2.77/24")
	r.run("loadkeys de")
	send(r.T, r.m.Serial, "reboot\n")
	expect(r.T, r.m, saysSystem, offWithin+menuWithin)
	expect(r.T, r.m, loginPrompt, bootWithin)

	r = rootLogin(r.T, r.m, rootPassword)
	r.want("ip -4 address show eth0", "10.0.2.77/24")
	r.want("ip route", "default via 10.0.2.2")
	r.want("cat /etc/resolv.conf", "10.0.2.3")
	r.want("dumpkeys | grep 'keycode  21 ='", "z") // y on the keyboards of the US
	r.want("cd /tmp && sudo -u postgres PAGER=cat psql -At two -c 'select count(*) from t'", "1000")
	r.run("setip --dhcp")
	r.run("for i in 1 2 3 4 5 6 7 8 9 10; do ip -4 address show eth0 | grep -q 10.0.2.15/24 && break; sleep 1; done; ip -4 address show eth0 | grep 10.0.2.15/24")
	if now := login(r.T, r.m).HostKey(); now != key {
		r.Errorf("the host key is %s after a restart; want %s", now, key)
	}
	if err := r.m.Agent("guest-ping", nil, nil, 30*time.Second); err != nil {
		r.Error(err)
	}
}
