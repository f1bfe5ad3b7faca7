package app

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"appplatform/internal/wire"
)

func requestFrom(ctx context.Context, address string) *http.Request {
	r := httptest.NewRequestWithContext(ctx, "POST", "/", nil)
	r.Header.Set("X-Forwarded-For", address)
	return r
}

// guarded is an instance with a clock that stands still.
func guarded(password string) (*Instance, *time.Time) {
	i, now := &Instance{values: wire.StartInstance{Password: password}}, time.Now()
	i.guard.throttle.Now = func() time.Time { return now }
	return i, &now
}

// Trying many at the same time is no way around, neither from one address nor from
// many, and does not keep out who knows the password.
func TestTry(t *testing.T) {
	const tries = 500
	for _, test := range []struct {
		name string
		from func(n int) string
		most int32
	}{
		{"one address", func(int) string { return "192.0.2.66" }, 3},
		{"one network of IPv6", func(n int) string { return fmt.Sprintf("2001:db8::%x", n+1) }, 3},
		{"many addresses", func(n int) string { return fmt.Sprintf("10.0.%d.%d", n/250, n%250) }, 20},
		{"no address", func(int) string { return "" }, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			i, now := guarded("secret")
			if err := i.Try(requestFrom(t.Context(), "198.51.100.7"), func() bool { return true }); err != nil {
				t.Fatal(err)
			}
			// Those who would have to wait for a moment leave.
			gone, leave := context.WithCancel(t.Context())
			leave()
			var checked, wrong atomic.Int32
			var work sync.WaitGroup
			for n := range tries {
				work.Go(func() {
					err := i.Try(requestFrom(gone, test.from(n)), func() bool { checked.Add(1); return false })
					if errors.Is(err, ErrSignIn) {
						wrong.Add(1)
					} else if err == nil {
						t.Error("a wrong password is right")
					}
				})
			}
			work.Wait()
			// Waits of no length are no waits: one more of those in a row may have come.
			if n := checked.Load(); n > test.most+1 || n != wrong.Load() || n == 0 {
				t.Errorf("%d of %d passwords were looked at, %d found wrong; want %d", n, tries, wrong.Load(), test.most)
			}
			var many *TooManyError
			err := i.Try(requestFrom(gone, test.from(0)), func() bool { return true })
			if test.most == 3 && (!errors.As(err, &many) || many.Seconds() < 1 || many.Seconds() > 30) {
				t.Errorf("the next one from there: %v; want a wait of at most 30 s", err)
			}
			if err := i.Try(requestFrom(t.Context(), "198.51.100.7"), func() bool { return true }); err != nil {
				t.Errorf("who has signed in before: %v", err)
			}
			*now = now.Add(30 * time.Second)
			if err := i.Try(requestFrom(t.Context(), test.from(0)), func() bool { return true }); err != nil {
				t.Errorf("half a minute later: %v", err)
			}
		})
	}
}

// A program that knows the password asks as often at the same time as it likes.
func TestTryRight(t *testing.T) {
	i, _ := guarded("secret")
	var work sync.WaitGroup
	for range 200 {
		work.Go(func() {
			if err := i.Try(requestFrom(t.Context(), "192.0.2.7"), func() bool { return true }); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
}

// The login of a WebSocket counts with the others.
func TestInstanceSignIn(t *testing.T) {
	i, _ := guarded("secret")
	ends := make(chan error, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		_, err = i.SignIn(r.Context(), c, r)
		ends <- err
	}))
	defer server.Close()
	signIn := func(password string) (theirs, ours error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c, _, err := websocket.Dial(ctx, server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
		theirs = SignInTo(ctx, c, Login{App: "notes"}, password)
		return theirs, <-ends
	}
	if theirs, ours := signIn("secret"); theirs != nil || ours != nil {
		t.Fatalf("the right password: %v, %v", theirs, ours)
	}
	for range 3 {
		if theirs, ours := signIn("wrong"); !errors.Is(theirs, ErrSignIn) || !errors.Is(ours, ErrSignIn) {
			t.Errorf("a wrong password: %v, %v; want %v", theirs, ours, ErrSignIn)
		}
	}
	var many *TooManyError
	if theirs, ours := signIn("secret"); !errors.Is(theirs, ErrSignIn) || !errors.As(ours, &many) {
		t.Errorf("after three wrong ones: %v, %v; want that it is not even looked at", theirs, ours)
	}
}
