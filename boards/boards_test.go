package boards

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"appplatform/partitions"
)

func TestBoardsOfTheRepository(t *testing.T) {
	repo := os.DirFS("..")
	names, err := List(repo)
	if err != nil || len(names) == 0 {
		t.Fatalf("List() = %v, %v; want boards", names, err)
	}
	for _, name := range names {
		if b, err := Load(repo, name); err != nil || b.Name != name {
			t.Errorf("Load(%q) = %q, %v", name, b.Name, err)
		}
	}
}

// valid is a board.json that the cases below damage in one place each.
const valid = `{
  "description": "gateway",
  "arch": "armel",
  "goarm": "5",
  "optional_suites": ["trixie-updates"],
  "scheme": "mbr",
  "boot": "extlinux",
  "disk": "4 GiB",
  "memory": "256 MiB",
  "rootfs_limit": "180 MiB",
  "ramdisk_limit": "40 MiB",
  "platform": "arm",
  "devices": ["gw"]
}`

func load(text string) (Board, error) {
	return Load(fstest.MapFS{"boards/gw/board.json": {Data: []byte(text)}}, "gw")
}

func TestLoad(t *testing.T) {
	b, err := load(valid)
	if err != nil {
		t.Fatal(err)
	}
	if b.GOARCH() != "arm" || b.Disk != 4*partitions.GiB || b.Scheme != partitions.MBR {
		t.Errorf("Load() = %+v; want arm, 4 GiB, mbr", b)
	}
}

func TestLoadRefuses(t *testing.T) {
	for _, c := range []struct{ name, old, new, want string }{
		{"unknown field", `"boot"`, `"boots"`, `unknown field "boots"`},
		{"size without unit", `"4 GiB"`, `"4"`, "not a size"},
		{"size as number", `"4 GiB"`, `4`, "disk"},
		{"text behind", "\n}", "\n}{}", "text after the closing brace"},
		{"no device", `["gw"]`, `[]`, "platform or devices are empty"},
		{"no description", `"gateway"`, `""`, "description is empty"},
		{"architecture", `"armel"`, `"mips"`, `arch "mips" is not one of`},
		{"goarm missing", `"goarm": "5",`, ``, "goarm belongs to arch armel"},
		{"boot loader", `"extlinux"`, `"lilo"`, `boot "lilo" is not one of`},
		{"scheme", `"mbr"`, `"apm"`, `scheme: "apm"`},
		{"disk too small", `"4 GiB"`, `"1 GiB"`, "disk: "},
		{"no memory", `"256 MiB"`, `"0 B"`, "memory"},
		{"overlay", `"boot"`, `"overlay": "../boards", "boot"`, `overlay "../boards" is not the name`},
		{"not JSON", "{", "(", "invalid character"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := load(strings.Replace(valid, c.old, c.new, 1))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("Load() = %v; want an error with %q", err, c.want)
			}
			if !strings.Contains(err.Error(), "boards/gw/board.json") {
				t.Errorf("Load() = %v; want the file's name in it", err)
			}
		})
	}
}

func TestLoadUnknownBoard(t *testing.T) {
	for _, name := range []string{"x86", "", "../boards/gw"} {
		_, err := Load(fstest.MapFS{"boards/gw/board.json": {Data: []byte(valid)}}, name)
		if err == nil || !strings.Contains(err.Error(), "hint: boards are: gw") {
			t.Errorf("Load(%q) = %v; want a hint with the known boards", name, err)
		}
	}
}
