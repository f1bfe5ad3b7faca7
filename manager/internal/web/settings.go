package web

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"appplatform/manager/internal/model"
)

// A setting is a field of the tab General.
type setting struct {
	Name, Label, Help, Value string
	Placeholder              string
}

func settingFields(s model.Settings) []setting {
	return []setting{
		{"store", "App Store URL", "Apps and images of the platform come from there.", s.StoreURL, "https://store.example.com/apps/"},
		{"devices", "Devices app URL", "", s.DevicesURL, "wss://pbx.example.com/example.com/devices/sysclients"},
		{"devices2", "Devices app URL 2", "Leave it empty unless you were told otherwise.", s.DevicesURL2, ""},
		{"dnsname", "DNS name of the App Platform", "", s.DNSName, "apps.example.com"},
		{"ntp1", "NTP server 1", "Used besides those that DHCP names.", s.NTP1, ""},
		{"ntp2", "NTP server 2", "", s.NTP2, ""},
		{"dns1", "DNS server 1", "Used besides those that DHCP names.", s.DNS1, ""},
		{"dns2", "DNS server 2", "", s.DNS2, ""},
		{"timezone", "Time zone", "Of jobs and of the times on these pages; that of Linux itself stays.", s.Timezone, "Europe/Berlin"},
		{"command", "Command file", "URL of a file with commands, which is fetched regularly.", s.CommandFile, ""},
	}
}

func (v *visit) general() error {
	s, err := v.p.Settings(v.r.Context())
	if err != nil {
		return err
	}
	return v.showGeneral(http.StatusOK, s, nil)
}

func (v *visit) showGeneral(status int, s model.Settings, m *message) error {
	hours := make([]int, 24)
	for h := range hours {
		hours[h] = h
	}
	p := v.newPage(v.t("Settings"), "general", map[string]any{"S": s, "Fields": settingFields(s), "Hours": hours})
	p.Section, p.Live = "settings/general", livePath
	p.Message = cmp.Or(m, p.Message)
	return v.show(status, p)
}

func (v *visit) setGeneral() error {
	text := func(name string) string { return strings.TrimSpace(v.r.PostFormValue(name)) }
	hour, err := strconv.Atoi(text("hour"))
	s := model.Settings{
		DeveloperMode:      text("developer") != "",
		DisableAppSecurity: text("insecure") != "",
		StoreURL:           text("store"),
		DevicesURL:         text("devices"),
		DevicesURL2:        text("devices2"),
		DNSName:            text("dnsname"),
		NTP1:               text("ntp1"),
		NTP2:               text("ntp2"),
		Timezone:           text("timezone"),
		DNS1:               text("dns1"),
		DNS2:               text("dns2"),
		OptimizationHour:   hour,
		CommandFile:        text("command"),
	}
	if err == nil {
		err = v.p.SetSettings(v.r.Context(), s, v.by)
	}
	if err != nil {
		return v.showGeneral(http.StatusUnprocessableEntity, s, newMessage(err))
	}
	return v.done(nil, v.t("Saved."), Base+"/settings")
}

const securityPath = Base + "/settings/security"

func (v *visit) security() error { return v.showSecurity(http.StatusOK, nil, "") }

// showSecurity shows the secret of a new token this one time.
func (v *visit) showSecurity(status int, m *message, secret string) error {
	data := map[string]any{"Secret": secret, "Users": []string{"root", "admin"}}
	chain, _, err := v.p.Certificates(v.r.Context())
	data["Chain"] = chain
	if err != nil {
		data["ChainTrouble"] = newMessage(err)
	}
	tokens, err := v.p.Tokens(v.r.Context())
	data["Tokens"] = tokens
	if err != nil {
		data["TokensTrouble"] = newMessage(err)
	}
	p := v.newPage(v.t("Security"), "security", data)
	p.Section, p.Live = "settings/security", livePath
	p.Message = cmp.Or(m, p.Message)
	return v.show(status, p)
}

// setPassword changes the password of the manager, or of root or admin. That of the
// manager signs everybody else out.
func (v *visit) setPassword() error {
	user, password := v.r.PathValue("user"), v.r.PostFormValue("password")
	if password != v.r.PostFormValue("again") {
		return v.done(errors.New(v.t("the two passwords differ: nothing was changed")), "", securityPath)
	}
	switch user {
	case "manager":
		err := v.p.SetManagerPassword(v.r.Context(), v.r.PostFormValue("old"), password, v.by)
		if err != nil {
			return v.done(err, "", securityPath)
		}
		v.sessions.endAll()
		secret := v.sessions.begin()
		v.session, v.token = v.sessions.find(secret, true)
		v.setSession(secret)
		return v.done(nil, v.t("The password was changed. All other sessions have ended."), securityPath)
	case "root", "admin":
		err := v.p.SetLinuxPassword(v.r.Context(), user, password, v.by)
		return v.done(err, v.t("The password of %s was changed.", user), securityPath)
	}
	return model.ErrNotFound
}

func (v *visit) createToken() error {
	_, secret, err := v.p.CreateToken(v.r.Context(), strings.TrimSpace(v.r.PostFormValue("name")), v.by)
	if err != nil {
		return v.done(err, "", securityPath+"#tokens")
	}
	return v.showSecurity(http.StatusOK, nil, secret)
}

