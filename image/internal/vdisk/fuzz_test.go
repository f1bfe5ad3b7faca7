package vdisk

import (
	"bytes"
	"context"
	"os"
	"testing"

	"appplatform/internal/fuzzing"
)

// No file, however damaged, makes a reader panic or take much memory.
func FuzzVerify(f *testing.F) {
	raw, err := os.Open(writeRaw(f, 3*miB+512, part{5, []byte("data")}, part{2 * miB, text(70 * kiB)}))
	if err != nil {
		f.Fatal(err)
	}
	defer raw.Close()
	var sound [][]byte
	for _, format := range Formats {
		m := &memory{}
		if _, err := Convert(context.Background(), raw, []Output{{format, m, "disk.vmdk"}}, nil); err != nil {
			f.Fatal(err)
		}
		sound = append(sound, m.b)
		f.Add(uint8(len(sound)-1), uint16(0), []byte{})
	}
	f.Add(uint8(0), uint16(0), fuzzing.Edit(24, "\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Add(uint8(0), uint16(0), fuzzing.Edit(24, "\x7f\xff\xff\xff\xff\xff\xfe\x00"))
	f.Add(uint8(1), uint16(0), fuzzing.Edit(12, "\xff\xff\xff\xff\xff\xff\xff\x00"))
	f.Add(uint8(2), uint16(0x2000>>4), fuzzing.Edit(0, "\xff\xff\xff\xff\xff\xff\xff\x7f"))
	f.Add(uint8(3), uint16(0), fuzzing.Edit(48, "\x7f\xff\xff\xff\xff\xff\xff\x00"))
	f.Fuzz(func(t *testing.T, which uint8, block uint16, edits []byte) {
		which %= uint8(len(sound))
		b := bytes.Clone(sound[which])
		// Edits reach 64 KiB; this chooses which.
		at := min(int(block)<<12, len(b))
		copy(b[at:], fuzzing.Edited(b[at:], edits))
		allocated := fuzzing.Allocated(func() { _, _, _ = Formats[which].Verify(bytes.NewReader(b), int64(len(b))) })
		if allocated > 64*miB {
			t.Errorf("the reader took %d MiB for a file of %d", allocated/miB, len(b)/miB)
		}
	})
}
