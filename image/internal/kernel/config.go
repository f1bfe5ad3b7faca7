package kernel

import (
	"fmt"
	"strings"
)

// A Fragment is a list of kernel options, as kconfig writes them.
type Fragment struct {
	Name string // for messages: the file it came from
	Text string
}

// An option is one line of a fragment or of a finished configuration.
type option struct {
	name, value string // value "n" for "is not set"
	where       string // file and line
}

// parse reads the options of a fragment. Lines that are neither an option nor
// a comment are errors: kconfig would pass over them in silence.
func parse(f Fragment) ([]option, error) {
	var options []option
	n := 0
	for line := range strings.Lines(f.Text) {
		n++
		where := fmt.Sprintf("%s:%d", f.Name, n)
		line = strings.TrimSpace(line)
		if name, ok := strings.CutSuffix(line, " is not set"); ok && strings.HasPrefix(name, "# CONFIG_") {
			options = append(options, option{strings.TrimPrefix(name, "# "), "n", where})
			continue
		}
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || !strings.HasPrefix(name, "CONFIG_") || value == "" {
			return nil, fmt.Errorf("%s: %q is not a kernel option (CONFIG_NAME=value)", where, line)
		}
		options = append(options, option{name, value, where})
	}
	return options, nil
}

// merge joins fragments; a later one may not contradict an earlier one, so that
// each option has one home.
func merge(fragments []Fragment) ([]option, error) {
	var all []option
	seen := map[string]option{}
	for _, f := range fragments {
		options, err := parse(f)
		if err != nil {
			return nil, err
		}
		for _, o := range options {
			if before, ok := seen[o.name]; ok {
				return nil, fmt.Errorf("%s: %s is already set in %s", o.where, o.name, before.where)
			}
			seen[o.name] = o
		}
		all = append(all, options...)
	}
	return all, nil
}

// dropped lists the options that the finished configuration does not have as
// asked: kconfig drops an option whose dependencies are not met without a word.
func dropped(asked []option, config string) []string {
	got := map[string]string{}
	options, _ := parse(Fragment{".config", config})
	for _, o := range options {
		got[o.name] = o.value
	}
	var out []string
	for _, o := range asked {
		value, ok := got[o.name]
		if !ok {
			value = "n"
		}
		if value != o.value {
			out = append(out, fmt.Sprintf("%s: %s=%s (is %s)", o.where, o.name, o.value, value))
		}
	}
	return out
}
