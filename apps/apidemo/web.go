package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	"appplatform/app"
)

//go:embed pages
var files embed.FS

var templates = template.Must(template.ParseFS(files, "pages/*.html"))

// pages are what an instance shows and answers.
type pages struct {
	i *app.Instance
	n *notes
}

func newPages(i *app.Instance, n *notes) http.Handler {
	p := &pages{i: i, n: n}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", p.home)
	mux.HandleFunc("POST /sign-in", p.signIn)
	mux.HandleFunc("POST /sign-out", p.signOut)
	mux.HandleFunc("GET /notes.js", p.file)
	mux.HandleFunc("GET /notes.css", p.file)
	mux.HandleFunc("GET /ws", p.socket)
	mux.HandleFunc("GET /api/notes", p.allowed(p.list))
	mux.HandleFunc("POST /api/notes", p.allowed(p.add))
	mux.HandleFunc("DELETE /api/notes/{id}", p.allowed(p.remove))
	// Other sites must not post in the name of who is signed in here.
	return secure(http.NewCrossOriginProtection().Handler(mux))
}

func secure(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Without frame-ancestors: a PBX's client shows apps in a frame.
		w.Header().Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Referrer-Policy", "same-origin")
		r.Body = http.MaxBytesReader(w, r.Body, 64<<10)
		h.ServeHTTP(w, r)
	})
}

func (p *pages) home(w http.ResponseWriter, r *http.Request) { p.show(w, r, http.StatusOK, "") }

func (p *pages) show(w http.ResponseWriter, r *http.Request, status int, wrong string) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Vary", "Accept-Language, Cookie")
	w.WriteHeader(status)
	t := textsFor(r.Header.Get("Accept-Language"))
	name := "sign-in.html"
	if p.signedIn(r) {
		name = "notes.html"
	}
	templates.ExecuteTemplate(w, name, map[string]any{"T": t, "Name": p.i.Name(), "Domain": p.i.Domain(), "Max": maxText, "Wrong": wrong})
}

func (p *pages) file(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache")
	http.ServeFileFS(w, r, files, "pages"+r.URL.Path)
}

// sessionTime is how long a browser stays signed in.
const sessionTime = 12 * time.Hour

// session signs an end time with the password: a session outlives a restart of the
// app, but not a change of the password.
func (p *pages) session(end int64) string {
	mac := hmac.New(sha256.New, []byte(p.i.Password()))
	fmt.Fprintf(mac, "apidemo session of %s until %d", p.i.Key(), end)
	return fmt.Sprintf("%d-%s", end, hex.EncodeToString(mac.Sum(nil)))
}

const cookie = "apidemo"

func (p *pages) signedIn(r *http.Request) bool {
	c, err := r.Cookie(cookie)
	if err != nil || p.i.Password() == "" {
		return false
	}
	text, _, _ := strings.Cut(c.Value, "-")
	end, err := strconv.ParseInt(text, 10, 64)
	return err == nil && time.Now().Unix() < end && subtle.ConstantTimeCompare([]byte(c.Value), []byte(p.session(end))) == 1
}

// try checks a password, as often as somebody may try.
func (p *pages) try(r *http.Request, password string) error {
	err := p.i.Try(r, func() bool {
		want := sha256.Sum256([]byte(p.i.Password()))
		got := sha256.Sum256([]byte(password))
		return p.i.Password() != "" && subtle.ConstantTimeCompare(want[:], got[:]) == 1
	})
	if err != nil {
		p.i.Log(app.FlagApp, "%v", err)
	}
	return err
}

// refusal is the status for an error of try, which is wrong if that is all.
func refusal(w http.ResponseWriter, err error, wrong int) int {
	var many *app.TooManyError
	if !errors.As(err, &many) {
		return wrong
	}
	w.Header().Set("Retry-After", strconv.Itoa(many.Seconds()))
	return http.StatusTooManyRequests
}

func (p *pages) setCookie(w http.ResponseWriter, r *http.Request, value string, age int) {
	http.SetCookie(w, &http.Cookie{
		Name: cookie, Value: value, Path: p.i.Path() + "/", MaxAge: age, HttpOnly: true, SameSite: http.SameSiteStrictMode,
		Secure: r.Header.Get("X-Forwarded-Proto") == "https",
	})
}

func (p *pages) signIn(w http.ResponseWriter, r *http.Request) {
	if err := p.try(r, r.PostFormValue("password")); err != nil {
		t := textsFor(r.Header.Get("Accept-Language"))
		text, status := t.Wrong, refusal(w, err, http.StatusForbidden)
		if status == http.StatusTooManyRequests {
			text = t.TooMany
		}
		p.show(w, r, status, text)
		return
	}
	p.setCookie(w, r, p.session(time.Now().Add(sessionTime).Unix()), int(sessionTime.Seconds()))
	http.Redirect(w, r, p.i.Path()+"/", http.StatusSeeOther)
}

