package sbom

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Licence reads what a Debian package's copyright file says of its source, if it
// is written for machines (the copyright format 1.0): an SPDX expression that
// joins the licences of all files, and the texts of those that SPDX has no name
// for. The names of these begin with the name of the source package. A file in
// other words gives an empty expression.
func Licence(source, copyright string) (expression string, texts []Text) {
	paragraphs := parseParagraphs(copyright)
	if len(paragraphs) == 0 || !strings.Contains(paragraphs[0]["Format"], "packaging-manuals/copyright-format/1.0") {
		return "", nil
	}
	bodies := map[string][]string{}
	var said []string
	for _, p := range paragraphs[1:] {
		name, body, _ := strings.Cut(p["License"], "\n")
		if name = strings.Join(strings.Fields(name), " "); name == "" {
			if p["Files"] != "" {
				return "", nil // Some files have no licence that has a name.
			}
			continue
		}
		if body = strings.Trim(body, "\n"); body != "" && !slices.Contains(bodies[name], body) {
			bodies[name] = append(bodies[name], body)
		}
		if p["Files"] != "" {
			said = append(said, name)
		}
	}
	t := translator{source: source, bodies: bodies, texts: map[string]Text{}}
	var parts []string
	for _, name := range said {
		parts = append(parts, t.expression(name))
	}
	slices.Sort(parts)
	parts = slices.Compact(parts)
	if len(parts) > 1 {
		for i, p := range parts {
			if strings.Contains(p, " OR ") || strings.Contains(p, " AND ") {
				parts[i] = "(" + p + ")"
			}
		}
	}
	for _, text := range t.texts {
		texts = append(texts, text)
	}
	return strings.Join(parts, " AND "), texts
}

// parseParagraphs reads Debian's control format: paragraphs of fields, whose
// further lines are indented; a dot stands for an empty one.
func parseParagraphs(text string) []map[string]string {
	var all []map[string]string
	var now map[string]string
	field := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\r\n")
		switch {
		case line == "":
			now = nil
		case line[0] == '#':
		case line[0] == ' ' || line[0] == '\t':
			if now != nil {
				more := line[1:]
				if more == "." {
					more = ""
				}
				now[field] += "\n" + more
			}
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				return nil // not this format
			}
			if now == nil {
				now = map[string]string{}
				all = append(all, now)
			}
			field = name
			now[field] = strings.TrimSpace(value)
			if field == "Files" && now[field] == "" {
				now[field] = "\n" // The list begins on the next line.
			}
		}
	}
	return all
}

// A translator makes SPDX expressions of the short names in one copyright file.
type translator struct {
	source string
	bodies map[string][]string
	texts  map[string]Text // by ID
}

// expression translates "A or B, and C": "and" binds closer than "or", and a
// comma before one of them less close than both. What does not read so is taken
// for one name.
func (t *translator) expression(said string) string {
	fields := strings.Fields(strings.ReplaceAll(said, ",", " ,"))
	out, rest, ok := t.join(fields, 0)
	if !ok || len(rest) > 0 {
		return t.reference(said)
	}
	return out
}

// joints are the words between names, those that bind least close first.
var joints = []struct{ word, spdx string }{{", or", "OR"}, {", and", "AND"}, {"or", "OR"}, {"and", "AND"}}

func (t *translator) join(fields []string, level int) (string, []string, bool) {
	if level == len(joints) {
		return t.name(fields)
	}
	joint := joints[level]
	words := strings.Fields(joint.word)
	var parts []string
	for {
		part, rest, ok := t.join(fields, level+1)
		if !ok {
			return "", nil, false
		}
		parts, fields = append(parts, part), rest
		if len(fields) < len(words) || !strings.EqualFold(strings.Join(fields[:len(words)], " "), joint.word) {
			break
		}
		fields = fields[len(words):]
	}
	if len(parts) == 1 {
		return parts[0], fields, true
	}
	for i, p := range parts {
		if joint.spdx == "AND" && strings.Contains(p, " OR ") {
			parts[i] = "(" + p + ")"
		}
	}
	return strings.Join(parts, " "+joint.spdx+" "), fields, true
}

// name takes one licence from the front: a word, or "X with Y exception".
func (t *translator) name(fields []string) (string, []string, bool) {
	isJoint := func(w string) bool { return w == "," || strings.EqualFold(w, "or") || strings.EqualFold(w, "and") }
	n := slices.IndexFunc(fields, isJoint)
	if n < 0 {
		n = len(fields)
	}
	if n == 0 || n > 1 && !strings.EqualFold(fields[1], "with") {
		return "", nil, false
	}
	return t.spdx(strings.Join(fields[:n], " ")), fields[n:], true
}

// known are Debian's short names that mean one text, and SPDX's name for it.
// "MIT" and "BSD" are not among them: Debian says that they may mean several.
var known = map[string]string{
	"0BSD": "0BSD", "Apache-2": "Apache-2.0", "Apache-2.0": "Apache-2.0",
	"Apache-2.0 with LLVM exception": "Apache-2.0 WITH LLVM-exception",
	"BSD-2-clause":                   "BSD-2-Clause", "BSD-3-clause": "BSD-3-Clause", "BSD-2-Clause": "BSD-2-Clause", "BSD-3-Clause": "BSD-3-Clause",
	"BSL-1.0": "BSL-1.0", "CC0-1.0": "CC0-1.0", "Expat": "MIT", "FSFAP": "FSFAP", "ISC": "ISC", "MPL-1.1": "MPL-1.1", "MPL-2.0": "MPL-2.0",
	"OpenLDAP-2.8": "OLDAP-2.8", "OLDAP-2.8": "OLDAP-2.8", "PostgreSQL": "PostgreSQL", "ZLIB": "Zlib", "Zlib": "Zlib", "zlib": "Zlib", "curl": "curl",
	"GPL-2 with Linux-syscall-note exception": "GPL-2.0-only WITH Linux-syscall-note",
	"GPL-3+ with Bison exception":             "GPL-3.0-or-later WITH Bison-exception-2.2",
}

// gnu are the licences of GNU with their versions: "LGPL-2.1+".
var gnu = regexp.MustCompile(`^(GPL-1|GPL-2|GPL-3|LGPL-2|LGPL-2\.1|LGPL-3|AGPL-3|GFDL-1\.1|GFDL-1\.2|GFDL-1\.3)(?:\.0)?(\+|-or-later|-only)?$`)

func (t *translator) spdx(name string) string {
	if id := known[name]; id != "" {
		return id
	}
	m := gnu.FindStringSubmatch(name)
	if m == nil {
		return t.reference(name)
	}
	id := m[1]
	if !strings.Contains(id, ".") {
		id += ".0"
	}
	if m[2] == "+" || m[2] == "-or-later" {
		return id + "-or-later"
	}
	return id + "-only"
}

// reference gives a licence a name of this document.
func (t *translator) reference(name string) string {
	var b strings.Builder
	for _, c := range []byte(t.source + "-" + name) {
		switch {
		case plain(c):
			b.WriteByte(c)
		case c == ' ':
			b.WriteByte('-')
		default:
			fmt.Fprintf(&b, ".%02x.", c)
		}
	}
	id := "LicenseRef-" + b.String()
	text := strings.Join(t.bodies[name], "\n\n")
	if text == "" {
		text = "The copyright file of the source package " + t.source + " calls it " + name + "."
	}
	t.texts[id] = Text{ID: id, Name: name, Text: text}
	return id
}
