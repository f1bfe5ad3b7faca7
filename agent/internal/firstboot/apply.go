package firstboot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"appplatform/agent/internal/netconf"
	"appplatform/internal/atomicfile"
	"appplatform/internal/smallfile"
)

// Where things are stored, below /etc. All of it is there and nothing in the
// folder of admin, in which root would write through admin's links.
const (
	keysFile    = "ssh/authorized_keys.d/admin" // sshd_config names it
	ManagerFile = "manager.json"
)

// A Place is a folder /etc to store settings in.
type Place struct {
	Etc string
	// Base has the files that Etc does not have yet: it may be the upper folder of
	// an overlay that is not mounted.
	Base string
	// Network is what counts there so far.
	Network netconf.Settings
}

// A Change stores a part of the settings. It is atomic, and may be made again.
type Change struct {
	what string
	do   func() error
}

// String tells the change without secrets.
func (c Change) String() string { return c.what }

// Do makes it.
func (c Change) Do() error { return c.do() }

// Changes are what stores the settings in a place, in order. What the new files
// are made from is read here: when it cannot be, nothing has been changed yet.
func (s Settings) Changes(p Place) ([]Change, error) {
	var changes []Change
	add := func(do func() error, format string, args ...any) {
		changes = append(changes, Change{fmt.Sprintf(format, args...), do})
	}
	if s.v4 || s.v6 || s.dns {
		n := s.Network(p.Network)
		add(func() error { return n.Save(p.path("network.json")) }, "set the network: %v", n)
	}
	if s.Hostname != "" {
		hosts, err := p.hosts(s.Hostname)
		if err != nil {
			return nil, err
		}
		add(func() error { return p.setHostname(s.Hostname, hosts) }, "set the host name %s", s.Hostname)
	}
	if s.AdminPassword != "" || s.RootPassword != "" {
		passwords := map[string]string{"admin": s.AdminPassword, "root": s.RootPassword}
		names := slices.DeleteFunc([]string{"admin", "root"}, func(name string) bool { return passwords[name] == "" })
		shadow, info, err := p.shadow(passwords)
		if err != nil {
			return nil, err
		}
		add(func() error { return p.setPasswords(shadow, info) }, "set the password of %s", strings.Join(names, " and "))
	}
	if len(s.SSHKeys) > 0 {
		text := strings.Join(s.SSHKeys, "\n") + "\n"
		add(func() error { return p.write(keysFile, []byte(text), 0o644) }, "let %d SSH keys log in as admin", len(s.SSHKeys))
	}
	if s.Timezone != "" {
		add(func() error { return p.setZone(s.Timezone) }, "set the time zone %s", s.Timezone)
	}
	if s.Manager != nil {
		add(func() error { return p.write(ManagerFile, append(slices.Clone(s.Manager), '\n'), 0o600) },
			"store the settings of the manager in /etc/%s", ManagerFile)
	}
	return changes, nil
}

func (p Place) path(name string) string { return filepath.Join(p.Etc, name) }

// read reads what counts in the place. In the upper folder of an overlay a
// character device stands for a file that was deleted.
func (p Place) read(name string) (text []byte, info fs.FileInfo, err error) {
	path := p.path(name)
	if info, err = os.Stat(path); errors.Is(err, os.ErrNotExist) && p.Base != "" {
		path = filepath.Join(p.Base, name)
		info, err = os.Stat(path)
	}
	switch {
	case err != nil:
		return nil, nil, err
	case p.Base != "" && info.Mode()&fs.ModeCharDevice != 0:
		return nil, nil, fmt.Errorf("%s: %w", path, os.ErrNotExist)
	case !info.Mode().IsRegular():
		return nil, nil, fmt.Errorf("%s is not an ordinary file", path)
	}
	text, err = smallfile.Read(path, smallfile.Most)
	return text, info, err
}

func (p Place) write(name string, text []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(p.path(name)), 0o755); err != nil {
		return fmt.Errorf("cannot write %s: %w", p.path(name), err)
	}
	return atomicfile.Write(p.path(name), text, mode)
}

// hosts is /etc/hosts with the name in it, since sudo wants to look its own name up.
func (p Place) hosts(name string) ([]byte, error) {
	hosts, _, err := p.read("hosts")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot set the host name: %w", err)
	}
	names := name
	if short, _, long := strings.Cut(name, "."); long {
		names += " " + short
	}
	const own = "127.0.1.1"
	var b bytes.Buffer
	found := false
	for line := range strings.Lines(string(hosts)) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == own {
			if !found {
				fmt.Fprintf(&b, "%s\t%s\n", own, names)
			}
			found = true
			continue
		}
		b.WriteString(strings.TrimRight(line, "\n") + "\n")
	}
	if !found {
		fmt.Fprintf(&b, "%s\t%s\n", own, names)
	}
	return b.Bytes(), nil
}

func (p Place) setHostname(name string, hosts []byte) error {
	if err := p.write("hosts", hosts, 0o644); err != nil {
		return err
	}
	return p.write("hostname", []byte(name+"\n"), 0o644)
}

// shadow is shadow(5) with other hashes of users, and who may read it.
func (p Place) shadow(hashes map[string]string) ([]byte, fs.FileInfo, error) {
	text, info, err := p.read("shadow")
	if err != nil {
		return nil, nil, fmt.Errorf("cannot set the passwords: %w", err)
	}
	var b bytes.Buffer
	missing := 0
	for _, hash := range hashes {
		if hash != "" {
			missing++
		}
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Split(line, ":")
		if hash := hashes[f[0]]; hash != "" && len(f) > 2 {
			f[1] = hash
			missing--
		}
		b.WriteString(strings.Join(f, ":"))
	}
	if missing > 0 {
		return nil, nil, errors.New("cannot set the passwords: /etc/shadow lacks admin or root")
	}
	return b.Bytes(), info, nil
}

func (p Place) setPasswords(shadow []byte, info fs.FileInfo) error {
	return atomicfile.WriteFunc(p.path("shadow"), info.Mode().Perm(), func(w io.Writer) error {
		// The group of the file reads it.
		if st, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
			if f, ok := w.(*os.File); ok {
				if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
					return err
				}
			}
		}
		_, err := w.Write(shadow)
		return err
	})
}

// setZone points /etc/localtime at the zone, for programs, and names it in
// /etc/timezone, for people.
func (p Place) setZone(zone string) error {
	part := p.path(".localtime.new")
	if err := os.Remove(part); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot set the time zone: %w", err)
	}
	if err := os.Symlink("/usr/share/zoneinfo/"+zone, part); err != nil {
		return fmt.Errorf("cannot set the time zone: %w", err)
	}
	if err := os.Rename(part, p.path("localtime")); err != nil {
		return fmt.Errorf("cannot set the time zone: %w", err)
	}
	return p.write("timezone", []byte(zone+"\n"), 0o644) // It syncs the folder.
}
