package partitions

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// OS-F1: the end of sda2 moves, and nothing else.
func TestGrow(t *testing.T) {
	for _, test := range []struct {
		scheme   Scheme
		from, to Size
		changed  bool
		end      Size
	}{
		{GPT, 16 * GiB, 64 * GiB, true, 64*GiB - MiB},
		{GPT, 16 * GiB, 16 * GiB, false, 16*GiB - MiB},
		{GPT, 16 * GiB, 16*GiB + 5*Sector, true, 16*GiB - MiB}, // only the backup moves
		{GPT, 4 * GiB, 3000 * GiB, true, 3000*GiB - MiB},
		{MBR, 4 * GiB, 16 * GiB, true, 16 * GiB},
		{MBR, 4 * GiB, 4 * GiB, false, 4 * GiB},
		{MBR, 4 * GiB, 4*GiB + 5*Sector, false, 4 * GiB},
		{MBR, 1000 * GiB, 3000 * GiB, true, 2048*GiB - MiB}, // it cannot count further
		{MBR, 2500 * GiB, 3000 * GiB, false, 2048*GiB - MiB},
	} {
		name := fmt.Sprintf("%s %v -> %v", test.scheme, test.from, test.to)
		old := read(t, installed(t, test.scheme, test.from))
		got, changed, err := old.Grow(test.to)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		data, _ := got.Part(Data)
		if changed != test.changed || data.End() != test.end || got.DiskSize != test.to {
			t.Errorf("%s: sda2 ends at %v of %v, changed=%v; want %v of %v, %v", name, data.End(), got.DiskSize, changed, test.end, test.to, test.changed)
		}
		for i, p := range old.Parts {
			if p.Number == Data {
				p.Size = got.Parts[i].Size
			}
			if diff := cmp.Diff(p, got.Parts[i]); diff != "" {
				t.Errorf("%s: another thing has changed (-before +after):\n%s", name, diff)
			}
		}
		again, changed, err := read(t, got).Grow(test.to)
		if diff := cmp.Diff(got, again); err != nil || changed || diff != "" {
			t.Errorf("%s: growing again: changed=%v, %v:\n%s", name, changed, err, diff)
		}
	}
}

// A table that somebody has stretched by hand stays as it is and can be written.
func TestGrowKeepsTheLastSectors(t *testing.T) {
	for _, scheme := range []Scheme{GPT, MBR} {
		table := installed(t, scheme, 16*GiB+5*Sector)
		data := &table.Parts[len(table.Parts)-1]
		data.Size = lastEnd(scheme, table.DiskSize) - data.Start
		got, changed, err := read(t, table).Grow(table.DiskSize)
		if err != nil || changed {
			t.Errorf("%s: Grow() = changed %v, %v; want no change", scheme, changed, err)
		}
		if diff := cmp.Diff(data.Size, got.Parts[len(got.Parts)-1].Size); diff != "" {
			t.Errorf("%s: sda2 has changed:\n%s", scheme, diff)
		}
	}
}

func TestGrowRefuses(t *testing.T) {
	behind := installed(t, GPT, 16*GiB)
	behind.Parts = append(behind.Parts, Partition{Number: 5, Start: 16 * GiB, Size: GiB})
	for _, test := range []struct {
		name  string
		table Table
		disk  Size
		want  string
	}{
		{"smaller", installed(t, GPT, 16*GiB), 8 * GiB, "the disk has 8 GiB and its partition table needs 16 GiB"},
		{"a sector smaller", installed(t, GPT, 16*GiB), 16*GiB - Sector, "its partition table needs 16 GiB"},
		{"smaller MBR", read(t, installed(t, MBR, 16*GiB)), 8 * GiB, "the disk has 8 GiB and its partition table needs 16 GiB"},
		{"something behind sda2", behind, 64 * GiB, "sda2 is not the last partition"},
		{"no sda2", Factory(GPT, 16*GiB), 64 * GiB, "sda2 is not the last partition"},
		{"nothing", Table{Scheme: GPT}, 64 * GiB, "sda2 is not the last partition"},
	} {
		if _, _, err := test.table.Grow(test.disk); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: Grow(%v) = %v; want %q", test.name, test.disk, err, test.want)
		}
	}
}

