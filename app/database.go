package app

import (
	"net"
	"net/url"
	"strings"
)

// A Database is how an instance reaches its database. Host is empty for the local
// server, whose socket is in the folder LocalDatabase; Port is empty if the
// administrator has given none.
type Database struct {
	Host, Port           string
	Name, User, Password string
}

// LocalDatabase is the folder of the local server's socket.
const LocalDatabase = "/run/postgresql"

// Database are the raw values, for servers that are not PostgreSQL.
func (i *Instance) Database() Database {
	v := i.get()
	d := Database{Name: v.DBName, User: v.DBUser, Password: v.DBPassword}
	d.Host, d.Port = splitHost(v.DBHost)
	return d
}

// DatabaseURL is that of the instance's PostgreSQL database, as pgx, lib/pq and
// psql take it.
func (i *Instance) DatabaseURL() string { return i.Database().URL() }

// URL is that of a PostgreSQL database. TLS is used if the server has it.
func (d Database) URL() string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword(d.User, d.Password), Path: "/" + d.Name}
	q := url.Values{"sslmode": {"prefer"}}
	switch {
	case d.Host == "":
		q.Set("host", LocalDatabase)
	case strings.HasPrefix(d.Host, "/"):
		q.Set("host", d.Host)
	case strings.Contains(d.Host, ":"):
		u.Host = "[" + d.Host + "]"
	default:
		u.Host = d.Host
	}
	if d.Port != "" {
		if u.Host == "" {
			q.Set("port", d.Port)
		} else {
			u.Host += ":" + d.Port
		}
	}
	u.RawQuery = q.Encode()
	return u.String()
}

// splitHost takes a name, an IPv4 or IPv6 address apart from a port behind it. More
// than one colon without brackets is an IPv6 address.
func splitHost(s string) (host, port string) {
	if strings.HasPrefix(s, "[") {
		if h, p, err := net.SplitHostPort(s); err == nil {
			return h, p
		}
		return strings.Trim(s, "[]"), ""
	}
	if strings.Count(s, ":") == 1 {
		host, port, _ = strings.Cut(s, ":")
		return host, port
	}
	return s, ""
}
