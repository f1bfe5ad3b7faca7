// Package web is the manager's pages: what a model.Platform knows and can do, for
// an administrator with a browser. They are made on the server and work without
// script; the script renews what changes by itself and asks before something is
// deleted.
package web

import (
	"cmp"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"appplatform/manager/internal/model"
)

// Base is the path that the pages are below. The webserver hands requests on with
// it.
const Base = "/manager"

// LogPath shows the log of an installation (I1). In the ramdisk the agent answers
// there.
const LogPath = Base + "/ramdisk.log"

// Options of the pages.
type Options struct {
	Folder    string // keeps sessions over a restart, and uploads while they arrive
	HTTPSPort int    // of the page that plain http is sent to; 0 is 443
	Log       *slog.Logger
}

// A Site is the handler of everything below [Base].
type Site struct {
	p        model.Platform
	opts     Options
	sessions *sessions
	assets   map[string]*asset
	names    map[string]string // of assets, with their hash
	looks    map[string]func() *look
	zone     atomic.Pointer[time.Location]
	handler  http.Handler

	// settled is how long a log must be silent until what was read is what there was
	// before, of which only the end is shown.
	settled time.Duration
}

// New returns the pages of a platform.
func New(p model.Platform, opts Options) *Site {
	if opts.Log == nil {
		opts.Log = slog.Default()
	}
	s := &Site{p: p, opts: opts, sessions: openSessions(opts.Folder, opts.Log), looks: map[string]func() *look{}, settled: 200 * time.Millisecond}
	s.zone.Store(time.UTC)
	s.assets, s.names = loadAssets()
	for _, lang := range languages {
		s.looks[lang] = sync.OnceValue(func() *look { return s.newLook(lang) })
	}
	mux := http.NewServeMux()
	s.routes(mux)
	s.handler = s.guard(mux)
	return s
}

func (s *Site) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// EndSessions signs everybody out, as a changed password demands.
func (s *Site) EndSessions() { s.sessions.endAll() }

// A visit is one request of somebody.
type visit struct {
	*Site
	w       http.ResponseWriter
	r       *http.Request
	session string // its hash; "" for a stranger
	token   string // that forms of the session carry
	lang    string
	theme   string
	by      model.Actor
	state   uint64 // of all that pages show, at the beginning of the visit
}

