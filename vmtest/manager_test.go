package vmtest_test

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"appplatform/internal/browsertest"
	"appplatform/internal/store"
	"appplatform/vmtest"
)

// A new password of the manager's, and what the demo's instance is called.
const (
	managerPassword = "Zwölf Boxkämpfer 12"
	demoInstance    = "notes"
	demoDomain      = "example.com"
)

// pageWithin is how long a page may take on a machine that is being emulated.
const pageWithin = time.Minute

// compile makes a program for virtual machines.
func compile(t *testing.T, folder, version string, flags ...string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", slices.Concat([]string{"build", "-trimpath", "-ldflags=-s -w -X main.version=" + version, "-o", out}, flags, []string{folder})...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot compile %s: %v\n%s", folder, err, text)
	}
	program, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// demo are two versions of the demo app.
func demo(t *testing.T) map[string][]byte {
	return map[string][]byte{"160001": compile(t, "./apps/apidemo", "160001"), "160002": compile(t, "./apps/apidemo", "160002")}
}

// serveApps is a store with the builds of apps and the next image of the board. It
// returns the store's address for virtual machines.
func serveApps(t *testing.T, board string, apps map[string]map[string][]byte) string {
	t.Helper()
	const kind = "x86_64"
	dir := t.TempDir()
	type version struct {
		ID     string            `json:"id"`
		Build  string            `json:"build"`
		Label  string            `json:"label"`
		SHA256 map[string]string `json:"sha256"`
	}
	var entries []any
	for id, builds := range apps {
		var versions []version
		for build, program := range builds {
			sum := sha256.Sum256(program)
			versions = append(versions, version{build, build, "16r1 " + build, map[string]string{kind: hex.EncodeToString(sum[:])}})
			write(t, filepath.Join(dir, build, kind, id, id+".bin"), program)
			write(t, filepath.Join(dir, build, id+"_files"), []byte(id+".bin"))
		}
		slices.SortFunc(versions, func(a, b version) int { return strings.Compare(b.Build, a.Build) })
		entries = append(entries, map[string]any{
			"id": id, "folder": id, "binary": id, "versions": versions, "manufacturer": "App Platform",
			"title": map[string]string{"apidemo": "Notes", "badapp": "Bad app"}[id], "description": "An example of an app.",
		})
	}
	list, err := json.Marshal(map[string]any{"apps": entries})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "apps.json"), list)

	next := nextImage(t, board)
	if err := os.Symlink(next, filepath.Join(dir, filepath.Base(next))); err != nil {
		t.Fatal(err)
	}
	images, err := store.List{
		Platforms: []store.Platform{{ID: "vm", Text: "App Platform " + nextLabel, File: "none.img", Update: filepath.Base(next), Version: nextLabel}},
		Devices:   []store.Device{{ID: "VM", Platforms: []string{"vm"}}},
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, store.Name), images)
	return strings.TrimSuffix(serveFile(t, filepath.Join(dir, store.Name)), "/"+store.Name)
}

func write(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// A manage is an administrator at the manager's pages.
type manage struct {
	browsertest.User
	m *vmtest.Machine
	r root
}

// A1, A6, A9, B1, B2, B3, C1, C11, F1, F8, I1, J1: what the first administrator of a
// platform does, in a browser.
func TestManager(t *testing.T) {
	t.Parallel()
	disk := installedDisk(t)
	store := serveApps(t, "x86_64", map[string]map[string][]byte{"apidemo": demo(t)})
	m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}, Watchdog: true})
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	r := rootLogin(t, m, rootPassword)
	files := t.TempDir()
	a := manage{browsertest.Open(t, browsertest.Options{
		Base: "https://" + m.Addr(443), Pictures: "../out/manager-pictures", Name: "vm", Files: []string{files},
		Flags: []string{"--ignore-certificate-errors", "--lang=en-US"},
	}), m, r}
	r.run("for i in $(seq 60); do /etc/init.d/S92manager status && break; sleep 1; done")
	testIdleMemory(r)
	a.firstVisit()
	a.installApp(store)
	a.makeInstance()
	a.useInstance("first note")
	a.readLog()
	a.updateApp()
	a.changeCertificate(files)
	a.killThings()
	a.updatePlatform()
	powerOff(t, m)
	checkDisk(t, disk)
}

// idleMemory is what manager and webserver may have together, in kB.
const idleMemory = 45_000

// testIdleMemory counts what belongs to each process alone and its share of the
// rest. The guardian is the manager's, too.
func testIdleMemory(r root) {
	r.Helper()
	r.run("sleep 20") // They have just started.
	out := r.run(`for p in $(pgrep -f '/(manager|webserver) ?'); do awk -v p=$p '/^Pss:/ { print "pss", $2 }' /proc/$p/smaps_rollup; done; ps -eo pid,rss,args | grep -E 'manager|webserver'`)
	total := 0
	for _, found := range regexp.MustCompile(`pss (\d+)`).FindAllStringSubmatch(out, -1) {
		n, _ := strconv.Atoi(found[1])
		total += n
	}
	r.Logf("manager and webserver have %d kB together when nothing is to be done:\n%s", total, out)
	if total == 0 || total > idleMemory {
		r.Errorf("manager and webserver have %d kB together; want at most %d", total, idleMemory)
	}
}