func (p *pages) signOut(w http.ResponseWriter, r *http.Request) {
	p.setCookie(w, r, "", -1)
	http.Redirect(w, r, p.i.Path()+"/", http.StatusSeeOther)
}

// allowed lets browsers that are signed in and programs with the password pass.
func (p *pages) allowed(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, password, basic := r.BasicAuth()
		if !p.signedIn(r) {
			err := app.ErrSignIn
			if basic {
				err = p.try(r, password)
			}
			if err != nil {
				w.Header().Set("WWW-Authenticate", `Basic realm="notes"`)
				answer(w, refusal(w, err, http.StatusUnauthorized), map[string]string{"error": "the password is missing or wrong, or too many were tried"})
				return
			}
		}
		h(w, r)
	}
}

func answer(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(value)
}

// fail answers with an error of the user's or of ours, which is for the log.
func (p *pages) fail(w http.ResponseWriter, err error) {
	if errors.Is(err, errText) {
		answer(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
		return
	}
	if errors.Is(err, errFull) {
		answer(w, http.StatusConflict, map[string]string{"error": err.Error()})
		return
	}
	p.i.Log(app.FlagApp, "%v", err)
	answer(w, http.StatusServiceUnavailable, map[string]string{"error": "the database does not answer"})
}

func (p *pages) list(w http.ResponseWriter, r *http.Request) {
	all, err := p.n.list(r.Context())
	if err != nil {
		p.fail(w, err)
		return
	}
	answer(w, http.StatusOK, all)
}

func (p *pages) add(w http.ResponseWriter, r *http.Request) {
	var in struct{ Text string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		answer(w, http.StatusBadRequest, map[string]string{"error": `send {"text": "..."}`})
		return
	}
	added, err := p.n.add(r.Context(), in.Text)
	if err != nil {
		p.fail(w, err)
		return
	}
	answer(w, http.StatusCreated, added)
}

func (p *pages) remove(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		answer(w, http.StatusBadRequest, map[string]string{"error": "a note's id is a number"})
		return
	}
	found, err := p.n.remove(r.Context(), id)
	switch {
	case err != nil:
		p.fail(w, err)
	case !found:
		answer(w, http.StatusNotFound, map[string]string{"error": "there is no such note"})
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// A message of the WebSocket: Add and Delete come in, Notes and Error go out.
type message struct {
	MT    string `json:"mt"`
	API   string `json:"api,omitempty"`
	Src   string `json:"src,omitempty"`
	ID    int64  `json:"id,omitempty"`
	Text  string `json:"text,omitempty"`
	Notes []note `json:"notes,omitzero"`
}

// socket sends all notes at every change, to browsers that are signed in and to
// apps of a PBX, which sign in here.
func (p *pages) socket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // it has answered
	}
	defer c.CloseNow()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if !p.signedIn(r) {
		if !p.socketSignIn(ctx, c, r) {
			return
		}
	}
	go func() {
		defer cancel()
		p.receive(ctx, c)
	}()
	for {
		changed := p.n.next()
		all, err := p.n.list(ctx)
		if err == nil {
			err = write(ctx, c, message{MT: "Notes", API: "notes", Notes: all})
		} else if ctx.Err() == nil {
			// The page keeps what it has; there is a change when the database is back.
			p.i.Log(app.FlagApp, "%v", err)
			err = write(ctx, c, message{MT: "Error", API: "notes", Text: "the database does not answer"})
		}
		if err != nil {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func (p *pages) socketSignIn(ctx context.Context, c *websocket.Conn, r *http.Request) bool {
	limited, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	login, err := p.i.SignIn(limited, c, r)
	if err != nil {
		p.i.Log(app.FlagAppWebSocket, "%s@%s: %v", login.App, login.Domain, err)
		c.Close(websocket.StatusPolicyViolation, "the password is wrong")
		return false
	}
	p.i.Log(app.FlagAppWebSocket, "%s of %s has signed in as %s", login.DN, login.Domain, login.App)
	return true
}

// receive does what the other side asks for, until the connection ends.
func (p *pages) receive(ctx context.Context, c *websocket.Conn) {
	for {
		var m message
		if err := wsjson.Read(ctx, c, &m); err != nil {
			return
		}
		p.i.Log(app.FlagAppWebSocket, "received %s", m.MT)
		var err error
		switch m.MT {
		case "Add":
			_, err = p.n.add(ctx, m.Text)
		case "Delete":
			_, err = p.n.remove(ctx, m.ID)
		default:
			err = fmt.Errorf("there is no message %q", m.MT)
		}
		if err != nil && write(ctx, c, message{MT: "Error", API: m.API, Src: m.Src, Text: err.Error()}) != nil {
			return
		}
	}
}

func write(ctx context.Context, c *websocket.Conn, m message) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return wsjson.Write(ctx, c, m)
}
