package web

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"strconv"

	"appplatform/internal/hint"
	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
)

func appPath(id string) string { return Base + "/app/" + url.PathEscape(id) }

func (v *visit) overview() error {
	crashes, _ := v.p.Crashes(v.r.Context(), 5)
	samples, _ := v.p.Samples(v.r.Context(), 1)
	var now model.Sample
	if len(samples) > 0 {
		now = samples[len(samples)-1]
	}
	p := v.newPage(v.t("Overview"), "overview", nil)
	instances, running := 0, 0
	for _, s := range p.Services {
		for _, i := range s.Instances {
			instances++
			if i.State == model.Running {
				running++
			}
		}
	}
	p.Data = map[string]any{"Crashes": crashes, "Now": now, "Instances": instances, "Running": running}
	return v.showPage(p)
}

// service is the app that the address names.
func (v *visit) service() (model.Service, error) {
	return v.p.Service(v.r.Context(), v.r.PathValue("app"))
}

func (v *visit) app() error {
	s, err := v.service()
	if err != nil {
		return err
	}
	all, _ := v.p.Crashes(v.r.Context(), 100)
	var crashes []model.Crash
	for _, c := range all {
		if c.Service == s.ID && len(crashes) < 5 {
			crashes = append(crashes, c)
		}
	}
	p := v.newPage(s.Title, "app", map[string]any{"App": s, "Crashes": crashes})
	p.Section = "app/" + s.ID
	return v.showPage(p)
}

// back is where an action was asked for: the page of the app, of the instance or
// of all.
func (v *visit) back(to string) string {
	if from := v.r.PostFormValue("from"); from != "" {
		return local(from)
	}
	return to
}

func (v *visit) startApp() error {
	id := v.r.PathValue("app")
	return v.done(v.p.StartService(v.r.Context(), id, v.by), v.t("%s is being started.", id), v.back(appPath(id)))
}

func (v *visit) stopApp() error {
	id := v.r.PathValue("app")
	return v.done(v.p.StopService(v.r.Context(), id, v.by), v.t("%s is being stopped.", id), v.back(appPath(id)))
}

func (v *visit) restartApp() error {
	id := v.r.PathValue("app")
	return v.done(v.p.RestartService(v.r.Context(), id, v.by), v.t("%s is being restarted.", id), v.back(appPath(id)))
}

// versions of an app are on a page of their own: the store may be slow.
func (v *visit) versions() error {
	s, err := v.service()
	if err != nil {
		return err
	}
	var offered *model.StoreApp
	apps, err := v.p.Store(v.r.Context(), v.r.URL.Query().Has("refresh"))
	for _, a := range apps {
		if a.ID == s.ID {
			offered = &a
		}
	}
	data := map[string]any{"App": s, "Offered": offered}
	if err != nil {
		data["Trouble"] = newMessage(err)
	}
	p := v.newPage(v.t("Versions of %s", s.Title), "versions", data)
	p.Section, p.Live = "app/"+s.ID, livePath
	return v.showPage(p)
}

func (v *visit) appSettings() error {
	s, err := v.service()
	if err != nil {
		return err
	}
	return v.showAppSettings(s, nil)
}

func (v *visit) showAppSettings(s model.Service, m *message) error {
	p := v.newPage(v.t("Limits and log of %s", s.Title), "app-settings", map[string]any{"App": s, "LogKiB": s.LogSize / 1024, "Flags": flagBoxes(s.LogFlags)})
	p.Section, p.Live = "app/"+s.ID, livePath
	p.Message = cmp.Or(m, p.Message)
	return v.showPage(p)
}

func (v *visit) setApp() error {
	s, err := v.service()
	if err != nil {
		return err
	}
	var errs []error
	field := func(name, label string) int {
		n, err := strconv.Atoi(cmp.Or(v.r.PostFormValue(name), "0"))
		if err != nil || n < 0 {
			errs = append(errs, hint.Errorf(v.t("a whole number; 0 is the default"), "%s", v.t("%s cannot be %q", v.t(label), v.r.PostFormValue(name))))
		}
		return n
	}
	s.Limits = model.Limits{MemoryMiB: field("memory", "Memory"), CPUPercent: field("cpu", "Processor"), Processes: field("processes", "Processes")}
	s.LogSize = int64(field("log", "Size of the log")) * 1024
	s.LogFlags = v.postedFlags()
	if err := errors.Join(errs...); err != nil {
		return v.showAppSettings(s, newMessage(errs[0]))
	}
	if err := v.p.SetService(v.r.Context(), s, v.by); err != nil {
		return v.showAppSettings(s, newMessage(err))
	}
	return v.done(nil, v.t("Saved."), appPath(s.ID))
}

