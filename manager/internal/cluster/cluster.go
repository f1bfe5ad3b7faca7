// Package cluster makes, changes and removes the databases of instances in the
// PostgreSQL cluster of the machine, and keeps them in shape.
package cluster

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"appplatform/internal/hint"
	"appplatform/manager/internal/pg"
)

// A Cluster is all databases of a server.
type Cluster struct {
	socket string
	db     *pg.DB // the database postgres, for what concerns all of them
}

// Open prepares connections to the server whose socket is in this folder. It
// need not run.
func Open(socket string) (*Cluster, error) {
	db, err := pg.Open(socket, "postgres")
	if err != nil {
		return nil, err
	}
	return &Cluster{socket, db}, nil
}

// Close ends all connections.
func (c *Cluster) Close() { c.db.Close() }

// A Database is that of an instance, with the user whose it is.
type Database struct{ Name, User string }

// A State is what the server has of a Database.
type State struct {
	Database   bool
	Owner      string // of the database
	User       bool
	Superuser  bool     // the user is one
	Others     []string // other databases of the user
	Restricted bool     // not everybody may connect to the database
}

// Find looks what there is of a database.
func (c *Cluster) Find(ctx context.Context, d Database) (s State, err error) {
	err = c.db.Tx(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		s, err = find(ctx, tx, d)
		return err
	})
	return s, err
}

func find(ctx context.Context, tx pgx.Tx, d Database) (s State, err error) {
	err = tx.QueryRow(ctx, `SELECT r.rolname, NOT has_database_privilege('public', d.oid, 'CONNECT')
		FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE d.datname = $1`, d.Name).Scan(&s.Owner, &s.Restricted)
	switch err {
	case nil:
		s.Database = true
	case pgx.ErrNoRows:
	default:
		return s, err
	}
	err = tx.QueryRow(ctx, `SELECT r.rolsuper, ARRAY(SELECT d.datname::text FROM pg_database d
		WHERE d.datdba = r.oid AND d.datname <> $2 ORDER BY 1) FROM pg_roles r WHERE r.rolname = $1`, d.User, d.Name).Scan(&s.Superuser, &s.Others)
	switch err {
	case nil:
		s.User = true
	case pgx.ErrNoRows:
		err = nil
	}
	return s, err
}

// Create makes a database and its user, which must be new.
func (c *Cluster) Create(ctx context.Context, d Database, password string) error {
	return c.create(ctx, d, password, false)
}

// Finish makes what is missing of a database that Create was about to make when
// it was interrupted. The caller knows that from its own records: nothing in
// the cluster tells a half-made database from somebody else's.
func (c *Cluster) Finish(ctx context.Context, d Database, password string) error {
	return c.create(ctx, d, password, true)
}

func (c *Cluster) create(ctx context.Context, d Database, password string, finish bool) error {
	found, err := c.Find(ctx, d)
	if err != nil {
		return err
	}
	statements, err := Plan(d, password, found, finish)
	if err != nil {
		return fmt.Errorf("cannot create the database %s: %w", d.Name, err)
	}
	for _, sql := range statements {
		if err := c.exec(ctx, sql); err != nil {
			return fmt.Errorf("cannot create the database %s: %w", d.Name, err)
		}
	}
	return nil
}

// slow bounds a statement that waits for the disk: a new database is some
// megabytes, and the end of one waits for all that is not written yet.
const slow = 5 * time.Minute

// exec runs one statement outside of a transaction, which CREATE DATABASE and
// others demand.
func (c *Cluster) exec(ctx context.Context, sql string) error {
	return c.db.DoWithin(ctx, slow, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
		return err
	})
}

// Plan lists the statements that make a database with its user. Those of a new
// one are the six that the described system's manual has.
func Plan(d Database, password string, found State, finish bool) ([]string, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	verifier, err := passwordVerifier(password)
	if err != nil {
		return nil, err
	}
	switch {
	case found.Database && !finish:
		return nil, hint.Errorf("take another name", "there is a database %s already", d.Name)
	case found.User && !finish:
		return nil, hint.Errorf("take another name", "there is a database user %s already", d.User)
	case found.Database && found.Owner != pg.User && found.Owner != d.User:
		return nil, hint.Errorf("take another name", "the database %s belongs to %s", d.Name, found.Owner)
	case found.Superuser:
		return nil, hint.Errorf("take another name", "the database user %s is an administrator of the server", d.User)
	case len(found.Others) > 0:
		return nil, hint.Errorf("take another name", "the database user %s has the database %s, too", d.User, found.Others[0])
	}
	name, user := quote(d.Name), quote(d.User)
	var list []string
	if !found.Database {
		list = append(list, "CREATE DATABASE "+name+" ENCODING 'UTF8'")
	}
	if !found.User {
		list = append(list, "CREATE USER "+user)
	}
	return append(list,
		alterPassword(d.User, verifier),
		"GRANT ALL PRIVILEGES ON DATABASE "+name+" TO "+user,
		"ALTER DATABASE "+name+" OWNER TO "+user,
		"REVOKE CONNECT ON DATABASE "+name+" FROM public",
	), nil
}

