package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"appplatform/agent/internal/boot"
	"appplatform/bundle"
	"appplatform/internal/download"
	"appplatform/partitions"
)

// alter changes sda3 behind the back of everybody.
func (u *updatable) alter(all bool) {
	u.t.Helper()
	path, _ := u.part(partitions.Rootfs)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(u.t, err)
	defer f.Close()
	n := 4096
	if all {
		n = len(u.old.raw)
	}
	_, err = f.WriteAt(make([]byte, n), 0)
	must(u.t, err)
}

// rescueFirst makes the rescue system what the firmware starts.
func (u *updatable) rescueFirst() {
	u.t.Helper()
	loader := u.firmwareLoader()
	must(u.t, loader.SetBoot(boot.Rescue, "a"))
	u.started = nil
	u.firmware()
}

// wantRepair looks for something in the status.
func (u *updatable) wantRepair(what string) {
	u.t.Helper()
	for _, r := range GetStatus(u.t.Context(), u.Machine).Repairs {
		if strings.Contains(r.What, what) {
			return
		}
	}
	u.t.Errorf("the repairs are %+v; want %q", u.repairs(), what)
}

// The rescue system writes an sda3 that is not what was installed again, and
// tells when it was started in vain.
func TestRescueHealsTheSystem(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		for _, test := range []struct {
			name  string
			alter func(u *updatable)
			want  string
		}{
			{"zeroed", func(u *updatable) { u.alter(true) }, "sda3 was altered and is written again: piece"},
			{"altered", func(u *updatable) { u.alter(false) }, "sda3 was altered and is written again: piece 0"},
			{"in order", func(*updatable) {}, "the rescue system was what the firmware starts"},
		} {
			t.Run(test.name, func(t *testing.T) {
				u := newUpdatable(t, gateway)
				u.up()
				test.alter(u)
				u.rescueFirst()
				u.run(t.Context())
				u.firmware()
				u.up()
				u.checkSettled(test.name, "160001")
				u.wantRepair(test.want)
				if log := u.lastLogLine(); log != finished {
					t.Errorf("the last line of the log is %q; want %s", log, finished)
				}
			})
		}
	})
}

// When the image that sda3 was written from is damaged as well, the other one
// takes its place; without one the system is started as it is.
func TestRescueHealsFromTheOtherImage(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		for _, file := range []string{bundle.ManifestName, bundle.KernelName, bundle.RootfsName} {
			t.Run(file, func(t *testing.T) {
				u := newUpdatable(t, gateway)
				u.up()
				writeFiles(t, u.path("content/mnt/sda1/b"), u.new.files)
				u.alter(true)
				u.rescueFirst()
				u.damage("a", file)
				u.run(t.Context())
				u.firmware()
				u.up()
				u.checkSettled(file, "160002")
				u.wantRepair("image a is damaged, and image b (160002) takes its place")
			})
		}
	})
	u := newUpdatable(t, false)
	u.up()
	u.alter(true)
	u.damage("a", bundle.RootfsName)
	u.rescueFirst()
	u.run(t.Context())
	if !u.rebooted || !strings.Contains(u.out.String(), "no image on the boot partition is whole") {
		t.Errorf("with nothing to heal from, the rescue system says\n%s", u.out.String())
	}
}

// The running system asks for sda3 to be written when something does not work
// and that may be why: not otherwise, and not for ever.
func TestSystemHealsItself(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		u := newUpdatable(t, gateway)
		u.up()
		u.sick = true
		if u.up(); u.rebooted || u.lastLogLine() != finished {
			t.Errorf("with sda3 in order, it restarts: %v, and the log ends with %q", u.rebooted, u.lastLogLine())
		}
		if text, _ := os.ReadFile(u.path("mnt/sda2/" + InstallLog)); !strings.Contains(string(text), "PostgreSQL does not answer") {
			t.Errorf("the log does not say what does not work:\n%s", text)
		}
		for range 3 {
			u.alter(false)
			if u.run(t.Context()) {
				t.Fatalf("the system stays up:\n%s", u.out.String())
			}
			u.started = nil
			u.firmware()
			u.run(t.Context())
			u.firmware()
		}
		u.alter(false)
		u.up()
		if !strings.Contains(u.out.String(), "altered once more") {
			t.Errorf("after three times it says\n%s", u.out.String())
		}
		u.wantRepair("sda3 was altered, and the rescue system is to write it again: PostgreSQL does not answer")
		u.sick = false
	})
}

// With a damaged image an update could not go back, and a rollback not begin.
func TestUpdateFromADamagedImage(t *testing.T) {
	for _, file := range []string{bundle.ManifestName, bundle.RootfsName, bundle.File{Name: bundle.KernelName}.SumName()} {
		u := newUpdatable(t, false)
		u.up()
		u.damage("a", file)
		err := Update(t.Context(), u.Machine, UpdateOptions{Source: u.file})
		if err == nil || !strings.Contains(Explain(err), "could not be put back") || !strings.Contains(Explain(err), "hint: --force") {
			t.Errorf("an update from a damaged image = %v", err)
		}
		must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file, Force: true}))
		u.settle(t.Context())
		u.checkSettled(file, "160002")
		if err := Rollback(t.Context(), u.Machine); err == nil || !strings.Contains(err.Error(), "no former image to go back to") || u.started != nil {
			t.Errorf("a rollback to a damaged image = %v", err)
		}
	}
}

// When the former image is damaged there is nothing to go back to: a new image
// that has come up stays, whatever does not work in it.
func TestSickUpdateFromADamagedImage(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		u := newUpdatable(t, gateway)
		u.up()
		u.damage("a", bundle.RootfsName)
		must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file, Force: true}))
		u.settleSick()
		u.checkSettled("nothing to go back to", "160002")
		if o := GetUpdateStatus(u.Machine).Last; o == nil || o.Result != committed || !strings.Contains(o.Reason, "PostgreSQL does not answer: no answer; App Platform 160001 is damaged") {
			t.Errorf("the last update is %+v", o)
		}
	})
}

