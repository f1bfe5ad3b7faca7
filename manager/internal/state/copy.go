package state

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"appplatform/manager/internal/model"
)

// A Copy is what somebody keeps of the database, to put it into a new one.
type Copy struct {
	Time     time.Time // when it was made
	Services []model.Service
	HalfMade []Instance        // those that are not in Services
	Config   map[string]string // rows of the table config
}

// inUse reports whether somebody has changed anything since the tables were made.
func inUse(ctx context.Context, in interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}) (used bool, err error) {
	err = in.QueryRow(ctx, `SELECT EXISTS (SELECT FROM config) OR EXISTS (SELECT FROM service) OR EXISTS (SELECT FROM instance)
		OR EXISTS (SELECT FROM token) OR EXISTS (SELECT FROM audit)`).Scan(&used)
	return used, err
}

// restore puts the copy into a database that was made just now, all or nothing, and
// reports whether it did. The entry of the audit log is what keeps it from being done
// again, also when everything of it was deleted meanwhile.
func restore(ctx context.Context, conn *pgx.Conn, c Copy) (done bool, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// Nobody writes in between, nor restores at the same time.
		if _, err := tx.Exec(ctx, "LOCK TABLE config, service, instance, token, audit IN SHARE ROW EXCLUSIVE MODE"); err != nil {
			return err
		}
		if used, err := inUse(ctx, tx); err != nil || used {
			return err
		}
		for name, value := range c.Config {
			if _, err := tx.Exec(ctx, "INSERT INTO config (name, value) VALUES ($1, $2)", name, value); err != nil {
				return err
			}
		}
		instances := slices.Clone(c.HalfMade)
		for _, v := range c.Services {
			if _, err := tx.Exec(ctx, insertService, serviceValues(v)...); err != nil {
				return err
			}
			for _, i := range v.Instances {
				// Their databases may be lost, too.
				instances = append(instances, Instance{i, Creating})
			}
		}
		for _, i := range instances {
			// The number is that of the folder of its files.
			_, err := tx.Exec(ctx, `INSERT INTO instance (`+instanceColumns+`, phase, id) OVERRIDING SYSTEM VALUE
				VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`, append(instanceValues(i.Instance), i.Phase, i.ID)...)
			if err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, "SELECT setval(pg_get_serial_sequence('instance', 'id'), max(id)) FROM instance HAVING count(*) > 0")
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "INSERT INTO audit (time, who, origin, what, detail) VALUES (now(), 'manager', '', 'restore database', $1)",
			fmt.Sprintf("apps and instances of %s", c.Time.UTC().Format(time.DateTime+" UTC")))
		done = err == nil
		return err
	})
	if err != nil {
		return false, fmt.Errorf("cannot put the copy of %s into the new database %s: %w", c.Time.Format(time.DateTime), Database, err)
	}
	return done, nil
}
