package powercut

import (
	"iter"
	"math/rand/v2"
)

// Limits bound the states that States makes.
type Limits struct {
	// Prefixes is how many prefixes of one entry there are at most; of longer
	// entries there are so many random ones.
	Prefixes int
	// Torn is how many random choices of its sectors there are for an entry.
	Torn int
	// Exhaustive is the number of entries between two flushes up to which there
	// are all choices of them. Of more there are so many Samples, in which some
	// are torn; of fewer there are some as well.
	Exhaustive, Samples int
}

// A Window is the entries between two flushes: each may have reached the disk
// or not, whatever its place, and all before From are there for good.
type window struct{ from, to int }

// windows divides the log at its flushes.
func windows(l *Log) []window {
	var all []window
	w := window{}
	for i, e := range l.Entries {
		if e.Kind == Flush {
			all = append(all, window{w.from, i})
			w.from = i + 1
		}
	}
	return append(all, window{w.from, len(l.Entries)})
}

// States are the states that a power cut may leave, the same for the same seed:
// after each entry, with that entry torn, and with any choice of the entries
// since the last flush.
func States(l *Log, limits Limits, seed uint64) iter.Seq[State] {
	return func(yield func(State) bool) {
		for _, w := range windows(l) {
			// Each window has random numbers of its own, so that a state does not
			// depend on those before it.
			g := generator{l, limits, rand.New(rand.NewPCG(seed, uint64(w.from)))}
			if !g.choices(w, yield) || !g.cuts(w, yield) {
				return
			}
		}
	}
}

type generator struct {
	log    *Log
	limits Limits
	random *rand.Rand
}

// cuts are the states in which the disk has kept to the order: after each entry
// of a window, and in the middle of it.
func (g generator) cuts(w window, yield func(State) bool) bool {
	if w.from == 0 && !yield(State{}) {
		return false
	}
	for i := w.from; i < w.to; i++ {
		for runs := range g.torn(g.log.Entries[i].Sectors) {
			if !yield(State{Full: i, Parts: []Part{{i, runs}}, Cut: i + 1}) {
				return false
			}
		}
		if !yield(State{Full: i + 1, Cut: i + 1}) {
			return false
		}
	}
	return true
}

// torn are the ways in which a part of an entry reaches the disk.
func (g generator) torn(sectors int64) iter.Seq[[]Run] {
	return func(yield func([]Run) bool) {
		if sectors < 2 {
			return
		}
		all := sectors-1 <= int64(g.limits.Prefixes)
		for n := range min(sectors-1, int64(g.limits.Prefixes)) {
			if !all {
				n = g.random.Int64N(sectors - 1)
			}
			if !yield([]Run{{0, n + 1}}) {
				return
			}
		}
		for range min(g.limits.Torn, int(sectors)) {
			if !yield(g.tear(sectors)) {
				return
			}
		}
	}
}

// tear chooses one or more runs of an entry's sectors.
func (g generator) tear(sectors int64) []Run {
	var runs []Run
	for at := int64(0); at < sectors && (at == 0 || g.random.IntN(2) == 0); {
		from := at + g.random.Int64N(sectors-at)
		to := from + 1 + g.random.Int64N(sectors-from)
		runs = append(runs, Run{from, to})
		at = to + 1
	}
	return runs
}

// choices are the states in which the disk has not kept to the order. Writes
// with FUA are there for good.
func (g generator) choices(w window, yield func(State) bool) bool {
	n := w.to - w.from
	if n < 2 {
		return true // The cuts are all there is.
	}
	samples := g.limits.Samples
	if n <= g.limits.Exhaustive {
		samples = min(samples, 8*n) // of torn ones
		for bits := range uint64(1) << n {
			if !yield(g.choose(w, func(i int) bool { return bits>>i&1 != 0 }, false)) {
				return false
			}
		}
	}
	for range samples {
		// From almost nothing to almost everything.
		density := g.random.Float64()
		if !yield(g.choose(w, func(int) bool { return g.random.Float64() < density }, true)) {
			return false
		}
	}
	return true
}

// choose is the state with the chosen entries of a window. With torn, one in
// four of them has reached the disk in part.
func (g generator) choose(w window, has func(int) bool, torn bool) State {
	s := State{Full: w.from, Cut: w.to}
	for i := w.from; i < w.to; i++ {
		e := g.log.Entries[i]
		p := Part{Entry: i}
		if torn && !e.FUA && e.Sectors > 1 && g.random.IntN(4) == 0 {
			p.Runs = g.tear(e.Sectors)
		}
		if has(i-w.from) || e.FUA {
			s.Parts = append(s.Parts, p)
		}
	}
	return s
}

// Sample is so many of the states of a phase, spread over its moments.
func (p Plan) Sample(phase int, limits Limits, n int, seed uint64) []State {
	if n == 0 {
		return nil
	}
	var states []State
	for s := range States(p.Log, limits, seed) {
		if p.phase(s) == phase {
			states = append(states, s)
		}
	}
	return spread(states, n, rand.New(rand.NewPCG(seed, uint64(phase))))
}

// spread chooses so many states, or all, spread over the moments of the power
// cuts: most states are torn writes of the few largest entries.
func spread(states []State, n int, random *rand.Rand) []State {
	shuffle := func(s []State) { random.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] }) }
	shuffle(states)
	rounds, byRound := map[int]int{}, map[int][]State{}
	for _, s := range states {
		byRound[rounds[s.Cut]] = append(byRound[rounds[s.Cut]], s)
		rounds[s.Cut]++
	}
	var chosen []State
	for i := 0; len(chosen) < min(n, len(states)); i++ {
		shuffle(byRound[i]) // Moments with many states come early so far.
		chosen = append(chosen, byRound[i]...)
	}
	return chosen[:min(n, len(states))]
}
