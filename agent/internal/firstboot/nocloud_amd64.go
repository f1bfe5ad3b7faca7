package firstboot

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
)

// NoCloudLabel is the name of a disk or CD that cloud-init would read, in small
// or capital letters.
const NoCloudLabel = "cidata"

// cloudConfig begins user-data of the kind that is read here.
const cloudConfig = "#cloud-config"

// FromNoCloud reads what of a cloud-init drive applies to this machine. All else
// is ignored, and named: such drives are made for any system.
func FromNoCloud(disk fs.FS) (*Document, []string, error) {
	var c cloud
	for _, part := range []struct {
		file string
		read func(node)
	}{
		{"meta-data", c.metaData},
		{"user-data", c.userData},
		{"network-config", c.networkConfig},
	} {
		text, found, err := read(disk, part.file)
		if err != nil {
			return nil, nil, err
		}
		if !found {
			continue
		}
		c.file = part.file
		if part.file == "user-data" && !strings.HasPrefix(string(text), cloudConfig) {
			if len(text) > 0 {
				c.ignore("", "it does not begin with "+cloudConfig)
			}
			continue
		}
		n, err := decodeYAML(text)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", part.file, err)
		}
		if part.read(n); c.err != nil {
			return nil, nil, fmt.Errorf("%s: %w", part.file, c.err)
		}
	}
	return &c.d, c.ignored, nil
}

// A node is a value of YAML: a map, a list, or a single value.
type node = any

// decodeYAML keeps what it reads out of its errors: passwords are in it.
func decodeYAML(text []byte) (n node, err error) {
	if err := yaml.Unmarshal(text, &n); err != nil {
		line := 0
		if _, rest, ok := strings.Cut(err.Error(), "line "); ok {
			_, _ = fmt.Sscanf(rest, "%d", &line)
		}
		return nil, fmt.Errorf("it is not YAML: a mistake in line %d", line)
	}
	return n, nil
}

// A cloud collects what the files of a drive say, until an error.
type cloud struct {
	d       Document
	file    string
	ignored []string
	err     error
}

// ignore notes what does not apply, once.
func (c *cloud) ignore(key, why string) {
	what := c.file
	if key != "" {
		what += ": " + key
	}
	if why != "" {
		what += " (" + why + ")"
	}
	if what = clean(what); !slices.Contains(c.ignored, what) {
		c.ignored = append(c.ignored, what)
	}
}

// clean keeps what others have named from moving the cursor of a console, or
// from filling it.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
	return fmt.Sprintf("%.100s", text)
}

func (c *cloud) fail(key, why string) {
	if c.err == nil {
		c.err = errors.New(clean(key) + ": " + why)
	}
}

// each calls the function of every key of a map, in order; keys without one are
// ignored. All functions get the value.
func (c *cloud) each(n node, where string, known map[string]func(key string, n node)) {
	if n == nil {
		return
	}
	m, ok := n.(map[string]any)
	if !ok {
		c.fail(strings.TrimSuffix(where, "."), "it is not a map")
		return
	}
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		if do := known[key]; do != nil {
			do(where+key, m[key])
		} else if m[key] != nil {
			c.ignore(where+key, "")
		}
	}
}

// text is a single value; numbers and words such as yes are none, so that nothing
// is changed on the way.
func (c *cloud) text(key string, n node) string {
	s, ok := n.(string)
	if !ok && n != nil {
		c.fail(key, "it is not a text; put it in quotes")
	}
	return strings.TrimSpace(s)
}

// list is a list, or a single value as one.
func (c *cloud) list(key string, n node) []any {
	switch n := n.(type) {
	case nil:
		return nil
	case []any:
		return n
	case string:
		return []any{n}
	}
	c.fail(key, "it is not a list")
	return nil
}

func (c *cloud) texts(key string, n node) (all []string) {
	for _, one := range c.list(key, n) {
		all = append(all, c.text(key, one))
	}
	return all
}