// goTo opens a page and waits for its heading.
func (a manage) goTo(page, heading string) {
	a.Helper()
	a.Open(page)
	a.See("h1", regexp.QuoteMeta(heading), pageWithin)
}

// follow clicks a link of the page by its words.
func (a manage) follow(words string) {
	a.Helper()
	// A live page may exchange a part while chromedp looks for it.
	a.Do(chromedp.Evaluate(fmt.Sprintf(`[...document.querySelectorAll("main a")].find(a => a.innerText.trim() == %q).click()`, words), nil))
}

func (a manage) firstVisit() {
	a.Helper()
	a.Open("/")
	a.See("h1", "App Platform", pageWithin)
	a.Fill("password", "wrong")
	a.Press("Sign in")
	a.See(".note", "wrong", pageWithin)
	a.Fill("password", "pwd")
	a.Press("Sign in")
	a.See("h1", "Overview", pageWithin)
	a.See("#notices", "(?i)password", pageWithin) // the default one
	a.Picture("first")
	a.goTo("/manager/settings/security", "Security")
	a.Picture("security")
	a.Fill("m-old", "pwd")
	a.Fill("m-new", managerPassword)
	a.Fill("m-again", managerPassword)
	a.Do(chromedp.Submit("#m-new", chromedp.ByQuery))
	a.See("h1", "App Platform|Security|Overview", pageWithin)
	a.signIn()
}

// signIn signs in if the page asks for it.
func (a manage) signIn() {
	a.Helper()
	a.Open("/manager")
	a.See("h1", "App Platform|Overview", pageWithin)
	var asked bool
	a.Do(chromedp.Evaluate(`document.querySelector("body.sign-in") != null`, &asked))
	if asked {
		a.Fill("password", managerPassword)
		a.Press("Sign in")
		a.See("h1", "Overview", pageWithin)
	}
}

func (a manage) installApp(store string) {
	a.Helper()
	a.goTo("/manager/settings", "Settings")
	a.Picture("general")
	a.Do(chromedp.Evaluate(fmt.Sprintf(`[...document.querySelectorAll("label")].find(l => l.innerText == "App Store URL").control.value = %q`, store), nil))
	a.Press("Save")
	a.goTo("/manager/store?refresh", "Store")
	a.See("#store", "Notes", pageWithin)
	a.Picture("store")
	a.Do(chromedp.SetValue("#v-apidemo", "160001", chromedp.ByQuery))
	a.Press("Install")
	a.See("#store", "installed", pageWithin)
	a.goTo("/manager/app/apidemo", "Notes")
	a.See("#app .state", "running", pageWithin)
	a.Picture("app")
}

func (a manage) makeInstance() {
	a.Helper()
	a.follow("New instance")
	a.See("h1", "(?i)new instance", pageWithin)
	a.Fill("name", demoInstance)
	a.Fill("domain", demoDomain)
	a.Fill("password", "secret of the instance")
	a.Press("Create the instance")
	a.See(".title h1", demoInstance, pageWithin)
	a.See("#instance .state", "running", pageWithin)
	a.See("#instance", "/"+demoDomain+"/"+demoInstance, pageWithin)
	a.Picture("instance")
	// C1, C4: a database that belongs to a user of its own.
	a.r.want(`psql -d postgres -Atc "select datname, pg_get_userbyid(datdba) from pg_database where datname like '%notes'"`,
		demoDomain+"_"+demoInstance+"|"+demoDomain+"_"+demoInstance)
	a.r.want("stat -c %U /proc/$(pgrep -x apidemo)", "app-apidemo")
}

// useInstance writes a note and sees it again.
func (a manage) useInstance(note string) {
	a.Helper()
	a.Open("/" + demoDomain + "/" + demoInstance + "/")
	a.See("h1", "Notes", pageWithin)
	var asked bool
	a.Do(chromedp.Evaluate(`document.getElementById("password") != null`, &asked))
	if asked {
		a.Fill("password", "secret of the instance")
		a.Press("Sign in")
	}
	a.See("#state", "shown at once", pageWithin)
	a.Do(chromedp.SendKeys("#text", note, chromedp.ByQuery), chromedp.Click("#add button", chromedp.ByQuery))
	a.See("#notes", note, pageWithin)
	a.Picture("notes")
}

