package vmtest_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"appplatform/vmtest"
)

// consoleManager is the manager's command line, and the shell's way to its REST API.
const consoleManager = "/apps/manager/manager"

// A platform is a machine whose manager is ruled from the console.
type platform struct {
	root
	base string // of its pages
}

// request asks the REST API, and wants an answer that has some text in it.
func (p platform) request(method, path, body, want string) string {
	p.Helper()
	out := p.run(fmt.Sprintf("echo '%s' | %s request %s %s", body, consoleManager, method, path))
	if !strings.Contains(out, want) {
		p.Errorf("%s %s answers\n%s\nwant %q", method, path, out, want)
	}
	return out
}

// notices waits for a notice.
func (p platform) notices(limit time.Duration, want string) {
	p.Helper()
	last := ""
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(time.Second) {
		if last = p.request("GET", "/notices", "", ""); strings.Contains(last, want) {
			return
		}
	}
	p.Errorf("no notice has %q, but there are\n%s", want, last)
}

// instance makes one of an app.
func (p platform) instance(app, name string) {
	p.Helper()
	p.request("POST", "/instances", fmt.Sprintf(`{"service": "%s", "name": "%s", "domain": "%s"}`, app, name, demoDomain), `"id"`)
}

// status is that of a page's answer; 0 is none.
func (p platform) status(page string) int {
	resp, err := client().Get(p.base + page)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// watch asks for pages until the returned function is called, which counts the
// requests without an answer.
func (p platform) watch(pages ...string) (stop func(what string)) {
	ctx, cancel := context.WithCancel(p.Context())
	var asked, failed int
	var work sync.WaitGroup
	work.Go(func() {
		for ctx.Err() == nil {
			for _, page := range pages {
				if got := p.status(page); got != http.StatusOK {
					failed++
					p.Logf("%s at %s answers %d", page, time.Now().Format(time.TimeOnly), got)
				}
				asked++
			}
			time.Sleep(500 * time.Millisecond)
		}
	})
	p.Cleanup(cancel)
	return func(what string) {
		p.Helper()
		cancel()
		if work.Wait(); failed > 0 || asked < 2 {
			p.Errorf("%s: %d of %d requests failed; want none of many", what, failed, asked)
		}
	}
}

// A4, A8, I5: whatever an app does, and whatever is full or broken, the pages and the
// other apps are there, and a notice says what happened.
func TestManagerFaults(t *testing.T) {
	t.Parallel()
	disk := installedDisk(t)
	bad := compile(t, "./manager/testdata/badapp", "")
	how := func(text string) []byte { return append(append([]byte{}, bad...), "HOW="+text...) }
	store := serveApps(t, "x86_64", map[string]map[string][]byte{
		"apidemo": {"160001": compile(t, "./apps/apidemo", "160001")},
		"badapp":  {"1": bad, "2": how("crash"), "3": how("hang"), "4": how("garbage")},
	})
	m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}, Watchdog: true})
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	p := platform{rootLogin(t, m, rootPassword), "https://" + m.Addr(443)}
	p.run("for i in $(seq 60); do /etc/init.d/S92manager status && break; sleep 1; done")
	p.request("PUT", "/settings", `{"storeURL": "`+store+`"}`, "")
	p.run(consoleManager + " install apidemo 160001")
	p.run(consoleManager + " install badapp 1")
	p.instance("apidemo", demoInstance)
	good := "/" + demoDomain + "/" + demoInstance + "/"
	within(t, pageWithin, "the app", func() bool { return p.status(good) == http.StatusOK })
	stop := p.watch(good, "/manager")
	for build, want := range map[string]string{"2": "ended with status 7", "3": "become ready", "4": "become ready"} {
		if out, ok := p.try(consoleManager + " install badapp " + build); ok || !strings.Contains(out, want) || !strings.Contains(out, "the version before runs again") {
			t.Errorf("the update to build %s prints\n%s\nwant %q and that the version before runs", build, out, want)
		}
	}
	stop("an app that crashes, hangs or says what nobody understands")

	for _, bad := range []struct{ instance, notice string }{
		{"flood", ""}, // its log is turned, see below
		{"eat", "badapp does not run: killed: it has used up its memory"},
		{"fork", "badapp has as many processes as it may have, 500"},
	} {
		stop := p.watch(good, "/manager")
		p.instance("badapp", bad.instance)
		p.notices(2*time.Minute, bad.notice)
		time.Sleep(20 * time.Second) // It goes on.
		p.run("psql -d manager -Atc 'select 1'")
		stop("an app with the instance " + bad.instance)
		p.run(consoleManager + " stop badapp")
		p.run("id=$(psql -d manager -Atc \"select id from instance where name='" + bad.instance + "'\"); " + consoleManager + " request DELETE /instances/$id < /dev/null")
		p.run(consoleManager + " start badapp")
	}
	p.run("test $(du -sk /var/log/apps/badapp | cut -f 1) -lt 6144 && test -e /var/log/apps/badapp/badapp.4.log")
	p.want("dmesg", "oom-kill")
	p.fullDisk(good)
	powerOff(t, m)
	checkDisk(t, disk)
}

// fullDisk fills the disk to its last block.
func (p platform) fullDisk(good string) {
	p.Helper()
	const full = "the disk is full"
	stop := p.watch(good, "/manager")
	p.run(fillData)
	p.want("df -h /mnt/sda2", "100%")
	p.notices(2*time.Minute, full)
	stop("a full disk")
	// Without its database, too, the app shows its page, and the manager knows it.
	p.run("kill -9 $(head -n 1 /mnt/sda2/pgsql/postmaster.pid); /etc/init.d/S92manager restart")
	within(p.T, pageWithin, "the pages of a manager that starts on a full disk", func() bool { return p.status("/manager") == http.StatusOK })
	p.notices(pageWithin, full)
	p.want(consoleManager+" instances", demoInstance+"@"+demoDomain)
	within(p.T, pageWithin, "the app on a full disk", func() bool { return p.status(good) == http.StatusOK })
	p.run("rm /home/admin/film.*; /etc/init.d/S50postgresql restart")
	within(p.T, pageWithin, "the app when there is room again", func() bool { return p.status(good) == http.StatusOK })
	for end := time.Now().Add(2 * time.Minute); strings.Contains(p.request("GET", "/notices", "", ""), full); time.Sleep(time.Second) {
		if time.Now().After(end) {
			p.Error("the notice of a full disk stays")
			break
		}
	}
}
