package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"appplatform/internal/atomicfile"
	"appplatform/internal/hint"
	"appplatform/internal/run"
	"appplatform/internal/smallfile"
	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/state"
)

// Where others look for what is set here.
const (
	timeSources = "etc/chrony/sources.d/manager.sources" // chrony.conf has this folder
	dnsServers  = "etc/network-dns.conf"                 // apagent network adds these to the lease's
)

// Settings are described at model.Platform.
func (m *Manager) Settings(ctx context.Context) (model.Settings, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.settings, nil
}

// SetSettings is described at model.Platform.
func (m *Manager) SetSettings(ctx context.Context, s model.Settings, by model.Actor) error {
	for _, server := range []*string{&s.NTP1, &s.NTP2, &s.DNS1, &s.DNS2, &s.DNSName, &s.StoreURL, &s.DevicesURL, &s.DevicesURL2, &s.CommandFile, &s.Timezone} {
		*server = strings.TrimSpace(*server)
	}
	if err := checkServers(s); err != nil {
		return err
	}
	m.mu.Lock()
	old := m.settings
	m.mu.Unlock()
	if err := m.store.SetSettings(ctx, s); err != nil {
		return err
	}
	if err := m.audit(ctx, by, "change settings", settingsChanges(old, s)); err != nil {
		return err
	}
	if err := m.refresh(ctx); err != nil {
		return err
	}
	if old.DNSName != s.DNSName {
		for _, app := range m.hub.all() {
			_ = app.say(wire.SetDNSName{Head: wire.Head{MT: "SetDNSName"}, DNSName: s.DNSName})
		}
	}
	return m.applyServers(ctx, s)
}

// checkServers refuses what could be more than a name in the files of others.
func checkServers(s model.Settings) error {
	for _, c := range []struct{ what, value string }{{"NTP server 1", s.NTP1}, {"NTP server 2", s.NTP2}} {
		if c.value != "" && !hostName(c.value) {
			return hint.Errorf("a name such as ntp.example.com or an address", "%s cannot be %.80q", c.what, c.value)
		}
	}
	for _, c := range []struct{ what, value string }{{"DNS server 1", s.DNS1}, {"DNS server 2", s.DNS2}} {
		if a, err := netip.ParseAddr(c.value); c.value != "" && (err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast()) {
			return hint.Errorf("an IPv4 or IPv6 address", "%s cannot be %.80q", c.what, c.value)
		}
	}
	if s.DNSName != "" && !hostName(s.DNSName) {
		return hint.Errorf("a name such as ap.example.com", "the DNS name cannot be %.80q", s.DNSName)
	}
	return nil
}

func hostName(name string) bool {
	if a, err := netip.ParseAddr(name); err == nil {
		// A zone may be any text.
		return a.Zone() == "" || hostName(a.Zone())
	}
	return len(name) < 254 && !strings.HasPrefix(name, "-") && !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.')
	})
}

// applyServers writes the files of others, and has them read.
func (m *Manager) applyServers(ctx context.Context, s model.Settings) error {
	var ntp, dns strings.Builder
	for _, server := range []string{s.NTP1, s.NTP2} {
		if server != "" {
			fmt.Fprintf(&ntp, "server %s iburst\n", server)
		}
	}
	for _, server := range []string{s.DNS1, s.DNS2} {
		if server != "" {
			fmt.Fprintf(&dns, "nameserver %s\n", server)
		}
	}
	changed, err := writeIfNew(m.o.path(timeSources), ntp.String())
	if err == nil && changed && exists(m.o.path("run/chrony/chronyd.sock")) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		err = run.Cmd(ctx, "chronyc", "reload", "sources")
	}
	changed, dnsErr := writeIfNew(m.o.path(dnsServers), dns.String())
	if dnsErr == nil && changed && exists(m.o.Agent) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		dnsErr = run.Cmd(ctx, m.o.Agent, "network", "dns")
	}
	return hintNoSpace(errors.Join(err, dnsErr))
}

