package partitions

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// installedOn is a table with all partitions and made-up UUIDs.
func installedOn(t *testing.T, disk Size, seed byte) Table {
	t.Helper()
	table, err := Layout(GPT, disk)
	if err != nil {
		t.Fatal(err)
	}
	table.DiskUUID = NewUUID([16]byte{seed})
	for i := range table.Parts {
		if p := &table.Parts[i]; p.UUID == "" {
			p.UUID = NewUUID([16]byte{seed, byte(p.Number)})
		}
	}
	return table
}

// A sparseDisk is a disk of which only the ends are kept.
type sparseDisk struct{ sectors map[Size][]byte }

func (d sparseDisk) write(w Write) {
	for i := Size(0); i < Size(len(w.Data)); i += Sector {
		d.sectors[w.Offset+i] = bytes.Clone(w.Data[i : i+Sector])
	}
}

func (d sparseDisk) read(offset, size Size) []byte {
	b := make([]byte, 0, size)
	for end := offset + size; offset < end; offset += Sector {
		if s, ok := d.sectors[offset]; ok {
			b = append(b, s...)
		} else {
			b = append(b, make([]byte, Sector)...)
		}
	}
	return b
}

func (d sparseDisk) head() []byte { return d.read(0, HeadSize) }

func write(t *testing.T, d sparseDisk, table Table) {
	t.Helper()
	writes, err := table.GPTWrites(d.head())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range writes {
		d.write(w)
	}
}

// kernelAccepts applies the rules of the kernel's GPT code to the primary
// table on a disk of some size: it is the only reader that does not go on to
// the backup, unless told to on its command line.
func kernelAccepts(d sparseDisk, disk Size) bool {
	h := d.read(Sector, Sector)
	crc := binary.LittleEndian.Uint32(h[16:])
	clear(h[16:20])
	le64 := func(at int) uint64 { return binary.LittleEndian.Uint64(h[at:]) }
	last := uint64(disk/Sector) - 1
	if string(h[:8]) != "EFI PART" || crc32.ChecksumIEEE(h[:headerSize]) != crc || le64(24) != 1 {
		return false
	}
	if le64(40) > last || le64(48) > last || le64(48) < le64(40) {
		return false
	}
	entries := d.read(Size(le64(72))*Sector, arraySectors*Sector)
	return crc32.ChecksumIEEE(entries) == binary.LittleEndian.Uint32(h[88:])
}

func TestGPTRoundTrip(t *testing.T) {
	for _, size := range []Size{4 * GiB, 16 * GiB, 64 * GiB, 3000 * GiB} {
		d := sparseDisk{map[Size][]byte{}}
		want := installedOn(t, size, 7)
		write(t, d, want)
		got, err := ReadGPT(d.head())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%v: the table read differs from that written (-want +got):\n%s", size, diff)
		}
	}
}

// Whatever sector was the last to reach the disk, the machine finds the old or
// the new table: GRUB and the agent on every disk, the kernel wherever it
// accepted the old one.
func TestGPTWritesSurvivePowerCut(t *testing.T) {
	for _, size := range []Size{4 * GiB, 16 * GiB, 64 * GiB} {
		d := sparseDisk{map[Size][]byte{}}
		write(t, d, Factory(GPT, 16*GiB))
		before := Factory(GPT, 16*GiB)
		old, err := ReadGPT(d.head())
		if err != nil {
			t.Fatal(err)
		}
		for step, next := range []Table{installedOn(t, size, 1), installedOn(t, size, 2), installedOn(t, size, 3)} {
			fits := before.DiskSize <= size
			writes, err := next.GPTWrites(d.head())
			if err != nil {
				t.Fatal(err)
			}
			for i, w := range writes {
				for at := Size(0); at < Size(len(w.Data)); at += Sector {
					d.write(Write{w.Offset + at, w.Data[at : at+Sector]})
					got, err := ReadGPT(d.head())
					if err != nil {
						t.Fatalf("%v, table %d, write %d, sector %d: %v", size, step, i, at/Sector, err)
					}
					if got.DiskUUID != old.DiskUUID && got.DiskUUID != next.DiskUUID {
						t.Fatalf("%v, table %d, write %d, sector %d: neither the old nor the new table", size, step, i, at/Sector)
					}
					if fits && !kernelAccepts(d, size) {
						t.Fatalf("%v, table %d, write %d, sector %d: the kernel would refuse the table", size, step, i, at/Sector)
					}
				}
			}
			if !kernelAccepts(d, size) {
				t.Fatalf("%v, table %d: the kernel refuses the new table", size, step)
			}
			before, old = next, next
		}
	}
}

