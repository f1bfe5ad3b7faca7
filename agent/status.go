package agent

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"appplatform/bundle"
	"appplatform/internal/smallfile"
	"appplatform/partitions"
)

// A Status is how the machine is.
type Status struct {
	Board       string           `json:"board"`
	Arch        string           `json:"arch"`
	Label       string           `json:"label"`
	DevKey      bool             `json:"dev_key"` // the image accepts a development key
	Running     string           `json:"running"` // system or rescue
	Sets        []SetStatus      `json:"sets"`
	BootDefault string           `json:"boot_default"`
	Trial       string           `json:"trial"` // committed: no update is under way
	LastUpdate  *Outcome         `json:"last_update,omitempty"`
	Disk        string           `json:"disk"`
	DiskSize    int64            `json:"disk_size"`
	Partitions  []PartStatus     `json:"partitions"`
	InstallLog  string           `json:"install_log"` // its last line
	FirstBoot   *FirstBootStatus `json:"first_boot,omitempty"`
	Repairs     []Repair         `json:"repairs"` // what the machine has put right by itself, oldest first
	Problems    []string         `json:"problems"`
}

// A SetStatus is one image set on sda1.
type SetStatus struct {
	Name    string `json:"name"`
	Label   string `json:"label"`
	Current bool   `json:"current"`
}

// A PartStatus is one partition, and how full its file system is if it is mounted.
type PartStatus struct {
	Number int    `json:"number"`
	Device string `json:"device"`
	Name   string `json:"name"`
	Start  int64  `json:"start"`
	Size   int64  `json:"size"`
	Mount  string `json:"mount,omitempty"`
	Total  int64  `json:"total,omitempty"`
	Used   int64  `json:"used,omitempty"`
}

// GetStatus collects what can be told; what cannot is among the problems.
func GetStatus(ctx context.Context, m Machine) Status {
	s := Status{
		Board: m.Platform.Board, Arch: m.Platform.Arch, Label: m.Platform.Label, DevKey: m.Platform.DevKey,
		Running: "system", InstallLog: m.lastLogLine(), FirstBoot: m.firstBootStatus(), Repairs: m.repairs(),
	}
	update := GetUpdateStatus(m)
	s.Trial, s.LastUpdate = update.String(), update.Last
	if !m.Kernel.Mounted("/" + dataDir) {
		s.Trial = "unknown: /" + dataDir + " is not mounted"
	}
	if update.Problem != "" {
		s.Problems = append(s.Problems, update.Problem)
	}
	if m.Ramdisk {
		s.Running = "rescue"
	}
	if e, err := m.loader().Default(); err != nil {
		s.problem(err)
	} else {
		s.BootDefault = e.String()
	}
	s.addSets(m, update.UnderWay != nil)
	for _, name := range []string{noDataFile, problemFile, refusedFile} {
		if text, err := smallfile.Read(m.path(name), smallfile.Most); err == nil {
			s.Problems = append(s.Problems, strings.TrimSpace(string(text)))
		}
	}
	m.Patience = 0
	d, err := m.findDisk(ctx)
	if err != nil {
		s.problem(err)
		return s
	}
	s.Disk, s.DiskSize = d.String(), int64(d.Size)
	for _, p := range d.table.Parts {
		s.Partitions = append(s.Partitions, m.partStatus(d, p))
	}
	if m.Kernel.Mounted("/" + dataDir) {
		if err := m.checkSpace(); err != nil {
			s.problem(err)
		}
	}
	return s
}

// Verify reads all of the images on sda1, and sda3, and adds what is damaged.
func (s *Status) Verify(ctx context.Context, m Machine) {
	for _, set := range s.Sets {
		if err := m.checkWhole(ctx, set.Name); err != nil {
			s.problem(withHint("update: it replaces the image that does not run", "image %s is damaged: %w", set.Name, err))
		}
	}
	d, err := m.findDisk(ctx)
	if err != nil {
		return // It is among the problems.
	}
	if err := m.checkSystem(ctx, d, m.installedRootfs()); err != nil {
		s.problem(withHint("apagent boot rescue, then reboot: the rescue system writes it again", "%s was altered: %w", d.PartName(partitions.Rootfs), err))
	}
}

