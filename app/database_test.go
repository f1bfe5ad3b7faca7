package app

import (
	"testing"

	"github.com/jackc/pgx/v5"
)

// pgx says what the URLs mean.
func TestDatabaseURL(t *testing.T) {
	for _, c := range []struct {
		name, host string
		wantHost   string
		wantPort   uint16
	}{
		{"local", "", "/run/postgresql", 5432},
		{"name", "db.example.com", "db.example.com", 5432},
		{"name and port", "db.example.com:6543", "db.example.com", 6543},
		{"IPv4", "192.0.2.1", "192.0.2.1", 5432},
		{"IPv4 and port", "192.0.2.1:6543", "192.0.2.1", 6543},
		{"IPv6", "2001:db8::1", "2001:db8::1", 5432},
		{"IPv6 in brackets", "[2001:db8::1]", "2001:db8::1", 5432},
		{"IPv6 and port", "[2001:db8::1]:6543", "2001:db8::1", 6543},
		{"folder of a socket", "/tmp/pg", "/tmp/pg", 5432},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := &Instance{}
			i.values.DBHost, i.values.DBName, i.values.DBUser, i.values.DBPassword = c.host, "example.com_notes", "example.com_notes", "a:b/c@d%e?f"
			got, err := pgx.ParseConfig(i.DatabaseURL())
			if err != nil {
				t.Fatalf("%s: %v", i.DatabaseURL(), err)
			}
			if got.Host != c.wantHost || got.Port != c.wantPort {
				t.Errorf("%s is %s, port %d; want %s, port %d", i.DatabaseURL(), got.Host, got.Port, c.wantHost, c.wantPort)
			}
			if got.Database != "example.com_notes" || got.User != "example.com_notes" || got.Password != "a:b/c@d%e?f" {
				t.Errorf("%s is database %q, user %q, password %q", i.DatabaseURL(), got.Database, got.User, got.Password)
			}
			// sslmode=prefer: with TLS at first, without it then.
			if c.wantHost[0] != '/' && (got.TLSConfig == nil || len(got.Fallbacks) != 1 || got.Fallbacks[0].TLSConfig != nil) {
				t.Errorf("%s does not prefer TLS", i.DatabaseURL())
			}
		})
	}
}
