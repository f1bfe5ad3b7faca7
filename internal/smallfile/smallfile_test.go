package smallfile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("twelve bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	for limit, want := range map[int64]string{12: "twelve bytes", 13: "twelve bytes", 11: ""} {
		if got, err := Read(path, limit); string(got) != want || (err == nil) != (want != "") {
			t.Errorf("Read(%d) = %q, %v; want %q", limit, got, err, want)
		}
	}
	for limit, want := range map[int64]string{5: "bytes", 12: "twelve bytes", 100: "twelve bytes"} {
		if got, err := Tail(path, limit); string(got) != want || err != nil {
			t.Errorf("Tail(%d) = %q, %v; want %q", limit, got, err, want)
		}
	}
	// A file that claims to be as large as the memory of no machine.
	if err := os.Truncate(path, 1<<42); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path, Most); err == nil {
		t.Error("Read() of 4 TiB succeeds")
	}
	if got, err := Tail(path, 3); string(got) != "\x00\x00\x00" || err != nil {
		t.Errorf("Tail() of 4 TiB = %q, %v", got, err)
	}
	if _, err := Read(path+"x", Most); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Read() of nothing = %v", err)
	}
}
