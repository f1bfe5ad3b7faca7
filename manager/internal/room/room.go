// Package room keeps uploads from taking the room that the database needs.
package room

import (
	"io"

	"appplatform/internal/hint"
)

// Reserve is what uploads leave free, in bytes: PostgreSQL's log of changes may grow by
// as much between two checkpoints.
const Reserve = 256 << 20

// A Left tells how many bytes may be taken at the moment.
type Left func() int64

// Check refuses what will not fit.
func (l Left) Check(size int64) error {
	left := l()
	if size <= left {
		return nil
	}
	return hint.Errorf("delete core dumps or data here, or run: apagent diskfree",
		"the upload does not fit on the disk: %d MB more room is needed, and %d MB stay free for the database", (size-left)>>20+1, Reserve>>20)
}

// step is how many bytes are taken between two looks at the disk.
const step = 1 << 20

// Reader reads until there is no room left for what it returns.
func (l Left) Reader(r io.Reader) io.Reader { return &reader{from: r, left: l} }

type reader struct {
	from    io.Reader
	left    Left
	allowed int
}

func (r *reader) Read(p []byte) (int, error) {
	if r.allowed == 0 {
		if err := r.left.Check(step); err != nil {
			return 0, err
		}
		r.allowed = step
	}
	n, err := r.from.Read(p[:min(len(p), r.allowed)])
	r.allowed -= n
	return n, err
}
