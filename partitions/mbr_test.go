package partitions

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// mbrDisk is an image file with the table.
func mbrDisk(t *testing.T, table Table, head []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	writes, err := table.Writes(head)
	if err != nil {
		t.Fatal(err)
	}
	if len(writes) != 1 || len(writes[0].Data) != int(Sector) {
		t.Fatalf("Writes() = %d writes; want one sector, which cannot tear", len(writes))
	}
	if _, err := f.WriteAt(writes[0].Data, int64(writes[0].Offset)); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(int64(table.DiskSize)); err != nil {
		t.Fatal(err)
	}
	return path
}

// OS-B1, OS-B3: sfdisk sees the gateways' table as it is meant, and so do we.
func TestSfdiskReadsMBR(t *testing.T) {
	want, err := Layout(MBR, 4*GiB)
	if err != nil {
		t.Fatal(err)
	}
	want.DiskUUID = factoryDiskID
	path := mbrDisk(t, want, bytes.Repeat([]byte{0x90}, int(HeadSize)))
	if out := tool(t, "sfdisk", "--verify", path); !strings.Contains(out, "No errors detected") {
		t.Errorf("sfdisk --verify finds problems:\n%s", out)
	}
	var got struct {
		PartitionTable struct {
			Label, ID  string
			Partitions []struct {
				Node, Type  string
				Start, Size int64
				Bootable    bool
			}
		}
	}
	if err := json.Unmarshal([]byte(tool(t, "sfdisk", "--json", path)), &got); err != nil {
		t.Fatal(err)
	}
	if got.PartitionTable.Label != "dos" || got.PartitionTable.ID != "0x"+factoryDiskID || len(got.PartitionTable.Partitions) != 4 {
		t.Fatalf("sfdisk reads %+v", got)
	}
	for _, p := range got.PartitionTable.Partitions {
		number := int(p.Node[len(p.Node)-1] - '0')
		our, _ := want.Part(number)
		if Size(p.Start)*Sector != our.Start || Size(p.Size)*Sector != our.Size || strings.TrimLeft(our.Type, "0") != p.Type || p.Bootable != (number == Boot) {
			t.Errorf("sfdisk reads %+v; want %+v", p, our)
		}
	}

	head, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if head[0] != 0x90 || head[439] != 0x90 {
		t.Error("what stood in front of the table is gone")
	}
	read, err := Read(head[:HeadSize])
	if err != nil {
		t.Fatal(err)
	}
	want.DiskSize = 0
	for i := range want.Parts {
		want.Parts[i].UUID = want.mbrUUID(want.Parts[i].Number)
	}
	if diff := cmp.Diff(want, read); diff != "" {
		t.Errorf("Read() differs (-want +got):\n%s", diff)
	}
}

// A disk without a table is not taken for one with.
func TestReadMBRRefuses(t *testing.T) {
	fat := make([]byte, HeadSize) // A file system in place of a table.
	copy(fat, "\xeb\x58\x90mkfs.fat")
	copy(fat[tableAt:], "This is not a bootable disk")
	fat[510], fat[511] = 0x55, 0xaa
	empty := make([]byte, HeadSize)
	empty[510], empty[511] = 0x55, 0xaa
	gpt := make([]byte, HeadSize)
	copy(gpt, protectiveMBR(nil, 1000))
	for name, head := range map[string][]byte{"zeros": make([]byte, HeadSize), "short": {0x55}, "FAT": fat, "empty": empty, "damaged GPT": gpt} {
		if got, err := Read(head); !errors.Is(err, ErrNoMBR) {
			t.Errorf("%s: Read() = %v, %v; want %v", name, got, err, ErrNoMBR)
		}
	}
}

// What is said about sda2 is read again, and is no reason to call the disk
// foreign.
func TestMarkData(t *testing.T) {
	for _, scheme := range []Scheme{GPT, MBR} {
		table, err := Layout(scheme, 4*GiB)
		if err != nil {
			t.Fatal(err)
		}
		fresh := table.MarkData(false)
		if !table.HoldsData() || fresh.HoldsData() || !fresh.MarkData(true).HoldsData() {
			t.Errorf("%s: HoldsData() = %v, after MarkData(false) %v, after MarkData(true) %v; want true, false, true",
				scheme, table.HoldsData(), fresh.HoldsData(), fresh.MarkData(true).HoldsData())
		}
		for _, tb := range []Table{Factory(scheme, 4*GiB), table, fresh} {
			if p, foreign := tb.Foreign(); foreign {
				t.Errorf("%s: Foreign() = %+v", scheme, p)
			}
		}
		if Factory(scheme, 4*GiB).HoldsData() {
			t.Errorf("%s: the factory's table says that it holds data", scheme)
		}
		fresh.Parts[len(fresh.Parts)-1].Start += MiB
		if p, foreign := fresh.Foreign(); !foreign || p.Number != Data {
			t.Errorf("%s: Foreign() = %+v, %v; want sda2", scheme, p, foreign)
		}
	}
}