func (s *Site) routes(mux *http.ServeMux) {
	open := func(pattern string, h func(*visit) error) { mux.HandleFunc(at(pattern), s.page(h, false)) }
	open("GET /signin", (*visit).signInPage)
	open("POST /signin", (*visit).signIn)
	open("GET /prefer", (*visit).prefer)
	mux.HandleFunc(at("GET /static/{name}"), s.static)
	mux.HandleFunc("GET "+LogPath, s.ramdiskLog)

	page := func(pattern string, h func(*visit) error) { mux.HandleFunc(at(pattern), s.page(h, true)) }
	page("POST /signout", (*visit).signOut)
	page("GET /{$}", (*visit).overview)
	mux.HandleFunc("GET "+Base, s.page((*visit).overview, true))
	page("GET /live", (*visit).chrome)
	page("GET /events", (*visit).events)

	page("GET /app/{app}", (*visit).app)
	page("POST /app/{app}/start", (*visit).startApp)
	page("POST /app/{app}/stop", (*visit).stopApp)
	page("POST /app/{app}/restart", (*visit).restartApp)
	page("GET /app/{app}/versions", (*visit).versions)
	page("GET /app/{app}/settings", (*visit).appSettings)
	page("POST /app/{app}/settings", (*visit).setApp)
	page("GET /app/{app}/revert", (*visit).confirmRevert)
	page("POST /app/{app}/revert", (*visit).revertApp)
	page("GET /app/{app}/delete", (*visit).confirmDeleteApp)
	page("POST /app/{app}/delete", (*visit).deleteApp)
	page("GET /app/{app}/new", (*visit).newInstance)
	page("POST /app/{app}/new", (*visit).createInstance)

	page("GET /instance/{id}", (*visit).instance)
	page("GET /instance/{id}/passwords", (*visit).passwords)
	page("GET /instance/{id}/edit", (*visit).editInstance)
	page("POST /instance/{id}/edit", (*visit).setInstance)
	page("GET /instance/{id}/flags", (*visit).flags)
	page("POST /instance/{id}/flags", (*visit).setFlags)
	page("POST /instance/{id}/start", (*visit).startInstance)
	page("POST /instance/{id}/stop", (*visit).stopInstance)
	page("GET /instance/{id}/cleanup", (*visit).confirmCleanUp)
	page("POST /instance/{id}/cleanup", (*visit).cleanUp)
	page("GET /instance/{id}/delete", (*visit).confirmDeleteInstance)
	page("POST /instance/{id}/delete", (*visit).deleteInstance)
	page("GET /rename", (*visit).renamePage)
	page("POST /rename", (*visit).rename)

	page("GET /store", (*visit).store)
	page("POST /store", (*visit).install)
	page("GET /upload", (*visit).uploadPage)
	page("POST /upload", (*visit).upload)
	page("GET /jobs", (*visit).jobs)
	page("POST /jobs/{job}/cancel", (*visit).cancelJob)

	page("GET /settings", (*visit).general)
	page("POST /settings", (*visit).setGeneral)
	page("GET /settings/security", (*visit).security)
	page("GET /settings/certificate.pem", (*visit).downloadCertificate)
	page("POST /settings/certificate", (*visit).checkCertificate)
	page("POST /settings/certificate/use", (*visit).useCertificate)
	page("GET /settings/certificate/reset", (*visit).confirmResetCertificate)
	page("POST /settings/certificate/reset", (*visit).resetCertificate)
	page("POST /settings/password/{user}", (*visit).setPassword)
	page("POST /settings/tokens", (*visit).createToken)
	page("GET /settings/tokens/{token}/delete", (*visit).confirmDeleteToken)
	page("POST /settings/tokens/{token}/delete", (*visit).deleteToken)
	page("GET /settings/update", (*visit).update)
	page("GET /settings/update/confirm", (*visit).confirmUpdate)
	page("POST /settings/update/confirm", (*visit).startUpdate)
	page("GET /settings/update/rollback", (*visit).confirmRollback)
	page("POST /settings/update/rollback", (*visit).rollback)
	page("GET /settings/restart", (*visit).confirmRestart)
	page("POST /settings/restart", (*visit).restart)
	page("GET /settings/shutdown", (*visit).confirmShutdown)
	page("POST /settings/shutdown", (*visit).shutdown)
	page("GET /settings/resize", (*visit).confirmResize)
	page("POST /settings/resize", (*visit).resize)
	page("GET /away", (*visit).away)

	page("GET /monitor", (*visit).monitor)
	page("GET /logs", (*visit).logs)
	page("GET /logs/follow", (*visit).followLog)
	page("GET /logs/download", (*visit).downloadLog)
	page("GET /dumps", (*visit).dumps)
	page("GET /dumps/{program}/{name}", (*visit).downloadDump)
	page("GET /dumps/{program}/{name}/delete", (*visit).confirmDeleteDump)
	page("POST /dumps/{program}/{name}/delete", (*visit).deleteDump)
	page("GET /dumps/delete", (*visit).confirmDeleteDumps)
	page("POST /dumps/delete", (*visit).deleteDumps)
	page("GET /audit", (*visit).audit)

	mux.HandleFunc(Base+"/", s.page(func(*visit) error { return model.ErrNotFound }, true))
}

// at puts a pattern below [Base].
func at(pattern string) string {
	method, path, _ := strings.Cut(pattern, " ")
	return method + " " + Base + path
}

