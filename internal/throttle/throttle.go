// Package throttle slows down the guessing of passwords, without locking out who knows
// them.
package throttle

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// How guesses are slowed down.
const (
	freeTries  = 3                // of an address, without waiting: people mistype
	firstWait  = time.Second      // then, doubled each time
	longest    = 30 * time.Second // so that nobody is locked out
	forgetting = time.Hour        // an address that is quiet so long begins anew

	freeTotal = 20                     // of all addresses that have not signed in lately
	totalGap  = 500 * time.Millisecond // between their tries after that
	totalWait = 2 * time.Second        // that one of them waits at most before it is refused
	maxKnown  = 4096                   // addresses that are remembered
	maxGood   = 64                     // of those, the last that have signed in
)

// A Throttle slows down the guessing of a password. Nothing of it is stored.
type Throttle struct {
	Now func() time.Time

	mu    sync.Mutex
	known map[netip.Prefix]*guesses
	good  []netip.Prefix // that have signed in, oldest first
	total int            // failures of others, which fade
	faded time.Time      // when total was last made smaller
	next  time.Time      // when the next of others may try
}

// guesses of one address.
type guesses struct {
	failed int
	until  time.Time // no other try before
}

// Try asks whether an address may try a password. If wait is positive and ok, the
// try may be made after that time; if not ok, it is refused, and may come again
// after it. A try counts as failed until Succeeded, so that many at the same
// time are no way around.
func (t *Throttle) Try(from netip.Addr) (wait time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, who := t.Now(), network(from)
	g := t.guesses(who, now)
	if g != nil && now.Before(g.until) {
		return g.until.Sub(now), false
	}
	if !slices.Contains(t.good, who) {
		if wait, ok = t.others(now); !ok {
			return wait, false
		}
	}
	if g == nil {
		g = t.remember(who, now)
	}
	g.failed++
	g.until = now.Add(wait + pause(g.failed))
	return wait, true
}

// Succeeded says that the password was right.
func (t *Throttle) Succeeded(from netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	who := network(from)
	delete(t.known, who)
	if !slices.Contains(t.good, who) {
		t.total = max(0, t.total-1) // It was counted as a failure.
	}
	t.good = append(slices.DeleteFunc(t.good, func(p netip.Prefix) bool { return p == who }), who)
	if len(t.good) > maxGood {
		t.good = slices.Delete(t.good, 0, 1)
	}
}

// pause is how long an address waits after so many failures.
func pause(failed int) time.Duration {
	if failed < freeTries {
		return 0
	}
	if failed-freeTries > 10 {
		return longest
	}
	return min(firstWait<<(failed-freeTries), longest)
}

// others is the turn of an address that has not signed in lately: guessing from
// many addresses is slowed down by all of them together.
func (t *Throttle) others(now time.Time) (wait time.Duration, ok bool) {
	// One failure fades with each gap.
	if gone := int(now.Sub(t.faded) / totalGap); gone > 0 {
		t.total, t.faded = max(0, t.total-gone), now
	}
	if t.total < freeTotal {
		t.total++
		return 0, true
	}
	if t.next.Before(now) {
		t.next = now
	}
	if wait = t.next.Sub(now); wait > totalWait {
		return wait, false
	}
	t.next = t.next.Add(totalGap)
	return wait, true
}

// guesses of an address, unless they are forgotten.
func (t *Throttle) guesses(who netip.Prefix, now time.Time) *guesses {
	g := t.known[who]
	if g != nil && now.Sub(g.until) >= forgetting {
		delete(t.known, who)
		return nil
	}
	return g
}

// remember makes room if there are too many: for the one that could try soonest.
func (t *Throttle) remember(who netip.Prefix, now time.Time) *guesses {
	if t.known == nil {
		t.known = map[netip.Prefix]*guesses{}
	}
	if len(t.known) >= maxKnown {
		var oldest netip.Prefix
		var until time.Time
		for p, g := range t.known {
			if until.IsZero() || g.until.Before(until) {
				oldest, until = p, g.until
			}
		}
		delete(t.known, oldest)
	}
	g := &guesses{until: now}
	t.known[who] = g
	return g
}

// network is what one person has: an IPv4 address, or the 64 bits of IPv6 of
// which everybody can take any.
func network(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{} // Not an address: a Unix socket's, shared by all of them.
	}
	return p
}