// writeIfNew leaves the disk alone when nothing has changed.
func writeIfNew(path, text string) (changed bool, err error) {
	old, err := os.ReadFile(path)
	if err == nil && string(old) == text || errors.Is(err, fs.ErrNotExist) && text == "" {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	return true, atomicfile.Write(path, []byte(text), 0o644)
}

// An address may have a password in it.
type address string

func settingsChanges(old, s model.Settings) string {
	var parts []string
	for _, c := range []struct {
		what          string
		before, after any
	}{
		{"developer mode", old.DeveloperMode, s.DeveloperMode}, {"app security disabled", old.DisableAppSecurity, s.DisableAppSecurity},
		{"App Store URL", address(old.StoreURL), address(s.StoreURL)}, {"Devices URL", address(old.DevicesURL), address(s.DevicesURL)},
		{"Devices URL 2", address(old.DevicesURL2), address(s.DevicesURL2)},
		{"DNS name", old.DNSName, s.DNSName}, {"NTP server 1", old.NTP1, s.NTP1}, {"NTP server 2", old.NTP2, s.NTP2}, {"time zone", old.Timezone, s.Timezone},
		{"DNS server 1", old.DNS1, s.DNS1}, {"DNS server 2", old.DNS2, s.DNS2}, {"optimization hour", old.OptimizationHour, s.OptimizationHour},
		{"command file", address(old.CommandFile), address(s.CommandFile)},
	} {
		if c.before != c.after {
			if a, ok := c.after.(address); ok {
				c.after = redacted(string(a))
			}
			parts = append(parts, fmt.Sprintf("%s: %v", c.what, c.after))
		}
	}
	return strings.Join(parts, ", ")
}

// firstBootFile has what a stick, the disk or the hypervisor told a new machine
// about the manager.
const firstBootFile = "etc/manager.json"

// firstBoot are the keys of that file.
type firstBoot struct {
	Password string `json:"password"`
	StoreURL string `json:"storeURL"`
	DNSName  string `json:"dnsName"`
	Timezone string `json:"timezone"`
}

// firstBootDone is the row with the text that was applied: the file stays, and is
// applied again when it says something else.
const firstBootDone = "firstBoot"

// applyFirstBoot takes over what that file says, once.
func (m *Manager) applyFirstBoot(ctx context.Context) {
	if err := m.takeFirstBoot(ctx); err != nil {
		m.notices.say("firstboot", model.Warning, "", "cannot use /%s: %s", firstBootFile, err)
	}
}

func (m *Manager) takeFirstBoot(ctx context.Context) error {
	text, err := smallfile.Read(m.o.path(firstBootFile), smallfile.Most)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	done, err := m.store.Config(ctx, firstBootDone)
	if err != nil {
		return err
	}
	hash := hashText(text)
	if done == hash {
		return nil
	}
	var f firstBoot
	if err := decodeStrict(text, &f); err != nil {
		return hint.Errorf("password, storeURL, dnsName and timezone are known", "%w", err)
	}
	by := model.Actor{Who: "first boot", From: firstBootFile}
	s, err := m.Settings(ctx)
	if err != nil {
		return err
	}
	for _, v := range []struct {
		to   *string
		from string
	}{{&s.StoreURL, f.StoreURL}, {&s.DNSName, f.DNSName}, {&s.Timezone, f.Timezone}} {
		if v.from != "" {
			*v.to = v.from
		}
	}
	if err := checkServers(s); err != nil {
		return err
	}
	if err := m.store.SetSettings(ctx, s); err != nil {
		return err
	}
	m.mu.Lock()
	m.settings = s
	m.mu.Unlock()
	if f.Password != "" {
		if err := m.signin.set(ctx, f.Password); err != nil {
			return err
		}
		m.endSessions()
	}
	if err := m.store.SetConfig(ctx, firstBootDone, hash); err != nil {
		return err
	}
	return m.audit(ctx, by, "change settings", "first-boot configuration")
}

// optimize does at night what `vacuumdb -a -z` does (C8).
func (m *Manager) optimize(ctx context.Context) {
	offset := nightOffset()
	var due time.Time
	for ctx.Err() == nil {
		if last, err := m.lastNight(ctx); err == nil {
			if !due.IsZero() && !time.Now().Before(due) {
				m.runNight(ctx)
				offset, last = nightOffset(), time.Now()
			}
			// Computed anew each time: the settings or the clock may have changed.
			due = m.nextNight(offset, last)
		}
		select {
		case <-ctx.Done():
		case <-time.After(min(time.Minute, max(time.Second, time.Until(due)))):
		}
	}
}

func (m *Manager) lastNight(ctx context.Context) (time.Time, error) {
	m.mu.Lock()
	loaded := m.loaded
	m.mu.Unlock()
	if !loaded {
		return time.Time{}, model.ErrUnavailable
	}
	text, err := m.store.Config(ctx, state.LastOptimization)
	if err != nil {
		return time.Time{}, err
	}
	if text == "" {
		// A new platform has nothing to optimise before its first night.
		now := time.Now().UTC()
		return now, m.store.SetConfig(ctx, state.LastOptimization, now.Format(time.RFC3339))
	}
	last, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, nil
	}
	return last, nil
}

func (m *Manager) runNight(ctx context.Context) {
	if err := m.store.SetConfig(ctx, state.LastOptimization, time.Now().UTC().Format(time.RFC3339)); err != nil {
		return
	}
	_, err := m.jobs.start("optimize", "all databases", func(ctx context.Context, one *job) error {
		one.step("optimize all databases")
		return m.cluster.Optimize(ctx)
	})
	if err != nil {
		m.o.Log.Warn("cannot optimize the databases", "error", err)
	}
}

// tidy has the reserve made again (I6); cron does it later anyway.
func (m *Manager) tidy(ctx context.Context) {
	if !exists(m.o.Agent) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := run.Cmd(ctx, m.o.Agent, "tidy"); err != nil && ctx.Err() == nil {
		m.o.Log.Warn("cannot keep room for a full disk", "error", err)
	}
}
