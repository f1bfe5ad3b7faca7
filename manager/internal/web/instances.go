package web

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
)

func instancePath(id int64) string { return Base + "/instance/" + strconv.FormatInt(id, 10) }

// one is the instance that the address names.
func (v *visit) one() (model.Instance, error) {
	id, err := v.id()
	if err != nil {
		return model.Instance{}, err
	}
	return v.p.Instance(v.r.Context(), id)
}

func (v *visit) instance() error {
	i, err := v.one()
	if err != nil {
		return err
	}
	p := v.newPage(i.Name, "instance", nil)
	p.Section = "instance/" + strconv.FormatInt(i.ID, 10)
	p.Data = map[string]any{"I": i, "App": find(p.Services, i.Service)}
	return v.showPage(p)
}

// passwords are on a page of their own, so that they are not in every page that
// somebody leaves open.
func (v *visit) passwords() error {
	i, err := v.one()
	if err != nil {
		return err
	}
	p := v.newPage(v.t("Passwords of %s", i.Name), "passwords", i)
	p.Section, p.Live = "instance/"+strconv.FormatInt(i.ID, 10), livePath
	return v.showPage(p)
}

// An instanceForm is an instance as it is being typed.
type instanceForm struct {
	I    model.Instance
	New  bool
	App  string
	Show map[string]bool // passwords in clear
}

func (v *visit) newInstance() error {
	s, err := v.service()
	if err != nil {
		return err
	}
	i := model.Instance{Service: s.ID, Name: v.r.URL.Query().Get("name"), Domain: v.r.URL.Query().Get("domain"), LogFlags: wire.DefaultFlags}
	// Whoever has one domain has all instances in it.
	if i.Domain == "" && len(s.Instances) > 0 {
		i.Domain = s.Instances[0].Domain
	}
	if i.Name == "" {
		i.Name = freeName(s, i.Domain)
	}
	return v.showInstanceForm(http.StatusOK, instanceForm{I: i, New: true, App: s.Title}, nil)
}

// freeName is that of the app, with a number if there is such an instance.
func freeName(s model.Service, domain string) string {
	name := s.ID
	for n := 2; slices.ContainsFunc(s.Instances, func(i model.Instance) bool { return i.Name == name && i.Domain == domain }); n++ {
		name = s.ID + strconv.Itoa(n)
	}
	return name
}

func (v *visit) showInstanceForm(status int, f instanceForm, m *message) error {
	title := v.t("New instance of %s", f.App)
	section := "app/" + f.I.Service
	if !f.New {
		title, section = v.t("Edit %s", f.I.Name), "instance/"+strconv.FormatInt(f.I.ID, 10)
	}
	p := v.newPage("", "instance-form", f)
	p.Title, p.Section, p.Live = title, section, livePath
	p.Message = cmp.Or(m, p.Message)
	return v.show(status, p)
}

// typedInstance reads the form into an instance.
func (v *visit) typedInstance(i *model.Instance) {
	text := func(name string) string { return strings.TrimSpace(v.r.PostFormValue(name)) }
	i.Name, i.Domain, i.Path = text("name"), text("domain"), text("path")
	i.DBName, i.DBUser, i.DBHost = text("dbname"), text("dbuser"), text("dbhost")
	i.Password, i.DBPassword = v.r.PostFormValue("password"), v.r.PostFormValue("dbpassword")
	i.ExcludeFromBackup = v.r.PostFormValue("exclude") != ""
}

// formButton does what the buttons beside fields are for. They work without script
// because they send the form.
func (v *visit) formButton(f *instanceForm) (pressed bool, err error) {
	fresh, show := v.r.PostFormValue("fresh"), v.r.PostFormValue("show")
	suggest := v.r.PostFormValue("suggest") != ""
	if fresh == "" && show == "" && !suggest {
		return false, nil
	}
	f.Show = map[string]bool{fresh: true, show: true}
	switch {
	case fresh == "password":
		f.I.Password = ""
	case fresh == "dbpassword":
		f.I.DBPassword = ""
	case suggest:
		f.I.Path, f.I.DBName, f.I.DBUser = "", "", ""
	default:
		return true, nil
	}
	i, err := v.p.Suggest(v.r.Context(), f.I)
	if err == nil {
		f.I = i
	}
	return true, err
}

func (v *visit) createInstance() error {
	s, err := v.service()
	if err != nil {
		return err
	}
	f := instanceForm{I: model.Instance{Service: s.ID, LogFlags: wire.DefaultFlags, Wanted: true}, New: true, App: s.Title}
	v.typedInstance(&f.I)
	if pressed, err := v.formButton(&f); pressed {
		if err != nil {
			return v.showInstanceForm(http.StatusUnprocessableEntity, f, newMessage(err))
		}
		return v.showInstanceForm(http.StatusOK, f, nil)
	}
	// What was left empty is suggested when the instance is made.
	i, err := v.p.Suggest(v.r.Context(), f.I)
	if err == nil {
		i, err = v.p.CreateInstance(v.r.Context(), i, v.by)
	}
	if err != nil {
		return v.showInstanceForm(http.StatusUnprocessableEntity, f, newMessage(err))
	}
	return v.done(nil, v.t("The instance %s was created.", i.Name), instancePath(i.ID))
}

func (v *visit) editInstance() error {
	i, err := v.one()
	if err != nil {
		return err
	}
	return v.showInstanceForm(http.StatusOK, instanceForm{I: i}, nil)
}

