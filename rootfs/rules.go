package rootfs

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync/atomic"

	"appplatform/boards"
)

// rules say which packages and files of the archive reach the image. Each rule
// is a line of data that ends in its reason; the first rule that fits decides.
type rules struct {
	packages []rule // take, skip
	files    []rule // keep, load, drop
	icu      []rule // icu: entries of ICU's data to leave out
	dangling []rule // dangling: links that lead nowhere on purpose
}

type rule struct {
	yes     bool // take, keep or load
	pattern glob
	line    line
	used    *atomic.Bool // by the packages that are read in parallel
}

// ruleFiles are where the rules of a system are read from; those of the board
// come first.
func ruleFiles(repo fs.FS, system, board string) []string {
	files := []string{path.Join(rulesDir, system)}
	own := path.Join(boards.Dir, board, "rules")
	if _, err := fs.Stat(repo, own); err == nil && system == "system" {
		files = append([]string{own}, files...)
	}
	return files
}

func readRules(repo fs.FS, files ...string) (*rules, error) {
	var lines []line
	for _, file := range files {
		more, err := readList(repo, file)
		if err != nil {
			return nil, err
		}
		lines = append(lines, more...)
	}
	r := &rules{}
	for _, l := range lines {
		if len(l.fields) != 2 {
			return nil, l.errorf("want a verb and a pattern")
		}
		if l.comment == "" {
			return nil, l.errorf("a rule needs its reason as a comment")
		}
		pattern, err := newGlob(l.fields[1])
		if err != nil {
			return nil, l.errorf("%v", err)
		}
		switch verb := l.fields[0]; verb {
		case "take", "skip":
			r.packages = append(r.packages, rule{verb == "take", pattern, l, new(atomic.Bool)})
		case "keep", "load", "drop":
			r.files = append(r.files, rule{verb != "drop", pattern, l, new(atomic.Bool)})
		case "icu":
			r.icu = append(r.icu, rule{true, pattern, l, new(atomic.Bool)})
		case "dangling":
			r.dangling = append(r.dangling, rule{true, pattern, l, new(atomic.Bool)})
		default:
			return nil, l.errorf("unknown verb %q: want take, skip, keep, load, drop, icu or dangling", verb)
		}
	}
	return r, nil
}

// first returns the first rule that fits name.
func first(rules []rule, name string) *rule {
	for i := range rules {
		if rules[i].pattern.match(name) {
			rules[i].used.Store(true)
			return &rules[i]
		}
	}
	return nil
}

// takes tells whether the package is unpacked at all.
func (r *rules) takes(pkg string) bool {
	hit := first(r.packages, pkg)
	return hit == nil || hit.yes
}

// keeps tells whether a file of a package stays, and whether it stays even if
// it is a library that no program names, because programs open it by name.
func (r *rules) keeps(file string) (kept, loaded bool) {
	hit := first(r.files, file)
	return hit == nil || hit.yes, hit != nil && hit.line.fields[0] == "load"
}

// unused reports the rules that fit nothing: a package was renamed, or a rule
// above takes it all.
func (r *rules) unused() []string {
	var out []string
	for _, rule := range slices.Concat(r.packages, r.files, r.icu, r.dangling) {
		if !rule.used.Load() {
			out = append(out, fmt.Sprintf("%s:%d: %s fits nothing any more", rule.line.file, rule.line.number, strings.Join(rule.line.fields, " ")))
		}
	}
	return out
}
