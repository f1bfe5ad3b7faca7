package state

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
)

func wireFlags(n int64) wire.Flags { return wire.Flags(n) }

// How many entries are kept: they are for people, and the disk is small.
const (
	maxAudit   = 100_000
	maxCrashes = 1000
)

const tokenColumns = "id, name, created, last_used"

func scanToken(row pgx.CollectableRow) (t model.Token, err error) {
	var used *time.Time
	err = row.Scan(&t.ID, &t.Name, &t.Created, &used)
	if used != nil {
		t.LastUsed = *used
	}
	return t, err
}

// Tokens are all of them, by name.
func (s *Store) Tokens(ctx context.Context) ([]model.Token, error) {
	return query(ctx, s, scanToken, "SELECT "+tokenColumns+" FROM token ORDER BY name")
}

// AddToken remembers a secret by its SHA-256: it is long and random, so nobody
// finds it from that.
func (s *Store) AddToken(ctx context.Context, name, secret string, now time.Time) (model.Token, error) {
	t := model.Token{ID: rand.Text()[:12], Name: name, Created: now.UTC().Truncate(time.Microsecond)}
	if name == "" {
		return t, &FieldError{"name", "the name of the token is empty"}
	}
	hash := sha256.Sum256([]byte(secret))
	return t, s.one(ctx, "INSERT INTO token (id, name, hash, created) VALUES ($1, $2, $3, $4)", t.ID, t.Name, hash[:], t.Created)
}

// Token finds a token by its secret, and notes to the minute that it was used.
// model.ErrPassword means that there is none.
func (s *Store) Token(ctx context.Context, secret string, now time.Time) (t model.Token, err error) {
	hash := sha256.Sum256([]byte(secret))
	list, err := query(ctx, s, scanToken, "SELECT "+tokenColumns+" FROM token WHERE hash = $1", hash[:])
	if err != nil {
		return t, err
	}
	if len(list) == 0 {
		return t, model.ErrPassword
	}
	t = list[0]
	if age := now.Sub(t.LastUsed); age < 0 || age >= time.Minute {
		t.LastUsed = now.UTC().Truncate(time.Microsecond)
		// A full disk must not keep those out who could make room.
		_ = s.do(ctx, func(ctx context.Context, tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "UPDATE token SET last_used = $2 WHERE id = $1", t.ID, t.LastUsed)
			return err
		})
	}
	return t, nil
}

// DeleteToken makes a token worthless.
func (s *Store) DeleteToken(ctx context.Context, id string) error {
	return s.one(ctx, "DELETE FROM token WHERE id = $1", id)
}

// storable replaces what no text of PostgreSQL's can have: others send it.
func storable(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}

// AddAudit notes a change. Its time becomes a little later if there is an entry
// of the same time.
func (s *Store) AddAudit(ctx context.Context, a model.Audit) error {
	return s.change(ctx, func(ctx context.Context, tx pgx.Tx) error {
		// The order of two entries of the same moment is that of the calls.
		if _, err := tx.Exec(ctx, "LOCK TABLE audit IN SHARE ROW EXCLUSIVE MODE"); err != nil {
			return err
		}
		var id int64
		err := tx.QueryRow(ctx, `
			WITH RECURSIVE free(time) AS (
				SELECT $1::timestamptz
				UNION ALL SELECT time + interval '1 microsecond' FROM free WHERE EXISTS (SELECT FROM audit WHERE audit.time = free.time)
			)
			INSERT INTO audit (time, who, origin, what, detail) SELECT max(time), $2, $3, $4, $5 FROM free RETURNING id`,
			a.Time, storable(a.Who), storable(a.From), storable(a.What), storable(a.Detail)).Scan(&id)
		if err == nil {
			_, err = tx.Exec(ctx, "DELETE FROM audit WHERE id <= $1", id-maxAudit)
		}
		return err
	})
}

// Audit are the last entries before a time, or of all if it is zero, newest first.
func (s *Store) Audit(ctx context.Context, before time.Time, limit int) ([]model.Audit, error) {
	scan := func(row pgx.CollectableRow) (a model.Audit, err error) {
		err = row.Scan(&a.Time, &a.Who, &a.From, &a.What, &a.Detail)
		return a, err
	}
	return query(ctx, s, scan, `SELECT time, who, origin, what, detail FROM audit
		WHERE $1::timestamptz IS NULL OR time < $1 ORDER BY time DESC LIMIT $2`, orNull(before), limit)
}

func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// AddCrash notes the end of an app that nobody asked for.
func (s *Store) AddCrash(ctx context.Context, c model.Crash) error {
	return s.change(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var id int64
		err := tx.QueryRow(ctx, "INSERT INTO crash (service, time, what) VALUES ($1, $2, $3) RETURNING id", c.Service, c.Time, storable(c.What)).Scan(&id)
		if err == nil {
			_, err = tx.Exec(ctx, "DELETE FROM crash WHERE id <= $1", id-maxCrashes)
		}
		return err
	})
}

// Crashes are the last ones, newest first.
func (s *Store) Crashes(ctx context.Context, limit int) ([]model.Crash, error) {
	scan := func(row pgx.CollectableRow) (c model.Crash, err error) {
		err = row.Scan(&c.Service, &c.Time, &c.What)
		return c, err
	}
	return query(ctx, s, scan, "SELECT service, time, what FROM crash ORDER BY id DESC LIMIT $1", limit)
}
