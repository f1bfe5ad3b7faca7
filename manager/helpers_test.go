package manager

import (
	"strconv"
	"strings"
	"time"
)

var timeZero time.Time

func itoa(n int) string { return strconv.Itoa(n) }

// grep is the first line with a word.
func grep(text, word string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, word) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
