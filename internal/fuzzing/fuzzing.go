// Package fuzzing is what the fuzz targets of several packages share.
package fuzzing

import (
	"encoding/binary"
	"runtime"
	"slices"
)

// Edited is data with changes made to a copy of it. An edit is a place in two
// bytes, a length in one, and that many bytes; what does not fit is left out. A
// fuzzer finds its way through a disk or an archive much faster like this than by
// changing all of it.
func Edited(data, edits []byte) []byte {
	data = slices.Clone(data)
	for len(edits) > 3 {
		at, n := int(binary.LittleEndian.Uint16(edits)), int(edits[2])
		n = min(n, len(edits)-3)
		if at < len(data) {
			copy(data[at:], edits[3:3+n])
		}
		edits = edits[3+n:]
	}
	return data
}

// Edit is an edit for Edited, of at most 255 bytes.
func Edit(at int, text string) []byte {
	return append(append(binary.LittleEndian.AppendUint16(nil, uint16(at)), byte(len(text))), text...)
}

// Allocated is how much memory a function takes in all, in bytes, also what it
// gives back.
func Allocated(do func()) int64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return int64(after.TotalAlloc - before.TotalAlloc)
}
