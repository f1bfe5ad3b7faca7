package cluster

import "time"

// MaxOffset bounds the random time after the hour of the settings at which the
// nightly optimisation begins, so that not all machines of a host or a store
// begin at once.
const MaxOffset = 7 * time.Hour

// A Night says when the databases are optimised.
type Night struct {
	Hour   int // 0 to 23, in Zone
	Zone   *time.Location
	Offset time.Duration // as RandomOffset makes it, once for each run
}

// RandomOffset is 0 to MaxOffset; random gives a number from 0 up to below n, as
// rand.Int64N does.
func RandomOffset(random func(n int64) int64) time.Duration {
	return time.Duration(random(int64(MaxOffset)))
}

// Next is the next time to begin after now. last is when the last run began:
// there is one for each night. A night that was slept through is not made up
// for, because then people work.
func (n Night) Next(now, last time.Time) time.Time {
	year, month, day := now.In(n.Zone).Date()
	// Yesterday's night may reach into today.
	for d := day - 1; ; d++ {
		begin := time.Date(year, month, d, n.Hour, 0, 0, 0, n.Zone)
		if at := begin.Add(n.Offset); at.After(now) && last.Before(begin) {
			return at
		}
		// A clock that was wrong has left a last time of the future.
		if begin.After(now.Add(48 * time.Hour)) {
			last = time.Time{}
			d = day - 2
		}
	}
}
