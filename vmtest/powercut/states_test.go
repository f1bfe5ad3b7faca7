package powercut

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// testLog has three writes, a flush and two more, one of them with FUA.
func testLog(t *testing.T) *Log {
	t.Helper()
	var w logWriter
	w.add(0, 0, 1, fill('a', 1))
	w.add(0, 1, 3, fill('b', 3))
	w.add(0, 9, 1, fill('c', 1))
	w.add(flagFlush, 0, 0, nil)
	w.add(0, 2, 1, fill('d', 1))
	w.add(flagFUA, 3, 1, fill('e', 1))
	l, err := ReadLog(bytes.NewReader(w.finish()))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestStates(t *testing.T) {
	var got []string
	for s := range States(testLog(t), Limits{Prefixes: 4, Exhaustive: 6}, 1) {
		got = append(got, s.String())
	}
	want := strings.Fields(`
		0@3 0+0@3 0+1@3 0+0,1@3 0+2@3 0+0,2@3 0+1,2@3 0+0,1,2@3
		0@0 1@1 1+1:0-1@2 1+1:0-2@2 2@2 3@3
		4+5@6 4+4,5@6 4+5@6 4+4,5@6
		5@5 6@6`)
	if !slices.Equal(got, want) {
		t.Errorf("States(...) =\n%v; want\n%v", got, want)
	}
}

// A sample depends on the seed alone, stays within the window, and is names
// that lead back to the states.
func TestStatesSampled(t *testing.T) {
	l := testLog(t)
	limits := Limits{Prefixes: 1, Torn: 2, Exhaustive: 2, Samples: 2000}
	states := slices.Collect(States(l, limits, 7))
	different := map[string]bool{}
	for s := range States(l, limits, 7) {
		different[s.String()] = true
	}
	for _, s := range states {
		if !different[s.String()] {
			t.Fatalf("the same seed does not make %v again", s)
		}
		again, err := ParseState(s.String(), l)
		if err != nil || again.String() != s.String() {
			t.Fatalf("ParseState(%q) = %v, %v; want the same", s, again, err)
		}
		for _, p := range s.Parts {
			if p.Entry < s.Full || p.Entry >= s.Cut || l.Entries[p.Entry].Kind == Flush {
				t.Fatalf("state %v has entry %d", s, p.Entry)
			}
		}
		if s.Full > 3 && s.Cut == 6 && s.Full < 6 && !slices.ContainsFunc(s.Parts, func(p Part) bool { return p.Entry == 5 && p.Runs == nil }) {
			t.Fatalf("state %v lacks the write with FUA", s)
		}
	}
	for _, want := range []string{"0@3", "0+0,1,2@3", "0+1:0-1,2@3", "0+1:1-3@3"} {
		if !different[want] {
			t.Errorf("2000 samples have no state %s", want)
		}
	}
	plan := Plan{Log: l, Phases: []Phase{{Name: "first"}, {Name: "second", From: 4}}}
	if n := len(plan.Sample(0, limits, 5, 7)); n != 5 {
		t.Errorf("Sample(5) has %d states", n)
	}
	moments := map[int]bool{}
	for _, s := range plan.Sample(1, limits, 2, 7) {
		moments[s.Cut] = true
	}
	if len(moments) != 2 || !moments[5] || !moments[6] {
		t.Errorf("two states of the second phase are from the moments %v; want 5 and 6", moments)
	}
}

func TestParseStateErrors(t *testing.T) {
	for _, name := range []string{"", "1", "x@1", "2@1", "1@7", "0+1:0-4@3", "0+1:2-1@3", "0+3@3", "0+@3"} {
		if s, err := ParseState(name, testLog(t)); err == nil {
			t.Errorf("ParseState(%q) = %v; want an error", name, s)
		}
	}
}

// The disk of a state is compared with one that is made by copying.
func TestDisk(t *testing.T) {
	const sectors = 64
	random := rand.New(rand.NewPCG(1, 2))
	var w logWriter
	var kinds []uint64
	for i := range 200 {
		place := random.Int64N(sectors - 8)
		n := 1 + random.Int64N(8)
		flags := []uint64{0, 0, 0, flagDiscard, flagFlush}[random.IntN(5)]
		kinds = append(kinds, flags)
		switch flags {
		case 0:
			w.add(0, place, n, fill(byte(i+1), int(n)))
		case flagDiscard:
			w.add(flagDiscard, place, n, nil)
		default:
			w.add(flagFlush, 0, 0, nil)
		}
	}
	l, err := ReadLog(bytes.NewReader(w.finish()))
	if err != nil {
		t.Fatal(err)
	}
	base := fill(0xff, sectors/2)
	d := &Disk{base: bytes.NewReader(base), size: sectors * sector, log: l}
	for s := range States(l, Limits{Prefixes: 2, Torn: 2, Exhaustive: 3, Samples: 20}, 3) {
		want := append(bytes.Clone(base), fill(0, sectors/2)...)
		lay := func(p Part) {
			for _, part := range p.spans(l) {
				c := byte(p.Entry + 1)
				if kinds[p.Entry] == flagDiscard {
					c = 0
				}
				copy(want[part.from:], bytes.Repeat([]byte{c}, int(part.to-part.from)))
			}
		}
		for i := range s.Full {
			lay(Part{Entry: i})
		}
		for _, p := range s.Parts {
			lay(p)
		}
		at := random.Int64N(sectors * sector)
		got := make([]byte, 1+random.IntN(4096))
		n, _ := d.read(s, got, at)
		if !bytes.Equal(got[:n], want[at:min(at+int64(len(got)), sectors*sector)]) {
			t.Fatalf("state %v differs at %d", s, at)
		}
	}
}

// A result is used again where nothing differs that the check has read, and
// only there.
func TestRemember(t *testing.T) {
	l := testLog(t)
	d := &Disk{base: bytes.NewReader(nil), size: 1 << 20, log: l}
	m := &memo{groups: map[string][]*group{}}
	// It reads sector 1, and sector 9 if that is a b.
	check := func(v *view) (string, error) {
		b := make([]byte, 1)
		if _, err := v.ReadAt(b, 1*sector); err != nil || b[0] == 0 {
			return "", err
		}
		outer := string(b)
		inner, err := remember(v, "inner", func(v *view) (string, error) {
			_, err := v.ReadAt(b, 9*sector)
			return string(b), err
		})
		return outer + inner, err
	}
	for _, test := range []struct {
		state  State
		want   string
		misses int
	}{
		{State{Full: 0, Cut: 6}, "", 1},
		{State{Full: 1, Cut: 6}, "", 1},
		{State{Full: 2, Cut: 6}, "b\x00", 3},
		{State{Full: 3, Cut: 6}, "bc", 5},
		{State{Full: 6, Cut: 6}, "bc", 5},
		{State{Full: 1, Parts: []Part{{1, []Run{{0, 1}}}, {Entry: 2}}, Cut: 6}, "bc", 5},
		{State{Full: 1, Parts: []Part{{1, []Run{{1, 3}}}, {Entry: 2}}, Cut: 6}, "", 5},
		{State{Full: 0, Parts: []Part{{Entry: 1}}, Cut: 6}, "b\x00", 5},
	} {
		got, err := remember(&view{disk: d, state: test.state, memo: m}, "outer", check)
		if err != nil || got != test.want || m.misses != test.misses {
			t.Errorf("state %v: %q, %v after %d looks; want %q after %d", test.state, got, err, m.misses, test.want, test.misses)
		}
	}
}
