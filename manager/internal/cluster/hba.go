package cluster

import (
	"errors"
	"slices"
	"strings"

	"appplatform/internal/hint"
)

// The lines around what the manager keeps in pg_hba.conf.
const (
	hbaBegin = "# BEGIN App Platform: the manager keeps these lines"
	hbaEnd   = "# END App Platform"
)

// ManagedHBA puts lines into a pg_hba.conf, between two marks, in place of those
// that are there. All else stays as an administrator has written it. The marks
// stay where he has moved them to; new ones come last, so that his lines, of
// which the first that fits decides, go before ours.
func ManagedHBA(text string, lines []string) (string, error) {
	all := strings.SplitAfter(text, "\n")
	is := func(mark string) func(string) bool {
		return func(line string) bool { return strings.TrimSpace(line) == mark }
	}
	begin, end := slices.IndexFunc(all, is(hbaBegin)), slices.IndexFunc(all, is(hbaEnd))
	if begin >= 0 && slices.ContainsFunc(all[begin+1:], is(hbaBegin)) || end >= 0 && slices.ContainsFunc(all[end+1:], is(hbaEnd)) ||
		(begin < 0) != (end < 0) || end < begin {
		return "", hint.Errorf("remove the lines that begin with # BEGIN App Platform and "+hbaEnd+" from it",
			"cannot change pg_hba.conf: %w", errors.New("its lines of the manager have not one begin and one end"))
	}
	if slices.ContainsFunc(lines, func(line string) bool { return strings.ContainsAny(line, "\n\r") }) {
		return "", errors.New("internal error: a line of pg_hba.conf is several")
	}
	if begin < 0 && len(lines) == 0 {
		return text, nil
	}
	var block []string
	if len(lines) > 0 {
		block = []string{hbaBegin + "\n"}
		for _, line := range lines {
			block = append(block, line+"\n")
		}
		block = append(block, hbaEnd+"\n")
	}
	if begin < 0 {
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		return text + strings.Join(block, ""), nil
	}
	return strings.Join(slices.Replace(all, begin, end+1, block...), ""), nil
}
