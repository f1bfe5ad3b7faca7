package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"appplatform/internal/hint"
)

// MaxName is the length of a name in bytes: PostgreSQL cuts off the rest.
const MaxName = 63

// reservedDatabase and reservedUser are names that are no instance's.
func reservedDatabase(name string) bool {
	return slices.Contains([]string{"manager", "postgres", "root"}, name) || strings.HasPrefix(name, "template")
}

func reservedUser(name string) bool {
	// none and public are words of SQL; pg_ belongs to the server.
	return slices.Contains([]string{"manager", "postgres", "root", "none", "public"}, name) || strings.HasPrefix(name, "pg_")
}

// CheckDatabase and CheckUser say why a name cannot be that of an instance's
// database or of its user.
func CheckDatabase(name string) error { return checkName("database", name, reservedDatabase) }

// CheckUser is described there.
func CheckUser(name string) error { return checkName("database user", name, reservedUser) }

func (d Database) check() error {
	if err := CheckDatabase(d.Name); err != nil {
		return err
	}
	return CheckUser(d.User)
}

func checkName(what, name string, reserved func(string) bool) error {
	switch {
	case name == "":
		return fmt.Errorf("the name of the %s is empty", what)
	case len(name) > MaxName:
		return hint.Errorf("shorten it", "the name of the %s has %d bytes; %d are allowed", what, len(name), MaxName)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("the name of the %s has characters that cannot be shown", what)
	case reserved(name):
		return hint.Errorf("take another name", "the name %s is the server's own", name)
	}
	return nil
}

// Taken returns a function that reports whether a name is that of a database or
// a user, to be given to Suggest.
func (c *Cluster) Taken(ctx context.Context) (func(string) bool, error) {
	var names []string
	err := c.db.Do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, "SELECT datname::text FROM pg_database UNION SELECT rolname::text FROM pg_roles")
		if err != nil {
			return err
		}
		names, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return func(name string) bool { return slices.Contains(names, name) }, err
}

// Suggest proposes a name that is free for an instance's database and its user:
// DOMAIN_NAME. One that is too long keeps the beginnings of both, and ends in
// some digits that follow from the whole.
func Suggest(name, domain string, taken func(string) bool) string {
	name, domain = printable(name), printable(domain)
	if whole := domain + "_" + name; reservedDatabase(whole) || reservedUser(whole) {
		domain = "app_" + domain // Nothing behind it makes template_ or pg_ somebody else's.
	}
	whole := domain + "_" + name
	sum := sha256.Sum256([]byte(whole))
	digits := "_" + hex.EncodeToString(sum[:3])
	for n := 1; ; n++ {
		end := ""
		if len(whole) > MaxName {
			end = digits
		}
		if n > 1 {
			end += "_" + strconv.Itoa(n)
		}
		try := shorten(domain, name, MaxName-len(end)) + end
		if !reservedDatabase(try) && !reservedUser(try) && !taken(try) {
			return try
		}
	}
}

func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, text)
}

// shorten makes DOMAIN_NAME fit by cutting the longer of both first.
func shorten(domain, name string, room int) string {
	room-- // the line between them
	if over := len(domain) + len(name) - room; over > 0 {
		keep := min(len(name), max(room-len(domain), room/2))
		name = cut(name, keep)
		domain = cut(domain, room-len(name))
	}
	return domain + "_" + name
}

// cut keeps whole characters.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}
