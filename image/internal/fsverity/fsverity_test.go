package fsverity

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestSum compares with what `fsverity digest --hash-alg=sha256` of Debian's
// package fsverity 1.5-1.1 has printed for the same files.
func TestSum(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		name string
		size int64
		data map[int64][]byte // the rest are holes
		want string
	}{
		{"empty", 0, nil, "3d248ca542a24fc62d1c43b916eae5016878e2533c88238480b26128a1f1af95"},
		{"less than a block", 3, map[int64][]byte{0: []byte("abc")}, "700b6bd8510f0b4f9bac8b9cf0459151a1c4a99f467892bb4bd289a67df8e19c"},
		{"two levels", 1000000, map[int64][]byte{0: bytes.Repeat([]byte("x"), 1000000)}, "56671b321993cb8fec39556d6c76a252d5691b982442d1c0cdedf24fe2b1eb30"},
		{"hole that fills a block of the tree", 524288, nil, "2d15bd7832895de85aa3d5bdfb57251e27bbec75ff467408340ab3eba858a2e1"},
		{"hole and a byte of one", 524289, nil, "e4143a5705610b7ad2eb85482cfc033c7062a89b9faf9118603f592d53fd10e0"},
		{"disk image", 3 * gib, map[int64][]byte{0: []byte("start"), 3*gib - 3: []byte("end")}, "4486c2088e530422d7498a8d0c834898d31f28a1478d2d4f413f7c7c3bac4ea3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(c.size); err != nil {
				t.Fatal(err)
			}
			for at, data := range c.data {
				if _, err := f.WriteAt(data, at); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := Sum(path); err != nil || got != c.want {
				t.Errorf("Sum() = %s, %v; want %s", got, err, c.want)
			}
		})
	}
}
