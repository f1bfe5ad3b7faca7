package monitor

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func fake(t *testing.T, files map[string]string) Source {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return Source{Root: root, Data: root}
}

func TestSample(t *testing.T) {
	files := map[string]string{
		"proc/meminfo":         "MemTotal:         512000 kB\nMemFree: 1 kB\nMemAvailable:     412000 kB\nSwapTotal: 1000 kB\nSwapFree: 400 kB\nHugePages_Total:       0\n",
		"proc/stat":            "cpu  100 0 100 700 100 0 0 0 50 0\ncpu0 1 2 3\nbtime 1700000000\n",
		"proc/pressure/memory": "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=3.00 avg60=0.00 avg300=0.00 total=0\n",
		"proc/1/stat":          "", "proc/22/stat": "", "proc/self/stat": "",
	}
	s := fake(t, files)
	now := time.Unix(1700000100, 0)
	m := New(s, filepath.Join(t.TempDir(), "samples"), now)
	// 100 more, of which 25 are busy.
	if err := os.WriteFile(s.path("proc/stat"), []byte("cpu  120 0 105 770 105 0 0 0 60 0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	m.Take(now)
	got := m.Samples(0)
	if len(got) != 1 {
		t.Fatalf("there are %d samples; want 1", len(got))
	}
	g := got[0]
	if g.CPU != 25 || g.Memory != 100000<<10 || g.Swap != 600<<10 || g.Pressure != 12.5 || g.Processes != 2 || g.Disk <= 0 {
		t.Errorf("Take() = %+v; want CPU 25, memory 100000 KiB, swap 600 KiB, pressure 12.5, 2 processes", g)
	}
	if s.Memory() != 512000<<10 {
		t.Errorf("Memory() = %d", s.Memory())
	}
	// A machine that tells nothing is no reason to fail.
	empty := New(fake(t, nil), filepath.Join(t.TempDir(), "x"), now)
	empty.Take(now)
	if got := empty.Samples(0); len(got) != 1 || got[0].CPU != 0 || got[0].Memory != 0 {
		t.Errorf("without /proc: %+v", got)
	}
}

func TestStarted(t *testing.T) {
	s := fake(t, map[string]string{"proc/stat": "cpu  1 2\nbtime 1700000000\n"})
	if got := s.Started().Unix(); got != 1700000000 {
		t.Errorf("Started() = %d; want 1700000000", got)
	}
}

// A day of samples stays small, and thinning is the same in one go and step by
// step, over a restart, too.
func TestThinning(t *testing.T) {
	s := fake(t, nil)
	file := filepath.Join(t.TempDir(), "samples")
	start := time.Unix(1700000000, 0)
	m := New(s, file, start)
	end := start
	for i := range 26 * 360 {
		end = start.Add(time.Duration(i) * Interval)
		m.Take(end)
		if i == 5000 {
			if err := m.Save(); err != nil {
				t.Fatal(err)
			}
			m = New(s, file, end)
		}
	}
	all := m.Samples(0)
	counts := map[string]int{}
	for _, sample := range all {
		switch age := end.Sub(sample.Time); {
		case age <= 15*time.Minute:
			counts["10 s"]++
		case age <= 2*time.Hour:
			counts["1 min"]++
		case age <= 24*time.Hour:
			counts["5 min"]++
		default:
			counts["too old"]++
		}
	}
	for what, want := range map[string]int{"10 s": 91, "1 min": 105, "5 min": 264, "too old": 0} {
		if got := counts[what]; got < want-1 || got > want+1 {
			t.Errorf("there are %d samples of %s; want %d", got, what, want)
		}
	}
	if got := m.Samples(50); len(got) != 50 || !got[49].Time.Equal(end) {
		t.Errorf("Samples(50) are %d, the last of %v; want 50 that end at %v", len(got), got[len(got)-1].Time, end)
	}
}

// What is in the file after a power cut or a stranger's visit is no reason not to
// start.
func TestBrokenFile(t *testing.T) {
	for name, text := range map[string][]byte{"cut": make([]byte, 100), "garbage": bytes.Repeat([]byte{0xff}, 6400), "empty": nil} {
		file := filepath.Join(t.TempDir(), "samples")
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if got := New(fake(t, nil), file, time.Unix(1700000000, 0)).Samples(0); len(got) != 0 {
			t.Errorf("%s: %d samples; want none", name, len(got))
		}
	}
}

// du judges.
func TestWalk(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		sub := filepath.Join(dir, fmt.Sprint(i%3))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), make([]byte, i*3000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "1/19"), filepath.Join(dir, "0/again")); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("du", "-s", "-B1", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	w := &Walker{Dirs: []string{dir, dir + "/missing"}}
	now := time.Unix(1700000000, 0)
	w.Walk(now)
	got := w.Usage(now)
	if len(got) != 2 || fmt.Sprint(got[0].Bytes) != strings.Fields(string(out))[0] || got[1].Bytes != 0 {
		t.Errorf("Usage() = %+v; du says %s", got, out)
	}
}