func (s *Status) problem(err error) { s.Problems = append(s.Problems, Explain(err)) }

func (s *Status) addSets(m Machine, underWay bool) {
	current, err := m.loader().CurrentSet()
	if err != nil {
		s.problem(err)
	}
	if set, err := m.runningSet(); err == nil && current != "" && set != current && !underWay {
		s.problem(withHint("write it anew: apagent update --force FILE",
			"the firmware has started image %s, because image %s on the boot partition is damaged", set, current))
	}
	for _, name := range []string{"a", "b"} {
		dir := m.path(filepath.Join(bootDir, name))
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		set, err := bundle.Open(dir, m.Platform)
		if err != nil {
			s.problem(err)
			continue
		}
		s.Sets = append(s.Sets, SetStatus{name, set.Label, name == current})
	}
}

func (m Machine) partStatus(d disk, p partitions.Partition) PartStatus {
	st := PartStatus{Number: p.Number, Device: "/dev/" + d.PartName(p.Number), Name: partName(p), Start: int64(p.Start), Size: int64(p.Size)}
	mounts := map[int]string{partitions.Boot: "/" + bootDir, partitions.Data: "/" + dataDir}
	if !m.Ramdisk {
		mounts[partitions.Rootfs] = "/"
	}
	dir, ok := mounts[p.Number]
	if !ok || !m.Kernel.Mounted(dir) {
		return st
	}
	if space, err := m.Kernel.Space(dir); err == nil {
		st.Mount, st.Total, st.Used = dir, int64(space.Total), int64(space.Used)
	}
	return st
}

// partName is what the table calls a partition, which an MBR does not do.
func partName(p partitions.Partition) string {
	if p.Name == "" {
		return partitions.Title(p.Number)
	}
	return p.Name
}

// Print writes the status for people.
func (s Status) Print(w io.Writer) {
	key := ""
	if s.DevKey {
		key = " (development key)"
	}
	fmt.Fprintf(w, "board         %s (%s)\nimage         %s%s\nrunning       %s\n", s.Board, s.Arch, s.Label, key, s.Running)
	for _, set := range s.Sets {
		mark := ""
		if set.Current {
			mark = " (current)"
		}
		fmt.Fprintf(w, "set %s         %s%s\n", set.Name, set.Label, mark)
	}
	fmt.Fprintf(w, "boot default  %s\ntrial         %s\ninstall log   %s\n", s.BootDefault, s.Trial, s.InstallLog)
	if o := s.LastUpdate; o != nil {
		fmt.Fprintf(w, "last update   from %s to %s, %s%s\n", o.From, o.To, o.Result, because(o.Reason))
	}
	if b := s.FirstBoot; b != nil {
		fmt.Fprintf(w, "first boot    configured by %s, %s\n", b.Channel, b.Time.Format("2006-01-02 15:04"))
	}
	if s.Disk != "" {
		fmt.Fprintf(w, "disk          %s, %s\n", s.Disk, partitions.Size(s.DiskSize).Short())
	}
	for _, p := range s.Partitions {
		fmt.Fprintf(w, "%4d %-16s %-7s %8d MiB", p.Number, p.Device, p.Name, p.Size/int64(partitions.MiB))
		if p.Mount != "" {
			fmt.Fprintf(w, "  %s, %d of %d MiB used", p.Mount, p.Used/int64(partitions.MiB), p.Total/int64(partitions.MiB))
		}
		fmt.Fprintln(w)
	}
	for _, r := range s.Repairs {
		fmt.Fprintf(w, "healed        %s %s\n", r.Time.Format("2006-01-02 15:04"), r.What)
	}
	for _, problem := range s.Problems {
		fmt.Fprintf(w, "problem: %s\n", problem)
	}
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

// lastLine is that of a log, or "".
func lastLine(path string) string {
	text, _ := smallfile.Tail(path, 4096)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return lines[len(lines)-1]
}
