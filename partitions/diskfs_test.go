package partitions

import (
	"os"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs/partition/gpt"
)

// TestGoDiskfsReadsTheSame asks a second implementation what a table says.
func TestGoDiskfsReadsTheSame(t *testing.T) {
	want := installedOn(t, 16*GiB, 7)
	f, err := os.Open(onFile(t, want))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := gpt.Read(f, int(Sector), int(Sector))
	if err != nil {
		t.Fatalf("go-diskfs cannot read the table: %v", err)
	}
	if !strings.EqualFold(got.GUID, want.DiskUUID) {
		t.Errorf("disk GUID is %s; want %s", got.GUID, want.DiskUUID)
	}
	found := map[int]*gpt.Partition{}
	for _, q := range got.Partitions {
		found[q.Index] = q
	}
	for _, p := range want.Parts {
		q := found[p.Number]
		if q == nil {
			t.Errorf("go-diskfs does not find partition %d", p.Number)
		} else if q.Start != uint64(p.Start/Sector) || q.End != uint64(p.End()/Sector-1) || !strings.EqualFold(q.GUID, p.UUID) || !strings.EqualFold(string(q.Type), p.Type) || q.Name != p.Name {
			t.Errorf("partition %d is %+v; want %+v", p.Number, q, p)
		}
	}
}