func alterPassword(user, verifier string) string {
	return "ALTER USER " + quote(user) + " WITH PASSWORD " + pg.Quote(verifier)
}

// SetPassword changes the password of a database's user. Connections that it has
// stay.
func (c *Cluster) SetPassword(ctx context.Context, user, password string) error {
	verifier, err := passwordVerifier(password)
	if err == nil {
		err = checkName("database user", user, reservedUser)
	}
	if err == nil {
		err = c.exec(ctx, alterPassword(user, verifier))
	}
	if err != nil {
		return fmt.Errorf("cannot change the password of the database user %s: %w", user, err)
	}
	return nil
}

// Rename gives a database and its user other names; either may stay. What was
// renamed already is passed over, so that it may be called again.
func (c *Cluster) Rename(ctx context.Context, old, new Database) error {
	for _, d := range []Database{old, new} {
		if err := d.check(); err != nil {
			return fmt.Errorf("cannot rename the database %s: %w", old.Name, err)
		}
	}
	was, err := c.Find(ctx, old)
	if err != nil {
		return err
	}
	is, err := c.Find(ctx, new)
	if err != nil {
		return err
	}
	if old.Name != new.Name && was.Database {
		// Nobody may be connected, and an app comes back at once.
		for range 10 {
			if err = c.terminate(ctx, old.Name); err == nil {
				err = c.exec(ctx, "ALTER DATABASE "+quote(old.Name)+" RENAME TO "+quote(new.Name))
			}
			if pg.Code(err) != objectInUse {
				break
			}
		}
	} else if !was.Database && !is.Database {
		err = fmt.Errorf("there is no database %s", old.Name)
	}
	if err == nil && old.User != new.User && was.User {
		err = c.exec(ctx, "ALTER USER "+quote(old.User)+" RENAME TO "+quote(new.User))
	}
	if err != nil {
		return fmt.Errorf("cannot rename the database %s: %w", old.Name, err)
	}
	return nil
}

// objectInUse is ERRCODE_OBJECT_IN_USE.
const objectInUse = "55006"

func (c *Cluster) terminate(ctx context.Context, database string) error {
	return c.db.Do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		// With a time, the function waits for the ends.
		_, err := conn.Exec(ctx, "SELECT pg_terminate_backend(pid, 2000) FROM pg_stat_activity WHERE datname = $1", database)
		return err
	})
}

// Drop removes a database with all its connections, and its user. What is not
// there is passed over.
func (c *Cluster) Drop(ctx context.Context, d Database) error {
	err := d.check()
	if err == nil {
		var found State
		if found, err = c.Find(ctx, d); err != nil {
			return err
		}
		if found.Superuser {
			err = fmt.Errorf("the database user %s is an administrator of the server", d.User)
		}
	}
	for _, sql := range []string{
		"DROP DATABASE IF EXISTS " + quote(d.Name) + " WITH (FORCE)",
		"DROP USER IF EXISTS " + quote(d.User),
	} {
		if err == nil {
			err = c.exec(ctx, sql)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot delete the database %s: %w", d.Name, err)
	}
	return nil
}

// Sizes are the sizes of all databases in bytes.
func (c *Cluster) Sizes(ctx context.Context) (map[string]int64, error) {
	sizes := map[string]int64{}
	err := c.db.Do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		// By name, it is an error when a database is being dropped; by number, null.
		rows, err := conn.Query(ctx, "SELECT datname, coalesce(pg_database_size(oid), 0) FROM pg_database WHERE datallowconn")
		if err != nil {
			return err
		}
		var name string
		var size int64
		_, err = pgx.ForEachRow(rows, []any{&name, &size}, func() error {
			sizes[name] = size
			return nil
		})
		return err
	})
	return sizes, err
}

// Version is that of the server, such as 17.5.
func (c *Cluster) Version(ctx context.Context) (version string, err error) {
	err = c.db.Do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return conn.QueryRow(ctx, "SHOW server_version").Scan(&version)
	})
	version, _, _ = strings.Cut(version, " ")
	return version, err
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
