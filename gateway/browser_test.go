package gateway

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"appplatform/internal/testtools"
	"appplatform/tooltree"
)

// browse starts Debian's Chromium, which ends with the test and sees the files
// of one folder.
func browse(t *testing.T, files string) context.Context {
	t.Helper()
	profile := t.TempDir()
	tools := testtools.Open(t, tooltree.Browser)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd, err := tools.Command(ctx, tooltree.Cmd{
		Args: []string{"chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
			"--remote-debugging-port=0", "--user-data-dir=" + profile, "about:blank"},
		Writable: []string{profile}, ReadOnly: []string{files}, Stderr: w, Family: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		r.Close()
	})
	address := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			if _, url, ok := strings.Cut(lines.Text(), "DevTools listening on "); ok {
				address <- url
			}
		}
	}()
	select {
	case url := <-address:
		alloc, stop := chromedp.NewRemoteAllocator(ctx, url, chromedp.NoModifyURL)
		tab, end := chromedp.NewContext(alloc)
		t.Cleanup(func() { end(); stop() })
		// The tab lives as long as the context of the first actions.
		if err := chromedp.Run(tab); err != nil {
			t.Fatalf("cannot open a page: %v", err)
		}
		return tab
	case <-time.After(time.Minute):
		t.Fatal("the browser does not start")
	}
	return nil
}

// A user clicks through the pages.
type user struct {
	*testing.T
	tab  context.Context
	base string
	name string // of the pictures
}

func (u user) do(actions ...chromedp.Action) {
	u.Helper()
	ctx, cancel := context.WithTimeout(u.tab, 30*time.Second)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		u.picture("failed")
		u.Fatalf("in the browser: %v", err)
	}
}

func (u user) open(page string) {
	u.Helper()
	u.do(chromedp.Navigate(u.base+"/"+page), chromedp.WaitVisible("h1"))
}

// press clicks a button by its words and waits for the page that follows.
func (u user) press(words string) {
	u.Helper()
	u.do(chromedp.Evaluate("window.before = true", nil),
		chromedp.Click(`//button[normalize-space()="`+words+`"]`, chromedp.BySearch))
	for range 300 {
		var there bool
		err := chromedp.Run(u.tab, chromedp.Evaluate("!window.before && document.readyState == 'complete'", &there))
		if err == nil && there { // In between there is no page to ask.
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	u.picture("failed")
	u.Fatalf("nothing follows the button %s", words)
}

func (u user) fill(id, text string) {
	u.Helper()
	var got string
	u.do(chromedp.Evaluate(fmt.Sprintf("document.getElementById(%q).value = %q", id, text), &got))
}

func (u user) value(id string) (v string) {
	u.Helper()
	u.do(chromedp.Value("#"+id, &v, chromedp.ByQuery))
	return v
}

// see waits until the page shows something, without being loaded again.
func (u user) see(selector, pattern string, within time.Duration) {
	u.Helper()
	re, last := regexp.MustCompile(pattern), ""
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		u.do(chromedp.Evaluate(`document.querySelector("`+selector+`")?.innerText ?? ""`, &last))
		if re.MatchString(last) {
			return
		}
	}
	u.picture("failed")
	u.Fatalf("%s does not show %q within %v but\n%s", selector, pattern, within, last)
}

// picture keeps the page as people see it, narrow and wide, for a look.
func (u user) picture(name string) {
	u.Helper()
	dir, err := filepath.Abs("../out/gateway-pictures")
	if err == nil {
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		u.Fatal(err)
	}
	for kind, width := range map[string]int64{"wide": 1200, "narrow": 390} {
		var png []byte
		ctx, cancel := context.WithTimeout(u.tab, 30*time.Second)
		err := chromedp.Run(ctx, chromedp.EmulateViewport(width, 900), chromedp.FullScreenshot(&png, 100))
		cancel()
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, u.name+"-"+name+"-"+kind+".png"), png, 0o644)
		}
		if err != nil {
			u.Errorf("cannot take a picture: %v", err)
		}
		// A page that is wider than the window has to be moved about.
		var fits bool
		if err := chromedp.Run(u.tab, chromedp.Evaluate("document.documentElement.scrollWidth <= window.innerWidth", &fits)); err == nil && !fits {
			u.Errorf("the page %s is wider than a window of %d pixels", name, width)
		}
	}
}