// While sda3 is between two systems the firmware starts the ramdisk of the new
// image, which runs, instead of that of a damaged one.
func TestUpdateFromADamagedImageIsCut(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		u := newUpdatable(t, gateway)
		u.up()
		u.damage("a", bundle.RamdiskName)
		must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file, Force: true}))
		u.firmware()
		u.events = nil
		for cut, half := 1, false; !half; cut++ {
			u.powerCut = cut
			u.run(t.Context())
			half = strings.Contains(strings.Join(u.events, "\n"), ": write the system to")
			_, err := os.Stat(u.path("content/" + installedFile))
			if set, err2 := u.firmwareLoader().CurrentSet(); err2 != nil || err != nil && set != "b" {
				t.Fatalf("with sda3 half written, the firmware starts image %s, %v", set, err2)
			}
			if !half {
				u.started = &loadedKernel{u.path("mnt/sda1/b/kernel"), u.path("mnt/sda1/b/ramdisk.ext2.xz"), u.Cmdline}
			}
			u.firmware()
		}
		u.powerCut = 0
		u.settle(t.Context())
		u.checkSettled("updated", "160002")
	})
}

// One that has never come up does not stay: the rescue system waits for somebody,
// who can install it all the same.
func TestDeadUpdateFromADamagedImage(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		u := updated(t, gateway)
		u.damage("a", bundle.RootfsName)
		must(t, u.firmwareLoader().SetBoot(boot.Rescue, "a"))
		u.underWay()
		under, err := os.ReadFile(u.path("content/" + transitionFile))
		must(t, err)
		restore := strings.Replace(string(under), "apply", "restore", 1)
		must(t, os.WriteFile(u.path("content/"+transitionFile), []byte(restore), 0o644))
		must(t, os.Remove(u.path("content/"+installedFile)))
		u.firmware()
		err = Start(t.Context(), u.Machine, nobody{})
		if err == nil || !strings.Contains(Explain(err), "cannot go back to App Platform 160001") || !strings.Contains(Explain(err), "apagent rescue reinstall b") {
			t.Fatalf("Start() = %v; want a way out", err)
		}
		must(t, Reinstall(t.Context(), u.Machine, "b"))
		u.settle(t.Context())
		u.checkSettled("re-installed", "160002")
	})
}

// An update to the place that the firmware was told to start, and could not, is
// not what it starts next.
func TestUpdateAfterTheFirmwareFellBack(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		u := newUpdatable(t, gateway)
		u.up()
		must(t, u.firmwareLoader().SetBoot(boot.System, "b"))
		u.Cmdline += " ap.set=a"
		// In the rescue system nobody asks for the other image, either.
		must(t, u.writeState(installedFile, installed{"160009", "of an image that is not there any more"}))
		d, err := u.findDisk(t.Context())
		must(t, err)
		if w, err := u.findWork(t.Context(), d); err != nil || w.any() {
			t.Errorf("findWork() = %+v, %v; want nothing to do", w, err)
		}
		must(t, u.writeState(installedFile, installed{"160001", u.old.rootfs(t)}))
		u.events = nil
		must(t, Update(t.Context(), u.Machine, UpdateOptions{Source: u.file}))
		if set, err := u.firmwareLoader().CurrentSet(); set != "a" || err != nil {
			t.Errorf("the firmware starts image %s, %v; want a until b has shown that it works", set, err)
		}
		first, last := "let the firmware start the system of image a", "write image b"
		log := u.out.String()
		if i := strings.Index(log, first); i < 0 || i > strings.Index(log, last) {
			t.Errorf("the log is\n%s\nwant %q before %q", log, first, last)
		}
		u.settle(t.Context())
		u.checkSettled("updated", "160002")
	})
}

// A certificate that has expired is taken in spite of a wrong clock, but only
// one that is to be trusted otherwise.
func TestUntrustedCertificateIsRefused(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	s := httptest.NewUnstartedServer(http.NotFoundHandler())
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	var said strings.Builder
	m := Machine{Log: NewLog(&said)}
	_, err = m.ask(t.Context(), s.URL, download.Options{Patience: 6 * time.Second})
	if !strings.Contains(said.String(), "not counting the date") || !errors.As(err, new(x509.UnknownAuthorityError)) {
		t.Errorf("ask() = %v and says %q; want it refused for its authority", err, said.String())
	}
}

// With all that the boot loader reads damaged, the image that is installed stays,
// whichever system comes up.
func TestBootLoaderForgets(t *testing.T) {
	both(t, func(t *testing.T, gateway bool) {
		files, damaged := []string{"boot/grub/grub.cfg", "boot/grub/grubenv"}, "grub.cfg: no line"
		if gateway {
			files, damaged = []string{"extlinux/extlinux.conf"}, "extlinux.conf: no line"
		}
		for _, ramdisk := range []bool{true, false} {
			u := updated(t, gateway)
			for _, name := range files {
				must(t, os.WriteFile(u.path("content/mnt/sda1/"+name), make([]byte, 1024), 0o644))
			}
			u.started = nil
			u.firmware()
			if u.Ramdisk = ramdisk; ramdisk {
				u.run(t.Context())
				u.firmware()
			} else {
				u.Platform.Label = u.labelOfRootfs()
			}
			u.up()
			u.checkSettled(fmt.Sprintf("after what the boot loader reads was damaged (ramdisk: %v)", ramdisk), "160002")
			u.wantRepair("the boot loader had forgotten which image is the current one: it is b")
			u.wantRepair(damaged)
		}
	})
}
