package web

import (
	"bytes"
	"cmp"
	"embed"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"appplatform/manager/internal/model"
)

//go:embed templates
var templateFiles embed.FS

// A look is all templates in one language.
type look struct{ templates *template.Template }

func (s *Site) newLook(lang string) *look {
	t := func(text string, args ...any) string { return translate(lang, text, args...) }
	return &look{template.Must(template.New("").Funcs(template.FuncMap{
		"t":        t,
		"asset":    func(name string) string { return s.names[name] },
		"size":     func(n int64) string { return size(lang, n) },
		"number":   func(f float64, digits int) string { return number(lang, f, digits) },
		"time":     func(at time.Time) template.HTML { return s.moment(lang, at) },
		"date":     func(at time.Time) string { return at.In(s.zone.Load()).Format(dayFormats[lang]) },
		"for":      func(at time.Time) string { return duration(lang, time.Since(at)) },
		"state":    func(state model.State) string { return t(stateTexts[state]) },
		"kind":     func(job model.Job) string { return t(cmp.Or(jobTexts[job.Kind], job.Kind)) },
		"step":     func(job model.Job) string { return made(lang, job.StepFormat, job.StepArgs, job.Step) },
		"join":     func(list []string) string { return strings.Join(list, ", ") },
		"initial":  func(text string) string { return strings.ToUpper(string(append([]rune(text), '?')[:1])) },
		"percent":  func(part, whole int64) int { return int(100 * part / max(whole, 1)) },
		"problem":  func(text string) string { return newMessage(fmt.Errorf("%s", text)).Text },
		"hint":     func(text string) string { return newMessage(fmt.Errorf("%s", text)).Hint },
		"language": func(lang string) string { return map[string]string{"en": "English", "de": "Deutsch"}[lang] },
	}).ParseFS(templateFiles, "templates/*.html"))}
}

var stateTexts = map[model.State]string{
	model.Stopped:  "stopped",
	model.Starting: "starting",
	model.Running:  "running",
	model.Waiting:  "waiting",
	model.Stopping: "stopping",
	model.Failed:   "failed",
}

var jobTexts = map[string]string{
	"install":  "Install|kind",
	"update":   "Update|kind",
	"revert":   "Return to the previous version",
	"cleanup":  "Clean up database",
	"image":    "Update of the platform",
	"optimize": "Optimize|kind",
}

// A page is what the layout shows around the template of a page.
type page struct {
	*visit
	Lang, Theme, Token string
	Title              string
	Self               string // the page's own address
	Section            string // of the navigation
	Live               string // where the script gets the page anew when something has changed
	Since              uint64 // the state of all that it shows, or one before
	System             model.System
	Settings           model.Settings
	Services           []model.Service
	Trouble            *message // the apps cannot be listed
	Notices            []notice
	Jobs               []model.Job // that are under way
	Message            *message
	Refresh            int // seconds, for a page without script
	Data               any
	Main               template.HTML

	content string // the template of the page
}

// A notice leads to where something can be done.
type notice struct {
	model.Notice
	Href, Way string
}

// ways are where notices lead, by what their codes begin with.
var ways = []struct{ code, href, text string }{
	{"default-password", "/settings/security#password", "Change the password"},
	{"certificate", "/settings/security", "Show the certificate"},
	{"database", "/logs?name=postgresql", "Show the log"},
	{"webserver", "/logs?name=webserver", "Show the log"},
	{"disk", "/monitor#disk", "What takes the room"},
	{"folders", "/monitor#disk", "What takes the room"},
	{"snapshot", "/monitor#disk", "What takes the room"},
	{"crash-", "/app/", "Show the app"},
	{"limit-", "/app/", "Show the app"},
	{"app-", "/app/", "Show the app"},
	{"image-trial", "/settings/update", "Show the update"},
	{"image-", "/app/", "Show the app"},
	{"image", "/settings/update", "Show the update"},
	{"crash", "/dumps", "Crashes and core dumps"},
	{"resize", "/settings/resize", "Use the whole disk"},
	{"firstboot", "/settings", "Settings"},
	{"time", "/settings", "Settings"},
	{"store", "/settings", "Settings"},
}

// lead finds the way of a notice. Codes of apps and instances end in their names.
func lead(n model.Notice, services []model.Service) notice {
	n.Text, n.Hint = sentence(n.Text), sentence(n.Hint)
	if key, ok := strings.CutPrefix(n.Code, "instance-"); ok {
		for _, s := range services {
			for _, i := range s.Instances {
				if i.Key() == key {
					return notice{n, instancePath(i.ID), "Show the instance"}
				}
			}
		}
	}
	for _, way := range ways {
		rest, ok := strings.CutPrefix(n.Code, way.code)
		if !ok || way.href == "/app/" && find(services, rest) == nil {
			continue
		}
		if way.href == "/app/" {
			return notice{n, appPath(rest), way.text}
		}
		return notice{n, Base + way.href, way.text}
	}
	return notice{Notice: n}
}

