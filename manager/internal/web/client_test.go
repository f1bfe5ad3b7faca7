package web

import (
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"appplatform/manager/internal/model"
)

// A client is a browser without a screen.
type client struct {
	*testing.T
	site   *Site
	cookie string
	lang   string
	header http.Header // of every request
}

func newClient(t *testing.T, p model.Platform) *client {
	c := &client{T: t, site: New(p, Options{Folder: t.TempDir()}), header: http.Header{"X-Forwarded-Proto": {"https"}, "X-Forwarded-For": {"192.0.2.7"}}}
	return c
}

func (c *client) send(r *http.Request) *http.Response {
	r.Host = "apps.example.com"
	for name, values := range c.header {
		r.Header[name] = values
	}
	if c.lang != "" {
		r.Header.Set("Accept-Language", c.lang)
	}
	if c.cookie != "" {
		r.AddCookie(&http.Cookie{Name: sessionCookie, Value: c.cookie})
	}
	w := httptest.NewRecorder()
	c.site.ServeHTTP(w, r)
	answer := w.Result()
	for _, k := range answer.Cookies() {
		if k.Name == sessionCookie {
			c.cookie = k.Value
		}
	}
	return answer
}

func (c *client) get(path string) (int, string) {
	c.Helper()
	answer := c.send(httptest.NewRequest("GET", path, nil))
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		c.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func (c *client) post(path string, form url.Values) *http.Response {
	r := httptest.NewRequest("POST", path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return c.send(r)
}

// submit sends a form with the token of the session, and returns the page that
// follows.
func (c *client) submit(path string, fields ...string) (int, string) {
	c.Helper()
	form := url.Values{"token": {c.token()}}
	for i := 0; i < len(fields); i += 2 {
		form.Add(fields[i], fields[i+1])
	}
	answer := c.post(path, form)
	if answer.StatusCode == http.StatusSeeOther {
		return c.get(answer.Header.Get("Location"))
	}
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		c.Fatal(err)
	}
	return answer.StatusCode, string(text)
}

func (c *client) token() string {
	_, token := c.site.sessions.find(c.cookie, false)
	return token
}

func (c *client) signIn(password string) *http.Response {
	return c.post("/manager/signin", url.Values{"password": {password}})
}

func signedIn(t *testing.T, p model.Platform) *client {
	c := newClient(t, p)
	if c.signIn("pwd"); c.cookie == "" {
		t.Fatal("cannot sign in")
	}
	return c
}

// words are what a page shows, without its marks.
func words(page string) string {
	page = regexp.MustCompile(`(?s)<[^>]*>`).ReplaceAllString(page, " ")
	return strings.Join(strings.Fields(html.UnescapeString(page)), " ")
}

func (c *client) by() model.Actor { return model.Actor{Who: "test"} }
