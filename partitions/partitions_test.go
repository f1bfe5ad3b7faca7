package partitions

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// describe is a table as one line for each partition, in their order on the disk.
func describe(t Table) string {
	var b strings.Builder
	for _, p := range t.Parts {
		fmt.Fprintf(&b, "%d %s %v+%v\n", p.Number, p.Name, p.Start, p.Size)
	}
	return b.String()
}

// OS-B1, OS-B2, OS-B3, OS-B4.
func TestLayout(t *testing.T) {
	const gptFront = `14 bios 1 MiB+1 MiB
15 efi 2 MiB+16 MiB
1 boot 18 MiB+350 MiB
3 rootfs 368 MiB+500 MiB
4 swap 868 MiB+512 MiB
`
	const mbrFront = `1  1 MiB+200 MiB
3  201 MiB+500 MiB
4  701 MiB+512 MiB
`
	tests := []struct {
		scheme Scheme
		disk   Size
		want   string
	}{
		{GPT, 16 * GiB, gptFront + "2 data 1380 MiB+15003 MiB\n"},
		{GPT, 4 * GiB, gptFront + "2 data 1380 MiB+2715 MiB\n"},
		{GPT, 64 * GiB, gptFront + "2 data 1380 MiB+64155 MiB\n"},
		{GPT, 64*GiB + 33*Sector, gptFront + "2 data 1380 MiB+64156 MiB\n"},
		{GPT, 2405 * MiB, gptFront + "2 data 1380 MiB+1 GiB\n"},
		{MBR, 8 * GiB, mbrFront + "2  1213 MiB+6979 MiB\n"},
		{MBR, 3000 * GiB, mbrFront + "2  1213 MiB+2095938 MiB\n"},
	}
	for _, test := range tests {
		got, err := Layout(test.scheme, test.disk)
		if err != nil {
			t.Errorf("Layout(%v, %v) = %v", test.scheme, test.disk, err)
			continue
		}
		if diff := cmp.Diff(test.want, describe(got)); diff != "" {
			t.Errorf("Layout(%v, %v) differs (-want +got):\n%s", test.scheme, test.disk, diff)
		}
	}
}

func TestLayoutTooSmall(t *testing.T) {
	for _, disk := range []Size{0, 512 * MiB, 2405*MiB - 1} {
		_, err := Layout(GPT, disk)
		if err == nil || !strings.Contains(err.Error(), "needs at least 2405 MiB") {
			t.Errorf("Layout(GPT, %v) = %v; want the least size", disk, err)
		}
	}
}

// The factory's sda1 must not move when the rest is added.
func TestFactoryIsPartOfLayout(t *testing.T) {
	for _, scheme := range []Scheme{GPT, MBR} {
		factory := Factory(scheme, 16*GiB)
		for _, disk := range []Size{4 * GiB, 16 * GiB, 64 * GiB} {
			layout, err := Layout(scheme, disk)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range factory.Parts {
				q, _ := layout.Part(p.Number)
				if p.Start != q.Start || p.Size != q.Size || p.Type != q.Type || p.Name != q.Name {
					t.Errorf("%s: partition %d is %v in the factory's table and %v in that of %v", scheme, p.Number, p, q, disk)
				}
			}
		}
	}
}

func TestSize(t *testing.T) {
	for _, test := range []struct {
		size Size
		text string
	}{
		{0, "0 B"}, {1, "1 B"}, {512, "512 B"}, {350 * MiB, "350 MiB"}, {16 * GiB, "16 GiB"},
		{1536 * MiB, "1536 MiB"}, {3 * KiB, "3 KiB"}, {16*GiB + 1, "17179869185 B"},
	} {
		if got := test.size.String(); got != test.text {
			t.Errorf("Size(%d).String() = %q; want %q", int64(test.size), got, test.text)
		}
		if got, err := ParseSize(test.text); err != nil || got != test.size {
			t.Errorf("ParseSize(%q) = %v, %v; want %v", test.text, got, err, test.size)
		}
	}
	for size, want := range map[Size]string{
		0: "0 B", 350 * MiB: "350 MiB", 16 * GiB: "16 GiB", 512110190592: "476.9 GiB", 4009549824: "3823 MiB",
		10*MiB + 1: "10 MiB", 9*MiB + 512: "9437696 B", 3*GiB + 1: "3 GiB",
	} {
		if got := size.Short(); got != want {
			t.Errorf("Size(%d).Short() = %q; want %q", int64(size), got, want)
		}
	}
	for _, text := range []string{"", "16", "GiB", "-1 MiB", "1.5 GiB", "99999999999 GiB", "16 gib"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %v; want an error", text, got)
		}
	}
}
