// Package users keeps the Unix users of apps in /etc/passwd, group and shadow.
package users

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"appplatform/internal/atomicfile"
	"appplatform/internal/hint"
	"appplatform/internal/run"
)

// FirstUID is that of the first app. Each new app gets the next number; none is
// ever used again, since files may belong to it.
const FirstUID = 10000

// maxName is how long a user's name may be (utmp's field).
const maxName = 31

// A Table is the accounts below a root folder.
type Table struct{ Root string }

// A User is an account that there should be.
type User struct {
	Name  string
	UID   uint32
	Title string
	Home  string
	Login bool // may log in, with admin's password
}

// Name is what the user of an app is called: its name, cut if it is long, with
// a few letters that still tell it from others.
func Name(app string) string {
	name := "app-" + strings.ToLower(app)
	if len(name) <= maxName && app == strings.ToLower(app) {
		return name
	}
	sum := sha256.Sum256([]byte(app))
	return name[:min(len(name), maxName-7)] + "-" + hex.EncodeToString(sum[:3])
}

// App is the account of an app.
func App(app string, uid uint32, login bool) User {
	return User{Name: Name(app), UID: uid, Title: "app " + app, Home: "/apps/" + app, Login: login}
}

// Webserver is the account of the webserver. The image has it, but /etc on the
// disk may be older.
var Webserver = User{Name: "webserver", UID: 200, Title: "webserver", Home: "/nonexistent"}

// Ensure makes the accounts be as they should, and changes nothing when they are.
func (t Table) Ensure(ctx context.Context, users ...User) error {
	return t.change(ctx, func(f *tables) error {
		for _, u := range users {
			if err := f.ensure(u); err != nil {
				return err
			}
		}
		return nil
	})
}

// Remove deletes accounts.
func (t Table) Remove(ctx context.Context, names ...string) error {
	return t.change(ctx, func(f *tables) error {
		for _, name := range names {
			for _, table := range []*[]string{&f.passwd, &f.group, &f.shadow} {
				*table = slices.DeleteFunc(*table, func(line string) bool { return strings.HasPrefix(line, name+":") })
			}
		}
		return nil
	})
}

// tables are the lines of the three files.
type tables struct{ passwd, group, shadow []string }

func (f *tables) ensure(u User) error {
	uid := strconv.FormatUint(uint64(u.UID), 10)
	for _, line := range f.passwd {
		fields := strings.Split(line, ":")
		if len(fields) > 2 && fields[0] != u.Name && fields[2] == uid {
			return fmt.Errorf("cannot make the user %s: its number %s belongs to %s", u.Name, uid, fields[0])
		}
	}
	shell, password := "/usr/sbin/nologin", "*"
	if u.Login {
		shell, password = "/bin/sh", f.password("admin")
	}
	put(&f.passwd, u.Name, strings.Join([]string{u.Name, "x", uid, uid, u.Title, u.Home, shell}, ":"))
	put(&f.group, u.Name, strings.Join([]string{u.Name, "x", uid, ""}, ":"))
	// The day of the last change is not worth another file on the disk.
	put(&f.shadow, u.Name, strings.Join([]string{u.Name, password, "20000", "0", "99999", "7", "", "", ""}, ":"))
	return nil
}

// password is the hash of somebody's, and locked if there is none.
func (f *tables) password(user string) string {
	for _, line := range f.shadow {
		if fields := strings.Split(line, ":"); fields[0] == user && len(fields) > 1 && fields[1] != "" {
			return fields[1]
		}
	}
	return "*"
}

func put(table *[]string, name, line string) {
	i := slices.IndexFunc(*table, func(l string) bool { return strings.HasPrefix(l, name+":") })
	if i < 0 {
		*table = append(*table, line)
		return
	}
	(*table)[i] = line
}

// change reads the files under their lock, which passwd and others honour, and
// writes those that are different afterwards.
func (t Table) change(ctx context.Context, do func(*tables) error) error {
	unlock, err := t.lock(ctx)
	if err != nil {
		return fmt.Errorf("cannot change the users: %w", err)
	}
	defer unlock()
	var f tables
	files := []struct {
		name  string
		lines *[]string
		mode  fs.FileMode
	}{
		// shadow first: an account without a line there has no password at all.
		{"shadow", &f.shadow, 0o640}, {"group", &f.group, 0o644}, {"passwd", &f.passwd, 0o644},
	}
	before := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(t.path(file.name))
		if err != nil {
			return fmt.Errorf("cannot read the users: %w", err)
		}
		before[file.name] = string(text)
		*file.lines = strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	}
	if err := do(&f); err != nil {
		return err
	}
	for _, file := range files {
		if text := strings.Join(*file.lines, "\n") + "\n"; text != before[file.name] {
			if err := t.write(file.name, text, file.mode); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t Table) path(name string) string { return filepath.Join(t.Root, "etc", name) }

// write keeps owner and mode: the group of shadow may read it.
func (t Table) write(name, text string, mode fs.FileMode) error {
	info, err := os.Stat(t.path(name))
	if err == nil {
		mode = info.Mode().Perm()
	}
	if err := atomicfile.Write(t.path(name), []byte(text), mode); err != nil {
		return err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		return os.Chown(t.path(name), int(s.Uid), int(s.Gid))
	}
	return nil
}

// lock is lckpwdf(3), with a lock that goroutines keep out, too.
func (t Table) lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.OpenFile(t.path(".pwd.lock"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Whence: 0})
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EACCES) {
			f.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, hint.Errorf("try again", "somebody else is changing them")
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// SetPassword changes the password of root or admin, by the program that the
// console's passwd shares its settings with.
func SetPassword(ctx context.Context, user, password string) error {
	if user != "root" && user != "admin" {
		return hint.Errorf("root or admin", "cannot change the password of %q", user)
	}
	if password == "" || strings.ContainsAny(password, "\n\r\x00") {
		return hint.Errorf("choose another one", "cannot change the password of %s: it is empty or has line ends in it", user)
	}
	cmd := run.Command(ctx, "chpasswd")
	cmd.Stdin = strings.NewReader(user + ":" + password + "\n")
	if err := run.Wait(cmd); err != nil {
		return fmt.Errorf("cannot change the password of %s: %w", user, err)
	}
	return nil
}
