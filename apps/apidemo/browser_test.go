package main

import (
	"bufio"
	"context"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"appplatform/internal/testtools"
	"appplatform/tooltree"
)

// browse starts Debian's Chromium, which ends with the test.
func browse(t *testing.T) context.Context {
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
			"--remote-debugging-port=0", "--user-data-dir=" + profile, "--lang=de", "--accept-lang=de", "about:blank"},
		Writable: []string{profile}, Stderr: w, Family: true,
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
		if err := chromedp.Run(tab); err != nil {
			t.Fatalf("cannot open a page: %v", err)
		}
		return tab
	case <-time.After(time.Minute):
		t.Fatal("the browser does not start")
	}
	return nil
}

// TestBrowser uses the pages with the keyboard only, on a small screen.
func TestBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	pg := newServer(t)
	app := runApp(t, pg.dir)
	front := httptest.NewServer(&httputil.ReverseProxy{Transport: app.Transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: "app"})
		r.Out.Host = r.In.Host
	}})
	defer front.Close()
	tab := browse(t)
	do := func(what string, actions ...chromedp.Action) {
		t.Helper()
		ctx, cancel := context.WithTimeout(tab, time.Minute)
		defer cancel()
		if err := chromedp.Run(ctx, actions...); err != nil {
			var page string
			chromedp.Run(tab, chromedp.OuterHTML("html", &page))
			t.Fatalf("%s: %v\n%s", what, err, page)
		}
	}
	if err := os.MkdirAll("../../out/apidemo-pictures", 0o755); err != nil {
		t.Fatal(err)
	}
	picture := func(name string) {
		var png []byte
		do("picture", chromedp.FullScreenshot(&png, 100))
		if err := os.WriteFile("../../out/apidemo-pictures/"+name+".png", png, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	item := func(text string) chromedp.Action {
		return chromedp.WaitVisible(`//li[p[contains(., "`+text+`")]]`, chromedp.BySearch)
	}

	do("sign in", chromedp.EmulateViewport(360, 640), chromedp.Navigate(front.URL+"/example.com/notes"),
		chromedp.WaitVisible("#password"), chromedp.KeyEvent("wrong"+kb.Enter), chromedp.WaitVisible("#wrong"))
	picture("sign-in")
	do("sign in", chromedp.KeyEvent("secret"+kb.Enter), chromedp.WaitVisible("#empty"))
	do("write", chromedp.KeyEvent("<b>one</b>"), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter), item("<b>one</b>"))
	// Somebody else writes.
	if status, text := doAPI(t, app, `{"text":"two"}`); status != 201 {
		t.Fatalf("POST = %d %s", status, text)
	}
	do("see", item("two"))
	picture("notes")
	var wide, errors bool
	var state string
	do("measure", chromedp.Evaluate("document.documentElement.scrollWidth > 360", &wide),
		chromedp.Evaluate("document.documentElement.lang != 'de' || document.querySelectorAll('li b').length > 0", &errors),
		chromedp.Text("#state", &state))
	if wide {
		t.Error("the page is wider than a phone")
	}
	if errors {
		t.Error("the page is not in German, or a note became a part of it")
	}
	if state != german.Online {
		t.Errorf("the page says %s; want %s", state, german.Online)
	}
	// PostgreSQL crashes; the page goes on when it is back.
	pg.stop()
	pg.start()
	for status := 0; status != 201; {
		status, _ = doAPI(t, app, `{"text":"three"}`)
	}
	do("see", item("three"))
	// From the button "add" to the first note's "delete".
	do("delete", chromedp.Focus("#add button"), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter),
		chromedp.WaitNotPresent(`//li[p[contains(., "three")]]`, chromedp.BySearch), item("two"))
}
