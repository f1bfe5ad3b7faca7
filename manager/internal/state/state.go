// Package state is what the manager remembers, in its database "manager":
// services, instances, settings, tokens, what was changed and what crashed.
package state

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sync/singleflight"

	"appplatform/manager/internal/model"
	"appplatform/manager/internal/pg"
)

// Database is the name of the manager's own database.
const Database = "manager"

// A Store is open at once; the server may start later. The tables are made
// before they are asked for the first time.
type Store struct {
	socket  string
	db      *pg.DB
	changed func()

	// Copy, if it is set, has what is to be in a database that was lost and has just
	// been made anew, if somebody knows; Restored is called when it is there.
	Copy     func() (Copy, bool, error)
	Restored func(Copy)

	ready  atomic.Bool
	making singleflight.Group
}

// Open prepares the store of the server whose socket is in this folder. changed
// is called after every change, and must not wait for the store.
func Open(socket string, changed func()) (*Store, error) {
	db, err := pg.Open(socket, Database)
	if err != nil {
		return nil, err
	}
	return &Store{socket: socket, db: db, changed: changed}, nil
}

// Close ends all connections.
func (s *Store) Close() { s.db.Close() }

// slow bounds the making of the database and its tables on a slow disk.
const slow = 5 * time.Minute

// Prepare makes the database and its tables if they are not there yet. All other
// methods call it. While the server is away, all who ask get the same answer at
// the same time.
func (s *Store) Prepare(ctx context.Context) error {
	if s.ready.Load() {
		return nil
	}
	made := s.making.DoChan("", func() (any, error) {
		err := s.prepare(context.WithoutCancel(ctx)) // others wait for it, too
		s.ready.Store(err == nil)
		return nil, err
	})
	select {
	case result := <-made:
		return result.Err
	case <-ctx.Done():
		return pg.Explain(ctx.Err())
	}
}

func (s *Store) prepare(ctx context.Context) error {
	if err := s.create(ctx); err != nil {
		return fmt.Errorf("cannot open the database %s: %w", Database, err)
	}
	list, err := readMigrations(embedded)
	if err != nil {
		return err
	}
	err = s.db.DoWithin(ctx, slow, func(ctx context.Context, conn *pgx.Conn) error {
		if _, err := migrate(ctx, conn, list); err != nil {
			return err
		}
		return s.putBack(ctx, conn)
	})
	if err != nil {
		return fmt.Errorf("cannot open the database %s: %w", Database, err)
	}
	return nil
}

// putBack looks at what the tables hold and not at whether they were made just now:
// a manager may have died in between.
func (s *Store) putBack(ctx context.Context, conn *pgx.Conn) error {
	if s.Copy == nil {
		return nil
	}
	if used, err := inUse(ctx, conn); err != nil || used {
		return err
	}
	c, ok, err := s.Copy()
	if err != nil || !ok {
		return err
	}
	done, err := restore(ctx, conn, c)
	if done && s.Restored != nil {
		s.Restored(c)
	}
	return err
}

// create makes the database, into which only root may look: the instances'
// passwords are there.
func (s *Store) create(ctx context.Context) error {
	db, err := pg.Open(s.socket, "postgres")
	if err != nil {
		return err
	}
	defer db.Close()
	db.Patience = s.db.Patience
	return db.DoWithin(ctx, slow, func(ctx context.Context, conn *pgx.Conn) error {
		var there, open bool
		err := conn.QueryRow(ctx, "SELECT true, has_database_privilege('public', oid, 'CONNECT') FROM pg_database WHERE datname = $1", Database).Scan(&there, &open)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if !there {
			open = true
			// Another manager may have made it in between.
			if _, err := conn.Exec(ctx, "CREATE DATABASE "+Database+" ENCODING 'UTF8'"); err != nil && pg.Code(err) != duplicateDatabase {
				return err
			}
		}
		if open {
			_, err = conn.Exec(ctx, "REVOKE ALL ON DATABASE "+Database+" FROM public")
			return err
		}
		return nil
	})
}

// Codes of errors, from PostgreSQL's errcodes.txt.
const (
	duplicateDatabase = "42P04"
	uniqueViolation   = "23505"
	foreignKey        = "23503"
	undefinedTable    = "42P01"
	invalidCatalog    = "3D000"
)

// do calls f in a transaction.
func (s *Store) do(ctx context.Context, f func(ctx context.Context, tx pgx.Tx) error) error {
	if err := s.Prepare(ctx); err != nil {
		return err
	}
	err := s.db.Tx(ctx, f)
	if code := pg.Code(err); code == undefinedTable || code == invalidCatalog {
		// The database was deleted or replaced while the manager ran.
		s.ready.Store(false)
	}
	return explain(err)
}

// change is do for what others want to know of.
func (s *Store) change(ctx context.Context, f func(ctx context.Context, tx pgx.Tx) error) error {
	err := s.do(ctx, f)
	if err == nil && s.changed != nil {
		s.changed()
	}
	return err
}

// one runs a statement that must concern one row.
func (s *Store) one(ctx context.Context, sql string, args ...any) error {
	return s.change(ctx, func(ctx context.Context, tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, sql, args...)
		if err == nil && tag.RowsAffected() == 0 {
			err = model.ErrNotFound
		}
		return err
	})
}

// query collects rows.
func query[T any](ctx context.Context, s *Store, scan pgx.RowToFunc[T], sql string, args ...any) (list []T, err error) {
	err = s.do(ctx, func(ctx context.Context, tx pgx.Tx) error {
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, scan)
		return err
	})
	return list, err
}

// A FieldError says which value cannot be stored. Field is its name in JSON.
type FieldError struct{ Field, Problem string }

func (e *FieldError) Error() string { return e.Problem }

// fields are the values that the constraints of the tables are about.
var fields = map[string]FieldError{
	"instance_name":    {"name", "there is an instance of this name and domain already"},
	"instance_path":    {"path", "another instance has this path"},
	"instance_db_name": {"dbName", "another instance has a database of this name"},
	"instance_db_user": {"dbUser", "another instance has a database user of this name"},
	"instance_service": {"service", "there is no such app"},
	"service_uid":      {"uid", "another app has this user"},
	"token_name":       {"name", "there is a token of this name already"},
}

// explain turns what a constraint says into what the administrator can use.
func explain(err error) error {
	var server *pgconn.PgError
	if !errors.As(err, &server) || server.Code != uniqueViolation && server.Code != foreignKey {
		if errors.Is(err, pgx.ErrNoRows) {
			return model.ErrNotFound
		}
		return err
	}
	if field, ok := fields[server.ConstraintName]; ok {
		return &field
	}
	return err
}
