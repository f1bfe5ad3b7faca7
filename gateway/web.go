package gateway

import (
	"crypto/subtle"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

//go:embed web
var webFiles embed.FS

var pages = template.Must(template.New("").Funcs(template.FuncMap{
	"mb":    func(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) },
	"since": func(t time.Time) string { return time.Since(t).Round(time.Second).String() },
	"round": func(d time.Duration) string { return d.Round(time.Second).String() },
	"why":   func(text string) string { problem, _ := explain(text); return problem },
	"way":   func(text string) string { _, way := explain(text); return way },
	"last":  func(lines []string) string { return lines[len(lines)-1] },
	"join":  func(lines []string) string { return strings.Join(lines, "\n") },
}).ParseFS(webFiles, "web/*.html"))

// explain parts an error from the way out of it.
func explain(text string) (problem, way string) {
	problem, way, _ = strings.Cut(text, "\nhint: ")
	return problem, way
}

// A view is what a page shows.
type view struct {
	Page     string
	Status   Status
	Settings Settings // as typed, when they were refused
	Error    string
	Hint     string
	Console  string
	Versions []Version
	Store    string
	StoreErr string
	Source   string
}

// Handler is the web server of the gateway. A password, if any, is asked for
// with any user name.
func (g *Gateway) Handler(password string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "general", http.StatusSeeOther) })
	for _, page := range []string{"general", "ip", "installation"} {
		mux.HandleFunc("GET /"+page, func(w http.ResponseWriter, r *http.Request) { g.show(w, r, page, nil, nil) })
	}
	mux.HandleFunc("POST /general", g.postGeneral)
	mux.HandleFunc("POST /ip", g.postIP)
	mux.HandleFunc("POST /installation", g.postInstallation)
	mux.HandleFunc("POST /console", g.postConsole)
	mux.HandleFunc("GET /live", g.live)
	mux.Handle("GET /web/", http.FileServerFS(webFiles))
	return protected(password, http.NewCrossOriginProtection().Handler(mux))
}

// protected asks for the password, and keeps pages out of frames of others.
func protected(password string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		_, given, _ := r.BasicAuth()
		if password != "" && subtle.ConstantTimeCompare([]byte(given), []byte(password)) != 1 {
			w.Header().Set("WWW-Authenticate", `Basic realm="gateway"`)
			http.Error(w, "The password of this gateway is needed.", http.StatusUnauthorized)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (g *Gateway) show(w http.ResponseWriter, r *http.Request, page string, typed *Settings, problem error) {
	v := view{Page: page, Status: g.Status(), Console: g.Console(), Store: g.opts.Store, Source: r.FormValue("path")}
	v.Settings = v.Status.Settings
	if typed != nil {
		v.Settings = *typed
	}
	if problem != nil {
		v.Error, v.Hint = explain(problem.Error())
		w.WriteHeader(http.StatusUnprocessableEntity)
	}
	if page == "installation" {
		var err error
		if v.Versions, err = g.Versions(r.Context()); err != nil {
			v.StoreErr = err.Error()
		}
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := pages.ExecuteTemplate(w, page+".html", v); err != nil {
		g.note("cannot show the page %s: %v", page, err)
	}
}

// done shows the page anew, so that a reload does nothing again.
func (g *Gateway) done(w http.ResponseWriter, r *http.Request, page string, typed *Settings, err error) {
	if err != nil {
		g.show(w, r, page, typed, err)
		return
	}
	http.Redirect(w, r, page, http.StatusSeeOther)
}

func field(r *http.Request, name string) string { return strings.TrimSpace(r.PostFormValue(name)) }

func (g *Gateway) postGeneral(w http.ResponseWriter, r *http.Request) {
	s := g.Status().Settings
	s.Enabled = r.PostFormValue("enabled") != ""
	s.Cmdline, s.Initrd, s.RamdiskSize = field(r, "cmdline"), field(r, "initrd"), field(r, "ramdisk_size")
	var err error
	switch r.PostFormValue("do") {
	case "start": // Manuals let people change the fields and press Start.
		if err = g.Save(s); err == nil {
			err = g.Start()
		}
	case "stop":
		g.Stop()
	case "shutdown":
		err = g.Shutdown()
	case "save":
		if err = g.Save(s); err == nil && !s.Enabled {
			g.Stop()
		}
	default:
		err = errors.New("no such button")
	}
	g.done(w, r, "general", &s, err)
}

func (g *Gateway) postIP(w http.ResponseWriter, r *http.Request) {
	s := g.Status().Settings
	s.IP = IP{Address: field(r, "address"), Mask: field(r, "mask"), Gateway: field(r, "gateway"), DNS1: field(r, "dns1"), DNS2: field(r, "dns2")}
	g.done(w, r, "ip", &s, g.Save(s))
}

// uploadLimit is more than any image has.
const uploadLimit = 1 << 30

func (g *Gateway) postInstallation(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("do") == "cancel" {
		g.done(w, r, "installation", nil, g.Cancel())
		return
	}
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "multipart/form-data") {
		source := field(r, "path")
		if source == "" {
			source = field(r, "version")
		}
		g.done(w, r, "installation", nil, g.Install(source))
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, uploadLimit)
	parts, err := r.MultipartReader()
	for err == nil {
		part, e := parts.NextPart()
		if e != nil {
			if err = e; errors.Is(e, io.EOF) {
				err = errors.New("no file was chosen")
			}
			break
		}
		if part.FormName() == "file" && part.FileName() != "" {
			g.done(w, r, "installation", nil, g.Upload(part.FileName(), part, 0))
			return
		}
	}
	g.done(w, r, "installation", nil, err)
}

func (g *Gateway) postConsole(w http.ResponseWriter, r *http.Request) {
	g.done(w, r, "general", nil, g.Type(r.PostFormValue("line")))
}

// live is the part of a page that changes by itself.
func (g *Gateway) live(w http.ResponseWriter, r *http.Request) {
	page := url.PathEscape(r.FormValue("page"))
	if page != "installation" {
		page = "general"
	}
	v := view{Page: page, Status: g.Status(), Console: g.Console()}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := pages.ExecuteTemplate(w, "live-"+page, v); err != nil {
		g.note("cannot show the page: %v", err)
	}
}
