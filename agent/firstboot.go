package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"appplatform/agent/internal/firstboot"
	"appplatform/agent/internal/netconf"
	"appplatform/internal/atomicfile"
	"appplatform/internal/smallfile"
)

// A FirstBootPlan is what a machine is told before its first packet, by the
// channel that decides.
type FirstBootPlan struct {
	Channel string // "": no channel offers anything
	Ignored []string
	Applied bool // before; nothing is to be done
	Steps   []Step
}

// zoneTable names the time zones of the device.
const zoneTable = "usr/share/zoneinfo/zone.tab"

const (
	// refusedFile says which configuration is bad.
	refusedFile = "run/app-platform/firstboot-refused"
	// pendingFile keeps a configuration until sda2 is there.
	pendingFile = "run/app-platform/firstboot.json"
)

// PlanFirstBoot looks at all channels and lists what is to be stored. A bad
// document is an error, and so is one that cannot be read.
func PlanFirstBoot(ctx context.Context, m Machine) (FirstBootPlan, error) {
	look := m
	if _, err := os.Stat(m.path(noDiskFile)); err == nil {
		look.Patience = 0 // Mount has waited.
	}
	own, err := look.findDisk(ctx)
	if err != nil { // Mount has said why. Who is to mend that wants to reach the machine.
		own = disk{}
	}
	m.awaitSticks(ctx, m.Ramdisk && !installedTable(own.table))
	offer, found, err := firstboot.Choose(m.firstBootChannels(own))
	if err != nil {
		return FirstBootPlan{}, m.refused(offer.Channel, err)
	}
	if !found {
		return FirstBootPlan{}, nil
	}
	return m.planOffer(offer)
}

// firstBootChannels are all channels, the one that decides first: who is there
// with a stick in his hand comes before the disk, and that before the hypervisor.
func (m Machine) firstBootChannels(own disk) []firstboot.Channel {
	media := m.media(own, probeMedium, probePatience)
	stick := func(one medium) bool { return one.usb && (one.fstype == "vfat" || one.err != nil) }
	return append([]firstboot.Channel{
		{Name: firstboot.USB, Read: m.fromMedia(media, stick, firstboot.FromFile)},
		{Name: firstboot.SDA1, Read: m.fromBoot(own)},
	}, m.vmChannels(media)...)
}

func (m Machine) planOffer(offer firstboot.Offer) (FirstBootPlan, error) {
	plan := FirstBootPlan{Channel: offer.Channel, Ignored: offer.Ignored}
	zones, err := os.ReadFile(m.path(zoneTable))
	if err != nil && offer.Document.Timezone != "" {
		return FirstBootPlan{}, fmt.Errorf("cannot tell which time zones there are: %w", err)
	}
	settings, err := offer.Document.Check(zones)
	if err != nil {
		return FirstBootPlan{}, m.refused(offer.Channel, err)
	}
	record, err := firstboot.LoadRecord(m.path("etc"))
	if err != nil {
		return FirstBootPlan{}, withHint("remove that file, and what is offered is applied once more", "%w", err)
	}
	news := record.News(offer.Channel, settings)
	if plan.Applied = news.Empty(); plan.Applied {
		return plan, nil
	}
	before, _ := netconf.Load(m.Root) // Settings that cannot be read are replaced.
	changes, err := news.Changes(firstboot.Place{Etc: m.path("etc"), Network: before})
	if err != nil {
		return FirstBootPlan{}, m.refused(offer.Channel, err)
	}
	for _, c := range changes {
		plan.Steps = append(plan.Steps, firstBootChange{c})
	}
	if m.Ramdisk {
		plan.Steps = append(plan.Steps, keepFirstBoot{offer})
	}
	plan.Steps = append(plan.Steps, recordFirstBoot{record, offer.Channel, settings})
	return plan, nil
}

// refused is the error of a channel whose document cannot be used.
func (m Machine) refused(channel string, why error) error {
	return withHint("correct it and restart; until then everything stays as it is, which is DHCP on a new machine",
		"cannot use the first-boot configuration of %s: %w", channel, why)
}

// FirstBoot stores what the machine is told, before the network is started. What
// is bad is refused as a whole, and said on the console; without sda2 nobody
// knows what was applied before, so nothing is.
func FirstBoot(ctx context.Context, m Machine) error {
	if _, err := os.Stat(m.path(noDataFile)); !m.Ramdisk && (err == nil || !m.Kernel.Mounted("/etc")) {
		return nil
	}
	err := m.applyFirstBoot(ctx)
	_ = os.Remove(m.path(refusedFile)) // Of an earlier attempt, if there was any.
	if err != nil {
		err = errors.Join(err, m.reportRefused(err))
	}
	if m.Kernel.Mounted("/" + dataDir) {
		err = errors.Join(err, m.Log.Append(m.path(filepath.Join(dataDir, InstallLog))))
	}
	return err
}

// reportRefused says on the consoles, and in the state of the machine, why a
// configuration was not applied.
func (m Machine) reportRefused(why error) error {
	m.Log.Printf("%s", Explain(why))
	return errors.Join(m.writeFlag(refusedFile), os.WriteFile(m.path(refusedFile), []byte(Explain(why)+"\n"), 0o644))
}

