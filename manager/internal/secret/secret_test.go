package secret

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
