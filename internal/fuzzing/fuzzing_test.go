package fuzzing

import (
	"slices"
	"testing"
)

func TestEdited(t *testing.T) {
	data := []byte("0123456789")
	for _, test := range []struct {
		name  string
		edits []byte
		want  string
	}{
		{"none", nil, "0123456789"},
		{"two", slices.Concat(Edit(2, "ab"), Edit(9, "z")), "01ab45678z"},
		{"over the end", Edit(8, "xyz"), "01234567xy"},
		{"behind the end", Edit(10, "x"), "0123456789"},
		{"cut off", Edit(0, "abc")[:4], "a123456789"},
	} {
		if got := string(Edited(data, test.edits)); got != test.want {
			t.Errorf("%s: Edited() = %s; want %s", test.name, got, test.want)
		}
	}
	if string(data) != "0123456789" {
		t.Errorf("Edited() has changed its argument to %s", data)
	}
}

func TestAllocated(t *testing.T) {
	var kept []byte
	if n := Allocated(func() { kept = make([]byte, 1<<20) }); n < 1<<20 || n > 2<<20 {
		t.Errorf("Allocated() of %d bytes = %d", len(kept), n)
	}
}
