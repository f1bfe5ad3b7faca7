package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"appplatform/archive"
	"appplatform/internal/cache"
	"appplatform/vmtest"
)

// openDatabase makes our PostgreSQL answer the bench, which the shipped one
// does not: only its own machine may ask it.
const openDatabase = `set -e
for i in $(seq 120); do psql -U postgres -c 'select 1' && break; sleep 1; done
psql -U postgres -c "ALTER SYSTEM SET listen_addresses = '*'"
echo 'host all all 10.0.2.2/32 trust' >> "$(psql -U postgres -Atc 'SHOW hba_file')"
sync
`

// installed has our image install itself on a disk, once for all questions.
func (l *lab) installed(ctx context.Context) (system, error) {
	if l.own.disk != "" {
		return l.own, nil
	}
	s, err := l.install(ctx)
	if err == nil {
		l.own = s
	}
	return s, err
}

func (l *lab) install(ctx context.Context) (system, error) {
	s := system{name: "App Platform", disk: filepath.Join(l.work, "ours", "disk.img")}
	ctx, cancel := context.WithTimeout(ctx, installWithin)
	defer cancel()
	dir := filepath.Dir(s.disk)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return s, err
	}
	if err := vmtest.CopyDisk(s.disk, l.image.file(".img"), 0); err != nil {
		return s, err
	}
	m, err := vmtest.Start(ctx, l.options(dir, s.disk, s))
	if err != nil {
		return s, err
	}
	defer m.Kill()
	if _, err := m.Serial.Expect("Booting `App Platform'", installWithin); err != nil {
		return s, err
	}
	ssh, err := vmtest.DialSSH(ctx, m.Addr(sshPort), user, password)
	if err != nil {
		return s, err
	}
	defer ssh.Close()
	if err := asRoot(ssh, openDatabase); err != nil {
		return s, err
	}
	return s, shutDown(m, ssh)
}

// asRoot runs a script as root, who cannot log in over SSH.
func asRoot(ssh *vmtest.SSH, script string) error {
	const file = "/tmp/bench.sh"
	if _, err := ssh.Run("cat > "+file, script, time.Minute); err != nil {
		return err
	}
	shell, err := ssh.Shell()
	if err != nil {
		return err
	}
	if err := shell.Send("su root -c 'sh " + file + "'; echo exit code $?\n"); err != nil {
		return err
	}
	if _, err := shell.Expect("[Pp]assword: ", time.Minute); err != nil {
		return err
	}
	if err := shell.Send(rootPassword + "\n"); err != nil {
		return err
	}
	code, err := shell.Expect(`exit code (\d+)`, startWithin)
	if err == nil && code[1] != "0" {
		err = fmt.Errorf("cannot prepare the machine: it says:\n%s", shell.Tail(10))
	}
	return err
}

// stockPackages make a small Debian with the same two services. Less than what
// its installer sets up, and systemd's own network service: the quicker choice.
const stockPackages = "systemd-sysv,udev,dbus,libpam-systemd,linux-image-cloud-amd64,openssh-server,postgresql"

// stockHooks prepare it inside mmdebstrap's folder $1.
var stockHooks = []string{
	`echo stock > "$1/etc/hostname"; printf '127.0.0.1 localhost stock\n' > "$1/etc/hosts"`,
	`printf 'LABEL=stock / ext4 errors=remount-ro 0 1\n' > "$1/etc/fstab"`,
	`printf '[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n' > "$1/etc/systemd/network/20-dhcp.network"`,
	`chroot "$1" systemctl enable systemd-networkd`,
	`chroot "$1" useradd -m -s /bin/bash ` + user + `; printf '` + user + `:` + password + `\nroot:` + rootPassword + `\n' | chroot "$1" chpasswd`,
	`echo "listen_addresses = '*'" > "$1/etc/postgresql/17/main/conf.d/bench.conf"`,
	`echo 'host all all 10.0.2.2/32 trust' >> "$1/etc/postgresql/17/main/pg_hba.conf"`,
}

// stockSize is the disk of the stock system.
const stockSize = 4 << 30

// stockDir keeps the stock system for later runs.
func (l *lab) stockDir() string {
	parts := append([]string{"stock", archive.Release, stockPackages}, stockHooks...)
	return filepath.Join("bench", "stock-"+cache.Key(parts...))
}

// stock is a Debian made with mmdebstrap. It is kept in the cache.
func (l *lab) stock(ctx context.Context) (system, error) {
	dir, err := l.cache.Folder(l.stockDir(), nil, func(dir string) error {
		l.log("making the stock Debian, once")
		if err := l.makeStock(ctx, dir); err != nil {
			return fmt.Errorf("cannot make the stock Debian: %w", err)
		}
		l.log("starting the stock Debian for the first time")
		return l.startStock(ctx, stockIn(dir))
	})
	return stockIn(dir), err
}

func stockIn(dir string) system {
	return system{
		name: "stock Debian", disk: filepath.Join(dir, "disk.img"),
		kernel: filepath.Join(dir, "boot", "vmlinuz"), initrd: filepath.Join(dir, "boot", "initrd.img"),
		append: "root=LABEL=stock ro quiet console=tty0 console=ttyS0,115200",
	}
}

func (l *lab) makeStock(ctx context.Context, dir string) error {
	work := filepath.Join(l.work, "stock")
	if err := errors.Join(os.Mkdir(work, 0o755), os.Mkdir(filepath.Join(dir, "boot"), 0o755)); err != nil {
		return err
	}
	defer os.RemoveAll(work)
	root := filepath.Join(work, "root.tar")
	args := []string{"--variant=minbase", "--include=" + stockPackages}
	for _, h := range stockHooks {
		args = append(args, "--customize-hook="+h)
	}
	args = append(args, "--customize-hook=copy-out /boot "+work, archive.Release, root)
	for _, suite := range archive.Suites {
		mirror := l.archive.Main
		if suite == archive.Release+"-security" {
			mirror = l.archive.Security
		}
		args = append(args, "deb "+mirror+" "+suite+" main")
	}
	if err := l.mmdebstrap(ctx, args...); err != nil {
		return err
	}
	for _, name := range []string{"vmlinuz", "initrd.img"} {
		files, err := filepath.Glob(filepath.Join(work, "boot", name+"-*"))
		if err != nil || len(files) != 1 {
			return fmt.Errorf("cannot find its %s", name)
		}
		if err := copyFile(filepath.Join(dir, "boot", name), files[0]); err != nil {
			return err
		}
	}
	return l.mke2fs(ctx, root, stockIn(dir).disk, stockSize, "-L", "stock")
}

// startStock starts it for the first time, which every system needs to get
// its identity, and shuts it down.
func (l *lab) startStock(ctx context.Context, s system) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin+offWithin)
	defer cancel()
	dir := filepath.Join(l.work, "stock-first")
	m, err := vmtest.Start(ctx, l.options(dir, s.disk, s))
	if err != nil {
		return err
	}
	defer m.Kill()
	var st start
	if err := awaitBoth(ctx, m, time.Now(), &st); err != nil {
		return fmt.Errorf("cannot start %s: %w; its console ends with:\n%s", s.name, err, m.Serial.Tail(20))
	}
	ssh, err := vmtest.DialSSH(ctx, m.Addr(sshPort), user, password)
	if err != nil {
		return err
	}
	defer ssh.Close()
	return shutDown(m, ssh)
}

// stockAge says when the stock system was made.
func (l *lab) stockAge() string {
	info, err := os.Stat(l.cache.Path(l.stockDir()))
	if err != nil {
		return "now"
	}
	return info.ModTime().Format(time.DateOnly)
}
