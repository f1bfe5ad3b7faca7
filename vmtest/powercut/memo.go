package powercut

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Most states differ in a few sectors that few checks look at. So a check
// reads the disk through a view, which notes what it reads, and its result is
// good for every state that has the same there.

// A view is a disk in a state, for a check to look at.
type view struct {
	disk  *Disk
	state State
	memo  *memo
	reads []span
}

// ReadAt makes a view an [io.ReaderAt].
func (v *view) ReadAt(b []byte, at int64) (int, error) {
	v.reads = append(v.reads, span{at, at + int64(len(b))})
	return v.disk.read(v.state, b, at)
}

// A memo is the results of checks by their name.
type memo struct {
	groups map[string][]*group
	misses int
}

// A group is the results of a check that all come from the same spans, by what
// the log puts there.
type group struct {
	spans    []span
	touching []int    // entries that change the spans
	digests  []digest // of the first entries in touching
	results  map[digest]any
}

// A digest stands for contents: it is a hash of the changes that led to them.
type digest [sha256.Size]byte

type outcome[T any] struct {
	value T
	err   error
}

// remember returns what a check says, from an earlier state if it can. What a
// check says must depend on nothing but what it reads from its view.
func remember[T any](v *view, name string, check func(*view) (T, error)) (T, error) {
	for _, g := range v.memo.groups[name] {
		if r, ok := g.results[g.digest(v.disk.log, v.state)]; ok {
			v.reads = append(v.reads, g.spans...)
			known := r.(outcome[T])
			return known.value, known.err
		}
	}
	v.memo.misses++
	inner := &view{disk: v.disk, state: v.state, memo: v.memo}
	value, err := check(inner)
	spans := merge(inner.reads)
	v.reads = append(v.reads, spans...)
	g := v.memo.group(name, spans, v.disk.log)
	g.results[g.digest(v.disk.log, v.state)] = outcome[T]{value, err}
	return value, err
}

func (m *memo) group(name string, spans []span, l *Log) *group {
	for _, g := range m.groups[name] {
		if slices.Equal(g.spans, spans) {
			return g
		}
	}
	g := &group{spans: spans, digests: []digest{{}}, results: map[digest]any{}}
	for i := range l.Entries {
		if changed := g.changes(l, Part{Entry: i}); len(changed) > 0 {
			g.touching = append(g.touching, i)
			g.digests = append(g.digests, g.digests[len(g.digests)-1].add(i, changed))
		}
	}
	m.groups[name] = append(m.groups[name], g)
	return g
}

// digest is that of the group's spans in a state.
func (g *group) digest(l *Log, s State) digest {
	n, _ := slices.BinarySearch(g.touching, s.Full)
	d := g.digests[n]
	for _, p := range s.Parts {
		if _, touches := slices.BinarySearch(g.touching, p.Entry); !touches {
			continue
		}
		if changed := g.changes(l, p); len(changed) > 0 {
			d = d.add(p.Entry, changed)
		}
	}
	return d
}

// changes are the parts of the group's spans that a part of an entry changes.
func (g *group) changes(l *Log, p Part) []span {
	if l.Entries[p.Entry].Kind == Flush {
		return nil
	}
	var changed []span
	for _, s := range p.spans(l) {
		i, _ := slices.BinarySearchFunc(g.spans, s.from+1, func(o span, at int64) int { return int(max(-1, min(1, o.to-at))) })
		for ; i < len(g.spans) && g.spans[i].from < s.to; i++ {
			changed = append(changed, g.spans[i].cut(s))
		}
	}
	return changed
}

func (d digest) add(entry int, changed []span) digest {
	b := binary.LittleEndian.AppendUint64(d[:], uint64(entry))
	for _, s := range merge(changed) {
		b = binary.LittleEndian.AppendUint64(b, uint64(s.from))
		b = binary.LittleEndian.AppendUint64(b, uint64(s.to))
	}
	return sha256.Sum256(b)
}
