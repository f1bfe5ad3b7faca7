// Package hint gives errors their way out: a last line that tells a user what
// to do.
package hint

import "fmt"

// Errorf is fmt.Errorf with a way out. Wrapping the error keeps it the last
// line, as long as nothing is put behind %w.
func Errorf(way, format string, args ...any) error {
	return fmt.Errorf(format+"\nhint: %s", append(args, way)...)
}
