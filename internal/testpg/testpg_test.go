package testpg

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"appplatform/internal/cache"
	"appplatform/internal/run"
	"appplatform/internal/testtools"
	"appplatform/tooltree"
)

func connect(t *testing.T, s *Server, user string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), "host="+s.Socket+" user="+user+" dbname=postgres sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func TestServer(t *testing.T) {
	s := Start(t)
	for _, user := range []string{"root", "postgres"} {
		var super, version string
		if err := connect(t, s, user).QueryRow(t.Context(), "SELECT current_setting('is_superuser'), current_setting('server_version')").Scan(&super, &version); err != nil {
			t.Fatal(err)
		}
		if super != "on" || !strings.HasPrefix(version, "17.") {
			t.Errorf("as %s: superuser is %s and the version %s; want on and 17", user, super, version)
		}
	}
	if _, err := connect(t, s, "root").Exec(t.Context(), "CREATE TABLE kept (i int); INSERT INTO kept VALUES (42)"); err != nil {
		t.Fatal(err)
	}
	for _, end := range []func(){func() { s.Stop(t) }, s.Kill} {
		end()
		if _, err := pgx.Connect(t.Context(), "host="+s.Socket+" user=root dbname=postgres sslmode=disable"); err == nil {
			t.Error("a server answers that was ended")
		}
		s.Restart(t)
		if got := s.Run(t, nil, []string{"psql", "-At", "-c", "SELECT i FROM kept"}); got != "42\n" {
			t.Errorf("after a restart the table has %q; want 42", got)
		}
	}
	if _, err := s.Try(nil, []string{"psql", "-U", "stranger", "-c", "SELECT 1"}); err == nil {
		t.Error("a stranger connects")
	}
}

// TestAsOrdinaryUser runs the test above without root's rights.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the other test is already run by an ordinary user")
	}
	testtools.Open(t, tooltree.Database)
	ours, err := cache.Default()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "testpg")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The user cannot enter root's folders: it is lent the tools and what apt has
	// resolved, at another place.
	out, err := run.Output(t.Context(), "unshare", "--mount", "sh", "-euc", `
		mkdir -p "$1/cache/app-platform/apt" "$1/cache/app-platform/tools"
		cp "$3" "$1/tests"
		chown -R 1234:1234 "$1"
		for folder in apt tools; do
			mount --bind "$2/$folder" "$1/cache/app-platform/$folder"
		done
		exec setpriv --reuid 1234 --regid 1234 --clear-groups -- \
			env HOME="$1" XDG_CACHE_HOME="$1/cache" TMPDIR="$1" "$1/tests" -test.run '^TestServer$' -test.v
	`, "sh", dir, ours.Path(), exe)
	if err != nil || !strings.Contains(string(out), "--- PASS: TestServer") {
		t.Errorf("as an ordinary user: %v\n%s", err, out)
	}
}
