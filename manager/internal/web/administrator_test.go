package web

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"appplatform/internal/browsertest"
	"github.com/chromedp/chromedp/kb"

	"appplatform/manager/internal/model"
)

// TestAdministrator clicks and types in Chromium as people do.
func TestAdministrator(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	p := newPlatform()
	lines, write := io.Pipe()
	p.log = func(follow bool) io.ReadCloser {
		if follow {
			return lines
		}
		return io.NopCloser(strings.NewReader("before\n"))
	}
	var device atomic.Value // what answers instead of the manager
	device.Store("")
	site := New(p, Options{Folder: t.TempDir()})
	u := user{t, browsertest.Tab(t, nil, nil), serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch device.Load() {
		case "":
			site.ServeHTTP(w, r)
		case "away":
			http.Error(w, "no upstream", http.StatusBadGateway)
		case "ramdisk":
			if r.URL.Path != LogPath {
				http.Redirect(w, r, LogPath, http.StatusFound)
				return
			}
			fmt.Fprint(w, "step 3 of 9: write the system\n")
		}
	}))}
	u.do(network.SetExtraHTTPHeaders(network.Headers{"Accept-Language": "en"}))
	u.size(1280)
	u.scheme("light")

	u.open("/manager/instance/2")
	u.do(chromedp.SendKeys("#password", "wrong\r"))
	u.see("document.querySelector('[role=alert]')?.innerText", "The password is wrong.")
	u.do(chromedp.SendKeys("#password", "pwd\r"))
	u.see("location.pathname + document.querySelector('h1')?.innerText", "/manager/instance/2notes")

	// The first key leads past the navigation.
	u.do(chromedp.KeyEvent(kb.Tab))
	u.see("document.activeElement.className", "skip")
	u.do(chromedp.KeyEvent(kb.Enter))
	u.see("document.activeElement.id", "main")

	// What happens elsewhere appears without loading the page again, and takes nobody's
	// place away.
	u.open("/manager/app/notes")
	u.do(chromedp.Evaluate(`window.same = true; document.querySelector("#app a[href$='/versions']").focus(); 0`, nil))
	if err := p.StopService(t.Context(), "notes", model.Actor{}); err != nil {
		t.Fatal(err)
	}
	u.see("document.querySelector('#tree .app .dot').className", "stopped")
	u.see("document.querySelector('#app .state').innerText", "stopped")
	if got := u.eval("window.same + document.activeElement.innerText + document.querySelector('#tree [aria-current]').innerText"); !strings.HasPrefix(got, "trueOther versions") || !strings.Contains(got, "Notes") {
		t.Errorf("after a change elsewhere: %s", got)
	}

	// Deleting asks in a dialog, and the name has to be typed.
	u.open("/manager/instance/2")
	u.do(chromedp.Click("#instance a.danger"), chromedp.WaitVisible("dialog[open]"))
	u.picture("dialog-wide-light")
	if got := u.eval("document.querySelector('dialog button.danger').disabled"); got != "true" {
		t.Error("the instance can be deleted without its name")
	}
	u.do(chromedp.KeyEvent(kb.Escape))
	u.see("document.querySelector('dialog') === null && document.activeElement.innerText", "Delete the instance")
	u.do(chromedp.Click("#instance a.danger"), chromedp.WaitVisible("dialog[open]"), chromedp.SendKeys("#typed", "notes"))
	u.see("document.querySelector('dialog button.danger').disabled", "false")
	u.do(chromedp.Click("dialog button.danger"))
	u.see("document.querySelector('[role=status]')?.innerText", "notes@branch.example.com was deleted.")

	// Passwords are shown in place.
	u.open("/manager/instance/1/edit")
	u.do(chromedp.Evaluate("window.same = true; 0", nil), chromedp.Click("button[data-show=password]"))
	u.see("window.same + document.getElementById('password').type", "truetext")
	u.open("/manager/instance/1")
	u.do(chromedp.Click("#instance a[href$='/passwords']"), chromedp.WaitVisible("dialog[open]"))
	u.see("document.querySelector('dialog').innerText", "s3cr3t-notes")

	u.open("/manager/logs?name=notes&follow=1")
	fmt.Fprintln(write, "<b>first</b>")
	u.see("document.getElementById('log').textContent", "<b>first</b>\n")
	fmt.Fprintln(write, "second")
	u.see("document.getElementById('log').textContent", "<b>first</b>\nsecond\n")

	// An update: the page stays while the device is away, shows what the ramdisk says, and
	// comes back by itself.
	u.open("/manager/settings/update")
	u.do(chromedp.Click("a.primary[href*='160004']"), chromedp.WaitVisible("dialog[open]"))
	u.picture("update-dialog-wide-light")
	u.do(chromedp.Click("dialog button.primary"))
	u.see("document.getElementById('away-job')?.innerText", "download")
	device.Store("away")
	u.see("document.getElementById('away-state').innerText", "The device is away")
	device.Store("ramdisk")
	u.see("document.getElementById('away-log').innerText", "step 3 of 9")
	u.picture("away-ramdisk-wide-light")
	device.Store("away")
	p.mu.Lock()
	p.system.Image, p.system.Previous, p.system.Started = "160004", "160001", p.system.Started.AddDate(0, 0, 3)
	p.jobs = nil
	p.mu.Unlock()
	device.Store("")
	u.see("location.search + document.querySelector('h1')?.innerText + document.querySelector('[role=status]')?.innerText", "?from=160001UpdateImage 160004 is running now.")

	// A manager that was away is heard again.
	u.open("/manager/app/notes")
	device.Store("away")
	site.EndSessions()
	secret := site.sessions.begin()
	u.do(network.SetCookie(sessionCookie, secret).WithURL(u.base + Base).WithPath(Base).WithSecure(true).WithHTTPOnly(true))
	if err := p.StartService(t.Context(), "notes", model.Actor{}); err != nil {
		t.Fatal(err)
	}
	u.see("document.getElementById('lost')?.innerText", "does not answer")
	device.Store("")
	u.see("document.getElementById('lost') === null && document.querySelector('#app .state').innerText", "starting")

	// On a narrow screen the navigation is a menu, which keys can open.
	u.size(390)
	u.open("/manager")
	if got := u.eval("getComputedStyle(document.getElementById('tree')).display"); got != "none" {
		t.Errorf("the tree is shown on a narrow screen: %s", got)
	}
	u.do(chromedp.Evaluate("document.getElementById('menu').focus(); 0", nil), chromedp.KeyEvent(" "))
	u.see("getComputedStyle(document.getElementById('tree')).display", "block")

	// When the session has ended, the page asks for the password.
	site.EndSessions()
	if err := p.StartService(t.Context(), "notes", model.Actor{}); err != nil {
		t.Fatal(err)
	}
	u.see("location.pathname", "/manager/signin")
}