// policy lets a page load what is ours, and nobody show it in a frame.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// guard takes the address of the browser from the webserver, which is the only
// one that reaches us, and refuses what other sites send.
func (s *Site) guard(next http.Handler) http.Handler {
	next = http.NewCrossOriginProtection().Handler(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if host := r.Header.Get("X-Forwarded-Host"); host != "" {
			r.Host = host
		}
		if r.TLS == nil && r.Header.Get("X-Forwarded-Proto") != "https" {
			http.Redirect(w, r, s.secureURL(r), http.StatusSeeOther)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// secureURL is the same page by https: passwords are not for plain http.
func (s *Site) secureURL(r *http.Request) string {
	host := (&url.URL{Host: r.Host}).Hostname()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if s.opts.HTTPSPort != 0 && s.opts.HTTPSPort != 443 {
		host += ":" + strconv.Itoa(s.opts.HTTPSPort)
	}
	return (&url.URL{Scheme: "https", Host: host, Path: r.URL.Path, RawQuery: r.URL.RawQuery}).String()
}

// page makes a handler of a page: it knows who is there, refuses forms that are
// not ours, and shows errors.
func (s *Site) page(h func(*visit) error, signedIn bool) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v := &visit{Site: s, w: w, r: r, lang: language(r), theme: theme(r), by: actor(r)}
		v.state, _ = s.p.Changed() // before anything else is asked
		if c, err := r.Cookie(sessionCookie); err == nil {
			v.session, v.token = s.sessions.find(c.Value, !quiet(r))
		}
		if v.session == "" && signedIn {
			v.stranger()
			return
		}
		err := error(nil)
		if r.Method == http.MethodPost && signedIn {
			err = v.checkForm()
		}
		if err == nil {
			err = h(v)
		}
		if err != nil {
			v.fail(err)
		}
	}
}

// quiet reports whether the script asks and not a person, who alone keeps a
// session from ending.
func quiet(r *http.Request) bool {
	return r.Header.Get("X-Live") != "" || r.URL.Path == Base+"/events" || r.URL.Path == Base+"/logs/follow"
}

// stranger is sent to the page where one signs in, and from there to where he
// wanted to go. A form that comes too late is lost.
func (v *visit) stranger() {
	switch {
	case quiet(v.r):
		http.Error(v.w, v.t("You are not signed in any more."), http.StatusUnauthorized)
	case v.r.Method == http.MethodPost:
		from, err := url.Parse(v.r.Referer())
		to := Base
		if err == nil {
			to = local(from.RequestURI())
		}
		_ = v.showSignIn(http.StatusUnauthorized, to, &message{Text: v.t("You are not signed in any more.")})
	default:
		http.Redirect(v.w, v.r, Base+"/signin?to="+url.QueryEscape(v.r.URL.RequestURI()), http.StatusSeeOther)
	}
}

// fail shows what went wrong instead of a page.
func (v *visit) fail(err error) {
	status := http.StatusInternalServerError
	switch {
	case errors.Is(err, model.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, model.ErrUnavailable):
		status = http.StatusServiceUnavailable
	case errors.Is(err, errForm):
		status = http.StatusForbidden
	case v.r.Method == http.MethodPost:
		status = http.StatusUnprocessableEntity
	}
	p := v.newPage(v.t("Something went wrong"), "error", newMessage(err))
	p.Live = livePath
	if status == http.StatusNotFound {
		p.Title = v.t("Not found")
	}
	v.show(status, p)
}

// done ends an action: the next page says how it went.
func (v *visit) done(err error, text, to string) error {
	m := &message{Text: text, Good: true}
	if err != nil {
		m = newMessage(err)
	}
	v.sessions.leave(v.session, m)
	return v.goTo(to)
}

func (v *visit) goTo(to string) error {
	http.Redirect(v.w, v.r, to, http.StatusSeeOther)
	return nil
}

// A message tells how something went. Errors come with a way out.
type message struct {
	Text, Hint string
	Good       bool
}

func newMessage(err error) *message {
	text, hint, _ := strings.Cut(err.Error(), "\nhint: ")
	return &message{Text: sentence(text), Hint: sentence(hint)}
}

// sentence begins what programs say with a capital letter, unless a name comes first.
func sentence(text string) string {
	switch first, _, _ := strings.Cut(text, " "); first {
	case "a", "an", "cannot", "change", "it", "its", "no", "nobody", "nothing", "set", "some", "start", "the", "there", "this", "try", "wait":
		return strings.ToUpper(text[:1]) + text[1:]
	}
	return text
}

// actor is who signs in here: there is one administrator.
func actor(r *http.Request) model.Actor {
	from := r.Header.Get("X-Forwarded-For")
	if i := strings.LastIndexByte(from, ','); i >= 0 {
		from = from[i+1:]
	}
	if from = strings.TrimSpace(from); from == "" {
		from, _, _ = net.SplitHostPort(r.RemoteAddr)
	}
	return model.Actor{Who: "admin", From: cmp.Or(from, "unknown")}
}

// local is a path of ours that somebody asks to be sent to, or the first page.
func local(to string) string {
	u, err := url.Parse(to)
	if err != nil || u.IsAbs() || u.Host != "" || u.Path != Base && !strings.HasPrefix(u.Path, Base+"/") || strings.Contains(to, `\`) {
		return Base
	}
	return to
}

// ramdiskLog is for the page that waits for an update: Started tells it whether the
// machine is another one than before.
func (s *Site) ramdiskLog(w http.ResponseWriter, r *http.Request) {
	if system, err := s.p.System(r.Context()); err == nil {
		w.Header().Set("X-Started", strconv.FormatInt(system.Started.Unix(), 10))
	}
	var session string
	if c, err := r.Cookie(sessionCookie); err == nil {
		session, _ = s.sessions.find(c.Value, false)
	}
	if session == "" {
		http.Error(w, "The log of the last installation is shown to whoever is signed in.", http.StatusUnauthorized)
		return
	}
	text, err := s.p.InstallLog(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(text))
}
