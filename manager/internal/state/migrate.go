package state

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"appplatform/internal/hint"
)

//go:embed migrations/*.sql
var embedded embed.FS

// A migration is one change of the tables, made in one transaction. Managers
// that know the tables from the number Oldest on can still work with the result.
type migration struct {
	Number, Oldest int
	SQL            string
}

// oldestLine begins each migration.
var oldestLine = regexp.MustCompile(`^-- oldest: ([0-9]+)\n`)

// readMigrations reads them from files NUMBER.sql, which have no gaps.
func readMigrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	var list []migration
	for i, name := range names { // in order
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		m := migration{SQL: string(text)}
		m.Number, err = strconv.Atoi(strings.TrimSuffix(path.Base(name), ".sql"))
		if err != nil || m.Number != i+1 {
			return nil, fmt.Errorf("internal error: the migration %s is not number %d", name, i+1)
		}
		oldest := oldestLine.FindStringSubmatch(m.SQL)
		if oldest == nil {
			return nil, fmt.Errorf("internal error: the migration %s does not say for which managers it is", name)
		}
		if m.Oldest, err = strconv.Atoi(oldest[1]); err != nil || m.Oldest > m.Number {
			return nil, fmt.Errorf("internal error: the migration %s is for managers of number %s on", name, oldest[1])
		}
		list = append(list, m)
	}
	return list, nil
}

// lockNumber is that of the advisory lock which one manager at a time holds
// while it migrates.
const lockNumber = 0x6170706d

// migrate makes the changes that the database lacks, and returns how many.
func migrate(ctx context.Context, conn *pgx.Conn, list []migration) (made int, err error) {
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock($1)", lockNumber); err != nil {
		return 0, err
	}
	defer func() { _, _ = conn.Exec(ctx, "SELECT pg_advisory_unlock($1)", lockNumber) }()
	if _, err := conn.Exec(ctx, `CREATE TABLE IF NOT EXISTS migration (
		number integer PRIMARY KEY, oldest integer NOT NULL, time timestamptz NOT NULL DEFAULT now())`); err != nil {
		return 0, err
	}
	var at, oldest int
	if err := conn.QueryRow(ctx, "SELECT coalesce(max(number), 0), coalesce(max(oldest), 0) FROM migration").Scan(&at, &oldest); err != nil {
		return 0, err
	}
	if oldest > len(list) {
		return 0, hint.Errorf("install a manager that is at least as new as the one before",
			"the database manager was changed by a newer manager (number %d; this one knows up to %d)", at, len(list))
	}
	for _, m := range list[min(at, len(list)):] {
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			// The simple protocol takes several statements.
			if _, err := tx.Exec(ctx, m.SQL, pgx.QueryExecModeSimpleProtocol); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "INSERT INTO migration (number, oldest) VALUES ($1, $2)", m.Number, m.Oldest)
			return err
		})
		if err != nil {
			return made, fmt.Errorf("cannot change the tables of the manager to number %d: %w", m.Number, err)
		}
		made++
	}
	return made, nil
}
