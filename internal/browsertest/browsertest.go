// Package browsertest lets tests click through pages in Debian's Chromium and take
// pictures of them.
package browsertest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"appplatform/internal/testtools"
	"appplatform/tooltree"
)

// Tab starts Chromium, which ends with the test and sees the files of folders, and
// returns the context of its one tab.
func Tab(t *testing.T, flags, files []string) context.Context {
	t.Helper()
	profile := t.TempDir()
	tools := testtools.Open(t, tooltree.Browser)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd, err := tools.Command(ctx, tooltree.Cmd{
		Args: slices.Concat([]string{"chromium-headless-shell", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
			"--remote-debugging-port=0", "--user-data-dir=" + profile}, flags, []string{"about:blank"}),
		Writable: []string{profile}, ReadOnly: files, Stderr: w, Family: true,
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
		// It complains of events that are newer than it.
		tab, end := chromedp.NewContext(alloc, chromedp.WithErrorf(func(string, ...any) {}))
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

// A User clicks through pages.
type User struct {
	*testing.T
	Tab  context.Context
	Base string // address that pages are named below
	// Pictures is the folder of the pictures, Name what their names begin with.
	Pictures, Name string
}

// Options say what a browser may see.
type Options struct {
	Base, Pictures, Name string
	Files                []string // folders with files to upload
	Flags                []string // of Chromium
}

// Open starts a browser with one tab.
func Open(t *testing.T, o Options) User {
	t.Helper()
	pictures, err := filepath.Abs(o.Pictures)
	if err == nil {
		err = os.MkdirAll(pictures, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return User{t, Tab(t, o.Flags, o.Files), o.Base, pictures, o.Name}
}

// Do takes actions, each of which must succeed within half a minute.
func (u User) Do(actions ...chromedp.Action) {
	u.Helper()
	ctx, cancel := context.WithTimeout(u.Tab, 30*time.Second)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		u.Picture("failed")
		u.Fatalf("in the browser: %v", err)
	}
}

// Open opens a page below Base and waits for its heading. It does not use chromedp's
// Navigate, which waits for what a page with a stream of events never says.
func (u User) Open(page string) {
	u.Helper()
	u.Do(chromedp.Evaluate("window.before = true; location.href = "+strconv.Quote(u.Base+"/"+strings.TrimPrefix(page, "/"))+"; 0", nil))
	u.await("!window.before && document.readyState == 'complete' && document.querySelector('h1') != null", "there is no page "+page)
}

// await waits until an expression is true of a page. In between there is no page to
// ask.
func (u User) await(expression, problem string) {
	u.Helper()
	for range 600 {
		var there bool
		err := chromedp.Run(u.Tab, chromedp.Evaluate(expression, &there))
		if err == nil && there {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	u.Picture("failed")
	u.Fatal(problem)
}

// Press clicks a button by its words and waits for the page that follows.
func (u User) Press(words string) {
	u.Helper()
	// A live page may exchange a part while chromedp looks for it.
	button := fmt.Sprintf(`[...document.querySelectorAll("button")].find(b => b.innerText.trim() == %q && b.checkVisibility())`, words)
	u.await(button+" != undefined", "there is no button "+words)
	u.Do(chromedp.Evaluate("window.before = true; "+button+".click()", nil))
	u.await("!window.before && document.readyState == 'complete'", "nothing follows the button "+words)
}

// Fill writes into the field of an id.
func (u User) Fill(id, text string) {
	u.Helper()
	var got string
	u.Do(chromedp.Evaluate(fmt.Sprintf("document.getElementById(%q).value = %q", id, text), &got))
}

// Value is that of the field of an id.
func (u User) Value(id string) (v string) {
	u.Helper()
	u.Do(chromedp.Value("#"+id, &v, chromedp.ByQuery))
	return v
}

// See waits until the page shows something, without being loaded again.
func (u User) See(selector, pattern string, within time.Duration) {
	u.Helper()
	re, last := regexp.MustCompile(pattern), ""
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		u.Do(chromedp.Evaluate(`document.querySelector("`+selector+`")?.innerText ?? ""`, &last))
		if re.MatchString(last) {
			return
		}
	}
	u.Picture("failed")
	u.Fatalf("%s does not show %q within %v but\n%s", selector, pattern, within, last)
}

// Picture keeps the page as people see it, narrow and wide, for a look.
func (u User) Picture(name string) {
	u.Helper()
	for kind, width := range map[string]int64{"wide": 1200, "narrow": 390} {
		var png []byte
		ctx, cancel := context.WithTimeout(u.Tab, 30*time.Second)
		err := chromedp.Run(ctx, chromedp.EmulateViewport(width, 900), chromedp.FullScreenshot(&png, 100))
		cancel()
		if err == nil {
			err = os.WriteFile(filepath.Join(u.Pictures, u.Name+"-"+name+"-"+kind+".png"), png, 0o644)
		}
		if err != nil {
			u.Errorf("cannot take a picture: %v", err)
		}
		// A page that is wider than the window has to be moved about.
		var fits bool
		if err := chromedp.Run(u.Tab, chromedp.Evaluate("document.documentElement.scrollWidth <= window.innerWidth", &fits)); err == nil && !fits {
			u.Errorf("the page %s is wider than a window of %d pixels", name, width)
		}
	}
}