// newPage knows what every page shows. What cannot be had at the moment is left
// out: pages appear when the database is down, too.
func (v *visit) newPage(title, content string, data any) *page {
	ctx := v.r.Context()
	p := &page{visit: v, Lang: v.lang, Theme: v.theme, Token: v.token, Title: title, Self: v.r.URL.RequestURI(), content: content, Data: data}
	if v.r.Method != http.MethodGet {
		p.Self = v.r.URL.Path
	}
	p.Live, p.Since = p.Self, v.state
	if v.r.Header.Get("X-Live") == "" {
		p.Message = v.sessions.takeMessage(v.session)
	}
	p.System, _ = v.p.System(ctx)
	if settings, err := v.p.Settings(ctx); err == nil {
		p.Settings = settings
		v.setZone(settings.Timezone)
	}
	var err error
	if p.Services, err = v.p.Services(ctx); err != nil {
		p.Trouble = newMessage(err)
	}
	for _, n := range v.p.Notices(ctx) {
		n.Text, n.Hint = made(v.lang, n.Format, n.Args, n.Text), translate(v.lang, n.Hint)
		p.Notices = append(p.Notices, lead(n, p.Services))
	}
	for _, j := range v.p.Jobs(ctx) {
		if j.Ended.IsZero() {
			p.Jobs = append(p.Jobs, j)
		}
	}
	return p
}

// livePath is all that changes of a page whose own part does not.
const livePath = Base + "/live"

// Languages that can be chosen.
func (p *page) Languages() []string { return languages }

func (v *visit) showPage(p *page) error { return v.show(http.StatusOK, p) }

// show renders what is inside the layout first.
func (v *visit) show(status int, p *page) error {
	var main bytes.Buffer
	if err := v.looks[p.Lang]().templates.ExecuteTemplate(&main, p.content, p); err != nil {
		return v.broken(err)
	}
	p.Main = template.HTML(main.String())
	if p.Live == livePath {
		p.Live += "?section=" + url.QueryEscape(p.Section)
	}
	return v.render(status, "layout", p)
}

func (v *visit) render(status int, name string, p *page) error {
	var text bytes.Buffer
	if err := v.looks[p.Lang]().templates.ExecuteTemplate(&text, name, p); err != nil {
		return v.broken(err)
	}
	v.w.Header().Set("Content-Type", "text/html; charset=utf-8")
	v.w.Header().Set("Content-Length", strconv.Itoa(text.Len()))
	v.w.WriteHeader(status)
	_, _ = v.w.Write(text.Bytes())
	return nil
}

// broken is a mistake in a template: there is no page to show it on.
func (v *visit) broken(err error) error {
	v.opts.Log.Error("internal error: cannot make a page", "path", v.r.URL.Path, "error", err)
	http.Error(v.w, "internal error: "+err.Error(), http.StatusInternalServerError)
	return nil
}

// chrome is a page of nothing but what all pages have.
func (v *visit) chrome() error {
	p := v.newPage(v.t("App Platform"), "nothing", nil)
	p.Section = v.r.URL.Query().Get("section")
	return v.showPage(p)
}

// setZone has times shown as the settings say.
func (s *Site) setZone(name string) {
	if s.zone.Load().String() == name {
		return
	}
	if zone, err := time.LoadLocation(name); err == nil {
		s.zone.Store(zone)
	}
}

// moment is a time as people of a language write it.
func (s *Site) moment(lang string, at time.Time) template.HTML {
	if at.IsZero() {
		return "–"
	}
	at = at.In(s.zone.Load())
	return template.HTML(`<time datetime="` + at.Format(time.RFC3339) + `">` + template.HTMLEscapeString(at.Format(dateFormats[lang])) + `</time>`)
}

var dayFormats = map[string]string{"en": "2 Jan 2006", "de": "02.01.2006"}

var dateFormats = map[string]string{"en": "2 Jan 2006, 15:04:05", "de": "02.01.2006, 15:04:05"}

// size is a number of bytes in powers of 1024, like the limits of apps.
func size(lang string, n int64) string {
	if n < 0 {
		return translate(lang, "unknown")
	}
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	f := float64(n)
	for _, unit := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if f /= 1024; f < 1023.5 || unit == "TiB" {
			digits := 0
			if f < 9.95 {
				digits = 1
			}
			return number(lang, f, digits) + " " + unit
		}
	}
	return ""
}

func number(lang string, f float64, digits int) string {
	text := strconv.FormatFloat(f, 'f', digits, 64)
	if lang == "de" {
		text = strings.Replace(text, ".", ",", 1)
	}
	return text
}

// duration is rounded to what matters of it.
func duration(lang string, d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return translate(lang, "%d s", max(0, int(d.Seconds())))
	case d < 2*time.Hour:
		return translate(lang, "%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return translate(lang, "%d h", int(d.Hours()))
	}
	return translate(lang, "%d days", int(d.Hours()/24))
}

// find is the app that an instance belongs to.
func find(services []model.Service, id string) *model.Service {
	if i := slices.IndexFunc(services, func(s model.Service) bool { return s.ID == id }); i >= 0 {
		return &services[i]
	}
	return nil
}

// A confirmation asks before something is done that cannot be undone. The form goes
// to the address of the page itself.
type confirmation struct {
	Text, Warning string
	Typed         string // has to be typed
	Button        string
	Danger        bool
	Back          string
	Fields        map[string]string
}

func (v *visit) confirm(title string, c confirmation) error {
	p := v.newPage("", "confirm", c)
	p.Title, p.Live = title, livePath
	return v.showPage(p)
}

// typed compares what had to be typed.
func (v *visit) typed(want string) bool { return strings.TrimSpace(v.r.PostFormValue("typed")) == want }