// TestWithoutScript does without the script what the script makes nicer.
func TestWithoutScript(t *testing.T) {
	if testing.Short() {
		t.Skip("a browser takes a while")
	}
	p := newPlatform()
	u := user{t, browsertest.Tab(t, nil, nil), serve(t, New(p, Options{Folder: t.TempDir()}))}
	u.do(network.SetExtraHTTPHeaders(network.Headers{"Accept-Language": "en"}), emulation.SetScriptExecutionDisabled(true))
	u.size(1280)
	u.signIn("pwd")
	u.open("/manager/instance/2")
	u.do(chromedp.Click("#instance a.danger"))
	u.see("document.querySelector('h1')?.innerText", "Delete the instance notes@branch.example.com?")
	u.do(chromedp.SendKeys("#typed", "notes\r"))
	u.see("document.querySelector('[role=status]')?.innerText", "was deleted")

	u.open("/manager/app/notes/new")
	u.do(chromedp.SetValue("#name", "notes-two"), chromedp.Click("button[name=suggest]"))
	u.see("document.getElementById('dbname').value", "example.com_notes-two")
	u.do(chromedp.Click("button[value=dbpassword][name=fresh]"))
	u.see("document.getElementById('dbpassword')?.type + document.getElementById('dbpassword')?.value", "textrandom-db-password")
	// The key Enter saves, and presses none of the other buttons.
	u.do(chromedp.SendKeys("#name", "\r"))
	u.see("document.querySelector('[role=status]')?.innerText", "The instance notes-two was created.")
}
