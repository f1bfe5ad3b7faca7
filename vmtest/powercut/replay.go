package powercut

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// A span is a part of the disk, in bytes.
type span struct{ from, to int64 }

func (s span) cut(o span) span { return span{max(s.from, o.from), min(s.to, o.to)} }
func (s span) empty() bool     { return s.from >= s.to }

// A Run is consecutive sectors of one entry, counted from its first.
type Run struct{ From, To int64 }

// A Part is what of an entry has reached the disk.
type Part struct {
	Entry int
	Runs  []Run // nil: all of it
}

// A State is the disk as a power cut leaves it: with all entries before Full,
// and these parts of later ones.
type State struct {
	Full  int
	Parts []Part
	// Cut is how many entries the machine had made when the power failed.
	Cut int
}

// String names the state so that ParseState makes it again, as in
// "1200+1203,1207:0-9.12-13@1210": entries 0 to 1199, 1203, and eleven sectors
// of 1207, after a cut behind entry 1209.
func (s State) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d", s.Full)
	for i, p := range s.Parts {
		fmt.Fprintf(&b, "%c%d", "+,"[min(i, 1)], p.Entry)
		for j, r := range p.Runs {
			fmt.Fprintf(&b, "%c%d-%d", ":."[min(j, 1)], r.From, r.To)
		}
	}
	fmt.Fprintf(&b, "@%d", s.Cut)
	return b.String()
}

// ParseState reads the name of a state of a log.
func ParseState(text string, log *Log) (State, error) {
	s, err := parseState(text, log)
	if err != nil {
		return State{}, fmt.Errorf("cannot use the state %q: %w", text, err)
	}
	return s, nil
}

func parseState(text string, log *Log) (s State, err error) {
	text, cut, _ := strings.Cut(text, "@")
	full, parts, some := strings.Cut(text, "+")
	if s.Cut, err = number(cut, len(log.Entries)); err != nil {
		return s, err
	}
	if s.Full, err = number(full, s.Cut); err != nil || !some {
		return s, err
	}
	for part := range strings.SplitSeq(parts, ",") {
		entry, runs, torn := strings.Cut(part, ":")
		p := Part{}
		if p.Entry, err = number(entry, s.Cut-1); err != nil {
			return s, err
		}
		for run := range strings.SplitSeq(runs, ".") {
			if !torn {
				break
			}
			from, to, _ := strings.Cut(run, "-")
			last, err := number(to, int(log.Entries[p.Entry].Sectors))
			if err != nil {
				return s, err
			}
			first, err := number(from, last)
			if err != nil {
				return s, err
			}
			p.Runs = append(p.Runs, Run{int64(first), int64(last)})
		}
		s.Parts = append(s.Parts, p)
	}
	return s, nil
}

func number(text string, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > most {
		return 0, fmt.Errorf("%q is not a number up to %d", text, most)
	}
	return n, nil
}

// spans are the parts of the disk that a part of an entry changes.
func (p Part) spans(l *Log) []span {
	e := l.Entries[p.Entry]
	if p.Runs == nil {
		return []span{e.span()}
	}
	var spans []span
	for _, r := range p.Runs {
		spans = append(spans, span{(e.Sector + r.From) * sector, (e.Sector + r.To) * sector})
	}
	return spans
}

// A Disk makes states out of the disk as it was before the plan and the log.
// Nothing is copied: it remembers which entry each part of the disk is from.
type Disk struct {
	base    io.ReaderAt // zeros follow its end
	size    int64
	log     *Log
	full    int      // entries that are in extents
	extents []extent // in the order of their place, without overlaps
}

// An extent is a part of the disk that an entry was the last one to change.
type extent struct {
	span
	entry int
}

// seek makes the extents those of the first entries. Forward is cheap.
func (d *Disk) seek(full int) {
	if full < d.full {
		d.full, d.extents = 0, nil
	}
	for ; d.full < full; d.full++ {
		if e := d.log.Entries[d.full]; e.Kind != Flush {
			d.put(extent{e.span(), d.full})
		}
	}
}

// put lays an extent over the others.
func (d *Disk) put(e extent) {
	first := d.find(e.from)
	last := first
	var kept []extent
	for ; last < len(d.extents) && d.extents[last].from < e.to; last++ {
		old := d.extents[last]
		if old.from < e.from {
			kept = append(kept, extent{span{old.from, e.from}, old.entry})
		}
		if old.to > e.to {
			kept = append(kept, e, extent{span{e.to, old.to}, old.entry})
		}
	}
	if len(kept) == 0 || kept[len(kept)-1].to <= e.from {
		kept = append(kept, e)
	}
	d.extents = slices.Replace(d.extents, first, last, kept...)
}

// find is the first extent that ends behind a place.
func (d *Disk) find(at int64) int {
	i, _ := slices.BinarySearchFunc(d.extents, at+1, func(e extent, at int64) int { return int(max(-1, min(1, e.to-at))) })
	return i
}

// read reads the disk in a state.
func (d *Disk) read(s State, b []byte, at int64) (int, error) {
	want := span{at, min(at+int64(len(b)), d.size)}
	if want.empty() {
		return 0, io.EOF
	}
	d.seek(s.Full)
	n, err := d.base.ReadAt(b[:want.to-at], at)
	if err != nil && err != io.EOF {
		return 0, err
	}
	clear(b[n:])
	for i := d.find(at); i < len(d.extents) && d.extents[i].from < want.to; i++ {
		if err := d.lay(d.extents[i].entry, d.extents[i].cut(want), b, at); err != nil {
			return 0, err
		}
	}
	for _, p := range s.Parts {
		if d.log.Entries[p.Entry].span().cut(want).empty() {
			continue
		}
		for _, part := range p.spans(d.log) {
			if err := d.lay(p.Entry, part.cut(want), b, at); err != nil {
				return 0, err
			}
		}
	}
	if want.to-at < int64(len(b)) {
		return int(want.to - at), io.EOF
	}
	return len(b), nil
}

// lay copies what an entry has for a part of the disk over b, which begins at
// a place of the disk.
func (d *Disk) lay(entry int, part span, b []byte, at int64) error {
	if part.empty() {
		return nil
	}
	return d.log.readAt(d.log.Entries[entry], b[part.from-at:part.to-at], part.from)
}

// written are the parts of the disk within a span that a state has from the
// log and not from the disk before the plan, but for what the log makes zero.
func (d *Disk) written(s State, within span) []span {
	d.seek(s.Full)
	var spans []span
	for i := d.find(within.from); i < len(d.extents) && d.extents[i].from < within.to; i++ {
		if d.log.Entries[d.extents[i].entry].Kind == Write {
			spans = append(spans, d.extents[i].cut(within))
		}
	}
	for _, p := range s.Parts {
		for _, part := range p.spans(d.log) {
			if d.log.Entries[p.Entry].Kind == Write {
				spans = append(spans, part.cut(within))
			}
		}
	}
	return merge(spans)
}

// merge brings spans into order and joins those that touch.
func merge(spans []span) []span {
	spans = slices.DeleteFunc(slices.Clone(spans), span.empty)
	slices.SortFunc(spans, func(a, b span) int { return int(max(-1, min(1, a.from-b.from))) })
	merged := spans[:0]
	for _, s := range spans {
		if n := len(merged); n > 0 && s.from <= merged[n-1].to {
			merged[n-1].to = max(merged[n-1].to, s.to)
		} else {
			merged = append(merged, s)
		}
	}
	return merged
}