// into stores a text that is not empty.
func (c *cloud) into(to *string) func(string, node) {
	return func(key string, n node) {
		if text := c.text(key, n); text != "" {
			*to = text
		}
	}
}

func nothing(string, node) {}

func (c *cloud) metaData(n node) {
	c.each(n, "", map[string]func(string, node){
		"local-hostname": c.into(&c.d.Hostname),
		"hostname":       c.into(&c.d.Hostname),
		"instance-id":    nothing, // The contents tell what is new.
		"dsmode":         nothing,
	})
}

// userData reads the subset that applies. Keys come in the order of the alphabet:
// fqdn before hostname, which counts more, as it does for cloud-init.
func (c *cloud) userData(n node) {
	c.each(n, "", map[string]func(string, node){
		"hostname":            c.into(&c.d.Hostname),
		"fqdn":                c.into(&c.d.Hostname),
		"manage_etc_hosts":    nothing, // It always is.
		"timezone":            c.into(&c.d.Timezone),
		"ssh_authorized_keys": c.keys,
		"password":            c.into(&c.d.AdminPassword), // of the user that there is
		"chpasswd":            c.chpasswd,
		"user":                c.user,
		"users":               c.users,
		"preserve_hostname":   nothing,
		"ssh_pwauth":          c.passwordLogin,
	})
}

func (c *cloud) passwordLogin(key string, _ node) { c.ignore(key, "SSH takes passwords") }

func (c *cloud) keys(key string, n node) {
	for _, line := range c.texts(key, n) {
		if line != "" && !slices.Contains(c.d.SSHKeys, line) {
			c.d.SSHKeys = append(c.d.SSHKeys, line)
		}
	}
}

// user names the first user, who is admin here.
func (c *cloud) user(key string, n node) {
	if m, ok := n.(map[string]any); ok {
		c.oneUser(key, m)
		return
	}
	if name := c.text(key, n); name != "" && name != "admin" {
		c.ignore(key, "the user is admin")
	}
}

func (c *cloud) users(key string, n node) {
	for _, one := range c.list(key, n) {
		switch one := one.(type) {
		case string:
			if one != "default" && one != "admin" && one != "root" {
				c.ignore(key, "there are the users admin and root")
			}
		case map[string]any:
			c.oneUser(key, one)
		default:
			c.fail(key, "a user is neither a name nor a map")
		}
	}
}

func (c *cloud) oneUser(key string, m map[string]any) {
	name := c.text(key+".name", m["name"])
	to := c.password(name)
	if to == nil {
		c.ignore(key, "there are the users admin and root")
		return
	}
	known := map[string]func(string, node){
		"name": nothing, "hashed_passwd": c.into(to), "passwd": c.into(to), "lock_passwd": nothing,
	}
	if name == "admin" {
		known["ssh_authorized_keys"] = c.keys
	}
	c.each(m, key+"."+name+".", known)
}

func (c *cloud) password(user string) *string {
	return map[string]*string{"admin": &c.d.AdminPassword, "root": &c.d.RootPassword}[user]
}

// chpasswd has lines user:hash, or a list of users. A password that is not a hash
// is refused later, like everywhere.
func (c *cloud) chpasswd(key string, n node) {
	c.each(n, key+".", map[string]func(string, node){
		"expire": nothing,
		"list": func(key string, n node) {
			for _, text := range c.texts(key, n) {
				for _, line := range lines(text) {
					user, hash, _ := strings.Cut(line, ":")
					c.setPassword(key, user, hash)
				}
			}
		},
		"users": func(key string, n node) {
			for _, one := range c.list(key, n) {
				m, _ := one.(map[string]any)
				c.setPassword(key, c.text(key, m["name"]), c.text(key, m["password"]))
			}
		},
	})
}

func (c *cloud) setPassword(key, user, hash string) {
	to := c.password(user)
	switch {
	case to == nil:
		c.ignore(key, "there are the users admin and root")
	case hash == "":
		c.fail(key, "the password of "+user+" is missing; passwords are hashes here")
	default:
		*to = hash
	}
}
