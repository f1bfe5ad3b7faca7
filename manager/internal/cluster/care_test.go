package cluster

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"appplatform/internal/testpg"
	"appplatform/manager/internal/pg"
)

// filled makes a database of two tables, most of whose rows are deleted.
func filled(t *testing.T, c *Cluster, server *testpg.Server) Database {
	t.Helper()
	d := Database{"notes", "notes"}
	must(t, c.Create(t.Context(), d, "secret"))
	sql(t, server, d.Name, `SET ROLE notes;
		CREATE TABLE "Big one" AS SELECT n, repeat('x', 100) FROM generate_series(1, 50000) n; CREATE INDEX ON "Big one" (n);
		CREATE TABLE small AS SELECT n FROM generate_series(1, 1000) n`)
	sql(t, server, d.Name, `DELETE FROM "Big one" WHERE n > 10`)
	return d
}

// TestCleanUp (C7).
func TestCleanUp(t *testing.T) {
	c, server := start(t)
	d := filled(t, c, server)
	before, err := c.Sizes(t.Context())
	must(t, err)
	var last int64
	names := map[string]bool{}
	err = c.CleanUp(t.Context(), d.Name, func() (int64, error) { return math.MaxInt64, nil }, func(table string, done, total int64) {
		if done < last || done > total {
			t.Errorf("progress of %s: %d after %d of %d", table, done, last, total)
		}
		last, names[table] = done, true
		if table == "public.Big one" && done != total {
			t.Errorf("the largest table ends at %d of %d; want it last", done, total)
		}
	})
	must(t, err)
	after, err := c.Sizes(t.Context())
	must(t, err)
	if before["notes"]-after["notes"] < 6_000_000 || !names["public.small"] || !names["public.Big one"] || !names["pg_catalog.pg_class"] {
		t.Errorf("the database had %d bytes and has %d, after %v", before["notes"], after["notes"], names)
	}
	if out := sql(t, server, d.Name, `SELECT count(*) FROM "Big one"`); out != "10\n" {
		t.Errorf("there are %s rows; want 10", out)
	}
	if err := c.CleanUp(t.Context(), "nothing", nil, nil); pg.Code(err) != "3D000" {
		t.Errorf("CleanUp() of no database = %v; want 3D000", err)
	}
}

// TestCleanUpNeedsRoom (C7): "sufficient disk space is needed".
func TestCleanUpNeedsRoom(t *testing.T) {
	c, server := start(t)
	d := filled(t, c, server)
	before := sql(t, server, d.Name, `SELECT pg_relation_filenode('"Big one"')`)
	size, err := strconv.ParseInt(strings.TrimSpace(sql(t, server, d.Name, `SELECT pg_total_relation_size('"Big one"')`)), 10, 64)
	must(t, err)
	err = c.CleanUp(t.Context(), d.Name, func() (int64, error) { return size - 1_500_000, nil }, func(string, int64, int64) {})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("public.Big one needs %.1f MB", float64(size)/1e6)) || !strings.Contains(err.Error(), "\nhint: make 1.5 MB room") {
		t.Errorf("CleanUp() = %v; want how much is missing", err)
	}
	if after := sql(t, server, d.Name, `SELECT pg_relation_filenode('"Big one"')`); after != before {
		t.Error("without room the table was written anew")
	}
	broken := errors.New("no such disk")
	if err := c.CleanUp(t.Context(), d.Name, func() (int64, error) { return 0, broken }, nil); !errors.Is(err, broken) {
		t.Errorf("CleanUp() = %v; want that of the disk", err)
	}
}