func (m Machine) applyFirstBoot(ctx context.Context) error {
	plan, err := PlanFirstBoot(ctx, m)
	if err != nil || len(plan.Steps) == 0 {
		return err
	}
	m.Log.Printf("%s", plan.Title())
	return Apply(ctx, m, plan.Steps)
}

// mostIgnored is how much of what does not apply is named: a serial console is slow.
const mostIgnored = 20

// Title says where the configuration is from and what of it does not apply.
func (p FirstBootPlan) Title() string {
	text := "first-boot configuration of " + p.Channel
	if n := len(p.Ignored); n > 0 {
		text += "\nwhat does not apply is left out: " + strings.Join(p.Ignored[:min(n, mostIgnored)], ", ")
		if n > mostIgnored {
			text += fmt.Sprintf(" and %d more", n-mostIgnored)
		}
	}
	return text
}

// firstBootChange stores a part of the configuration.
type firstBootChange struct{ firstboot.Change }

func (s firstBootChange) Do(_ context.Context, m Machine) error { return m.evenFull(s.Change.Do) }

// keepFirstBoot keeps the configuration for the system that is being installed.
type keepFirstBoot struct{ offer firstboot.Offer }

func (keepFirstBoot) String() string { return "keep it for the system that is installed" }

func (s keepFirstBoot) Do(_ context.Context, m Machine) error {
	text, err := json.Marshal(s.offer)
	if err != nil {
		return fmt.Errorf("internal error: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(m.path(pendingFile)), 0o755); err != nil {
		return fmt.Errorf("cannot keep the first-boot configuration: %w", err)
	}
	return atomicfile.Write(m.path(pendingFile), text, 0o600)
}

// recordFirstBoot comes last: a power cut before it makes all of it again.
type recordFirstBoot struct {
	before   firstboot.Record
	channel  string
	settings firstboot.Settings
}

func (recordFirstBoot) String() string { return "remember that it was applied" }

func (s recordFirstBoot) Do(_ context.Context, m Machine) error {
	return m.evenFull(func() error { return s.before.Save(m.path("etc"), s.channel, s.settings, time.Now()) })
}

// pendingFirstBoot is what an installation has to store on sda2, if anything.
func (m Machine) pendingFirstBoot() (offer firstboot.Offer, found bool) {
	text, err := smallfile.Read(m.path(pendingFile), smallfile.Most)
	if err == nil {
		err = json.Unmarshal(text, &offer)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		m.Log.Printf("cannot read the first-boot configuration that was kept: %v", err)
	}
	return offer, err == nil
}

// storeFirstBoot brings to sda2 what the ramdisk was told, in the places where
// the installed system looks. What was applied there before is not again: the
// image may have been written over a machine that was in use. What cannot be
// stored does not keep a machine from being installed: the system tries again, and
// tells people why.
type storeFirstBoot struct{ offer firstboot.Offer }

func (s storeFirstBoot) String() string {
	return "store the first-boot configuration of " + s.offer.Channel
}

func (s storeFirstBoot) Do(_ context.Context, m Machine) error {
	if err := m.evenFull(func() error { return s.store(m) }); err != nil {
		return m.reportRefused(err)
	}
	return nil
}

func (s storeFirstBoot) store(m Machine) error {
	upper := m.path(filepath.Join(dataDir, etcUpper))
	record, err := firstboot.LoadRecord(upper)
	if err != nil {
		m.Log.Printf("%v", err) // It is begun anew.
	}
	zones, err := os.ReadFile(m.path(zoneTable))
	if err != nil && s.offer.Document.Timezone != "" {
		return fmt.Errorf("cannot tell which time zones there are: %w", err)
	}
	settings, err := s.offer.Document.Check(zones)
	if err != nil {
		return m.refused(s.offer.Channel, err)
	}
	news := record.News(s.offer.Channel, settings)
	if news.Empty() {
		m.Log.Printf("it was applied before")
		return nil
	}
	before, err := netconf.LoadFile(filepath.Join(upper, filepath.Base(netconf.File)))
	if err != nil {
		before, _ = netconf.Load(m.Root)
	}
	changes, err := news.Changes(firstboot.Place{Etc: upper, Base: m.path("etc"), Network: before})
	if err != nil {
		return m.refused(s.offer.Channel, err)
	}
	for _, c := range changes {
		m.Log.Printf("%v", c)
		if err := c.Do(); err != nil {
			return err
		}
	}
	if err := record.Save(upper, s.offer.Channel, settings, time.Now()); err != nil {
		return err
	}
	return m.syncData()
}

// A FirstBootStatus is which channel has configured the machine last.
type FirstBootStatus struct {
	Channel string    `json:"channel"`
	Time    time.Time `json:"time"`
}

func (m Machine) firstBootStatus() *FirstBootStatus {
	r, err := firstboot.LoadRecord(m.path("etc"))
	if err != nil || r.Channel == "" {
		return nil // Only root reads it.
	}
	return &FirstBootStatus{r.Channel, r.Time}
}
