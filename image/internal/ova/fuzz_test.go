package ova

import (
	"bytes"
	"io"
	"testing"

	"appplatform/internal/fuzzing"
)

// Whatever an OVA says, reading it ends, and a disk that is taken is one that the
// manifest vouches for and that lies in the file.
func FuzzOpen(f *testing.F) {
	disk := bytes.Repeat([]byte("a disk "), 100)
	var b bytes.Buffer
	if err := Write(&b, machine, bytes.NewReader(disk), int64(len(disk)), when); err != nil {
		f.Fatal(err)
	}
	sound := b.Bytes()
	f.Add([]byte{})
	f.Add(fuzzing.Edit(124, "77777777777"))
	f.Add(fuzzing.Edit(156, "x"))
	f.Add(fuzzing.Edit(512, "<Envelope/>"))
	f.Add(fuzzing.Edit(len(sound)-1024-512, "?"))
	f.Fuzz(func(t *testing.T, edits []byte) {
		b := fuzzing.Edited(sound, edits)
		var p *Package
		var err error
		if n := fuzzing.Allocated(func() { p, err = Open(bytes.NewReader(b), int64(len(b))) }); n > 16<<20 {
			t.Errorf("the reader took %d MiB for %d kB", n>>20, len(b)>>10)
		}
		if err != nil {
			return
		}
		got, err := io.ReadAll(p.Disk)
		if err != nil || !bytes.Equal(got, disk) || p.Capacity < 0 {
			t.Errorf("another disk is taken, of %d bytes (%v), capacity %d", len(got), err, p.Capacity)
		}
	})
}