func (v *visit) confirmDeleteToken() error {
	tokens, err := v.p.Tokens(v.r.Context())
	if err != nil {
		return err
	}
	for _, t := range tokens {
		if t.ID == v.r.PathValue("token") {
			return v.confirm(v.t("Delete the token %s?", t.Name), confirmation{
				Text:   v.t("Programs that use it are refused from now on."),
				Button: v.t("Delete the token"), Danger: true,
				Back: securityPath,
			})
		}
	}
	return model.ErrNotFound
}

func (v *visit) deleteToken() error {
	return v.done(v.p.DeleteToken(v.r.Context(), v.r.PathValue("token"), v.by), v.t("The token was deleted."), securityPath)
}

const updatePath = Base + "/settings/update"

func (v *visit) update() error {
	data := map[string]any{"From": v.r.URL.Query().Get("from")}
	images, err := v.p.Images(v.r.Context(), v.r.URL.Query().Has("refresh"))
	data["Images"] = images
	if err != nil {
		data["Trouble"] = newMessage(err)
	}
	p := v.newPage(v.t("Update"), "update", data)
	p.Section, p.Live = "settings/update", livePath
	return v.showPage(p)
}

func (v *visit) confirmUpdate() error {
	from := strings.TrimSpace(v.r.URL.Query().Get("url"))
	if from == "" {
		return v.done(errors.New(v.t("the URL of an update file is missing")), "", updatePath)
	}
	return v.confirm(v.t("Update the platform?"), confirmation{
		Text:    v.t("The image is fetched, verified and installed; then the device restarts. It can take up to 10 minutes until it answers again. If the new image does not work, the present one comes back by itself."),
		Warning: v.t("Make a backup of all instances first."),
		Button:  v.t("Update now"),
		Back:    updatePath,
		Fields:  map[string]string{"url": from},
	})
}

func (v *visit) startUpdate() error {
	job, err := v.p.UpdateImage(v.r.Context(), v.r.PostFormValue("url"), v.by)
	if err != nil {
		return v.done(err, "", updatePath)
	}
	return v.goTo(Base + "/away?for=update&job=" + url.QueryEscape(job.ID))
}

func (v *visit) confirmRollback() error {
	system, err := v.p.System(v.r.Context())
	if err != nil {
		return err
	}
	if system.Previous == "" {
		return model.ErrNotFound
	}
	return v.confirm(v.t("Go back to image %s?", system.Previous), confirmation{
		Text:    v.t("The device restarts with the image that ran before. Apps, instances and settings stay as they are now."),
		Warning: v.t("Make a backup of all instances first."),
		Button:  v.t("Go back"),
		Back:    updatePath,
	})
}

func (v *visit) rollback() error {
	return v.leave(v.p.RollbackImage(v.r.Context(), v.by), "update", updatePath)
}

// leave shows the page that waits for the device, if it really goes away.
func (v *visit) leave(err error, why, back string) error {
	if err != nil {
		return v.done(err, "", back)
	}
	return v.goTo(Base + "/away?for=" + why)
}

// tab is a confirmation that is a tab of the settings.
func (v *visit) tab(section, title string, c confirmation) error {
	p := v.newPage(title, "tab", c)
	p.Section, p.Live = section, livePath
	return v.showPage(p)
}

func (v *visit) confirmRestart() error {
	return v.tab("settings/restart", v.t("Restart"), confirmation{
		Text:   v.t("Restarts the device. Apps are stopped in order and started again afterwards, which takes about a minute."),
		Button: v.t("Restart now"),
		Back:   Base + "/settings",
	})
}

func (v *visit) restart() error {
	return v.leave(v.p.Restart(v.r.Context(), v.by), "restart", Base+"/settings/restart")
}

func (v *visit) confirmShutdown() error {
	return v.tab("settings/shutdown", v.t("Shutdown"), confirmation{
		Text:    v.t("Stops all apps and switches the device off."),
		Warning: v.t("It can be switched on again only at the device itself or by its hypervisor."),
		Button:  v.t("Shut down now"), Danger: true,
		Back: Base + "/settings",
	})
}

func (v *visit) shutdown() error {
	return v.leave(v.p.Shutdown(v.r.Context(), v.by), "shutdown", Base+"/settings/shutdown")
}

func (v *visit) confirmResize() error {
	system, err := v.p.System(v.r.Context())
	if err != nil {
		return err
	}
	if !system.CanResize {
		return model.ErrNotFound
	}
	return v.tab("settings/resize", v.t("Resize"), confirmation{
		Text:    v.t("The disk is larger than what is used of it. The rest is added to the partition of apps and data; the device restarts for that."),
		Warning: v.t("Make a backup of all instances first."),
		Button:  v.t("Use the whole disk"),
		Back:    Base + "/settings",
	})
}

func (v *visit) resize() error {
	return v.leave(v.p.Resize(v.r.Context(), v.by), "resize", Base+"/settings/resize")
}

// away waits for the device while it restarts; its script goes on without us.
func (v *visit) away() error {
	q := v.r.URL.Query()
	data := map[string]any{"For": q.Get("for")}
	if id := q.Get("job"); id != "" {
		for _, j := range v.p.Jobs(v.r.Context()) {
			if j.ID == id {
				data["Job"] = j
			}
		}
	}
	titles := map[string]string{"update": v.t("Update of the platform"), "restart": v.t("Restart"), "shutdown": v.t("Shutdown"), "resize": v.t("Resize")}
	title, ok := titles[q.Get("for")]
	if !ok {
		return model.ErrNotFound
	}
	p := v.newPage(title, "away", data)
	p.Section, p.Refresh = "settings/"+q.Get("for"), 15
	return v.showPage(p)
}
