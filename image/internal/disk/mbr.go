package disk

import (
	"context"
	"os"
	"strings"

	"appplatform/partitions"
	"appplatform/tooltree"
)

// writeMBR makes a disk for gateways: the table and sda1, cut off behind the
// last byte that is in use. What lies behind it on the card is of no matter.
func writeMBR(ctx context.Context, tools *tooltree.Tree, o Options, f *os.File) error {
	boot, _ := o.Table.Part(partitions.Boot)
	if err := f.Truncate(int64(boot.End())); err != nil {
		return err
	}
	writes, err := o.Table.Writes(nil)
	if err != nil {
		return err
	}
	for _, w := range writes {
		if _, err := f.WriteAt(w.Data, int64(w.Offset)); err != nil {
			return err
		}
	}
	// Clusters of 2 KiB: smaller ones would need tables of megabytes, and with
	// larger ones it would be too few for FAT32.
	sda1 := fat{boot, "APBOOT", strings.ToUpper(o.Table.DiskUUID), []string{"-F", "32", "-s", "4"}}
	if err := writeFAT(ctx, tools, sda1, o.Boot, o.Time, f.Name()); err != nil {
		return err
	}
	used, err := usedFAT32(f, boot)
	if err != nil {
		return err
	}
	return f.Truncate(int64(boot.Start + used))
}
