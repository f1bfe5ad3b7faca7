package firstboot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
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
// is ignored, and named: such drives are made for any system. card tells the MAC
// address of the first network card, if the drive names any.
func FromNoCloud(disk fs.FS, card func() (net.HardwareAddr, error)) (*Document, []string, error) {
	c := cloud{card: card}
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
		text = bytes.TrimPrefix(text, byteOrderMark)
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

// A node is a value of YAML: a map, a list, or a single value as it is written; nil
// is none. Guessing types would make a date or a number of a host name.
type node = *yaml.Node

// decodeYAML keeps what it reads out of its errors: passwords are in it.
func decodeYAML(text []byte) (node, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		line := 0
		if _, rest, ok := strings.Cut(err.Error(), "line "); ok {
			_, _ = fmt.Sscanf(rest, "%d", &line)
		}
		return nil, fmt.Errorf("it is not YAML: a mistake in line %d", line)
	}
	if len(document.Content) == 0 {
		return nil, nil
	}
	return value(document.Content[0]), nil
}

// value follows an alias, and knows what stands for nothing.
func value(n node) node {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" {
		return nil
	}
	return n
}

// fields are the values of a map; of a key that is there twice the last counts.
// Something else has none.
func fields(n node) map[string]node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	m := map[string]node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if key := n.Content[i]; key.Kind == yaml.ScalarNode {
			m[key.Value] = value(n.Content[i+1])
		} else {
			m["a key that is no text"] = value(n.Content[i+1])
		}
	}
	return m
}

func isMap(n node) bool { return n != nil && n.Kind == yaml.MappingNode }

// A cloud collects what the files of a drive say, until an error.
type cloud struct {
	d       Document
	card    func() (net.HardwareAddr, error)
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
	switch {
	case c.err != nil:
	case key == "":
		c.err = errors.New(why)
	default:
		c.err = errors.New(clean(key) + ": " + why)
	}
}

// each calls the function of every key of a map, in order; keys without one are
// ignored. All functions get the value.
func (c *cloud) each(n node, where string, known map[string]func(key string, n node)) {
	if n == nil {
		return
	}
	if !isMap(n) {
		c.fail(strings.TrimSuffix(where, "."), "it is not a map")
		return
	}
	m := fields(n)
	for _, key := range slices.Sorted(maps.Keys(m)) {
		if do := known[key]; do != nil {
			do(where+key, m[key])
		} else if m[key] != nil {
			c.ignore(where+key, "")
		}
	}
}

// text is a single value.
func (c *cloud) text(key string, n node) string {
	if n == nil {
		return ""
	}
	if n.Kind != yaml.ScalarNode {
		c.fail(key, "it is not a text")
		return ""
	}
	return strings.TrimSpace(n.Value)
}

// isTrue knows the words of YAML 1.1, which cloud-init reads.
func (c *cloud) isTrue(key string, n node) bool {
	switch text := strings.ToLower(c.text(key, n)); text {
	case "true", "yes", "on":
		return true
	case "false", "no", "off", "":
	default:
		c.fail(key, "it is neither true nor false")
	}
	return false
}

// list is a list, or a single value as one.
func (c *cloud) list(key string, n node) (all []node) {
	switch {
	case n == nil:
	case n.Kind == yaml.SequenceNode:
		for _, one := range n.Content {
			all = append(all, value(one))
		}
	case n.Kind == yaml.ScalarNode:
		all = []node{n}
	default:
		c.fail(key, "it is not a list")
	}
	return all
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
	if isMap(n) {
		c.oneUser(key, n)
		return
	}
	if name := c.text(key, n); name != "" && name != "admin" {
		c.ignore(key, "the user is admin")
	}
}

func (c *cloud) users(key string, n node) {
	for _, one := range c.list(key, n) {
		if isMap(one) {
			c.oneUser(key, one)
			continue
		}
		if name := c.text(key, one); name != "default" && name != "admin" && name != "root" {
			c.ignore(key, "there are the users admin and root")
		}
	}
}

func (c *cloud) oneUser(key string, n node) {
	name := c.text(key+".name", fields(n)["name"])
	to := c.password(name)
	if to == nil {
		c.ignore(key, "there are the users admin and root")
		return
	}
	known := map[string]func(string, node){
		"name": nothing, "hashed_passwd": c.into(to), "passwd": c.into(to),
		"plain_text_passwd": func(key string, n node) {
			if n != nil {
				c.fail(key, "passwords are hashes here, as hashed_passwd")
			}
		},
	}
	if name == "admin" {
		known["ssh_authorized_keys"] = c.keys
	}
	where := key + "." + name + "."
	lock := false
	known["lock_passwd"] = func(key string, n node) { lock = c.isTrue(key, n) }
	if c.each(n, where, known); lock {
		*to = noPassword // It counts more than a hash, as it does for cloud-init.
	}
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
				m := fields(one)
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
