package partitions

import (
	"encoding/binary"
	"hash/crc32"
	"reflect"
	"slices"
	"testing"

	"appplatform/internal/fuzzing"
)

// fuzzDisk is how large a disk is whose table does not say it.
const fuzzDisk = 64 * GiB

// fuzzHeads are the beginnings of disks: a new one and an installed one of each
// scheme.
func fuzzHeads(f *testing.F) (heads [][]byte) {
	f.Helper()
	for _, scheme := range []Scheme{GPT, MBR} {
		installed, err := Layout(scheme, fuzzDisk)
		if err != nil {
			f.Fatal(err)
		}
		installed.DiskUUID = Factory(scheme, fuzzDisk).DiskUUID
		for i := range installed.Parts {
			installed.Parts[i].UUID = NewUUID([16]byte{byte(i)})
		}
		for _, table := range []Table{Factory(scheme, fuzzDisk), installed.MarkData(false)} {
			writes, err := table.Writes(nil)
			if err != nil {
				f.Fatal(err)
			}
			heads = append(heads, applied(make([]byte, HeadSize), writes))
		}
	}
	return heads
}

// applied is the beginning of a disk after the writes.
func applied(head []byte, writes []Write) []byte {
	head = slices.Clone(head)
	for _, w := range writes {
		if w.Offset < HeadSize {
			copy(head[w.Offset:], w.Data)
		}
	}
	return head
}

// sealed gives a GPT the checksums of what it says now.
func sealed(head []byte) []byte {
	put, h := binary.LittleEndian.PutUint32, head[Sector:][:headerSize]
	if at := binary.LittleEndian.Uint64(h[72:]); at <= uint64(secondArray) {
		put(h[88:], crc32.ChecksumIEEE(head[at*uint64(Sector):][:entryCount*entrySize]))
	}
	put(h[16:], 0)
	put(h[16:], crc32.ChecksumIEEE(h))
	return head
}

// Whatever lies at the beginning of a disk, a table that is accepted describes
// places that exist, and what is written of it, also for a larger disk, is read
// again as it was.
func FuzzRead(f *testing.F) {
	heads := fuzzHeads(f)
	for kind := range heads {
		f.Add(byte(kind), true, []byte(nil))
	}
	f.Add(byte(1), true, fuzzing.Edit(2*int(Sector)+128+56, "d\x00a\x00t\x00a\x00"))
	f.Add(byte(1), true, fuzzing.Edit(int(Sector)+32, "\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Add(byte(2), false, fuzzing.Edit(tableAt+16+4, "\x83\xfe\xff\xff\x00\x00\x00\xff\x00\x00\x10\x00"))
	f.Fuzz(func(t *testing.T, kind byte, seal bool, edits []byte) {
		head := fuzzing.Edited(heads[int(kind)%len(heads)], edits)
		if seal {
			head = sealed(head)
		}
		table, err := Read(head)
		if err != nil {
			return
		}
		if table.Scheme == MBR {
			table.DiskSize = fuzzDisk
		}
		checkTable(t, table)
		checkTable(t, table.MarkData(true))
		checkWrites(t, table, head)
		grown, _, err := table.Grow(table.DiskSize + fuzzDisk)
		if err != nil {
			return
		}
		for i, p := range grown.Parts {
			old := table.Parts[i]
			if p.Number == Data && p.Size >= old.Size {
				old.Size = p.Size
			}
			if p != old {
				t.Errorf("Grow() makes %+v of %+v", p, table.Parts[i])
			}
		}
		checkWrites(t, grown, head)
	})
}

func checkTable(t *testing.T, table Table) {
	if table.DiskSize < 0 {
		t.Errorf("the disk has %d bytes", table.DiskSize)
	}
	numbers := map[int]bool{}
	for i, p := range table.Parts {
		if p.Start < 0 || p.Size <= 0 || p.End() <= p.Start {
			t.Errorf("partition %d has %d bytes from %d on", p.Number, p.Size, p.Start)
		}
		if i > 0 && table.Parts[i-1].Start > p.Start {
			t.Errorf("partition %d stands behind one that lies behind it", p.Number)
		}
		if numbers[p.Number] || p.Number < 1 || p.Number > entryCount {
			t.Errorf("there is a partition of the number %d, or two", p.Number)
		}
		numbers[p.Number] = true
	}
	if p, foreign := table.Foreign(); foreign && !numbers[p.Number] {
		t.Errorf("Foreign() = %+v, which is not there", p)
	}
}

// checkWrites wants a table that can be written to be read again as it was, and
// nothing written beside the disk.
func checkWrites(t *testing.T, table Table, head []byte) {
	writes, err := table.Writes(head)
	if err != nil {
		return // One that is none of ours.
	}
	for _, w := range writes {
		if w.Offset < 0 || w.Offset%Sector != 0 || w.Offset+Size(len(w.Data)) > table.DiskSize {
			t.Fatalf("%d bytes are written at %d of a disk of %d", len(w.Data), w.Offset, table.DiskSize)
		}
	}
	after := applied(head, writes)
	again, err := Read(after)
	if again.Scheme == MBR {
		again.DiskSize = table.DiskSize
	}
	if err != nil || !reflect.DeepEqual(again, table) {
		t.Errorf("written and read again:\n%+v, %v; want\n%+v", again, err, table)
	}
	if !slices.Equal(after[:signatureAt], head[:signatureAt]) {
		t.Error("the boot code was changed")
	}
}
