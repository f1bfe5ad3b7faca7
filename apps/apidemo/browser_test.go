package main

import (
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"appplatform/internal/browsertest"
)

// TestBrowser uses the pages with the keyboard only, on a small screen.
func TestBrowser(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a browser")
	}
	pg := newServer(t)
	app := runApp(t, pg.Socket)
	front := httptest.NewServer(&httputil.ReverseProxy{Transport: app.Transport, Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: "app"})
		r.Out.Host = r.In.Host
	}})
	defer front.Close()
	user := browsertest.Open(t, browsertest.Options{Base: front.URL, Pictures: "../../out/apidemo-pictures", Name: "notes",
		Flags: []string{"--lang=de", "--accept-lang=de"}})
	do := user.Do
	item := func(text string) chromedp.Action {
		return chromedp.WaitVisible(`//li[p[contains(., "`+text+`")]]`, chromedp.BySearch)
	}

	do(chromedp.EmulateViewport(360, 640), chromedp.Navigate(front.URL+"/example.com/notes"),
		chromedp.WaitVisible("#password"), chromedp.KeyEvent("wrong"+kb.Enter), chromedp.WaitVisible("#wrong"))
	user.Picture("sign-in")
	do(chromedp.EmulateViewport(360, 640), chromedp.Focus("#password"))
	do(chromedp.KeyEvent("secret"+kb.Enter), chromedp.WaitVisible("#empty"))
	do(chromedp.KeyEvent("<b>one</b>"), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter), item("<b>one</b>"))
	// Somebody else writes.
	if status, text := doAPI(t, app, `{"text":"two"}`); status != 201 {
		t.Fatalf("POST = %d %s", status, text)
	}
	do(item("two"))
	user.Picture("notes")
	do(chromedp.EmulateViewport(360, 640))
	var wide, errors bool
	var state string
	do(chromedp.Evaluate("document.documentElement.scrollWidth > 360", &wide),
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
	pg.Kill()
	pg.Restart(t)
	for status := 0; status != 201; {
		status, _ = doAPI(t, app, `{"text":"three"}`)
	}
	do(item("three"))
	// From the button "add" to the first note's "delete".
	do(chromedp.Focus("#add button"), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter),
		chromedp.WaitNotPresent(`//li[p[contains(., "three")]]`, chromedp.BySearch), item("two"))
}