func (v *visit) confirmRevert() error {
	s, err := v.service()
	if err != nil {
		return err
	}
	return v.confirm(v.t("Return %s to %s?", s.Title, s.Previous), confirmation{
		Text:    v.t("The app is restarted with the version that it had before. Its data stay as they are now."),
		Warning: v.t("An older version may not understand data that a newer one has changed."),
		Button:  v.t("Return to the previous version"),
		Back:    appPath(s.ID),
	})
}

func (v *visit) revertApp() error {
	id := v.r.PathValue("app")
	_, err := v.p.RevertService(v.r.Context(), id, v.by)
	return v.done(err, v.t("%s returns to its previous version.", id), appPath(id))
}

func (v *visit) confirmDeleteApp() error {
	s, err := v.service()
	if err != nil {
		return err
	}
	if len(s.Instances) > 0 {
		return v.done(errors.New(v.t("an app can be deleted when it has no instances any more")), "", appPath(s.ID))
	}
	return v.confirm(v.t("Delete the app %s?", s.Title), confirmation{
		Text:   v.t("The program and its logs are deleted. It can be installed again from the store."),
		Typed:  s.ID,
		Button: v.t("Delete the app"), Danger: true,
		Back: appPath(s.ID),
	})
}

// errTyped is shown on the page that the dialog was opened from.
func (v *visit) errTyped(want string) error {
	return errors.New(v.t("nothing was deleted: to confirm, %q has to be typed", want))
}

func (v *visit) deleteApp() error {
	id := v.r.PathValue("app")
	if !v.typed(id) {
		return v.done(v.errTyped(id), "", appPath(id))
	}
	if err := v.p.DeleteService(v.r.Context(), id, v.by); err != nil {
		return v.done(err, "", appPath(id))
	}
	return v.done(nil, v.t("%s was deleted.", id), Base)
}

// A flagBox is a flag to tick.
type flagBox struct {
	wire.FlagName
	On bool
}

func flagBoxes(flags wire.Flags) (boxes []flagBox) {
	for _, n := range wire.FlagNames {
		boxes = append(boxes, flagBox{n, flags&n.Flag != 0})
	}
	return boxes
}

// postedFlags are those that were ticked.
func (v *visit) postedFlags() (flags wire.Flags) {
	for _, text := range v.r.PostForm["flag"] {
		n, _ := strconv.ParseUint(text, 10, 64)
		flags |= wire.Flags(n)
	}
	return flags
}

func (v *visit) store() error {
	q := v.r.URL.Query().Get("q")
	apps, err := v.p.Store(v.r.Context(), v.r.URL.Query().Has("refresh"))
	data := map[string]any{"Apps": matching(apps, q), "Q": q}
	if err != nil {
		data["Trouble"] = newMessage(err)
	}
	p := v.newPage(v.t("Store"), "store", data)
	p.Section = "store"
	p.Live = Base + "/store?q=" + url.QueryEscape(q)
	return v.showPage(p)
}

// install is the button of the store and of an app's versions.
func (v *visit) install() error {
	app, build := v.r.PostFormValue("app"), v.r.PostFormValue("build")
	_, err := v.p.Install(v.r.Context(), app, build, v.by)
	return v.done(err, v.t("%s %s is being installed.", app, build), v.back(Base+"/store"))
}

func (v *visit) jobs() error {
	p := v.newPage(v.t("Jobs"), "jobs", map[string]any{"All": v.p.Jobs(v.r.Context())})
	p.Section = "jobs"
	return v.showPage(p)
}

func (v *visit) cancelJob() error {
	return v.done(v.p.CancelJob(v.r.Context(), v.r.PathValue("job"), v.by), v.t("The job is being cancelled."), v.back(Base+"/jobs"))
}

// number of an instance that the address names.
func (v *visit) id() (int64, error) {
	id, err := strconv.ParseInt(v.r.PathValue("id"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("the instance %q: %w", v.r.PathValue("id"), model.ErrNotFound)
	}
	return id, nil
}
