package rootfs

import (
	"os"
	"testing"

	"appplatform/boards"
)

func testBoard(t *testing.T) boards.Board {
	t.Helper()
	b, err := boards.Load(os.DirFS(".."), "x86_64")
	if err != nil {
		t.Fatal(err)
	}
	return b
}
