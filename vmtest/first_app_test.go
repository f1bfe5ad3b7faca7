package vmtest_test

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"appplatform/internal/browsertest"
	"appplatform/vmtest"
)

// The tutorial, word for word: its program is compiled, uploaded in a browser and used.
func TestFirstApp(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/first-app.md")
	if err != nil {
		t.Fatal(err)
	}
	_, program, _ := strings.Cut(string(text), "```go\n")
	program, _, found := strings.Cut(program, "```")
	if !found {
		t.Fatal("there is no program in docs/first-app.md")
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	source, files := t.TempDir(), t.TempDir()
	write(t, filepath.Join(source, "main.go"), []byte(program))
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(root, "apps/visits/main.go"): filepath.Join(source, "main.go")}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(source, "overlay"), overlay)
	write(t, filepath.Join(files, "visits"), compile(t, "./apps/visits", "1", "-overlay", filepath.Join(source, "overlay")))

	disk := installedDisk(t)
	m := start(t, vmtest.Options{Disks: []vmtest.Disk{{Path: disk}}})
	expect(t, m, loginPrompt, menuWithin+bootWithin)
	r := rootLogin(t, m, rootPassword)
	r.run("for i in $(seq 60); do /etc/init.d/S92manager status && break; sleep 1; done")
	a := manage{browsertest.Open(t, browsertest.Options{
		Base: "https://" + m.Addr(443), Pictures: "../out/manager-pictures", Name: "first-app", Files: []string{files},
		Flags: []string{"--ignore-certificate-errors", "--lang=en-US"},
	}), m, r}
	a.Open("/manager")
	a.Fill("password", "pwd")
	a.Press("Sign in")
	a.goTo("/manager/settings", "Settings")
	a.Do(chromedp.Click(`input[name=developer]`, chromedp.ByQuery))
	a.Press("Save")
	a.goTo("/manager/store", "Store")
	a.follow("Upload an app")
	a.See("h1", "Upload an app", pageWithin)
	a.Fill("app", "visits")
	a.Do(chromedp.SetUploadFiles("#program", []string{filepath.Join(files, "visits")}, chromedp.ByQuery))
	a.Press("Upload")
	a.See("#jobs", "finished", pageWithin)
	a.Picture("uploaded")
	visit := func(domain, want string) {
		a.Helper()
		resp, err := client().Get(a.Base + "/" + domain + "/visits/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if got, err := io.ReadAll(resp.Body); string(got) != want+" of "+domain+".\n" {
			t.Errorf("the app says %q, %v; want %q", got, err, want)
		}
	}
	for _, domain := range []string{"example.com", "example.org"} {
		a.goTo("/manager/app/visits", "visits")
		a.follow("New instance")
		a.See("h1", "(?i)new instance", pageWithin)
		a.Fill("name", "visits")
		a.Fill("domain", domain)
		a.Press("Create the instance")
		a.See("#instance .state", "running", pageWithin)
		visit(domain, "You are visitor 1")
	}
	visit("example.com", "You are visitor 2")
	a.goTo("/manager/instance/1", "visits")
	a.follow("Traces")
	a.See("h1", "traces", pageWithin)
	a.Do(chromedp.Evaluate(`[...document.querySelectorAll("label")].find(l => l.innerText.trim() == "Database").control.click()`, nil))
	a.Press("Save")
	visit("example.com", "You are visitor 3")
	a.follow("Show log")
	a.See("pre.log", `visits@example.com DATABASE visit 3`, pageWithin)
	a.Picture("log")
	for n, command := range []string{"/etc/init.d/S50postgresql restart", "pkill -9 -f /apps/webserver/webserver", "/etc/init.d/S92manager restart", "pkill -9 visits"} {
		r.run(command)
		within(t, pageWithin, "the app after "+command, func() bool { return a.status("/example.org/visits/") == 200 })
		visit("example.com", "You are visitor "+string('4'+rune(n)))
	}
	powerOff(t, m)
	checkDisk(t, disk)
}
