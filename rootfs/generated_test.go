package rootfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestApplets(t *testing.T) {
	var names []string
	for i := range 120 {
		names = append(names, fmt.Sprintf("tool%03d", i))
	}
	list := "[\x00[[\x00acpid\x00" + strings.Join(names, "\x00") + "\x00"
	program := []byte("\x7fELF rubbish\x00" + list + "\x00 more rubbish\x00")
	got, err := applets(program)
	if want := append([]string{"[", "[[", "acpid"}, names...); err != nil || !slices.Equal(got, want) {
		t.Errorf("applets() = %d names, %v; want %d", len(got), err, len(want))
	}
	for _, broken := range []string{"no list", "\x00[\x00[[\x00acpid\x00", "\x00[\x00[[\x00zcat\x00acpid\x00"} {
		if got, err := applets([]byte(broken)); err == nil {
			t.Errorf("applets(%q) = %v; want an error", broken, got)
		}
	}
}

func TestBusyboxLinksYield(t *testing.T) {
	list := "\x00[\x00[[\x00ls\x00mount\x00ps\x00"
	for i := range 120 {
		list += fmt.Sprintf("tool%03d\x00", i)
	}
	tree := newTree()
	tree.put("usr/bin/busybox", &Entry{Content: []byte(list + "\x00")})
	tree.put("usr/bin/ps", &Entry{Content: []byte("procps")})
	tree.put("usr/sbin/mount", &Entry{Content: []byte("real")})
	if err := addBusyboxLinks(tree); err != nil {
		t.Fatal(err)
	}
	if e, ok := tree.Get("usr/bin/ls"); !ok || e.Link != "busybox" {
		t.Errorf("usr/bin/ls = %+v; want a link to busybox", e)
	}
	if e, _ := tree.Get("usr/bin/ps"); e.Link != "" {
		t.Error("usr/bin/ps is busybox's; want the package's")
	}
	if _, ok := tree.Get("usr/bin/mount"); ok {
		t.Error("usr/bin/mount hides the package's in usr/sbin")
	}
}

// commonData is ICU data inside a library: items with 32 bytes each.
func commonData(items ...string) []byte {
	lib := append([]byte("ELF CmnD "), make([]byte, 23)...) // a "CmnD" that is none
	header := make([]byte, 32)
	binary.LittleEndian.PutUint16(header, uint16(len(header)))
	header[2], header[3] = 0xda, 0x27
	copy(header[12:], "CmnD")
	toc := binary.LittleEndian.AppendUint32(nil, uint32(len(items)))
	names, nameAt := "", 4+8*len(items)
	for _, it := range items {
		names += "icudt76l/" + it + "\x00"
	}
	dataAt := (nameAt + len(names) + 15) &^ 15
	for i, it := range items {
		toc = binary.LittleEndian.AppendUint32(toc, uint32(nameAt))
		toc = binary.LittleEndian.AppendUint32(toc, uint32(dataAt+32*i))
		nameAt += len("icudt76l/" + it + "\x00")
	}
	toc = append(toc, names...)
	toc = append(toc, make([]byte, dataAt-len(toc))...)
	for i := range items {
		toc = append(toc, bytes.Repeat([]byte{byte('A' + i)}, 32)...)
	}
	return slices.Concat(lib, header, toc, []byte("symbols"))
}

func TestShrinkICU(t *testing.T) {
	lib := commonData("brkitr/word.brk", "coll/de.res", "ibm-850.cnv", "root.res", "zone/de.res")
	size := len(lib)
	err := shrinkICU(lib, func(item string) bool {
		return strings.HasPrefix(item, "brkitr/") || strings.HasSuffix(item, ".cnv") || strings.HasPrefix(item, "zone/")
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(lib) != size || !bytes.HasSuffix(lib, []byte("symbols")) {
		t.Error("shrinkICU changed what lies around the data")
	}
	at, err := findCommonData(lib)
	if err != nil {
		t.Fatal(err)
	}
	toc := lib[at+32:]
	items, err := readItems(toc)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, it := range items {
		got = append(got, it.prefix+it.name+"="+string(toc[it.data:it.data+2]))
	}
	if want := []string{"icudt76l/coll/de.res=BB", "icudt76l/root.res=DD"}; !slices.Equal(got, want) {
		t.Errorf("items = %v; want %v", got, want)
	}
	if bytes.Contains(lib, []byte("AAAA")) || bytes.Contains(lib, []byte("CCCC")) {
		t.Error("data of items left out is still there")
	}
}

func TestShrinkICURefuses(t *testing.T) {
	good := commonData("a.res", "b.res")
	bigEndian := bytes.Clone(good)
	at, _ := findCommonData(good)
	bigEndian[at+8] = 1
	manyItems := bytes.Clone(good)
	binary.LittleEndian.PutUint32(manyItems[at+32:], 1<<30)
	for name, lib := range map[string][]byte{
		"no data": []byte("ELF"), "big-endian": bigEndian, "too many items": manyItems,
		"unsorted": commonData("b.res", "a.res"),
	} {
		if err := shrinkICU(lib, func(string) bool { return false }); err == nil {
			t.Errorf("shrinkICU with %s succeeds; want an error", name)
		}
	}
}
