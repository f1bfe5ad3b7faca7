package pg

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"appplatform/internal/testpg"
	"appplatform/manager/internal/model"
)

func open(t *testing.T, s *testpg.Server) *DB {
	t.Helper()
	d, err := Open(s.Socket, "postgres")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

func count(ctx context.Context, d *DB) (n int, err error) {
	err = d.Tx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, "SELECT count(*) FROM pg_database WHERE datname = 'postgres'").Scan(&n)
	})
	return n, err
}

// TestRestarts (A8): whatever happens to the server, the next question finds it.
func TestRestarts(t *testing.T) {
	s := testpg.Start(t)
	d := open(t, s)
	for _, c := range []struct {
		name string
		do   func()
	}{
		{"running", func() {}},
		{"restarted", func() { s.Restart(t) }},
		{"killed and started", func() { s.Kill(); s.Restart(t) }},
		{"connections terminated", func() {
			s.Run(t, nil, []string{"psql", "-qAt", "-c", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'root'"})
		}},
	} {
		c.do()
		if n, err := count(t.Context(), d); n != 1 || err != nil {
			t.Errorf("%s: %d, %v; want 1", c.name, n, err)
		}
	}
}

func TestUnavailable(t *testing.T) {
	s := testpg.Start(t)
	d := open(t, s)
	if _, err := count(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	err := d.Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		s.Kill()
		_, err := conn.Exec(ctx, "SELECT 1")
		return err
	})
	if !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("killed while it was asked: %v; want ErrUnavailable", err)
	}
	d.Patience = 100 * time.Millisecond
	_, err = count(t.Context(), d)
	d.Patience = Patience
	if !errors.Is(err, model.ErrUnavailable) || !strings.Contains(err.Error(), "connect: ") || !strings.Contains(err.Error(), "\nhint: ") {
		t.Errorf("killed: %v; want ErrUnavailable, the cause and a hint", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := count(cancelled, d); !errors.Is(err, context.Canceled) || errors.Is(err, model.ErrUnavailable) {
		t.Errorf("cancelled: %v; want context.Canceled", err)
	}
	if _, err := Connect(t.Context(), s.Socket, "postgres"); !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("Connect() = %v; want ErrUnavailable", err)
	}
	s.Restart(t)
	if _, err := Connect(t.Context(), s.Socket, "no such database"); err == nil || errors.Is(err, model.ErrUnavailable) || Code(err) != "3D000" {
		t.Errorf("Connect() to a database that is not there = %v; want 3D000", err)
	}
	err = d.Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SELECT nonsense")
		return err
	})
	if Code(err) != "42703" || errors.Is(err, model.ErrUnavailable) {
		t.Errorf("a wrong question: %v; want 42703", err)
	}
}

func TestQuote(t *testing.T) {
	s := testpg.Start(t)
	d := open(t, s)
	for _, setting := range []string{"on", "off"} {
		for _, text := range []string{"", "plain", "it's", `back\slash`, `'; DROP TABLE x; --\'`, "ü\n$1 %s"} {
			var got string
			err := d.Do(t.Context(), func(ctx context.Context, conn *pgx.Conn) error {
				if _, err := conn.Exec(ctx, "SET standard_conforming_strings = "+setting); err != nil {
					return err
				}
				return conn.QueryRow(ctx, "SELECT"+" "+Quote(text)).Scan(&got)
			})
			if err != nil || got != text {
				t.Errorf("Quote(%q) = %s, which the server reads as %q, %v", text, Quote(text), got, err)
			}
		}
	}
}
