package app

import (
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"appplatform/internal/throttle"
)

// A TooManyError says that too many wrong passwords were tried: from the same address,
// or from everywhere.
type TooManyError struct{ Wait time.Duration }

func (e *TooManyError) Error() string {
	return fmt.Sprintf("cannot sign in: too many wrong passwords were tried; wait %d s", e.Seconds())
}

// Seconds are those that it takes until another try, for Retry-After.
func (e *TooManyError) Seconds() int { return int((e.Wait + time.Second - 1) / time.Second) }

// A guard slows down the guessing of an instance's password.
type guard struct {
	// Tries of those who need not wait follow each other, so that a program with the
	// right password may send many requests at the same time.
	mu       sync.Mutex
	throttle throttle.Throttle
}

// Try lets who has sent the request try a password, which check does: at once, after a
// moment, or not at all, if too many were wrong. A wrong one is ErrSignIn, a
// *TooManyError is for those whose password was not even looked at. Waits grow with
// each wrong one of an address to half a minute; who has signed in lately from another
// address does not wait for that.
func (i *Instance) Try(r *http.Request, check func() bool) error {
	// The webserver lets nobody else say who sends a request.
	from, _ := netip.ParseAddr(r.Header.Get("X-Forwarded-For"))
	g := &i.guard
	g.mu.Lock()
	wait, ok := g.throttle.Try(from)
	if !ok {
		g.mu.Unlock()
		return &TooManyError{wait}
	}
	if wait > 0 {
		g.mu.Unlock()
		select {
		case <-time.After(wait):
		case <-r.Context().Done():
			return r.Context().Err()
		}
		g.mu.Lock()
	}
	defer g.mu.Unlock()
	if !check() {
		return ErrSignIn
	}
	g.throttle.Succeeded(from)
	return nil
}
