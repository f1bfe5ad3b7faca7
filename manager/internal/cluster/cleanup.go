package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"appplatform/internal/hint"
	"appplatform/manager/internal/pg"
)

// A Progress is told while a clean-up runs: the table and bytes, indexes
// included, of all tables.
type Progress func(table string, done, total int64)

// A table to be written anew.
type table struct {
	OID          uint32
	Schema, Name string
	Size         int64 // with its indexes
}

func (t table) String() string { return t.Schema + "." + t.Name }

// CleanUp gives the room of deleted rows back to the disk (VACUUM FULL of each
// table, smallest first, so that what they free serves the larger ones). The app
// waits meanwhile. free tells how many bytes the disk has left; there must be
// enough for a copy of the largest table. Cancelling ctx ends it; tables that
// are finished stay so.
func (c *Cluster) CleanUp(ctx context.Context, database string, free func() (int64, error), progress Progress) error {
	if err := c.cleanUp(ctx, database, free, progress); err != nil {
		return fmt.Errorf("cannot clean up the database %s: %w", database, err)
	}
	return nil
}

func (c *Cluster) cleanUp(ctx context.Context, database string, free func() (int64, error), progress Progress) error {
	conn, err := pg.Connect(ctx, c.socket, database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tables, err := tablesOf(ctx, conn)
	if err != nil {
		return pg.Explain(err)
	}
	if err := checkRoom(tables, free); err != nil {
		return err
	}
	var done, total int64
	for _, t := range tables {
		total += t.Size
	}
	for _, t := range tables {
		stop := c.watch(ctx, database, t, func(part int64) { progress(t.String(), done+part, total) })
		_, err := conn.Exec(ctx, "VACUUM (FULL, ANALYZE) "+pgx.Identifier{t.Schema, t.Name}.Sanitize())
		stop()
		// An app may have dropped the table in between.
		if err != nil && pg.Code(err) != undefinedTable && pg.Code(err) != invalidSchema {
			return explainCancel(ctx, err)
		}
		done += t.Size
		progress(t.String(), done, total)
	}
	return nil
}

// Codes of errors, from PostgreSQL's errcodes.txt.
const (
	undefinedTable = "42P01"
	invalidSchema  = "3F000"
)

// explainCancel keeps what a cancelled query looks like from the server's words.
func explainCancel(ctx context.Context, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return ctx.Err()
	}
	return pg.Explain(err)
}

// tablesOf lists what VACUUM FULL writes anew, catalogues included, but not what
// all databases share.
func tablesOf(ctx context.Context, conn *pgx.Conn) ([]table, error) {
	rows, err := conn.Query(ctx, `SELECT c.oid, n.nspname::text, c.relname::text, coalesce(pg_total_relation_size(c.oid), 0)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND NOT c.relisshared ORDER BY 4, 1`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[table])
}

// checkRoom demands room for a second copy of the largest table: the old one is
// removed when the new one is whole.
func checkRoom(tables []table, free func() (int64, error)) error {
	var largest table
	for _, t := range tables {
		if t.Size > largest.Size {
			largest = t
		}
	}
	have, err := free()
	if err != nil {
		return err
	}
	if missing := largest.Size - have; missing > 0 {
		const MB = 1e6
		return hint.Errorf(fmt.Sprintf("make %.1f MB room on the disk, or delete data of other apps first", float64(missing)/MB),
			"its table %s needs %.1f MB for a while, and the disk has %.1f MB left", largest, float64(largest.Size)/MB, float64(have)/MB)
	}
	return nil
}

// watch asks each second how far a table is, until the function that it returns
// is called.
func (c *Cluster) watch(ctx context.Context, database string, t table, tell func(part int64)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
			// What cannot be learned now is asked again.
			if part, err := c.rewritten(ctx, database, t); err == nil && ctx.Err() == nil {
				tell(part)
			}
		}
	}()
	return func() { cancel(); <-ended }
}

// rewritten is how much of a table VACUUM FULL has read.
func (c *Cluster) rewritten(ctx context.Context, database string, t table) (part int64, err error) {
	err = c.db.Do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		// The indexes come last and have no progress: then all blocks are scanned.
		return conn.QueryRow(ctx, `SELECT coalesce(max($3::float8 * heap_blks_scanned / nullif(heap_blks_total, 0)), 0)::bigint
			FROM pg_stat_progress_cluster WHERE datname = $1 AND relid = $2`, database, t.OID, t.Size).Scan(&part)
	})
	return part, err
}

// Optimize does what `vacuumdb -a -z` does: it makes the room of deleted rows
// usable again and tells the planner what is in all tables. Nothing is locked.
// A database that fails does not keep the others from it.
func (c *Cluster) Optimize(ctx context.Context) error {
	sizes, err := c.Sizes(ctx)
	if err != nil {
		return fmt.Errorf("cannot optimise the databases: %w", err)
	}
	var failed []error
	for database := range sizes {
		if err := c.optimize(ctx, database); err != nil {
			failed = append(failed, fmt.Errorf("cannot optimise the database %s: %w", database, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return errors.Join(failed...)
}

func (c *Cluster) optimize(ctx context.Context, database string) error {
	conn, err := pg.Connect(ctx, c.socket, database)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	_, err = conn.Exec(ctx, "VACUUM (ANALYZE)")
	if err != nil {
		return explainCancel(ctx, err)
	}
	return nil
}
