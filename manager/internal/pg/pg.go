// Package pg reaches the PostgreSQL server of the machine, which may be stopped,
// killed or restarted at any time.
package pg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"appplatform/internal/hint"
	"appplatform/manager/internal/model"
)

// SocketFolder is where the server's socket is on a device.
const SocketFolder = "/run/postgresql"

// User is the role that the manager acts as, and whom the server lets in
// because of the Unix user.
const User = "root"

// Patience is how long an answer is usually waited for, the server's start
// included. A page must not take longer to say that the database is away.
const Patience = 5 * time.Second

// maxConns of a pool: each is a process of the server, with some megabytes.
const maxConns = 4

// A DB is one database. Connections are made when they are needed.
type DB struct {
	Name     string
	Patience time.Duration // how long an answer is waited for
	pool     *pgxpool.Pool
}

// Open prepares connections to a database; the server need not run.
func Open(socket, database string) (*DB, error) {
	config, err := pgxpool.ParseConfig("")
	if err != nil {
		return nil, fmt.Errorf("cannot open the database %s: %w", database, err)
	}
	config.ConnConfig, err = connConfig(socket, database)
	if err != nil {
		return nil, err
	}
	config.MaxConns = maxConns
	config.MaxConnIdleTime = time.Minute
	// A server that was restarted a moment ago is noticed before a query is lost.
	config.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return true }
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, fmt.Errorf("cannot open the database %s: %w", database, err)
	}
	return &DB{Name: database, Patience: Patience, pool: pool}, nil
}

// Close ends all connections.
func (d *DB) Close() { d.pool.Close() }

// Connect makes one connection, for work that takes long. Cancelling the
// context of a query cancels it on the server, too.
func Connect(ctx context.Context, socket, database string) (*pgx.Conn, error) {
	config, err := connConfig(socket, database)
	if err != nil {
		return nil, err
	}
	config.BuildContextWatcherHandler = func(c *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: c, DeadlineDelay: Patience}
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	return conn, Explain(err)
}

func connConfig(socket, database string) (*pgx.ConnConfig, error) {
	// Every value is given, so that no environment variable or file of libpq's
	// decides anything; names need no quoting as fields.
	config, err := pgx.ParseConfig("host=/ user=root dbname=postgres sslmode=disable passfile=/dev/null servicefile=/dev/null")
	if err != nil {
		return nil, fmt.Errorf("internal error: %w", err)
	}
	config.Host, config.Port, config.User, config.Database = socket, 5432, User, database
	config.Fallbacks = nil
	config.ConnectTimeout = Patience
	config.RuntimeParams = map[string]string{
		"application_name": "manager",
		// Values of statements are passwords, too.
		"log_parameter_max_length": "0", "log_parameter_max_length_on_error": "0",
	}
	return config, nil
}

// Do calls f with a connection. While there is none, it waits for one as long
// as d.Patience; what f does gets as long again.
func (d *DB) Do(ctx context.Context, f func(ctx context.Context, conn *pgx.Conn) error) error {
	return d.DoWithin(ctx, d.Patience, f)
}

// DoWithin is Do for what takes longer.
func (d *DB) DoWithin(ctx context.Context, limit time.Duration, f func(ctx context.Context, conn *pgx.Conn) error) error {
	conn, err := d.acquire(ctx)
	if err != nil {
		return Explain(err)
	}
	defer conn.Release()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return Explain(f(ctx, conn.Conn()))
}

// Tx is Do in a transaction.
func (d *DB) Tx(ctx context.Context, f func(ctx context.Context, tx pgx.Tx) error) error {
	return d.Do(ctx, func(ctx context.Context, conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error { return f(ctx, tx) })
	})
}

// acquire tries again while the server starts.
func (d *DB) acquire(ctx context.Context) (*pgxpool.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.Patience)
	defer cancel()
	for pause := 20 * time.Millisecond; ; pause *= 2 {
		conn, err := d.pool.Acquire(ctx)
		if err == nil || !away(err) || ctx.Err() != nil {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// Explain makes an error of somebody who is not there satisfy
// model.ErrUnavailable, with its cause.
func Explain(err error) error {
	if err == nil || errors.Is(err, model.ErrUnavailable) || !away(err) {
		return err
	}
	return hint.Errorf("/etc/init.d/S50postgresql restart", "%w: %w", model.ErrUnavailable, short(err))
}

// short leaves out what pgx repeats of the connection's settings.
func short(err error) error {
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return connect.Unwrap()
	}
	return err
}

// away reports whether an error means that the server does not answer.
func away(err error) bool {
	var server *pgconn.PgError
	if errors.As(err, &server) {
		// Classes of errcodes.txt: 08 connection, 57P01 to 57P03 shutdown, crash,
		// start; 53300 too many connections.
		return strings.HasPrefix(server.Code, "08") || strings.HasPrefix(server.Code, "57P0") && server.Code <= "57P03" || server.Code == "53300"
	}
	var network net.Error
	var connect *pgconn.ConnectError
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		strings.HasSuffix(err.Error(), "conn closed") // pgx has no value for it
}

// Code is the SQLSTATE of an error, or "".
func Code(err error) string {
	var server *pgconn.PgError
	if errors.As(err, &server) {
		return server.Code
	}
	return ""
}

// Quote makes a text a literal of SQL, whatever standard_conforming_strings says.
func Quote(text string) string {
	quoted := "'" + strings.ReplaceAll(text, "'", "''") + "'"
	if strings.Contains(text, `\`) {
		return " E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}
