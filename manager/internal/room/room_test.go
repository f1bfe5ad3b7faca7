package room

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, test := range []struct {
		size, left int64
		want       string
	}{
		{100, 100, ""},
		{0, 0, ""},
		{3 << 20, 1 << 20, "3 MB more room"},
		{1, -5 << 20, "6 MB more room"},
		{1 << 40, 1 << 30, "1047553 MB more room"},
	} {
		err := Left(func() int64 { return test.left }).Check(test.size)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "\nhint: ")) {
			t.Errorf("Check(%d) of %d = %v; want %q", test.size, test.left, err, test.want)
		}
	}
}

// Nobody knows how much will come; what was taken fits.
func TestReader(t *testing.T) {
	const disk = 5 << 20
	var taken bytes.Buffer
	left := Left(func() int64 { return disk - int64(taken.Len()) })
	endless := io.MultiReader(bytes.NewReader(make([]byte, 700)), neverEnds{})
	_, err := io.Copy(&taken, left.Reader(endless))
	if err == nil || !strings.Contains(err.Error(), "does not fit") {
		t.Errorf("an endless upload ends with %v", err)
	}
	if n := taken.Len(); n > disk || n <= disk-2*step {
		t.Errorf("%d bytes were taken; want nearly %d", n, disk)
	}
	text, err := io.ReadAll(Left(func() int64 { return 2 * step }).Reader(strings.NewReader("fits")))
	if err != nil || string(text) != "fits" {
		t.Errorf("ReadAll = %q, %v", text, err)
	}
}

type neverEnds struct{}

func (neverEnds) Read(p []byte) (int, error) { return len(p), nil }
