package state

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"appplatform/internal/testpg"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/pg"
)

// start opens the store of a new server; changes counts what it announces.
func start(t *testing.T) (s *Store, server *testpg.Server, changes *int) {
	t.Helper()
	server, changes = testpg.Start(t), new(int)
	s, err := Open(server.Socket, func() { *changes++ })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s, server, changes
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var notes = model.Service{
	ID: "notes", Title: "Notes", Manufacturer: "somebody", Description: "writes notes", Build: "130004", Label: "13r1 ü", Previous: "130003",
	MinImage: 140011, Developer: true, UID: 4000000001, Wanted: true, Limits: model.Limits{MemoryMiB: 64, CPUPercent: 50, Processes: 20},
	LogSize: 5 << 30, LogFlags: 1<<33 | 1,
}

func instance(n int) model.Instance {
	return model.Instance{
		Service: "notes", Name: fmt.Sprint("notes", n), Domain: "example.com", Password: "p'w\\", Path: fmt.Sprintf("/example.com/notes%d", n),
		DBName: fmt.Sprint("example.com_notes", n), DBUser: fmt.Sprint("example.com_notes", n), DBPassword: "secret", DBHost: "[::1]:5433",
		ExcludeFromBackup: true, LogFlags: 1 << 33, Wanted: true, DatabaseSize: -1,
	}
}

func TestServices(t *testing.T) {
	s, _, changes := start(t)
	ctx := t.Context()
	must(t, s.PutService(ctx, notes))
	other := model.Service{ID: "other", UID: 2}
	must(t, s.PutService(ctx, other))
	one, err := s.AddInstance(ctx, instance(1))
	must(t, err)
	if i, err := s.Instance(ctx, one); err != nil || i.Phase != Creating {
		t.Errorf("a new instance has the phase %s, %v; want creating", i.Phase, err)
	}
	must(t, s.SetPhase(ctx, one, Ready))
	if *changes != 4 {
		t.Errorf("%d changes were announced; want 4", *changes)
	}

	want := notes
	first := instance(1)
	first.ID = one
	want.Instances = []model.Instance{first}
	other.Instances = []model.Instance{}
	got, err := s.Services(ctx)
	if diff := cmp.Diff([]model.Service{want, other}, got); err != nil || diff != "" {
		t.Errorf("Services() = %v, %s", err, diff)
	}
	changed := notes
	changed.Title, changed.Wanted = "New", false
	must(t, s.PutService(ctx, changed))
	if got, err := s.Service(ctx, "notes"); err != nil || got.Title != "New" || got.Wanted || len(got.Instances) != 1 {
		t.Errorf("a changed app is %+v, %v", got, err)
	}

	for _, c := range []struct {
		name, field string
		do          func() error
	}{
		{"user of two apps", "uid", func() error { return s.PutService(ctx, model.Service{ID: "third", UID: notes.UID}) }},
		{"no name of a folder", "id", func() error { return s.PutService(ctx, model.Service{ID: "a/b", UID: 5}) }},
		{"app with instances", "instances", func() error { return s.DeleteService(ctx, "notes") }},
	} {
		var field *FieldError
		if err := c.do(); !errors.As(err, &field) || field.Field != c.field {
			t.Errorf("%s: %v; want an error of the field %s", c.name, err, c.field)
		}
	}
	must(t, s.DeleteInstance(ctx, one))
	must(t, s.DeleteService(ctx, "notes"))
	for name, err := range map[string]error{
		"app":           s.DeleteService(ctx, "notes"),
		"instance":      s.DeleteInstance(ctx, one),
		"phase":         s.SetPhase(ctx, one, Ready),
		"set instances": s.SetInstances(ctx, first),
		"get":           func() error { _, err := s.Instance(ctx, one); return err }(),
		"get app":       func() error { _, err := s.Service(ctx, "notes"); return err }(),
		"token":         s.DeleteToken(ctx, "none"),
	} {
		if !errors.Is(err, model.ErrNotFound) {
			t.Errorf("%s that is not there: %v; want ErrNotFound", name, err)
		}
	}
}

// TestInstanceRules (C3, C10): what two instances must not share, and what none
// may have.
func TestInstanceRules(t *testing.T) {
	s, _, _ := start(t)
	ctx := t.Context()
	must(t, s.PutService(ctx, notes))
	first, err := s.AddInstance(ctx, instance(1))
	must(t, err)
	second, err := s.AddInstance(ctx, instance(2))
	must(t, err)
	for _, c := range []struct {
		name, field string
		change      func(*model.Instance)
	}{
		{"name and domain", "name", func(i *model.Instance) { i.Name = "notes1" }},
		{"path", "path", func(i *model.Instance) { i.Path = "/example.com/notes1" }},
		{"database", "dbName", func(i *model.Instance) { i.DBName = "example.com_notes1" }},
		{"database user", "dbUser", func(i *model.Instance) { i.DBUser = "example.com_notes1" }},
		{"unknown app", "service", func(i *model.Instance) { i.Service = "nothing" }},
		{"empty name", "name", func(i *model.Instance) { i.Name = "" }},
		{"control character", "domain", func(i *model.Instance) { i.Domain = "a\x00b" }},
		{"broken UTF-8", "domain", func(i *model.Instance) { i.Domain = "a\xffb" }},
		{"@", "name", func(i *model.Instance) { i.Name = "a@b" }},
		{"no password", "password", func(i *model.Instance) { i.Password = "" }},
		{"no database password", "dbPassword", func(i *model.Instance) { i.DBPassword = "" }},
		{"root", "path", func(i *model.Instance) { i.Path = "" }},
		{"slash", "path", func(i *model.Instance) { i.Path = "/" }},
		{"slash at the end", "path", func(i *model.Instance) { i.Path = "/a/" }},
		{"dots", "path", func(i *model.Instance) { i.Path = "/a/../manager" }},
		{"the manager's", "path", func(i *model.Instance) { i.Path = "/manager/x" }},
		{"space", "path", func(i *model.Instance) { i.Path = "/a b" }},
		{"query", "path", func(i *model.Instance) { i.Path = "/a?b" }},
		{"64 bytes", "dbName", func(i *model.Instance) { i.DBName = strings.Repeat("x", 64) }},
		{"reserved", "dbName", func(i *model.Instance) { i.DBName = "manager" }},
		{"reserved user", "dbUser", func(i *model.Instance) { i.DBUser = "pg_monitor" }},
		{"host", "dbHost", func(i *model.Instance) { i.DBHost = "::1:" }},
	} {
		i := instance(3)
		c.change(&i)
		_, err := s.AddInstance(ctx, i)
		var field *FieldError
		if !errors.As(err, &field) || field.Field != c.field {
			t.Errorf("%s: AddInstance() = %v; want an error of the field %s", c.name, err, c.field)
		}
		i = instance(2)
		i.ID = second
		c.change(&i)
		if err := s.SetInstances(ctx, i); !errors.As(err, &field) || field.Field != c.field {
			t.Errorf("%s: SetInstances() = %v; want an error of the field %s", c.name, err, c.field)
		}
	}
	below := instance(3)
	below.Path = "/example.com/notes1/below"
	if _, err := s.AddInstance(ctx, below); err != nil {
		t.Errorf("a path below another: %v", err)
	}
	// Names change places, or nothing is changed.
	a, b := instance(2), instance(1)
	a.ID, b.ID = first, second
	b.Path = "/example.com/notes1/below"
	if err := s.SetInstances(ctx, a, b); err == nil {
		t.Error("two instances get the same path")
	}
	b.Path = "/manager2"
	must(t, s.SetInstances(ctx, a, b))
	for id, want := range map[int64]model.Instance{first: a, second: b} {
		got, err := s.Instance(ctx, id)
		if diff := cmp.Diff(want, got.Instance); err != nil || diff != "" {
			t.Errorf("an instance after the change of places: %v %s", err, diff)
		}
	}
}

// TestConfigTable (B3): the administrator deletes the certificate with psql.
func TestConfigTable(t *testing.T) {
	s, server, _ := start(t)
	ctx := t.Context()
	must(t, s.SetConfig(ctx, WebserverCertificate, "a\nPEM 'file'"))
	got, err := s.Config(ctx, WebserverCertificate)
	if err != nil || got != "a\nPEM 'file'" {
		t.Errorf("Config() = %q, %v", got, err)
	}
	out := server.Run(t, nil, []string{"psql", "-U", "root", "-d", "manager", "-c", "DELETE FROM config WHERE name='webserverCertificate'"})
	if out != "DELETE 1\n" {
		t.Errorf("psql prints %q; want DELETE 1", out)
	}
	if got, err := s.Config(ctx, WebserverCertificate); err != nil || got != "" {
		t.Errorf("after that Config() = %q, %v", got, err)
	}
	must(t, s.SetConfig(ctx, "name", "value"))
	must(t, s.SetConfig(ctx, "name", "other"))
	must(t, s.SetConfig(ctx, "name", ""))
	if out := server.Run(t, nil, []string{"psql", "-d", "manager", "-At", "-c", "SELECT count(*) FROM config WHERE name = 'name'"}); out != "0\n" {
		t.Errorf("a deleted row is there %s times", out)
	}
}

// TestSettings (F1).
func TestSettings(t *testing.T) {
	s, server, _ := start(t)
	ctx := t.Context()
	if got, err := s.Settings(ctx); err != nil || got != DefaultSettings {
		t.Errorf("Settings() = %+v, %v; want those of a new platform", got, err)
	}
	want := model.Settings{
		DeveloperMode: true, DisableAppSecurity: true, StoreURL: "https://store.example/apps", DevicesURL: "wss://devices.example", DevicesURL2: "wss://x.example",
		DNSName: "true", NTP1: "12", NTP2: `"quoted"`, Timezone: "Europe/Berlin", DNS1: "192.0.2.1", DNS2: "null", OptimizationHour: 23, CommandFile: "http://u:p@192.0.2.1/file",
	}
	must(t, s.SetSettings(ctx, want))
	if got, err := s.Settings(ctx); err != nil || got != want {
		t.Errorf("Settings() = %v, %s", err, cmp.Diff(want, got))
	}
	if out := server.Run(t, nil, []string{"psql", "-d", "manager", "-At", "-c", "SELECT value FROM config WHERE name IN ('storeURL', 'developerMode') ORDER BY name"}); out != "true\nhttps://store.example/apps\n" {
		t.Errorf("psql shows %q", out)
	}
	for field, change := range map[string]func(*model.Settings){
		"optimizationHour": func(v *model.Settings) { v.OptimizationHour = 24 },
		"timezone":         func(v *model.Settings) { v.Timezone = "Europe/Atlantis" },
		"storeURL":         func(v *model.Settings) { v.StoreURL = "no address" },
	} {
		bad := want
		change(&bad)
		var e *FieldError
		if err := s.SetSettings(ctx, bad); !errors.As(err, &e) || e.Field != field {
			t.Errorf("SetSettings() = %v; want an error of the field %s", err, field)
		}
	}
	server.Run(t, nil, []string{"psql", "-d", "manager", "-c", `UPDATE config SET value = 'often' WHERE name = 'optimizationHour';
		UPDATE config SET value = '24' WHERE name = 'developerMode'; UPDATE config SET value = 'nowhere' WHERE name = 'timezone'`})
	want.OptimizationHour, want.DeveloperMode, want.Timezone = 1, false, "UTC"
	if got, err := s.Settings(ctx); err != nil || got != want {
		t.Errorf("with nonsense in the table Settings() = %v, %s", err, cmp.Diff(want, got))
	}
}

func TestTokens(t *testing.T) {
	s, server, _ := start(t)
	ctx := t.Context()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	token, err := s.AddToken(ctx, "backup", "a secret", now)
	must(t, err)
	var field *FieldError
	if _, err := s.AddToken(ctx, "backup", "another", now); !errors.As(err, &field) || field.Field != "name" {
		t.Errorf("a second token of the name: %v", err)
	}
	for _, c := range []struct {
		at, used time.Duration
	}{{0, 0}, {59 * time.Second, 0}, {time.Minute, time.Minute}, {-time.Hour, -time.Hour}} {
		got, err := s.Token(ctx, "a secret", now.Add(c.at))
		if err != nil || got.ID != token.ID || !got.LastUsed.Equal(now.Add(c.used)) {
			t.Errorf("%v later: Token() = %+v, %v; want one that was used %v later", c.at, got, err, c.used)
		}
	}
	for _, secret := range []string{"", "A secret", "a secret "} {
		if _, err := s.Token(ctx, secret, now); !errors.Is(err, model.ErrPassword) {
			t.Errorf("Token(%q) = %v; want ErrPassword", secret, err)
		}
	}
	if out := server.Run(t, nil, []string{"pg_dump", "-d", "manager"}); strings.Contains(out, "a secret") || !strings.Contains(out, "backup") {
		t.Error("a dump of the database has the secret of a token, or not the token")
	}
	// A database that cannot be written now, as on a full disk, lets them in.
	server.Run(t, nil, []string{"psql", "-qd", "manager", "-c",
		"ALTER DATABASE manager SET default_transaction_read_only = on",
		"-c", "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'manager' AND pid <> pg_backend_pid()"})
	if got, err := s.Token(ctx, "a secret", now.Add(time.Hour)); err != nil || got.ID != token.ID {
		t.Errorf("Token() in a database that cannot be written = %+v, %v", got, err)
	}
	server.Run(t, nil, []string{"psql", "-qd", "postgres", "-c", "ALTER DATABASE manager RESET default_transaction_read_only",
		"-c", "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = 'manager'"})
	must(t, s.DeleteToken(ctx, token.ID))
	if list, err := s.Tokens(ctx); err != nil || len(list) != 0 {
		t.Errorf("Tokens() = %v, %v; want none", list, err)
	}
}

func TestAudit(t *testing.T) {
	s, _, _ := start(t)
	ctx := t.Context()
	now := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	var want []string
	for i := range 7 {
		must(t, s.AddAudit(ctx, model.Audit{Time: now, Who: "admin", From: "192.0.2.1", What: fmt.Sprint("change ", i), Detail: "d"}))
		want = append([]string{fmt.Sprint("change ", i)}, want...)
	}
	var got []string
	var before time.Time
	for range 4 {
		page, err := s.Audit(ctx, before, 2)
		must(t, err)
		for _, a := range page {
			got, before = append(got, a.What), a.Time
			if a.Who != "admin" || a.From != "192.0.2.1" || a.Detail != "d" {
				t.Errorf("an entry is %+v", a)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pages of two: %s", diff)
	}
	// Nobody stays out of the list by a name that the database cannot store.
	must(t, s.AddAudit(ctx, model.Audit{Time: now.Add(time.Hour), Who: "\xffeve\x00", From: "192.0.2.6", What: "sign in", Detail: "a\x00b"}))
	page, err := s.Audit(ctx, time.Time{}, 1)
	must(t, err)
	if len(page) != 1 || page[0].Who != "\uFFFDeve\uFFFD" || page[0].Detail != "a\uFFFDb" {
		t.Errorf("strange letters became %+v", page)
	}
	must(t, s.AddCrash(ctx, model.Crash{Service: "x", Time: now, What: "\xff\x00"}))
}

func TestCrashesAreBounded(t *testing.T) {
	s, server, _ := start(t)
	ctx := t.Context()
	must(t, s.Prepare(ctx))
	server.Run(t, nil, []string{"psql", "-d", "manager", "-c", `INSERT INTO crash (service, time, what) SELECT 'notes', now(), n::text FROM generate_series(1, 1000) n;
		INSERT INTO audit (time, who, origin, what) SELECT '2020-01-01'::timestamptz + n * interval '1 s', '', '', n::text FROM generate_series(1, 100000) n`})
	last := model.Crash{Service: "notes", Time: time.Now().UTC().Truncate(time.Microsecond), What: "the last"}
	must(t, s.AddCrash(ctx, last))
	must(t, s.AddAudit(ctx, model.Audit{Time: last.Time, What: "the last"}))
	list, err := s.Crashes(ctx, 2000)
	if err != nil || len(list) != maxCrashes || list[0].What != "the last" || !list[0].Time.Equal(last.Time) || list[999].What != "2" {
		t.Errorf("%d crashes are kept, %v", len(list), err)
	}
	if out := server.Run(t, nil, []string{"psql", "-d", "manager", "-At", "-c", "SELECT count(*), min(what::int) FROM audit WHERE what <> 'the last'"}); out != "99999|2\n" {
		t.Errorf("of the audit log there is %s", out)
	}
}

// TestSurvivesServer (A8): stopped, killed, started, in any order.
func TestSurvivesServer(t *testing.T) {
	server := testpg.Start(t)
	server.Stop(t)
	s, err := Open(server.Socket, nil)
	must(t, err)
	t.Cleanup(s.Close)
	s.db.Patience = 100 * time.Millisecond
	if _, err := s.Settings(t.Context()); !errors.Is(err, model.ErrUnavailable) || strings.Count(err.Error(), "cannot") != 1 {
		t.Errorf("without a server: %v; want ErrUnavailable and one cannot", err)
	}
	s.db.Patience = pg.Patience
	server.Restart(t)
	must(t, s.SetConfig(t.Context(), "n", "0"))
	for i, end := range []func(){func() { server.Restart(t) }, func() { server.Kill(); server.Restart(t) }} {
		end()
		if got, err := s.Config(t.Context(), "n"); err != nil || got != fmt.Sprint(i) {
			t.Errorf("Config() = %q, %v; want %d", got, err, i)
		}
		end()
		must(t, s.SetConfig(t.Context(), "n", fmt.Sprint(i+1)))
	}
	// Somebody restores the database, or deletes it.
	s.db.Close()
	server.Run(t, nil, []string{"dropdb", "--force", "manager"})
	if s, err = Open(server.Socket, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if got, err := s.Config(t.Context(), "n"); got != "" || err != nil {
		t.Errorf("in a new database Config() = %q, %v", got, err)
	}
	server.Run(t, nil, []string{"psql", "-d", "manager", "-c", "DROP SCHEMA public CASCADE; CREATE SCHEMA public"})
	if _, err := s.Config(t.Context(), "n"); err == nil {
		t.Error("a table that was deleted is read")
	}
	if _, err := s.Config(t.Context(), "n"); err != nil {
		t.Errorf("the tables are not made again: %v", err)
	}
}

func TestOnlyRootLooksIn(t *testing.T) {
	s, server, _ := start(t)
	must(t, s.Prepare(t.Context()))
	server.Run(t, nil, []string{"psql", "-c", "CREATE ROLE app LOGIN PASSWORD 'secret'"})
	_, err := pgx.Connect(t.Context(), "host="+server.Socket+" user=app password=secret dbname=manager sslmode=disable")
	if pg.Code(err) != "42501" {
		t.Errorf("an app's connection to the database manager: %v; want no permission", err)
	}
	if owner := server.Run(t, nil, []string{"psql", "-At", "-c", "SELECT pg_get_userbyid(datdba), pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'manager'"}); owner != "root|UTF8\n" {
		t.Errorf("the database is %s; want root's and UTF8", owner)
	}
}

// TestPasswordsNotLogged (C2): not even when somebody has the server log all.
func TestPasswordsNotLogged(t *testing.T) {
	s, server, _ := start(t)
	server.Run(t, nil, []string{"psql", "-c", "ALTER SYSTEM SET log_statement = 'all'"})
	server.Restart(t)
	must(t, s.PutService(t.Context(), notes))
	i := instance(1)
	i.Password, i.DBPassword = "Very-Secret-1", "Very-Secret-2"
	_, err := s.AddInstance(t.Context(), i)
	must(t, err)
	i.Name = "another"
	if _, err := s.AddInstance(t.Context(), i); err == nil {
		t.Error("a second instance has the path of the first")
	}
	if log := server.Log(t); strings.Contains(log, "Very-Secret") || !strings.Contains(log, "INSERT INTO instance") {
		t.Error("the server's log has a password, or not the statement")
	}
}

// TestTogether: many who ask at the same time, of a server without a database
// and of none.
func TestTogether(t *testing.T) {
	s, server, _ := start(t)
	ask := func() (failed int) {
		errs := make(chan error)
		for range 20 {
			go func() {
				_, err := s.Settings(t.Context())
				errs <- err
			}()
		}
		for range 20 {
			if err := <-errs; err != nil {
				failed++
				if !errors.Is(err, model.ErrUnavailable) {
					t.Error(err)
				}
			}
		}
		return failed
	}
	if failed := ask(); failed != 0 {
		t.Errorf("%d of 20 get no answer", failed)
	}
	server.Kill()
	if failed := ask(); failed != 20 {
		t.Errorf("%d of 20 are told that there is no server", failed)
	}
}

func TestMigrate(t *testing.T) {
	server := testpg.Start(t)
	conn, err := pg.Connect(t.Context(), server.Socket, "postgres")
	must(t, err)
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	files := func(texts ...string) []migration {
		fs := fstest.MapFS{}
		for i, text := range texts {
			fs[fmt.Sprintf("migrations/%04d.sql", i+1)] = &fstest.MapFile{Data: []byte(text)}
		}
		list, err := readMigrations(fs)
		must(t, err)
		return list
	}
	one, two := "-- oldest: 1\nCREATE TABLE a (i int);\nCREATE TABLE b (i int);\n", "-- oldest: 1\nALTER TABLE a ADD j int;\n"
	bad, breaking := "-- oldest: 1\nCREATE TABLE c (i int);\nnonsense;\n", "-- oldest: 3\nDROP TABLE a;\n"
	for _, c := range []struct {
		name  string
		files []migration
		made  int
		want  string
	}{
		{"new", files(one), 1, ""},
		{"again", files(one), 0, ""},
		{"a bad one", files(one, two, bad), 1, "number 3"},
		{"the bad one changed nothing", files(one, two, "-- oldest: 1\nCREATE TABLE c (i int);\n"), 1, ""},
		{"an older manager goes on", files(one), 0, ""},
		{"a change that older ones cannot use", files(one, two, two, breaking), 1, ""},
		{"the oldest that can", files(one, two, two), 0, ""},
		{"an older one", files(one, two), 0, "newer manager"},
	} {
		made, err := migrate(t.Context(), conn, c.files)
		if made != c.made || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: migrate() = %d, %v; want %d and %q", c.name, made, err, c.made, c.want)
		}
	}
	for name, text := range map[string]string{"no line": "CREATE TABLE x ();", "of the future": "-- oldest: 2\n"} {
		if list, err := readMigrations(fstest.MapFS{"migrations/0001.sql": {Data: []byte(text)}}); err == nil {
			t.Errorf("%s: readMigrations() = %v", name, list)
		}
	}
	if _, err := readMigrations(embedded); err != nil {
		t.Error(err)
	}
}

// A database that was lost is made from the copy, with all that its rows had; one in
// use, and one of which nobody has a copy, is left as it is.
func TestRestore(t *testing.T) {
	s, server, _ := start(t)
	ctx := t.Context()
	drop := func() {
		server.Run(t, nil, []string{"psql", "-qd", "postgres", "-c", "DROP DATABASE manager WITH (FORCE)"})
	}
	must(t, s.PutService(ctx, notes))
	must(t, s.PutService(ctx, model.Service{ID: "other", UID: 2}))
	for n := range 3 {
		id, err := s.AddInstance(ctx, instance(n))
		must(t, err)
		must(t, s.SetPhase(ctx, id, Ready))
	}
	must(t, s.DeleteInstance(ctx, 1))
	half, err := s.Instance(ctx, 3)
	must(t, err)
	half.Phase = Deleting
	must(t, s.SetConfigs(ctx, map[string]string{"timezone": "Europe/Berlin", WebserverCertificate: "PEM", "other": "x"}))
	config, err := s.Configs(ctx)
	must(t, err)
	want, err := s.Services(ctx)
	must(t, err)
	kept := []model.Service{want[0], want[1]}
	kept[0].Instances = kept[0].Instances[:1:1]

	drop()
	_, _ = s.Services(ctx) // finds out only that the database has gone
	_, _ = s.Services(ctx)
	if list, err := s.Services(ctx); err != nil || len(list) != 0 {
		t.Fatalf("without a copy there are %v, %v; want none", list, err)
	}

	var told []Copy
	asked := 0
	s.Copy = func() (Copy, bool, error) {
		asked++
		return Copy{Time: time.Unix(1e9, 0), Services: kept, HalfMade: []Instance{half}, Config: config}, true, nil
	}
	s.Restored = func(c Copy) { told = append(told, c) }
	drop()
	for range 3 { // The first ones may find out only that the database has gone.
		_, _ = s.Services(ctx)
	}
	got, err := s.Services(ctx)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("Services() = %v, %s", err, diff)
	}
	if len(told) != 1 || asked != 1 {
		t.Errorf("the copy was asked for %d times and restored %d times; want once", asked, len(told))
	}
	phases, err := s.Instances(ctx)
	if err != nil || len(phases) != 2 || phases[0].Phase != Creating || phases[1].Phase != Deleting {
		t.Errorf("Instances() = %+v, %v; want the first to be looked at and the other to be deleted", phases, err)
	}
	again, err := s.Configs(ctx)
	if diff := cmp.Diff(config, again); err != nil || diff != "" {
		t.Errorf("Configs() = %v, %s", err, diff)
	}
	if id, err := s.AddInstance(ctx, instance(7)); err != nil || id != 4 {
		t.Errorf("the next instance is number %d, %v; want 4", id, err)
	}
	list, err := s.Audit(ctx, time.Time{}, 10)
	if err != nil || len(list) != 1 || !strings.Contains(list[0].Detail, "2001-09-09") {
		t.Errorf("Audit() = %+v, %v; want one entry that tells the time of the copy", list, err)
	}

	// What an administrator deletes stays deleted.
	for _, i := range []int64{2, 3, 4} {
		must(t, s.DeleteInstance(ctx, i))
	}
	must(t, s.DeleteService(ctx, "notes"))
	must(t, s.DeleteService(ctx, "other"))
	must(t, s.SetConfigs(ctx, map[string]string{"timezone": "", WebserverCertificate: "", "other": ""}))
	s.ready.Store(false)
	if got, err := s.Services(ctx); err != nil || len(got) != 0 {
		t.Errorf("what was deleted is there again: %v, %v", got, err)
	}

	// A copy that cannot be read is no empty one.
	s.Copy = func() (Copy, bool, error) { return Copy{}, false, errors.New("half a file") }
	drop()
	for range 3 {
		_, err = s.Services(ctx)
	}
	if err == nil || !strings.Contains(err.Error(), "half a file") {
		t.Errorf("with a broken copy: %v; want its error", err)
	}
}
