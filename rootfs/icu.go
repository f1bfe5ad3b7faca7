package rootfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ICU keeps 32 MB of tables in one library, and PostgreSQL needs a quarter of
// them: those for sorting. shrinkICU takes the others out of the library's
// table of contents and fills their place with zeros, which packs to nothing
// and takes no room in a file system. The library keeps its size and layout.
//
// The tables form ICU's "common data" package: a header, the number of items,
// then for each item the offsets of its name and of its data, counted from
// that number; names sorted; and the items (ICU's udata.h and ucmndata.h).
func shrinkICU(lib []byte, leaveOut func(item string) bool) error {
	header, err := findCommonData(lib)
	if err != nil {
		return err
	}
	toc := lib[header+int(binary.LittleEndian.Uint16(lib[header:])):]
	items, err := readItems(toc)
	if err != nil {
		return err
	}

	var kept []icuItem
	for i, it := range items {
		if !leaveOut(it.name) {
			kept = append(kept, it)
		} else if i+1 < len(items) {
			clear(toc[it.data:items[i+1].data])
		} // how far the last item goes is not written anywhere: its data stays
	}
	first := items[0].data
	names := 4 + 8*len(kept)
	clear(toc[:first])
	binary.LittleEndian.PutUint32(toc, uint32(len(kept)))
	for i, it := range kept {
		binary.LittleEndian.PutUint32(toc[4+8*i:], uint32(names))
		binary.LittleEndian.PutUint32(toc[8+8*i:], uint32(it.data))
		names += copy(toc[names:], it.prefix+it.name) + 1
	}
	return nil
}

type icuItem struct {
	prefix string // "icudt76l/", the same for every item
	name   string // "coll/de.res"
	data   int
}

// findCommonData finds the package's header: size, magic number, byte order,
// and the format's name twelve bytes in.
func findCommonData(lib []byte) (int, error) {
	for from := 0; ; {
		i := bytes.Index(lib[from:], []byte("CmnD"))
		if i < 0 {
			return 0, errors.New("no ICU data in the library")
		}
		at := from + i - 12
		if at >= 0 && lib[at+2] == 0xda && lib[at+3] == 0x27 {
			if lib[at+8] != 0 {
				return 0, errors.New("ICU data is big-endian")
			}
			return at, nil
		}
		from += i + 4
	}
}

func readItems(toc []byte) ([]icuItem, error) {
	broken := errors.New("ICU's table of contents is broken")
	if len(toc) < 4 {
		return nil, broken
	}
	n := int(binary.LittleEndian.Uint32(toc))
	if n <= 0 || n > (len(toc)-4)/8 {
		return nil, broken
	}
	items := make([]icuItem, n)
	namesEnd := int(binary.LittleEndian.Uint32(toc[8:])) // the first item's data
	for i := range items {
		name := int(binary.LittleEndian.Uint32(toc[4+8*i:]))
		data := int(binary.LittleEndian.Uint32(toc[8+8*i:]))
		if name >= namesEnd || data >= len(toc) || data < namesEnd || (i > 0 && data < items[i-1].data) {
			return nil, broken
		}
		text, _, _ := bytes.Cut(toc[name:namesEnd], []byte{0})
		prefix, rest, ok := strings.Cut(string(text), "/")
		if !ok {
			return nil, fmt.Errorf("ICU item %q has no package name", text)
		}
		items[i] = icuItem{prefix + "/", rest, data}
	}
	if !slices.IsSortedFunc(items, func(a, b icuItem) int { return strings.Compare(a.name, b.name) }) {
		return nil, broken
	}
	return items, nil
}