func (v *visit) setInstance() error {
	i, err := v.one()
	if err != nil {
		return err
	}
	f := instanceForm{I: i}
	v.typedInstance(&f.I)
	pressed, err := v.formButton(&f)
	if !pressed && err == nil {
		err = v.p.SetInstance(v.r.Context(), f.I, v.by)
	}
	switch {
	case err != nil:
		return v.showInstanceForm(http.StatusUnprocessableEntity, f, newMessage(err))
	case pressed:
		return v.showInstanceForm(http.StatusOK, f, nil)
	}
	return v.done(nil, v.t("Saved."), instancePath(i.ID))
}

func (v *visit) flags() error {
	i, err := v.one()
	if err != nil {
		return err
	}
	p := v.newPage(v.t("What %s traces", i.Name), "flags", map[string]any{"I": i, "Flags": flagBoxes(i.LogFlags)})
	p.Section, p.Live = "instance/"+strconv.FormatInt(i.ID, 10), livePath
	return v.showPage(p)
}

func (v *visit) setFlags() error {
	id, err := v.id()
	if err != nil {
		return err
	}
	return v.done(v.p.SetLogFlags(v.r.Context(), id, v.postedFlags(), v.by), v.t("Saved."), instancePath(id))
}

func (v *visit) startInstance() error {
	id, err := v.id()
	if err != nil {
		return err
	}
	return v.done(v.p.StartInstance(v.r.Context(), id, v.by), v.t("The instance is being started."), v.back(instancePath(id)))
}

func (v *visit) stopInstance() error {
	id, err := v.id()
	if err != nil {
		return err
	}
	return v.done(v.p.StopInstance(v.r.Context(), id, v.by), v.t("The instance is being stopped."), v.back(instancePath(id)))
}

func (v *visit) confirmCleanUp() error {
	i, err := v.one()
	if err != nil {
		return err
	}
	return v.confirm(v.t("Clean up the database of %s?", i.Name), confirmation{
		Text:    v.t("The database is written anew without what was deleted in it, which gives the room back to the disk."),
		Warning: v.t("Meanwhile the database is locked: the instance cannot work. There must be as much free room on the disk as the database takes now, %s.", size(v.lang, i.DatabaseSize)),
		Button:  v.t("Clean up database"),
		Back:    instancePath(i.ID),
	})
}

func (v *visit) cleanUp() error {
	id, err := v.id()
	if err != nil {
		return err
	}
	_, err = v.p.CleanUp(v.r.Context(), id, v.by)
	return v.done(err, v.t("The database is being cleaned up."), instancePath(id))
}

func (v *visit) confirmDeleteInstance() error {
	i, err := v.one()
	if err != nil {
		return err
	}
	return v.confirm(v.t("Delete the instance %s?", i.Key()), confirmation{
		Text:   v.t("Its database %s with everything in it (%s) is deleted. This cannot be undone.", i.DBName, size(v.lang, i.DatabaseSize)),
		Typed:  i.Name,
		Button: v.t("Delete the instance"), Danger: true,
		Back: instancePath(i.ID),
	})
}

func (v *visit) deleteInstance() error {
	i, err := v.one()
	if err != nil {
		return err
	}
	if !v.typed(i.Name) {
		return v.done(v.errTyped(i.Name), "", instancePath(i.ID))
	}
	if err := v.p.DeleteInstance(v.r.Context(), i.ID, v.by); err != nil {
		return v.done(err, "", instancePath(i.ID))
	}
	return v.done(nil, v.t("%s was deleted.", i.Key()), appPath(i.Service))
}

// A renaming is the bulk edit of domains and paths (F11).
type renaming struct {
	Old, New string
	Chosen   map[int64]bool
	Changes  []change
	Preview  bool
}

// A change is an instance before and after.
type change struct{ Was, Is model.Instance }

func (v *visit) renamePage() error {
	return v.showRenaming(http.StatusOK, renaming{Old: v.r.URL.Query().Get("old")}, nil)
}

func (v *visit) showRenaming(status int, r renaming, m *message) error {
	p := v.newPage(v.t("Rename domains"), "rename", nil)
	if r.Chosen == nil {
		r.Chosen = map[int64]bool{}
		for _, s := range p.Services {
			for _, i := range s.Instances {
				r.Chosen[i.ID] = true
			}
		}
	}
	p.Data, p.Section, p.Live = r, "rename", livePath
	p.Message = cmp.Or(m, p.Message)
	return v.show(status, p)
}

func (v *visit) rename() error {
	ctx := v.r.Context()
	r := renaming{Old: strings.TrimSpace(v.r.PostFormValue("old")), New: strings.TrimSpace(v.r.PostFormValue("new")), Chosen: map[int64]bool{}}
	var ids []int64
	for _, text := range v.r.PostForm["instance"] {
		id, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("the instance %q: %w", text, model.ErrNotFound)
		}
		ids = append(ids, id)
		r.Chosen[id] = true
	}
	if v.r.PostFormValue("do") == "apply" {
		changed, err := v.p.Rename(ctx, ids, r.Old, r.New, false, v.by)
		if err == nil {
			return v.done(nil, v.t("%d instances were changed.", len(changed)), Base)
		}
		return v.showRenaming(http.StatusUnprocessableEntity, r, newMessage(err))
	}
	was := map[int64]model.Instance{}
	services, err := v.p.Services(ctx)
	for _, s := range services {
		for _, i := range s.Instances {
			was[i.ID] = i
		}
	}
	var changed []model.Instance
	if err == nil {
		changed, err = v.p.Rename(ctx, ids, r.Old, r.New, true, v.by)
	}
	if err != nil {
		return v.showRenaming(http.StatusUnprocessableEntity, r, newMessage(err))
	}
	for _, i := range changed {
		if b := was[i.ID]; b.Domain != i.Domain || b.Path != i.Path {
			r.Changes = append(r.Changes, change{b, i})
		}
	}
	r.Preview = true
	return v.showRenaming(http.StatusOK, r, nil)
}
