package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"appplatform/internal/testpg"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/pg"
)

func start(t *testing.T) (*Cluster, *testpg.Server) {
	t.Helper()
	server := testpg.Start(t)
	c, err := Open(server.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, server
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// login connects as an app does.
func login(t *testing.T, server *testpg.Server, d Database, password string) (*pgx.Conn, error) {
	t.Helper()
	config, err := pgx.ParseConfig("sslmode=disable")
	must(t, err)
	config.Host, config.Port, config.Database, config.User, config.Password = server.Socket, 5432, d.Name, d.User, password
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err == nil {
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
	}
	return conn, err
}

func sql(t *testing.T, server *testpg.Server, database, text string) string {
	t.Helper()
	return server.Run(t, nil, []string{"psql", "-At", "-d", database, "-c", text})
}

// TestPlan (C4): the statements of the manual.
func TestPlan(t *testing.T) {
	d := Database{`ex"ample.com_notes`, "example.com_notes"}
	got, err := Plan(d, "secret", State{}, false)
	must(t, err)
	verifier := got[2][strings.Index(got[2], "'"):]
	if !strings.HasPrefix(verifier, "'SCRAM-SHA-256$4096:") {
		t.Errorf("the password is given as %s", verifier)
	}
	want := []string{
		`CREATE DATABASE "ex""ample.com_notes" ENCODING 'UTF8'`,
		`CREATE USER "example.com_notes"`,
		`ALTER USER "example.com_notes" WITH PASSWORD ` + verifier,
		`GRANT ALL PRIVILEGES ON DATABASE "ex""ample.com_notes" TO "example.com_notes"`,
		`ALTER DATABASE "ex""ample.com_notes" OWNER TO "example.com_notes"`,
		`REVOKE CONNECT ON DATABASE "ex""ample.com_notes" FROM public`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, c := range []struct {
		name   string
		found  State
		finish bool
		want   int // statements; 0: it refuses
	}{
		{"database is there", State{Database: true, Owner: "root"}, false, 0},
		{"user is there", State{User: true}, false, 0},
		{"nothing was made", State{}, true, 6},
		{"database was made", State{Database: true, Owner: "root"}, true, 5},
		{"both were made", State{Database: true, Owner: "root", User: true}, true, 4},
		{"all was made", State{Database: true, Owner: d.User, User: true, Restricted: true}, true, 4},
		{"user was made", State{User: true}, true, 5},
		{"somebody else's database", State{Database: true, Owner: "postgres"}, true, 0},
		{"administrator", State{User: true, Superuser: true}, true, 0},
		{"somebody else's user", State{User: true, Others: []string{"x"}}, true, 0},
	} {
		if got, err := Plan(d, "secret", c.found, c.finish); len(got) != c.want || (err == nil) != (c.want > 0) {
			t.Errorf("%s: Plan() = %q, %v; want %d statements", c.name, got, err, c.want)
		}
	}
	for _, password := range []string{"", "pässword", "tab\t"} {
		if _, err := Plan(d, password, State{}, false); err == nil {
			t.Errorf("the password %q is accepted", password)
		}
	}
}

// TestNames (C3).
func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, strings.Repeat("x", 63): true, strings.Repeat("ü", 31): true, `it's "quoted" \ and $1`: true, "Example.com_Ünit": true,
		"": false, strings.Repeat("x", 64): false, strings.Repeat("ü", 32): false, "a\nb": false, "\xff": false, "a\x00": false,
		"manager": false, "postgres": false, "template0": false, "template1": false, "root": false,
	} {
		if err := CheckDatabase(name); (err == nil) != ok {
			t.Errorf("CheckDatabase(%q) = %v", name, err)
		}
	}
	for name, ok := range map[string]bool{"template": true, "none": false, "public": false, "pg_read_all_data": false, "postgres": false, "root": false} {
		if err := CheckUser(name); (err == nil) != ok {
			t.Errorf("CheckUser(%q) = %v", name, err)
		}
	}
}

// TestSuggest (C3).
func TestSuggest(t *testing.T) {
	long := strings.Repeat("long-", 20)
	for _, c := range []struct {
		title, name, domain string
		taken               []string
		want                string
	}{
		{"as it is", "notes", "example.com", nil, "example.com_notes"},
		{"taken", "notes", "example.com", []string{"example.com_notes", "example.com_notes_2"}, "example.com_notes_3"},
		{"63 bytes", strings.Repeat("n", 51), "example.com", nil, "example.com_" + strings.Repeat("n", 51)},
		{"64 bytes", strings.Repeat("n", 52), "example.com", nil, "example.com_" + strings.Repeat("n", 44) + "_#"},
		{"long domain", "notes", long + ".example.com", nil, long[:50] + "_notes_#"},
		{"both long", long, long, nil, long[:28] + "_" + long[:27] + "_#"},
		{"characters stay whole", "notes", strings.Repeat("ü", 40), nil, strings.Repeat("ü", 25) + "_notes_#"},
		{"63 bytes, taken", strings.Repeat("n", 51), "example.com", []string{"example.com_" + strings.Repeat("n", 51)}, "example.com_" + strings.Repeat("n", 49) + "_2"},
		{"the server's users", "notes", "pg", nil, "app_pg_notes"},
		{"the server's databases", "notes", "templates.example.com", []string{"app_templates.example.com_notes"}, "app_templates.example.com_notes_2"},
		{"control characters", "no\ntes\x00", "ex\xffample.com", nil, "example.com_notes"},
	} {
		got := Suggest(c.name, c.domain, func(name string) bool { return slices.Contains(c.taken, name) })
		plain := got
		if strings.HasSuffix(c.want, "#") && len(got) > 6 {
			plain = got[:len(got)-6] + "#"
		}
		if plain != c.want || len(got) > MaxName || !utf8.ValidString(got) || CheckDatabase(got) != nil {
			t.Errorf("%s: Suggest() = %q of %d bytes; want %q", c.title, got, len(got), c.want)
		}
	}
	// Long names that differ only where they are cut off stay different.
	seen := map[string]bool{}
	for i := range 300 {
		seen[Suggest(long+fmt.Sprint(i), long, func(name string) bool { return seen[name] })] = true
	}
	if len(seen) != 300 {
		t.Errorf("300 long names became %d", len(seen))
	}
}

// TestCreate (C1, C4, C11): what the server says of a new database, from each
// place where making it was interrupted.
func TestCreate(t *testing.T) {
	c, server := start(t)
	ctx := t.Context()
	d, password := Database{`example.com_"it's" ü \`, strings.Repeat("ü", 31)}, `p'w"\ $1%s`
	stranger := Database{"stranger", "stranger"}
	must(t, c.Create(ctx, stranger, "other"))
	statements, err := Plan(d, password, State{}, false)
	must(t, err)
	for n := range len(statements) + 1 {
		if n == 0 {
			must(t, c.Create(ctx, d, password))
		} else {
			for _, s := range statements[:n] {
				must(t, c.exec(ctx, s))
			}
			must(t, c.Finish(ctx, d, password))
		}
		conn, err := login(t, server, d, password)
		if err != nil {
			t.Fatalf("interrupted behind %d statements: the app cannot log in: %v", n, err)
		}
		var owner, encoding string
		must(t, conn.QueryRow(ctx, `SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()`).Scan(&owner, &encoding))
		if owner != d.User || encoding != "UTF8" {
			t.Errorf("the database is %s's in %s; want %s's in UTF8", owner, encoding, d.User)
		}
		if _, err := conn.Exec(ctx, "CREATE TABLE t (i int)"); err != nil {
			t.Error(err)
		}
		if _, err := login(t, server, d, "wrong"); pg.Code(err) != "28P01" {
			t.Errorf("a wrong password: %v; want 28P01", err)
		}
		if _, err := login(t, server, Database{d.Name, stranger.User}, "other"); pg.Code(err) != "42501" {
			t.Errorf("another app's user: %v; want 42501", err)
		}
		if err := c.Create(ctx, d, password); err == nil || !strings.Contains(err.Error(), "already") {
			t.Errorf("once more: %v; want that it is there", err)
		}
		must(t, c.Drop(ctx, d)) // with the connection open
		if found, err := c.Find(ctx, d); err != nil || found.Database || found.User {
			t.Errorf("after Drop there is %+v, %v", found, err)
		}
	}
	must(t, c.Drop(ctx, d))
	if log := server.Log(t); strings.Contains(log, "p''w") || strings.Contains(log, "p'w") {
		t.Error("the server's log has the password")
	}
	if found, err := c.Find(ctx, stranger); err != nil || !found.Database || !found.Restricted {
		t.Errorf("of the other database there is %+v, %v", found, err)
	}
}

// TestPasswordNotLogged (C2): also not when a statement fails or all are logged.
func TestPasswordNotLogged(t *testing.T) {
	c, server := start(t)
	sql(t, server, "postgres", "ALTER SYSTEM SET log_statement = 'all'")
	sql(t, server, "postgres", "SELECT pg_reload_conf()")
	server.Restart(t)
	d := Database{"logged", "logged"}
	must(t, c.Create(t.Context(), d, "Very-Secret-1"))
	must(t, c.SetPassword(t.Context(), d.User, "Very-Secret-2"))
	if err := c.SetPassword(t.Context(), "nobody-there", "Very-Secret-3"); pg.Code(err) != "42704" {
		t.Errorf("SetPassword() of no user = %v; want 42704", err)
	}
	log := server.Log(t)
	if !strings.Contains(log, `ALTER USER "logged" WITH PASSWORD`) || strings.Contains(log, "Very-Secret") {
		t.Error("the server's log lacks the statement or has the password")
	}
}

func TestSetPassword(t *testing.T) {
	c, server := start(t)
	d := Database{"notes", "notes"}
	must(t, c.Create(t.Context(), d, "first"))
	must(t, c.SetPassword(t.Context(), d.User, "second"))
	if _, err := login(t, server, d, "second"); err != nil {
		t.Error(err)
	}
	if _, err := login(t, server, d, "first"); pg.Code(err) != "28P01" {
		t.Errorf("the old password: %v; want 28P01", err)
	}
	for _, user := range []string{"root", "postgres"} {
		if err := c.SetPassword(t.Context(), user, "x"); err == nil {
			t.Errorf("the password of %s is changed", user)
		}
	}
}

// TestVerifier: the server makes the same of a password.
func TestVerifier(t *testing.T) {
	_, server := start(t)
	sql(t, server, "postgres", `CREATE ROLE judge PASSWORD 'p''w \ "x"'`)
	want := strings.TrimSpace(sql(t, server, "postgres", "SELECT rolpassword FROM pg_authid WHERE rolname = 'judge'"))
	salt := strings.TrimSpace(sql(t, server, "postgres", `SELECT encode(decode(split_part(split_part(rolpassword, ':', 2), '$', 1), 'base64'), 'hex') FROM pg_authid WHERE rolname = 'judge'`))
	var raw []byte
	if _, err := fmt.Sscanf(salt, "%x", &raw); err != nil {
		t.Fatal(err)
	}
	if got, err := verifier(`p'w \ "x"`, raw); err != nil || got != want {
		t.Errorf("verifier() = %s, %v; want %s", got, err, want)
	}
}

// TestRename (C3, F11).
func TestRename(t *testing.T) {
	c, server := start(t)
	ctx := t.Context()
	old, mid, new := Database{"old", "old"}, Database{"new", "old"}, Database{"new", `new "one"`}
	must(t, c.Create(ctx, old, "secret"))
	conn, err := login(t, server, old, "secret")
	must(t, err)
	_, err = conn.Exec(ctx, "CREATE TABLE kept AS SELECT 42 AS n")
	must(t, err)
	must(t, c.Rename(ctx, old, old))
	must(t, c.Rename(ctx, old, mid)) // the database only, although an app is connected
	must(t, c.Rename(ctx, old, new)) // and what an interrupted call has left
	must(t, c.Rename(ctx, old, new))
	conn, err = login(t, server, new, "secret")
	must(t, err)
	var n int
	if err := conn.QueryRow(ctx, "SELECT n FROM kept").Scan(&n); err != nil || n != 42 {
		t.Errorf("the table has %d, %v; want 42", n, err)
	}
	must(t, c.Create(ctx, old, "secret"))
	if err := c.Rename(ctx, old, new); err == nil {
		t.Error("a database takes another's name")
	}
	if err := c.Rename(ctx, Database{"nothing", "nothing"}, Database{"x", "x"}); err == nil || !strings.Contains(err.Error(), "no database nothing") {
		t.Errorf("Rename() of nothing = %v", err)
	}
	if err := c.Rename(ctx, old, Database{"manager", "old"}); err == nil {
		t.Error("a database takes the manager's name")
	}
}

func TestDropRefuses(t *testing.T) {
	c, server := start(t)
	sql(t, server, "postgres", "CREATE DATABASE manager")
	sql(t, server, "postgres", `CREATE ROLE chief SUPERUSER; CREATE ROLE twice`)
	sql(t, server, "postgres", "CREATE DATABASE second OWNER twice")
	sql(t, server, "postgres", "CREATE DATABASE first OWNER twice")
	for _, d := range []Database{{"manager", "x"}, {"postgres", "x"}, {"template1", "x"}, {"template0", "x"}, {"x", "root"}, {"x", "postgres"}, {"first", "chief"}} {
		if err := c.Drop(t.Context(), d); err == nil {
			t.Errorf("Drop(%v) succeeds", d)
		}
	}
	if out := sql(t, server, "postgres", "SELECT count(*) FROM pg_database"); out != "6\n" {
		t.Errorf("there are %s databases; want 6", out)
	}
	if err := c.Drop(t.Context(), Database{"first", "twice"}); pg.Code(err) != "2BP01" {
		t.Errorf("Drop() of a user with another database = %v; want 2BP01", err)
	}
}

// TestSizes (A9).
func TestSizes(t *testing.T) {
	c, server := start(t)
	d := Database{"notes", "notes"}
	must(t, c.Create(t.Context(), d, "secret"))
	before, err := c.Sizes(t.Context())
	must(t, err)
	sql(t, server, "notes", "CREATE TABLE t AS SELECT n, repeat('x', 100) FROM generate_series(1, 20000) n")
	after, err := c.Sizes(t.Context())
	must(t, err)
	want := strings.TrimSpace(sql(t, server, "postgres", "SELECT pg_database_size('notes')"))
	if fmt.Sprint(after["notes"]) != want || after["notes"] < before["notes"]+2000000 || after["template0"] != 0 {
		t.Errorf("Sizes() = %v, before %v; want %s of notes", after, before, want)
	}
	taken, err := c.Taken(t.Context())
	if err != nil || !taken("notes") || !taken("pg_monitor") || taken("Notes") {
		t.Errorf("Taken() knows other names, %v", err)
	}
}

func TestUnavailable(t *testing.T) {
	c, server := start(t)
	server.Kill()
	c.db.Patience = 100 * time.Millisecond
	if _, err := c.Sizes(t.Context()); !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("Sizes() = %v; want ErrUnavailable", err)
	}
	c.db.Patience = pg.Patience
	server.Restart(t)
	if version, err := c.Version(t.Context()); err != nil || !strings.HasPrefix(version, "17.") {
		t.Errorf("Version() = %q, %v", version, err)
	}
}

// TestShell (C9): the commands of the manual.
func TestShell(t *testing.T) {
	c, server := start(t)
	d, other := Database{"example.com_notes", "notes"}, Database{"other", "other"}
	must(t, c.Create(t.Context(), d, "secret"))
	must(t, c.Create(t.Context(), other, "secret"))
	sql(t, server, d.Name, "SET ROLE notes; CREATE TABLE t AS SELECT n FROM generate_series(1, 1000) n")
	dir, err := os.MkdirTemp("", "dump") // where every user may go
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o777))
	dump := filepath.Join(dir, "backup-exampledb.dump")
	for _, args := range [][]string{
		{"reindexdb", "-a"}, {"reindexdb", "-d", d.Name},
		{"vacuumdb", "-a", "-f"}, {"vacuumdb", "-a", "-z"}, {"vacuumdb", "-f", "-d", d.Name}, {"vacuumdb", "-z", "-d", d.Name},
		{"createdb", "--encoding=UTF-8", "exampledb"},
		{"pg_dump", "-Fc", "-d", d.Name, "-f", dump},
		{"pg_restore", "-d", "exampledb", dump},
		{"psql", "-d", "postgres", "-c", `ALTER DATABASE exampledb OWNER TO "other"`},
	} {
		server.Run(t, nil, args, dir)
	}
	conn, err := login(t, server, Database{"exampledb", "other"}, "secret")
	must(t, err)
	var tables int
	must(t, conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_tables WHERE tablename = 't' AND tableowner = 'notes'").Scan(&tables))
	if out := sql(t, server, "exampledb", "SELECT count(*) FROM t"); out != "1000\n" || tables != 1 {
		t.Errorf("the restored database has %d tables and %s rows; want 1 and 1000", tables, out)
	}
	// Nothing of it keeps the manager from its own work.
	must(t, c.Drop(t.Context(), Database{"exampledb", "none-such"}))
}
