package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// A Step is one change to a machine. String is what the install log says. A
// step may be run again, also when it was interrupted the first time.
type Step interface {
	fmt.Stringer
	Do(ctx context.Context, m Machine) error
}

// Apply runs the steps in order and stops at the first that fails.
func Apply(ctx context.Context, m Machine, steps []Step) error {
	for i, s := range steps {
		m.Log.Printf("step %d of %d: %v", i+1, len(steps), s)
		if err := s.Do(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

// hinted is an error with a way out for whoever reads it on the console.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

func withHint(hint, format string, args ...any) error {
	return hinted{fmt.Errorf(format, args...), hint}
}

// Explain is the text of an error, with its hint on a line of its own.
func Explain(err error) string {
	var h hinted
	if errors.As(err, &h) {
		return strings.TrimSpace(err.Error()) + "\nhint: " + h.hint
	}
	return err.Error()
}
