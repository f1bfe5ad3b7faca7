package powercut

import (
	"bytes"
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"testing"
)

// A logWriter makes logs as QEMU does.
type logWriter struct {
	bytes.Buffer
	entries uint64
}

// add appends an entry; data are padded to sectors.
func (w *logWriter) add(flags uint64, place, sectors int64, data []byte) {
	if w.Len() == 0 {
		w.Write(make([]byte, sector))
	}
	w.entries++
	header := make([]byte, sector)
	for i, n := range []uint64{uint64(place), uint64(sectors), flags, uint64(len(data))} {
		if i < 3 || flags&flagMark != 0 {
			binary.LittleEndian.PutUint64(header[8*i:], n)
		}
	}
	w.Write(header)
	w.Write(data)
	w.Write(make([]byte, -len(data)&(int(sector)-1)))
}

func (w *logWriter) finish() []byte {
	b := w.Bytes()
	for i, n := range []uint64{logMagic, logVersion, w.entries, uint64(sector)} {
		binary.LittleEndian.PutUint64(b[8*i:], n)
	}
	return b
}

func fill(c byte, sectors int) []byte { return bytes.Repeat([]byte{c}, sectors*int(sector)) }

func TestReadLog(t *testing.T) {
	var w logWriter
	w.add(0, 7, 2, fill('a', 2))
	w.add(flagMark, 0, 0, []byte("a mark that somebody made"))
	w.add(flagFlush, 0, 0, nil)
	w.add(flagDiscard, 9, 1000, nil)
	w.add(flagFlush|flagFUA, 8, 1, fill('b', 1))
	w.add(0, 0, 8192, fill(0, 8192))
	w.add(0, 0, 8192, slices.Concat(fill(0, 8191), fill('c', 1)))
	l, err := ReadLog(bytes.NewReader(w.finish()))
	if err != nil {
		t.Fatal(err)
	}
	want := []Entry{
		{Kind: Write, Sector: 7, Sectors: 2, data: 1024},
		{Kind: Flush},
		{Kind: Discard, Sector: 9, Sectors: 1000, data: 1024 + 1024 + 1024 + 512 + 512},
		{Kind: Flush},
		{Kind: Write, Sector: 8, Sectors: 1, FUA: true, data: 4608},
		{Kind: Zero, Sectors: 8192, data: 5632},
		{Kind: Write, Sectors: 8192, data: 6144 + 8192*512},
	}
	if !slices.Equal(l.Entries, want) {
		t.Errorf("ReadLog(...) = %+v; want %+v", l.Entries, want)
	}
	if n, err := CountEntries(bytes.NewReader(w.Bytes())); n != 7 || err != nil {
		t.Errorf("CountEntries(...) = %d, %v; want 7", n, err)
	}
}

func TestReadLogErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func([]byte) []byte
		want   string
	}{
		{"empty", func([]byte) []byte { return nil }, "EOF"},
		{"no log", func(b []byte) []byte { b[0]++; return b }, "not one of version 1"},
		{"large sectors", func(b []byte) []byte { b[25] = 16; return b }, "4096 bytes, not 512"},
		{"fewer entries", func(b []byte) []byte { b[16] = 3; return b }, "entry 2 of 3: EOF"},
		{"data cut off", func(b []byte) []byte { return b[:len(b)-1] }, "entry 1: EOF"},
		{"beyond all disks", func(b []byte) []byte { b[512+7] = 0x80; return b }, "entry 0: it lies beyond"},
		{"unknown flag", func(b []byte) []byte { b[512+16] = 0x40; return b }, "entry 0: unknown flags 0x40"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var w logWriter
			w.add(0, 7, 1, fill('a', 1))
			w.add(0, 9, 1, fill('b', 1))
			_, err := ReadLog(bytes.NewReader(test.change(w.finish())))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("ReadLog(...) = %v; want an error with %q", err, test.want)
			}
		})
	}
}

// Whatever a file holds, it is a log that can be replayed to its end, or an
// error.
func FuzzReadLog(f *testing.F) {
	var w logWriter
	w.add(0, 7, 2, fill('a', 2))
	w.add(flagFlush, 0, 0, nil)
	w.add(flagDiscard, 8, 5, nil)
	f.Add(w.finish())
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ReadLog(bytes.NewReader(text))
		if err != nil {
			return
		}
		d := Disk{base: bytes.NewReader(nil), size: 1 << 20, log: l}
		b := make([]byte, 4096)
		for _, full := range []int{len(l.Entries), len(l.Entries) / 2} {
			if _, err := d.read(State{Full: full}, b, 1024); err != nil && err != io.EOF {
				t.Errorf("a log that was accepted cannot be read: %v", err)
			}
		}
	})
}