func TestReadGPTRefuses(t *testing.T) {
	d := sparseDisk{map[Size][]byte{}}
	write(t, d, installedOn(t, 4*GiB, 1))
	tests := []struct {
		name   string
		damage func(head []byte)
		want   string
	}{
		{"empty disk", func(head []byte) { clear(head) }, "no GUID partition table"},
		{"header", func(head []byte) { head[Sector+40]++ }, "wrong checksum of the header"},
		{"entries", func(head []byte) { head[2*Sector+60]++ }, "wrong checksum of the entries"},
		{"short", nil, "no GUID partition table"},
	}
	for _, test := range tests {
		head := d.head()
		if test.damage == nil {
			head = head[:2*Sector]
		} else {
			test.damage(head)
		}
		if _, err := ReadGPT(head); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: ReadGPT() = %v; want %q", test.name, err, test.want)
		}
	}
}

// onFile writes tables one after the other to a sparse file of the last one's size.
func onFile(t *testing.T, tables ...Table) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(tables[len(tables)-1].DiskSize)); err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		head := make([]byte, HeadSize)
		if _, err := f.ReadAt(head, 0); err != nil {
			t.Fatal(err)
		}
		writes, err := table.GPTWrites(head)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range writes {
			if _, err := f.WriteAt(w.Data, int64(w.Offset)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return path
}

// tool runs a program that judges what we wrote.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("cannot judge the table: the program %q is missing (Debian packages fdisk and gdisk)", name)
	}
	cmd := exec.Command(path, args...)
	var said bytes.Buffer
	cmd.Stderr = &said // Whatever runs it may say that it waits for another one.
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &said)
	}
	return string(out)
}

func TestForeignToolsAcceptGPT(t *testing.T) {
	first, second := installedOn(t, 4*GiB, 1), installedOn(t, 4*GiB, 2)
	for name, path := range map[string]string{
		"factory":              onFile(t, Factory(GPT, 16*GiB)),
		"entries in 1st place": onFile(t, first),
		"entries in 2nd place": onFile(t, first, second),
		"back in 1st place":    onFile(t, first, second, first),
	} {
		if out := tool(t, "sgdisk", "-v", path); !strings.Contains(out, "No problems found") {
			t.Errorf("%s: sgdisk -v finds problems:\n%s", name, out)
		}
		if out := tool(t, "sfdisk", "--verify", path); !strings.Contains(out, "No errors detected") {
			t.Errorf("%s: sfdisk --verify finds problems:\n%s", name, out)
		}
	}
}

func TestSfdiskReadsTheSame(t *testing.T) {
	want := installedOn(t, 16*GiB, 9)
	var got struct {
		PartitionTable struct {
			ID         string
			Partitions []struct {
				Node, Type, UUID, Name string
				Start, Size            int64
			}
		}
	}
	if err := json.Unmarshal([]byte(tool(t, "sfdisk", "--json", onFile(t, want))), &got); err != nil {
		t.Fatal(err)
	}
	read := Table{Scheme: GPT, DiskSize: 16 * GiB, DiskUUID: got.PartitionTable.ID}
	for _, p := range got.PartitionTable.Partitions {
		number := 0
		for _, digit := range p.Node[strings.LastIndex(p.Node, "img")+3:] {
			number = number*10 + int(digit-'0')
		}
		read.Parts = append(read.Parts, Partition{number, p.Name, p.Type, p.UUID, Size(p.Start) * Sector, Size(p.Size) * Sector})
	}
	byNumber := cmp.Transformer("byNumber", func(parts []Partition) map[int]Partition {
		m := map[int]Partition{}
		for _, p := range parts {
			m[p.Number] = p
		}
		return m
	})
	if diff := cmp.Diff(want, read, byNumber); diff != "" {
		t.Errorf("sfdisk reads another table (-want +got):\n%s", diff)
	}
}
