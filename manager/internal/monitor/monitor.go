// Package monitor watches the machine: processors, memory and disk, now and over
// a day.
package monitor

import (
	"bufio"
	"encoding/binary"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/atomicfile"
	"appplatform/manager/internal/model"
)

// Interval is how far samples are apart at first.
const Interval = 10 * time.Second

// thinning says how far samples are apart, by their age.
var thinning = []struct{ age, apart time.Duration }{
	{15 * time.Minute, Interval},
	{2 * time.Hour, time.Minute},
	{24 * time.Hour, 5 * time.Minute},
}

// A Source is where the figures come from.
type Source struct {
	Root string // of the machine; / by default
	Data string // a folder of the data partition
}

// A Monitor keeps the samples of a day.
type Monitor struct {
	source Source
	file   string

	mu      sync.Mutex
	samples []model.Sample // oldest first
	last    ticks
}

// New reads what was kept in the file, which may be missing or broken.
func New(source Source, file string, now time.Time) *Monitor {
	m := &Monitor{source: source, file: file}
	if text, err := os.ReadFile(file); err == nil {
		m.samples = thin(decode(text), now)
	}
	m.last = source.ticks()
	return m
}

// Take takes a sample.
func (m *Monitor) Take(now time.Time) {
	s := m.source.sample(now)
	t := m.source.ticks()
	m.mu.Lock()
	defer m.mu.Unlock()
	s.CPU = t.since(m.last)
	m.last = t
	m.samples = thin(append(m.samples, s), now)
}

// Save writes the samples to the file.
func (m *Monitor) Save() error {
	m.mu.Lock()
	text := encode(m.samples)
	m.mu.Unlock()
	return atomicfile.Write(m.file, text, 0o600)
}

// Samples are those of a day, oldest first, thinned out to about n.
func (m *Monitor) Samples(n int) []model.Sample {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n <= 0 || len(m.samples) <= n {
		return slices.Clone(m.samples)
	}
	var some []model.Sample
	for i := range n {
		some = append(some, m.samples[(i+1)*len(m.samples)/n-1])
	}
	return some
}

// thin drops what is too old or too dense for its age. A sample is kept when it
// is the first of its interval, counted from a fixed moment: so the same ones stay
// however often this is done.
func thin(samples []model.Sample, now time.Time) []model.Sample {
	kept := samples[:0]
	var before time.Time
	for _, s := range samples {
		age := now.Sub(s.Time)
		i := slices.IndexFunc(thinning, func(t struct{ age, apart time.Duration }) bool { return age <= t.age })
		// A clock that was set back leaves samples of the future.
		if i < 0 || age < -time.Minute {
			continue
		}
		apart := int64(thinning[i].apart / time.Second)
		if i == 0 || before.IsZero() || s.Time.Unix()/apart != before.Unix()/apart {
			kept, before = append(kept, s), s.Time
		}
	}
	clear(samples[len(kept):])
	return kept
}

// sampleSize is that of one in the file: eight numbers of 64 bits.
const sampleSize = 8 * 8

func encode(samples []model.Sample) []byte {
	var b []byte
	for _, s := range samples {
		for _, n := range []uint64{uint64(s.Time.Unix()), math.Float64bits(s.CPU), uint64(s.Memory), uint64(s.Swap),
			uint64(s.Disk), math.Float64bits(s.Pressure), uint64(s.Processes), 0} {
			b = binary.LittleEndian.AppendUint64(b, n)
		}
	}
	return b
}

func decode(text []byte) (samples []model.Sample) {
	for len(text) >= sampleSize && len(samples) < 10000 {
		n := make([]uint64, 8)
		for i := range n {
			n[i] = binary.LittleEndian.Uint64(text[8*i:])
		}
		s := model.Sample{Time: time.Unix(int64(n[0]), 0), CPU: math.Float64frombits(n[1]), Memory: int64(n[2]), Swap: int64(n[3]),
			Disk: int64(n[4]), Pressure: math.Float64frombits(n[5]), Processes: int(n[6])}
		if s.CPU >= 0 && s.CPU <= 100 && s.Pressure >= 0 && s.Pressure <= 100 && s.Memory >= 0 && s.Disk >= 0 {
			samples = append(samples, s)
		}
		text = text[sampleSize:]
	}
	slices.SortFunc(samples, func(a, b model.Sample) int { return a.Time.Compare(b.Time) })
	return samples
}

