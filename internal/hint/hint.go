// Package hint gives errors their way out: a last line that tells a user what
// to do.
package hint

import (
	"fmt"
	"strings"
)

// mark begins the line with the way out.
const mark = "\nhint: "

// NoSpace is the way out of a full disk.
const NoSpace = "make room on that disk, or set XDG_CACHE_HOME to a folder on another one; what is finished is kept"

// Errorf is fmt.Errorf with a way out. Wrapping the error keeps it the last
// line, as long as nothing is put behind %w.
func Errorf(way, format string, args ...any) error {
	return fmt.Errorf(format+mark+"%s", append(args, way)...)
}

// In reports whether the error has a way out already.
func In(err error) bool { return strings.Contains(err.Error(), mark) }