// TestCleanUpCancelled: while it waits for a lock, and without anything left on
// the server.
func TestCleanUpCancelled(t *testing.T) {
	c, server := start(t)
	d := filled(t, c, server)
	conn, err := login(t, server, d, "secret")
	must(t, err)
	_, err = conn.Exec(t.Context(), `BEGIN; LOCK TABLE small IN SHARE MODE`)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	waits := func() bool {
		return sql(t, server, "postgres", `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'manager' AND query LIKE 'VACUUM%small%'
			AND state = 'active' AND wait_event_type = 'Lock'`) == "1\n"
	}
	ended := make(chan error)
	go func() {
		ended <- c.CleanUp(ctx, d.Name, func() (int64, error) { return math.MaxInt64, nil }, func(string, int64, int64) {})
	}()
	for !waits() {
		select {
		case err := <-ended:
			t.Fatalf("CleanUp() = %v before it was cancelled", err)
		default:
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("CleanUp() = %v; want context.Canceled", err)
	}
	for waits() { // The server ends it, or this test does not.
	}
}

// TestRewritten: the server's own progress of a table that is being rewritten.
func TestRewritten(t *testing.T) {
	c, server := start(t)
	d := filled(t, c, server)
	part, err := c.rewritten(t.Context(), d.Name, table{OID: 1, Size: 100})
	if part != 0 || err != nil {
		t.Errorf("without a clean-up rewritten() = %d, %v; want 0", part, err)
	}
	// A function in an index that waits for a lock stops VACUUM FULL when all
	// rows are copied.
	sql(t, server, d.Name, `CREATE TABLE gate (); GRANT SELECT ON gate TO public;
		CREATE FUNCTION pass(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN PERFORM FROM public.gate; RETURN n; END';
		CREATE INDEX ON "Big one" (pass(n))`)
	conn, err := pg.Connect(t.Context(), server.Socket, d.Name)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	_, err = conn.Exec(t.Context(), "BEGIN")
	must(t, err)
	_, err = conn.Exec(t.Context(), "LOCK TABLE gate")
	must(t, err)
	var oid uint32
	must(t, conn.QueryRow(t.Context(), `SELECT '"Big one"'::regclass::oid`).Scan(&oid))
	ended := make(chan error, 1)
	go func() {
		_, err := server.Try(nil, []string{"psql", "-d", d.Name, "-c", `VACUUM FULL "Big one"`})
		ended <- err
	}()
	for part == 0 {
		select {
		case err := <-ended:
			t.Fatalf("VACUUM FULL ended: %v", err)
		default:
		}
		part, err = c.rewritten(t.Context(), d.Name, table{OID: oid, Size: 5000})
		must(t, err)
	}
	_, err = conn.Exec(t.Context(), "ROLLBACK")
	must(t, err)
	if err := <-ended; err != nil || part > 5000 {
		t.Errorf("the progress was %d of 5000, %v", part, err)
	}
}

// TestOptimize (C8): all databases, and a broken one does not stop it.
func TestOptimize(t *testing.T) {
	c, server := start(t)
	filled(t, c, server)
	sql(t, server, "postgres", "CREATE TABLE t AS SELECT n FROM generate_series(1, 100) n")
	node := sql(t, server, "notes", `SELECT pg_relation_filenode('"Big one"')`)
	must(t, c.Optimize(t.Context()))
	for _, database := range []string{"notes", "postgres"} {
		if out := sql(t, server, database, "SELECT count(*) FROM pg_statistic WHERE starelid::regclass::text IN ('small', 't')"); out != "1\n" {
			t.Errorf("%s has statistics of %s columns; want 1", database, out)
		}
	}
	if got := sql(t, server, "notes", `SELECT pg_relation_filenode('"Big one"')`); got != node {
		t.Error("the table was written anew")
	}
	// A table's index that cannot be computed any more.
	sql(t, server, "notes", `CREATE TABLE bad AS SELECT 1 AS n; CREATE FUNCTION f(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT n';
		CREATE INDEX ON bad (f(n)); CREATE OR REPLACE FUNCTION f(n int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN n / 0; END'`)
	sql(t, server, "postgres", "CREATE TABLE t2 AS SELECT 1 AS n")
	sql(t, server, "template1", "CREATE TABLE t3 AS SELECT 1 AS n")
	if err := c.Optimize(t.Context()); err == nil || !strings.Contains(err.Error(), "the database notes: ") {
		t.Errorf("Optimize() = %v; want what is wrong with notes", err)
	}
	for table, database := range map[string]string{"t2": "postgres", "t3": "template1"} {
		if out := sql(t, server, database, "SELECT count(*) FROM pg_statistic WHERE starelid::regclass::text = '"+table+"'"); out != "1\n" {
			t.Errorf("after an error in another database %s has statistics of %s columns; want 1", table, out)
		}
	}
}

// TestNight (C8).
func TestNight(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	must(t, err)
	apia, err := time.LoadLocation("Pacific/Apia") // had no 30 December 2011
	must(t, err)
	at := func(text string) time.Time {
		at, err := time.Parse("2006-01-02 15:04", text)
		must(t, err)
		return at
	}
	for _, c := range []struct {
		name            string
		hour            int
		zone            *time.Location
		offset          time.Duration
		now, last, want string // UTC
	}{
		{"today", 1, time.UTC, 0, "2026-01-10 00:59", "", "2026-01-10 01:00"},
		{"just now is over", 1, time.UTC, 0, "2026-01-10 01:00", "", "2026-01-11 01:00"},
		{"later this night", 1, time.UTC, 6 * time.Hour, "2026-01-10 05:00", "", "2026-01-10 07:00"},
		{"once a night", 1, time.UTC, 6 * time.Hour, "2026-01-10 05:00", "2026-01-10 04:00", "2026-01-11 07:00"},
		{"the night before yesterday's counts not", 1, time.UTC, 6 * time.Hour, "2026-01-10 05:00", "2026-01-09 07:00", "2026-01-10 07:00"},
		{"yesterday's night reaches into today", 22, time.UTC, 5 * time.Hour, "2026-01-10 02:00", "2026-01-09 03:00", "2026-01-10 03:00"},
		{"and was used", 22, time.UTC, 5 * time.Hour, "2026-01-10 02:00", "2026-01-09 23:00", "2026-01-11 03:00"},
		{"off at the time: next night", 1, time.UTC, 0, "2026-01-10 09:00", "2026-01-05 01:00", "2026-01-11 01:00"},
		{"winter", 3, berlin, 0, "2026-01-10 00:00", "", "2026-01-10 02:00"},
		{"summer", 3, berlin, 0, "2026-07-10 00:00", "", "2026-07-10 01:00"},
		{"the day is that of the zone", 0, berlin, 0, "2026-07-10 22:30", "", "2026-07-11 22:00"},
		{"an hour that is not there", 2, berlin, 0, "2026-03-29 00:00", "", "2026-03-29 01:00"},
		{"the night after it", 2, berlin, 0, "2026-03-29 01:00", "2026-03-29 01:00", "2026-03-30 00:00"},
		{"an hour that is there twice", 2, berlin, 0, "2026-10-24 23:00", "", "2026-10-25 01:00"},
		{"only once", 2, berlin, 30 * time.Minute, "2026-10-25 01:45", "2026-10-25 01:30", "2026-10-26 01:30"},
		{"a day that is not there", 1, apia, 0, "2011-12-30 09:00", "2011-12-29 11:00", "2011-12-30 11:00"},
		{"month and year", 1, time.UTC, 0, "2026-12-31 12:00", "", "2027-01-01 01:00"},
		{"a last time of the future", 1, time.UTC, 0, "2026-01-10 12:00", "2099-01-01 00:00", "2026-01-11 01:00"},
	} {
		var last time.Time
		if c.last != "" {
			last = at(c.last)
		}
		got := Night{c.hour, c.zone, c.offset}.Next(at(c.now), last)
		if !got.Equal(at(c.want)) {
			t.Errorf("%s: Next() = %v; want %s", c.name, got.UTC(), c.want)
		}
	}
	if got := RandomOffset(func(n int64) int64 { return n - 1 }); got >= MaxOffset || got < MaxOffset-time.Second {
		t.Errorf("the longest offset is %v", got)
	}
}

// TestManagedHBA (C5).
func TestManagedHBA(t *testing.T) {
	const block = hbaBegin + "\nhost a b c scram-sha-256\n" + hbaEnd + "\n"
	lines := []string{"host a b c scram-sha-256"}
	for _, c := range []struct {
		name, text string
		lines      []string
		want       string // "": it refuses
	}{
		{"nothing to keep", "local all all peer\n", nil, "local all all peer\n"},
		{"first time", "# mine\nlocal all all peer\n", lines, "# mine\nlocal all all peer\n" + block},
		{"no line's end", "local all all peer", lines, "local all all peer\n" + block},
		{"empty file", "", lines, block},
		{"the same again", "x\n" + block, lines, "x\n" + block},
		{"edits around it survive", "before\n" + block + "after", lines, "before\n" + block + "after"},
		{"edits in it do not", "before\n" + hbaBegin + "\nold\nlines\n" + hbaEnd + "\nafter\n", lines, "before\n" + block + "after\n"},
		{"removed", "before\n" + block + "after\n", nil, "before\nafter\n"},
		{"marks from another editor", "before\r\n  " + hbaBegin + "\r\nold\r\n" + hbaEnd + " \r\nafter\r\n", lines, "before\r\n" + block + "after\r\n"},
		{"no end", "a\n" + hbaBegin + "\nb\n", lines, ""},
		{"no begin", "a\n" + hbaEnd + "\n", nil, ""},
		{"end before begin", hbaEnd + "\n" + hbaBegin + "\n", lines, ""},
		{"twice", block + block, lines, ""},
		{"several lines in one", "", []string{"a\nb"}, ""},
	} {
		got, err := ManagedHBA(c.text, c.lines)
		if got != c.want && c.want != "" || (err != nil) != (c.want == "") {
			t.Errorf("%s: ManagedHBA() = %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

// TestParseHost (C6).
func TestParseHost(t *testing.T) {
	for _, c := range []struct {
		text string
		want Host
		ok   bool
	}{
		{"db.example.com", Host{"db.example.com", 0}, true},
		{" db.example.com:5433 ", Host{"db.example.com", 5433}, true},
		{"localhost.", Host{"localhost.", 0}, true},
		{"db_1", Host{"db_1", 0}, true},
		{"192.0.2.1", Host{"192.0.2.1", 0}, true},
		{"192.0.2.1:5433", Host{"192.0.2.1", 5433}, true},
		{"2001:DB8::1", Host{"2001:db8::1", 0}, true},
		{"[2001:db8::1]", Host{"2001:db8::1", 0}, true},
		{"[2001:db8::1]:65535", Host{"2001:db8::1", 65535}, true},
		{"2001:db8::1:5433", Host{"2001:db8::1:5433", 0}, true}, // an address, too
		{"fe80::1%eth0", Host{"fe80::1%eth0", 0}, true},
		{"", Host{}, false}, {":5433", Host{}, false}, {"db:", Host{}, false}, {"db:0", Host{}, false}, {"db:65536", Host{}, false},
		{"db:+1", Host{}, false}, {"db:x", Host{}, false}, {"a b", Host{}, false}, {"-a", Host{}, false}, {"a..b", Host{}, false},
		{"[db]:1", Host{}, false}, {"[::1", Host{}, false}, {"[::1]x", Host{}, false}, {"[192.0.2.1]", Host{}, false}, {"1:2:3", Host{}, false},
		{"192.0.2.256", Host{}, false}, {"192.0.2", Host{}, false}, {"db/x", Host{}, false}, {"dbü", Host{}, false},
		{strings.Repeat("a", 64), Host{}, false}, {strings.Repeat("a.", 127), Host{}, false}, {"postgres://db", Host{}, false},
	} {
		got, err := ParseHost(c.text)
		if got != c.want || (err == nil) != c.ok {
			t.Errorf("ParseHost(%q) = %+v, %v; want %+v", c.text, got, err, c.want)
		}
		if err != nil {
			if !strings.Contains(err.Error(), "\nhint: ") {
				t.Errorf("ParseHost(%q) = %v; want a hint", c.text, err)
			}
			continue
		}
		if again, err := ParseHost(got.String()); err != nil || again != got {
			t.Errorf("ParseHost(%q) = %+v, %v; want what it was", got.String(), again, err)
		}
	}
	if got := (Host{"2001:db8::1", 0}).Address(5432); got != "[2001:db8::1]:5432" {
		t.Errorf("Address() = %s", got)
	}
}