func (s Source) path(name string) string { return filepath.Join("/", s.Root, name) }

func (s Source) sample(now time.Time) model.Sample {
	memory := s.meminfo()
	sample := model.Sample{Time: now, Memory: memory["MemTotal"] - memory["MemAvailable"], Swap: memory["SwapTotal"] - memory["SwapFree"], Pressure: s.pressure()}
	if total, free, err := Space(s.Data); err == nil {
		sample.Disk = total - free
	}
	entries, _ := os.ReadDir(s.path("proc"))
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			sample.Processes++
		}
	}
	return sample
}

// Memory is how much there is in all, in bytes.
func (s Source) Memory() int64 { return s.meminfo()["MemTotal"] }

func (s Source) meminfo() map[string]int64 {
	values := map[string]int64{}
	f, err := os.Open(s.path("proc/meminfo"))
	if err != nil {
		return values
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, rest, ok := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 {
			continue
		}
		if n, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
			values[name] = n << 10
		}
	}
	return values
}

// pressure is the share of the last ten seconds in which something waited for
// memory (Linux: Documentation/accounting/psi.rst).
func (s Source) pressure() float64 {
	text, err := os.ReadFile(s.path("proc/pressure/memory"))
	if err != nil {
		return 0
	}
	_, rest, ok := strings.Cut(string(text), "some avg10=")
	if !ok {
		return 0
	}
	value, _, _ := strings.Cut(rest, " ")
	n, _ := strconv.ParseFloat(value, 64)
	return n
}

// Started is when the machine was.
func (s Source) Started() time.Time {
	text, _ := os.ReadFile(s.path("proc/stat"))
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "btime "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			return time.Unix(n, 0)
		}
	}
	return time.Time{}
}

// ticks are what all processors have done since the start.
type ticks struct{ busy, all int64 }

func (s Source) ticks() (t ticks) {
	text, _ := os.ReadFile(s.path("proc/stat"))
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	if len(fields) < 6 || fields[0] != "cpu" {
		return t
	}
	// The guests' time, behind the eighth number, is in the user's already.
	for i, field := range fields[1:min(len(fields), 9)] {
		n, _ := strconv.ParseInt(field, 10, 64)
		t.all += n
		if i != 3 && i != 4 { // idle, iowait
			t.busy += n
		}
	}
	return t
}

func (t ticks) since(before ticks) float64 {
	if t.all <= before.all || t.busy < before.busy {
		return 0
	}
	return min(100, 100*float64(t.busy-before.busy)/float64(t.all-before.all))
}

// Space is the size of a folder's file system and what is free for everybody.
func Space(dir string) (total, free int64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, 0, err
	}
	return int64(s.Blocks) * int64(s.Bsize), int64(s.Bavail) * int64(s.Bsize), nil
}

// A Walker measures folders in the background.
type Walker struct {
	Dirs []string

	mu    sync.Mutex
	usage []model.Usage
	at    time.Time
	busy  bool
}

// walkFresh is how old figures may be; walkFiles bounds the work of one folder.
const (
	walkFresh = 5 * time.Minute
	walkFiles = 200_000
)

// Usage is what is known; it never waits. Old figures are renewed meanwhile.
func (w *Walker) Usage(now time.Time) []model.Usage {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.busy && now.Sub(w.at) > walkFresh {
		w.busy = true
		go w.Walk(now)
	}
	return slices.Clone(w.usage)
}

// Walk measures now.
func (w *Walker) Walk(now time.Time) {
	var usage []model.Usage
	for _, dir := range w.Dirs {
		size := measure(dir)
		usage = append(usage, model.Usage{What: dir, Bytes: size})
	}
	w.mu.Lock()
	w.usage, w.at, w.busy = usage, now, false
	w.mu.Unlock()
}

// measure counts blocks, as du does, and files with several names once.
func measure(dir string) (size int64) {
	seen := map[uint64]bool{}
	n := 0
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if n++; n > walkFiles {
			return filepath.SkipAll
		}
		if err != nil {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return nil // It is gone already.
		}
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			if s.Nlink > 1 && !e.IsDir() {
				if seen[s.Ino] {
					return nil
				}
				seen[s.Ino] = true
			}
			size += int64(s.Blocks) * 512
		}
		return nil
	})
	return size
}
