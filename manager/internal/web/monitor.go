package web

import (
	"fmt"
	"html/template"
	"slices"
	"strings"
	"time"

	"appplatform/manager/internal/model"
)

// A plot is a day of one figure.
type plot struct {
	Title, Now, Most string
	SVG              template.HTML
}

// A bar is a part of the disk.
type bar struct {
	What  string
	Href  string
	Bytes int64
	Width int // percent of the largest
}

func (v *visit) monitor() error {
	ctx := v.r.Context()
	p := v.newPage(v.t("Monitor"), "monitor", nil)
	data := map[string]any{}
	samples, err := v.p.Samples(ctx, 240)
	if err != nil {
		data["Trouble"] = newMessage(err)
	}
	data["Plots"] = v.plots(samples, p.System)
	if len(samples) > 0 {
		data["Now"] = samples[len(samples)-1]
	}
	usage, err := v.p.DiskUsage(ctx)
	if err != nil {
		data["UsageTrouble"] = newMessage(err)
	}
	var folders, databases []bar
	for _, u := range usage {
		folders = append(folders, bar{What: u.What, Bytes: u.Bytes})
	}
	for _, s := range p.Services {
		for _, i := range s.Instances {
			databases = append(databases, bar{What: i.Key(), Href: instancePath(i.ID), Bytes: i.DatabaseSize})
		}
	}
	data["Folders"], data["Databases"] = scale(folders), scale(databases)
	p.Data, p.Section = data, "monitor"
	return v.showPage(p)
}

// scale puts the largest bar first.
func scale(bars []bar) []bar {
	slices.SortStableFunc(bars, func(a, b bar) int { return int(min(1, max(-1, b.Bytes-a.Bytes))) })
	for i := range bars {
		bars[i].Width = int(100 * max(0, bars[i].Bytes) / max(1, bars[0].Bytes))
	}
	return bars
}

// figures are what plots show; scale is the top of the axis and what stands there.
var figures = []struct {
	title string
	value func(model.Sample) float64
	scale func(lang string, system model.System) (top float64, text func(float64) string)
}{
	{"Processor", func(s model.Sample) float64 { return s.CPU }, ofHundred},
	{"Memory", func(s model.Sample) float64 { return float64(s.Memory) }, func(lang string, system model.System) (float64, func(float64) string) {
		return float64(system.Memory), inBytes(lang)
	}},
	{"Disk", func(s model.Sample) float64 { return float64(s.Disk) }, func(lang string, system model.System) (float64, func(float64) string) {
		return float64(system.Disk), inBytes(lang)
	}},
	{"Waiting for memory", func(s model.Sample) float64 { return s.Pressure }, ofHundred},
}

func ofHundred(lang string, _ model.System) (float64, func(float64) string) {
	return 100, func(f float64) string { return number(lang, f, 0) + " %" }
}

func inBytes(lang string) func(float64) string {
	return func(f float64) string { return size(lang, int64(f)) }
}

// plots draw what the samples have.
func (v *visit) plots(samples []model.Sample, system model.System) (plots []plot) {
	if len(samples) < 2 {
		return nil
	}
	for _, what := range figures {
		top, text := what.scale(v.lang, system)
		values, most := make([]float64, len(samples)), 0.0
		for i, s := range samples {
			values[i] = what.value(s)
			most = max(most, values[i])
		}
		if top < most || top == 0 {
			top = max(most, 1)
		}
		title, now := v.t(what.title), text(values[len(values)-1])
		plots = append(plots, plot{title, now, text(most),
			v.draw(samples, values, top, text, v.t("%s of the last day: now %s, at most %s", title, now, text(most)))})
	}
	return plots
}

// Measures of a plot, in units of its own.
const (
	plotWidth, plotHeight      = 480, 150
	plotLeft, plotBottom       = 58, 22
	plotTop, plotRight         = 8, 8
	plotAreaWide, plotAreaHigh = plotWidth - plotLeft - plotRight, plotHeight - plotBottom - plotTop
)

func (v *visit) draw(samples []model.Sample, values []float64, top float64, text func(float64) string, label string) template.HTML {
	from, until := samples[0].Time, samples[len(samples)-1].Time
	if !until.After(from) {
		until = from.Add(time.Second)
	}
	x := func(t time.Time) float64 {
		return plotLeft + plotAreaWide*float64(t.Sub(from))/float64(until.Sub(from))
	}
	y := func(f float64) float64 { return plotTop + plotAreaHigh*(1-f/top) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg class="plot" viewBox="0 0 %d %d" role="img" aria-label="%s">`, plotWidth, plotHeight, template.HTMLEscapeString(label))
	for _, part := range []float64{0, 0.5, 1} {
		fmt.Fprintf(&b, `<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`,
			plotLeft, plotWidth-plotRight, y(part*top), y(part*top), plotLeft-6, y(part*top)+4, text(part*top))
	}
	// Hours that are easy to read, as the settings' time zone has them.
	zone := v.zone.Load()
	step := 1
	for _, s := range []int{2, 3, 4, 6} {
		if until.Sub(from) > time.Duration(step*6)*time.Hour {
			step = s
		}
	}
	start := from.In(zone)
	for t := time.Date(start.Year(), start.Month(), start.Day(), start.Hour()+1, 0, 0, 0, zone); t.Before(until); t = t.Add(time.Hour) {
		if t.Hour()%step == 0 && x(t) > plotLeft+14 && x(t) < plotWidth-plotRight-14 {
			fmt.Fprintf(&b, `<line class="tick" x1="%.1f" x2="%.1f" y1="%d" y2="%d"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`,
				x(t), x(t), plotTop+plotAreaHigh, plotTop+plotAreaHigh+4, x(t), plotHeight-4, t.Format("15:04"))
		}
	}
	var line strings.Builder
	for i, s := range samples {
		fmt.Fprintf(&line, "%c%.1f %.1f", map[bool]byte{true: 'M', false: 'L'}[i == 0], x(s.Time), y(values[i]))
	}
	fmt.Fprintf(&b, `<path class="area" d="%sL%.1f %d L%d %d Z"/><path class="line" d="%s"/></svg>`,
		&line, x(until), plotTop+plotAreaHigh, plotLeft, plotTop+plotAreaHigh, &line)
	return template.HTML(b.String())
}
