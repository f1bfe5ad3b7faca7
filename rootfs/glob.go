package rootfs

import (
	"path"
	"strings"
)

// A glob is a pattern over paths: "*" and "?" match within a name, and "**"
// as a whole name matches any number of them, none included.
type glob struct {
	text  string
	parts []string
}

func newGlob(text string) (glob, error) {
	parts := strings.Split(text, "/")
	for _, p := range parts {
		if _, err := path.Match(p, ""); err != nil {
			return glob{}, err
		}
	}
	return glob{text, parts}, nil
}

// match tells whether the pattern fits name. Most files fail at the first or
// second part, which is compared without looking at wildcards.
func (g glob) match(name string) bool { return matchParts(g.parts, name) }

func matchParts(parts []string, name string) bool {
	for i, part := range parts {
		if part == "**" {
			if i == len(parts)-1 {
				return true
			}
			for {
				if matchParts(parts[i+1:], name) {
					return true
				}
				slash := strings.IndexByte(name, '/')
				if slash < 0 {
					return false
				}
				name = name[slash+1:]
			}
		}
		head, rest, more := strings.Cut(name, "/")
		if strings.ContainsAny(part, `*?[\`) {
			if ok, _ := path.Match(part, head); !ok {
				return false
			}
		} else if part != head {
			return false
		}
		if !more {
			// "a/**" fits what is in a, not a itself.
			return i == len(parts)-1
		}
		name = rest
	}
	return false
}
