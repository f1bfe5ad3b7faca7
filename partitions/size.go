package partitions

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes, or a place on a disk counted from its start.
type Size int64

// The units that sizes are written in.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
)

var units = []struct {
	name string
	size Size
}{{"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", 1}}

// String is the size in the largest unit that needs no fraction: "350 MiB".
func (s Size) String() string {
	for _, u := range units {
		if s != 0 && s%u.size == 0 {
			return fmt.Sprintf("%d %s", s/u.size, u.name)
		}
	}
	return "0 B"
}

// Short is the size for people, rounded down: "476.9 GiB", "3823 MiB".
func (s Size) Short() string {
	switch {
	case s >= 10*GiB && s%GiB != 0:
		return fmt.Sprintf("%.1f GiB", math.Floor(float64(s)*10/float64(GiB))/10)
	case s >= 10*MiB && s%GiB != 0:
		return (s - s%MiB).String()
	}
	return s.String()
}

// ParseSize reads what String writes; the space may be missing.
func ParseSize(text string) (Size, error) {
	for _, u := range units {
		number, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/int64(u.size) {
			break
		}
		return Size(n) * u.size, nil
	}
	return 0, fmt.Errorf("%q is not a size such as \"500 MiB\"", text)
}

// MarshalText is String, for JSON.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseSize, for JSON.
func (s *Size) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSize(string(text))
	return err
}
