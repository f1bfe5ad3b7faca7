package throttle

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// A clock that tests set.
type clock struct{ now time.Time }

func (c *clock) Now() time.Time { return c.now }

func newThrottle() (*Throttle, *clock) {
	c := &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	return &Throttle{Now: c.Now}, c
}

func TestThrottleGrows(t *testing.T) {
	th, c := newThrottle()
	attacker := netip.MustParseAddr("192.0.2.66")
	var waits []time.Duration
	for range 10 {
		wait, ok := th.Try(attacker)
		for !ok {
			waits = append(waits, wait)
			// A moment earlier is refused, too.
			c.now = c.now.Add(wait - 1)
			if _, early := th.Try(attacker); early {
				t.Errorf("after %v less one it may try", wait)
			}
			c.now = c.now.Add(1)
			wait, ok = th.Try(attacker)
		}
	}
	s := time.Second
	if got, want := fmt.Sprint(waits), fmt.Sprint([]time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 30 * s, 30 * s}); got != want {
		t.Errorf("the waits are %s; want %s", got, want)
	}
	if _, ok := th.Try(netip.MustParseAddr("192.0.2.67")); !ok {
		t.Error("another address waits, too")
	}
	th.Succeeded(attacker)
	for i := range freeTries {
		if _, ok := th.Try(attacker); !ok {
			t.Errorf("after the right password try %d is refused", i+1)
		}
	}
	c.now = c.now.Add(forgetting + longest)
	for i := range freeTries {
		if _, ok := th.Try(attacker); !ok {
			t.Errorf("an hour later try %d is refused", i+1)
		}
	}
}

// TestThousandBadLogins: from one address, from as many, and what the
// administrator has to wait then.
func TestThousandBadLogins(t *testing.T) {
	administrator, stranger := netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("203.0.113.9")
	for _, c := range []struct {
		name string
		from func(i int) netip.Addr
		most int           // tries that are let through of 1,000 in 100 s
		wait time.Duration // of one who has never signed in
	}{
		{"one address", func(int) netip.Addr { return netip.MustParseAddr("192.0.2.1") }, freeTries + 6 + 2, 0},
		{"one network of IPv6", func(i int) netip.Addr {
			return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1))
		}, freeTries + 6 + 2, 0},
		{"IPv4 in two spellings", func(i int) netip.Addr {
			return netip.MustParseAddr([]string{"192.0.2.1", "::ffff:192.0.2.1"}[i%2])
		}, freeTries + 6 + 2, 0},
		{"as many addresses", func(i int) netip.Addr {
			return netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		}, freeTotal + 2*200 + 10, totalWait + 2*totalGap},
	} {
		th, clock := newThrottle()
		if _, ok := th.Try(administrator); !ok {
			t.Errorf("%s: the first try is refused", c.name)
		}
		th.Succeeded(administrator)
		through := 0
		for i := range 1000 {
			if wait, ok := th.Try(c.from(i)); ok {
				through++
			} else if wait <= 0 {
				t.Errorf("%s: refused, and may come again after %v", c.name, wait)
			}
			clock.now = clock.now.Add(100 * time.Millisecond)
		}
		if through > c.most || through < freeTries {
			t.Errorf("%s: %d tries came through; want at most %d", c.name, through, c.most)
		}
		if wait, ok := th.Try(administrator); !ok || wait != 0 {
			t.Errorf("%s: who has signed in before waits %v, %t", c.name, wait, ok)
		}
		wait, ok := th.Try(stranger)
		if !ok {
			clock.now = clock.now.Add(wait)
			wait, ok = th.Try(stranger)
		}
		if !ok || wait > c.wait {
			t.Errorf("%s: who has not waits %v, %t; want at most %v", c.name, wait, ok, c.wait)
		}
	}
}

// Somebody who signs in again and again makes no room for guesses of others.
func TestSuccessesDoNotHideGuesses(t *testing.T) {
	th, _ := newThrottle()
	administrator := netip.MustParseAddr("198.51.100.7")
	th.Try(administrator)
	th.Succeeded(administrator)
	tried := 0
	for i := range 1000 {
		if _, ok := th.Try(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})); ok {
			tried++
		}
		th.Try(administrator)
		th.Succeeded(administrator)
	}
	// As many as are free, and those that may wait for their turn.
	if most := freeTotal + int(totalWait/totalGap) + 1; tried > most {
		t.Errorf("1000 strangers tried %d passwords at once; want at most %d", tried, most)
	}
}

func TestThrottleIsBounded(t *testing.T) {
	th, c := newThrottle()
	for i := range 3 * maxKnown {
		a := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		th.Try(a)
		if i%7 == 0 {
			th.Succeeded(a)
		}
		c.now = c.now.Add(totalGap)
	}
	if len(th.known) > maxKnown || len(th.good) > maxGood {
		t.Errorf("%d and %d addresses are remembered; want at most %d and %d", len(th.known), len(th.good), maxKnown, maxGood)
	}
	if _, ok := th.Try(netip.Addr{}); !ok {
		t.Error("who has no address is refused")
	}
}
