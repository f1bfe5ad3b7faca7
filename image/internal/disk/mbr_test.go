package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appplatform/internal/testtools"
	"appplatform/partitions"
	"appplatform/tooltree"
)

func gatewaySample(t *testing.T) Options {
	t.Helper()
	o := sample(t)
	o.Table = partitions.Factory(partitions.MBR, 4*partitions.GiB)
	return o
}

// OS-B1, OS-A3: the image of a gateway is a table and a FAT32 file system, cut
// off behind its last file.
func TestGatewayImageSatisfiesTheJudges(t *testing.T) {
	out := made(t, gatewaySample(t))
	dir := filepath.Dir(out)
	info, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	if size := info.Size(); size > 44<<20 || size < 40<<20 {
		t.Errorf("the image has %d bytes; want little more than its 40 MiB of files", size)
	}
	// On a card there is something behind it.
	card := filepath.Join(dir, "card.img")
	image, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(card, append(image, bytes.Repeat([]byte("old"), 60<<20)...), 0o644); err != nil {
		t.Fatal(err)
	}
	boot, _ := gatewaySample(t).Table.Part(partitions.Boot)
	if got := judge(t, dir, "sfdisk", "--verify", card); !strings.Contains(got, "No errors detected") {
		t.Errorf("sfdisk --verify says\n%s", got)
	}
	sda1 := cut(t, card, boot)
	judge(t, filepath.Dir(sda1), "fsck.fat", "-n", sda1)
	if got := judge(t, filepath.Dir(sda1), "mtype", "-i", sda1, "::/label"); got != "160001\n" {
		t.Errorf("/label holds %q; want 160001", got)
	}
	if got := judge(t, filepath.Dir(sda1), "mtype", "-i", sda1, "::/extlinux/extlinux.conf"); !strings.Contains(got, "\nDEFAULT rescue-a\n") ||
		!strings.Contains(got, "root=PARTUUID=41505001-03 ro") || strings.Index(got, "DEFAULT") > 400 {
		t.Errorf("extlinux.conf is\n%s", got)
	}
	rootfs, err := os.ReadFile(gatewaySample(t).Boot["a/rootfs.ext4.xz"].Path)
	if err != nil {
		t.Fatal(err)
	}
	if got := judge(t, filepath.Dir(sda1), "mtype", "-i", sda1, "::/a/rootfs.ext4.xz"); got != string(rootfs) {
		t.Errorf("a/rootfs.ext4.xz has %d other bytes than the file of %d", len(got), len(rootfs))
	}
}

func TestGatewayImageIsReproducible(t *testing.T) {
	one, err := os.ReadFile(made(t, gatewaySample(t)))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2100 * time.Millisecond) // FAT counts in twos of seconds.
	two, err := os.ReadFile(made(t, gatewaySample(t)))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Errorf("two images of %d and %d bytes differ", len(one), len(two))
	}
	o := gatewaySample(t)
	o.Boot["a/big"] = Source{Data: make([]byte, 90<<20)}
	err = Write(t.Context(), testtools.Open(t, tooltree.Image), o, filepath.Join(t.TempDir(), "disk.img"))
	if err == nil || !strings.Contains(err.Error(), "sda1 (200 MiB) has no room for a second image") {
		t.Errorf("Write() = %v; want that there is no room", err)
	}
}