func (a manage) readLog() {
	a.Helper()
	a.goTo("/manager/logs?name=apidemo", "")
	a.See("pre.log", demoInstance+"@"+demoDomain, pageWithin)
	a.Picture("log")
	a.goTo("/manager/monitor", "Monitor")
	a.Picture("monitor")
	a.goTo("/manager/audit", "Audit")
	a.See("#audit", "127.0.0.1|10.0.2.2", pageWithin)
	a.Picture("audit")
}

// updateApp takes the app to its next version; the instance goes on.
func (a manage) updateApp() {
	a.Helper()
	a.goTo("/manager/store", "Store")
	a.Do(chromedp.SetValue("#v-apidemo", "160002", chromedp.ByQuery))
	a.Press("Change")
	a.goTo("/manager/app/apidemo", "Notes")
	a.See("#app", "Return to 160001", pageWithin)
	a.See(".title", "160002", pageWithin)
	a.useInstance("second version")
	a.See("#notes", "first note", pageWithin)
}

// changeCertificate uploads one and goes back to the self-signed one as the page
// says (B3).
func (a manage) changeCertificate(dir string) {
	a.Helper()
	run := func(command string) {
		a.Helper()
		cmd := exec.Command("sh", "-ec", command)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			a.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	run(`openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=root -keyout ca.key -out ca.pem
openssl req -newkey rsa:2048 -nodes -subj /CN=platform.example.com -addext subjectAltName=DNS:platform.example.com -keyout key.pem -out request.pem
openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -days 20 -copy_extensions copy -out cert.pem
cat cert.pem ca.pem key.pem > good.pem; cat ca.pem cert.pem key.pem > wrong.pem; chmod 644 *.pem`)
	a.goTo("/manager/settings/security", "Security")
	a.Do(chromedp.SetUploadFiles("#file", []string{filepath.Join(dir, "wrong.pem")}, chromedp.ByQuery))
	a.Press("Check")
	a.See("main", "(?i)order", pageWithin)
	a.Picture("certificate-order")
	a.Press("Use the sorted chain")
	a.See("main", "platform.example.com", pageWithin)
	if got := a.subject(); got != "platform.example.com" {
		a.Errorf("the webserver shows the certificate of %q; want platform.example.com", got)
	}
	a.r.run(`psql -d manager -c "DELETE FROM config WHERE name='webserverCertificate'"`)
	a.r.run("/etc/init.d/S92manager restart")
	within(a.T, pageWithin, "the self-signed certificate", func() bool { return a.subject() != "platform.example.com" })
	a.signIn()
}

// killThings ends what may end at any time: everything goes on (A1, A8).
func (a manage) killThings() {
	a.Helper()
	for _, command := range []string{
		"pkill -9 apidemo", "pkill -9 -f /apps/webserver/webserver", "pkill -9 -f '/manager run'", "pkill -9 -f 'manager launch'",
		"/etc/init.d/S50postgresql restart", "kill -9 $(head -n 1 /mnt/sda2/pgsql/postmaster.pid); sleep 1; /etc/init.d/S50postgresql start",
	} {
		a.r.run(command)
		within(a.T, pageWithin, "the app's page after "+command, func() bool { return a.status("/"+demoDomain+"/"+demoInstance+"/") == 200 })
		within(a.T, pageWithin, "the manager's page after "+command, func() bool { return a.status("/manager") == 200 })
	}
	a.useInstance("still there")
	a.See("#notes", "first note", pageWithin)
}

// updatePlatform presses Update (I1): the browser comes back by itself.
func (a manage) updatePlatform() {
	a.Helper()
	a.signIn()
	a.goTo("/manager/settings/update?refresh", "Update")
	a.See("main", nextLabel, pageWithin)
	a.Picture("update")
	a.Do(chromedp.Evaluate(`document.querySelector('main a[aria-label="Update to `+nextLabel+`"]').click()`, nil),
		chromedp.WaitVisible(`dialog button`, chromedp.ByQuery))
	a.Picture("update-confirm")
	a.Do(chromedp.Evaluate(`document.querySelector("dialog button").click()`, nil))
	a.See("#away", "10 minutes", pageWithin)
	expect(a.T, a.m, `writing sda3|image `+nextLabel, updateWithin)
	a.Picture("updating")
	expect(a.T, a.m, loginPrompt, updateWithin)
	a.See("main", "Image "+nextLabel+" is running now", updateWithin)
	a.See("main", `(?s)Image before\s+160001`, pageWithin)
	a.Picture("updated")
	a.useInstance("after the update")
	a.See("#notes", "first note", pageWithin)
}

// within waits for something.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("within %v there is no sign of %s", limit, what)
}

// client trusts everybody and keeps no connection.
func client() *http.Client {
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
}

// status is that of a page's answer; 0 is none.
func (a manage) status(page string) int {
	resp, err := client().Get(a.Base + page)
	if err != nil {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// subject is whose certificate the webserver shows.
func (a manage) subject() string {
	c, err := tls.Dial("tcp", a.m.Addr(443), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return ""
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName
}
