package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/image/internal/kernel"
	"appplatform/partitions"
)

// OS-A3: an image over the board's limit is refused, with the size of each part.
func TestImageLimit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.img.part")
	put(t, file, "")
	if err := os.Truncate(file, 2_000_000); err != nil {
		t.Fatal(err)
	}
	b := &build{Plan: plan(t, Options{Dir: checkout(t), Board: "vm", Archive: testArchive(t)}), kernel: &kernel.Kernel{Image: file}, ramdisk: file}
	b.packed.path = file
	for limit, want := range map[partitions.Size]string{
		0: "", 2_000_000: "",
		1_999_999: "the image has 2.00 MB and may have 2.00 MB: kernel 2.00 MB, ramdisk 2.00 MB, packed rootfs 2.00 MB\nhint: leave something out",
	} {
		b.Board.ImageLimit = limit
		err := b.checkSize([]string{strings.TrimSuffix(file, ".part")})
		if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("checkSize() with the limit %v = %v; want %q", limit, err, want)
		}
	}
}