// The power fails while the table grows: whatever sectors have reached the disk,
// in whatever order within one write, our reader and the kernel find the old or
// the new table, and as soon as it is the new one, nothing is left to write.
func TestGrowSurvivesPowerCut(t *testing.T) {
	for _, scheme := range []Scheme{GPT, MBR} {
		for _, times := range []int{1, 2} { // The entries have two places.
			d := sparseDisk{map[Size][]byte{}}
			old := installed(t, scheme, 16*GiB)
			for range times {
				writeTo(t, d, old)
			}
			next, changed, err := old.Grow(64 * GiB)
			if err != nil || !changed {
				t.Fatalf("Grow() = changed %v, %v", changed, err)
			}
			writes, err := next.Writes(d.head())
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range writes {
				for _, order := range []string{"forwards", "backwards"} {
					torn := sparseDisk{map[Size][]byte{}}
					for _, before := range writes[:i] {
						torn.write(before)
					}
					for at, s := range d.sectors {
						if _, written := torn.sectors[at]; !written {
							torn.sectors[at] = s
						}
					}
					sectors := Size(len(w.Data)) / Sector
					for n := range sectors {
						if order == "backwards" {
							n = sectors - 1 - n
						}
						torn.write(Write{w.Offset + n*Sector, w.Data[n*Sector : (n+1)*Sector]})
						where := fmt.Sprintf("%s, write %d, sector %d, %s", scheme, i, n, order)
						got, err := Read(torn.head())
						if err != nil {
							t.Fatalf("%s: %v", where, err)
						}
						data, _ := got.Part(Data)
						complete := i == len(writes)-1
						if want, _ := map[bool]Table{false: old, true: next}[complete].Part(Data); data != want {
							t.Fatalf("%s: sda2 is %+v; want %+v", where, data, want)
						}
						if _, changed, err := got.Grow(64 * GiB); err != nil || changed == complete {
							t.Fatalf("%s: Grow() = changed %v, %v", where, changed, err)
						}
						if scheme == GPT && !kernelAccepts(torn, 64*GiB) {
							t.Fatalf("%s: the kernel would refuse the table", where)
						}
					}
				}
			}
		}
	}
}

// sfdisk finds all partitions after each write, and nothing to complain about
// after the last one.
func TestForeignToolsAcceptGrowing(t *testing.T) {
	for _, scheme := range []Scheme{GPT, MBR} {
		old := installed(t, scheme, 16*GiB)
		next, _, err := old.Grow(64 * GiB)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "disk.img")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		put := func(table Table, each func()) {
			head := make([]byte, HeadSize)
			_, _ = f.ReadAt(head, 0)
			writes, err := table.Writes(head)
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range writes {
				if _, err := f.WriteAt(w.Data, int64(w.Offset)); err != nil {
					t.Fatal(err)
				}
				each()
			}
		}
		put(old, func() {})
		if err := f.Truncate(int64(next.DiskSize)); err != nil {
			t.Fatal(err)
		}
		put(next, func() {
			if out := tool(t, "sfdisk", "--dump", path); strings.Count(out, "start=") != len(old.Parts) {
				t.Errorf("%s: sfdisk --dump prints\n%s", scheme, out)
			}
		})
		if out := tool(t, "sfdisk", "--verify", path); !strings.Contains(out, "No errors detected") {
			t.Errorf("%s: sfdisk --verify finds problems:\n%s", scheme, out)
		}
		if scheme == GPT {
			if out := tool(t, "sgdisk", "-v", path); !strings.Contains(out, "No problems found") {
				t.Errorf("sgdisk -v finds problems:\n%s", out)
			}
		}
	}
}

// installed is an installed disk of either scheme.
func installed(t *testing.T, scheme Scheme, disk Size) Table {
	t.Helper()
	if scheme == GPT {
		return installedOn(t, disk, 7)
	}
	table, err := Layout(MBR, disk)
	if err != nil {
		t.Fatal(err)
	}
	table.DiskUUID = factoryDiskID
	for i := range table.Parts {
		table.Parts[i].UUID = table.mbrUUID(table.Parts[i].Number)
	}
	return table
}

func writeTo(t *testing.T, d sparseDisk, table Table) {
	t.Helper()
	writes, err := table.Writes(d.head())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range writes {
		d.write(w)
	}
}

// read is what a disk with the table says; the size of an MBR's disk is lost.
func read(t *testing.T, table Table) Table {
	t.Helper()
	d := sparseDisk{map[Size][]byte{}}
	writeTo(t, d, table)
	got, err := Read(d.head())
	if err != nil {
		t.Fatal(err)
	}
	return got
}
