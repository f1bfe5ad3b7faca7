package secret

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestHash(t *testing.T) {
	for _, password := range []string{"pwd", "", "pässwörd \x00 €", strings.Repeat("x", 1000)} {
		hash := Hash(password)
		if !strings.HasPrefix(hash, "$argon2id$v=19$m=19456,t=2,p=1$") {
			t.Errorf("Hash() = %s", hash)
		}
		if hash == Hash(password) {
			t.Error("two hashes of a password are the same")
		}
		if ok, better, err := Verify(hash, password); !ok || better != "" || err != nil {
			t.Errorf("Verify(%q) = %t, %q, %v; want true", password, ok, better, err)
		}
		if ok, _, err := Verify(hash, password+"x"); ok || err != nil {
			t.Errorf("Verify() of a wrong password = %t, %v", ok, err)
		}
	}
}

// TestVerifyOthers: hashes of the argon2 command, from the reference
// implementation's own tests (phc-winner-argon2, src/test.c).
func TestVerifyOthers(t *testing.T) {
	for _, hash := range []string{
		"$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
		"$argon2id$v=19$m=256,t=2,p=2$c29tZXNhbHQ$bQk8UB/VmZZF4Oo79iDXuL5/0ttZwg2f/5U52iv1cDc",
	} {
		ok, better, err := Verify(hash, "password")
		if !ok || err != nil {
			t.Errorf("Verify(%s) = %t, %v; want true", hash, ok, err)
			continue
		}
		if ok, again, err := Verify(better, "password"); !ok || again != "" || err != nil || !strings.Contains(better, "m=19456,t=2,p=1") {
			t.Errorf("the better hash is %s: %t, %q, %v", better, ok, again, err)
		}
	}
	good := Hash("x")
	for name, hash := range map[string]string{
		"empty": "", "other kind": strings.Replace(good, "argon2id", "argon2i", 1), "other version": strings.Replace(good, "v=19", "v=16", 1),
		"no time": strings.Replace(good, "t=2", "t=0", 1), "all memory": strings.Replace(good, "m=19456", "m=4194304", 1), "more than a number": strings.Replace(good, "m=19456", "m=99999999999", 1),
		"blanks": strings.Replace(good, "m=19456", "m= 19456", 1), "too long": good + "$x", "cut": good[:len(good)-4], "no base64": good[:len(good)-1] + "!",
	} {
		if ok, _, err := Verify(hash, "x"); ok || err == nil {
			t.Errorf("%s: Verify(%s) = %t, %v; want an error", name, hash, ok, err)
		}
	}
}

func TestRandom(t *testing.T) {
	seen, used := map[string]bool{}, map[rune]bool{}
	for range 1000 {
		p := Random()
		if len(p) < 20 || strings.ContainsAny(p, "0O1lIo") || seen[p] {
			t.Errorf("Random() = %q", p)
		}
		seen[p] = true
		for _, r := range p {
			used[r] = true
		}
	}
	if len(used) != len(letters) {
		t.Errorf("of %d letters %d are used", len(letters), len(used))
	}
}

func TestSeal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "etc", "key")
	k, err := OpenKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 || info.Size() != 32 {
		t.Errorf("the key's file is %v, %v; want 32 bytes of mode 0600", info, err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("beside the key there is %v, %v", left, err)
	}
	again, err := OpenKey(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "pwd", "pässword"} {
		sealed := k.Seal("managerPassword", text)
		if text != "" && strings.Contains(sealed, text) || sealed == k.Seal("managerPassword", text) {
			t.Errorf("Seal(%q) = %s", text, sealed)
		}
		if got, err := again.Open("managerPassword", sealed); err != nil || got != text {
			t.Errorf("Open() = %q, %v; want %q", got, err, text)
		}
		if _, err := k.Open("another", sealed); err == nil {
			t.Error("it can be opened under another name")
		}
		raw, err := base64.RawStdEncoding.DecodeString(sealed)
		if err != nil {
			t.Fatal(err)
		}
		for i := range raw {
			raw[i] ^= 1
			if _, err := k.Open("managerPassword", base64.RawStdEncoding.EncodeToString(raw)); err == nil {
				t.Errorf("with another byte %d it can be opened", i)
			}
			raw[i] ^= 1
		}
	}
	for _, sealed := range []string{"", "AAAA", "not base64"} {
		if _, err := k.Open("managerPassword", sealed); err == nil {
			t.Errorf("Open(%q) succeeds", sealed)
		}
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKey(path); err == nil {
		t.Error("a key that others may read is taken")
	}
	if err := os.WriteFile(path, make([]byte, 31), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenKey(path); err == nil || strings.Contains(err.Error(), "cannot make") {
		t.Errorf("a key of 31 bytes: %v; want a refusal", err)
	}
}

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
