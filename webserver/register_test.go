package webserver

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"appplatform/internal/wire"
)

func TestGrants(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"app/www", "other"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../other", filepath.Join(dir, "app/out")); err != nil {
		t.Fatal(err)
	}
	tab := newTable()
	tab.grant([]wire.Grant{{UID: 5, Path: "/a/b", Dir: filepath.Join(dir, "app")}, {UID: 6, Path: "/a"}})
	for _, test := range []struct {
		uid            uint32
		path, kind, to string
		refused        string // a part of the error; empty: it is allowed
	}{
		{5, "/a/b", "http", "/s", ""},
		{5, "/a/b/c", "websocket", "/s", ""},
		{5, "/a/bc", "http", "/s", "may not register"},
		{5, "/a", "http", "/s", "may not register"},
		{5, "", "http", "/s", "may not register"},
		{7, "/a/b", "http", "/s", "may not register"},
		{6, "/a/b", "http", "/s", ""},
		{0, "", "http", "/s", ""},
		{0, "/manager", "http", "/s", ""},
		{5, "/a/b/", "http", "/s", "without"},
		{5, "a/b", "http", "/s", "slash"},
		{5, "/a/b//c", "http", "/s", "no path"},
		{5, "/a/b/../c", "http", "/s", "no path"},
		{5, "/a/b?c", "http", "/s", "no path"},
		{5, "/a/b/" + strings.Repeat("x", maxPath), "http", "/s", "longer"},
		{5, "/a/b", "gopher", "/s", "there is no kind"},
		{5, "/a/b", "http", "s", "absolute"},
		{5, "/a/b", "files", dir + "/app/www", ""},
		{5, "/a/b", "files", dir + "/app", ""},
		{5, "/a/b", "files", dir + "/app/../other", "may not register"},
		{5, "/a/b", "files", dir + "/other", "may not register"},
		{5, "/a/b", "files", dir + "/app/out", "escapes"},
		{6, "/a", "files", dir + "/app", "may not register"},
	} {
		_, err := tab.add(wire.Register{Path: test.path, Kind: test.kind, Socket: test.to, Dir: test.to}, test.uid, 1, func() {})
		if test.refused == "" && err != nil || test.refused != "" && (err == nil || !strings.Contains(err.Error(), test.refused)) {
			t.Errorf("user %d, %.20q as %s to %s: %v; want %q", test.uid, test.path, test.kind, test.to, err, test.refused)
		}
	}
	// What is not granted any more ends, and who has registered it is told so.
	told := 0
	if _, err := tab.add(wire.Register{Path: "/a/b", Kind: "http", Socket: "/s"}, 5, 1, func() { told++ }); err != nil {
		t.Fatal(err)
	}
	if _, err := tab.add(wire.Register{Path: "/a", Kind: "http", Socket: "/s"}, 6, 1, func() { told += 100 }); err != nil {
		t.Fatal(err)
	}
	tab.grant([]wire.Grant{{UID: 6, Path: "/a"}})
	if told != 1 {
		t.Errorf("told %d; want the one whose path is not granted any more", told)
	}
	for _, r := range tab.all() {
		if r.UID == 5 {
			t.Errorf("%+v is still registered", r)
		}
	}
}

// TestFirstToRegister: with a new webserver, a path that is granted waits for its app,
// even if somebody has registered for what is above it.
func TestFirstToRegister(t *testing.T) {
	tab := newTable()
	tab.grant([]wire.Grant{{UID: 0}, {UID: 5, Path: "/a/b"}})
	if _, err := tab.add(wire.Register{Path: "", Kind: wire.KindHTTP, Socket: "/root"}, 0, 1, func() {}); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		path, want string
		soon       bool
	}{{"/a/b/c", "", true}, {"/a/b", "", true}, {"/a", "/root", false}, {"/a/bc", "/root", false}} {
		r, soon, _ := tab.find(test.path, false)
		got := ""
		if r != nil {
			got = r.Socket
		}
		if got != test.want || soon != test.soon {
			t.Errorf("find(%s) = %q, %t; want %q, %t", test.path, got, soon, test.want, test.soon)
		}
	}
	tab.began = tab.began.Add(-startTime)
	if r, soon, _ := tab.find("/a/b", false); r == nil || soon {
		t.Errorf("later find = %v, %t; want the root's", r, soon)
	}
}

// TestUnregister: the last registration counts, and what was there before comes
// back when it goes.
func TestUnregister(t *testing.T) {
	l := open(t)
	say := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, text) }
	}
	l.app(wire.KindHTTP, say("old"), "/app")
	second := l.app(wire.KindHTTP, say("new"), "/app")
	c := client(t, false)
	if _, got := get(t, c, "http://"+l.http+"/app"); got != "new" {
		t.Errorf("with both: %s; want new", got)
	}
	ask[wire.RegisterResult](t, second, wire.Unregister{Head: wire.Head{MT: "Unregister"}, Path: "/app", Kind: wire.KindHTTP})
	if _, got := get(t, c, "http://"+l.http+"/app"); got != "old" {
		t.Errorf("after it has gone: %s; want old", got)
	}
	got := ask[wire.RegisterResult](t, second, wire.Unregister{Head: wire.Head{MT: "Unregister"}, Path: "/app", Kind: wire.KindHTTP})
	if got.Error == "" {
		t.Error("it could be unregistered twice")
	}
}

// TestManyRegistrations makes and ends 10,000.
func TestManyRegistrations(t *testing.T) {
	l := open(t)
	c, err := wire.Dial(l.Socket)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10000 {
		m := wire.Register{Head: wire.Head{MT: "Register"}, Path: fmt.Sprintf("/app/%d", i), Kind: wire.KindHTTP, Socket: "/s"}
		if got := ask[wire.RegisterResult](t, c, m); got.Error != "" {
			t.Fatal(got.Error)
		}
		if i%10 > 0 { // No more than one user may have.
			ask[wire.RegisterResult](t, c, wire.Unregister{Head: wire.Head{MT: "Unregister"}, Path: m.Path, Kind: m.Kind})
		}
	}
	if n := len(l.table.all()); n != 1000 {
		t.Errorf("%d registrations; want 1000", n)
	}
	c.Close()
	eventually(t, "they have gone with the connection", func() bool { return len(l.table.all()) == 0 })
	if n := l.table.count; n != 0 || len(l.table.of) > 0 {
		t.Errorf("count = %d, of users %v; want 0", n, l.table.of)
	}
}

// One user cannot take what is there for all; root can, and what was given back can be
// taken again.
func TestRegistrationsOfUser(t *testing.T) {
	tab := newTable()
	tab.grant([]wire.Grant{{UID: 5, Path: ""}, {UID: 6, Path: ""}})
	add := func(uid uint32, i int) (*registration, error) {
		return tab.add(wire.Register{Path: fmt.Sprintf("/%d/%d", uid, i), Kind: wire.KindHTTP, Socket: "/s"}, uid, 1, func() {})
	}
	for _, uid := range []uint32{0, 5} {
		for i := range maxOfUser {
			if _, err := add(uid, i); err != nil {
				t.Fatalf("registration %d of user %d: %v", i, uid, err)
			}
		}
	}
	if _, err := add(5, maxOfUser); err == nil || !strings.Contains(err.Error(), "the user 5 has 2000 registrations already") {
		t.Errorf("one more: %v; want that user 5 has 2000", err)
	}
	for _, uid := range []uint32{0, 6} {
		if _, err := add(uid, maxOfUser); err != nil {
			t.Errorf("user %d: %v", uid, err)
		}
	}
	tab.remove(tab.paths["/5/7"][0])
	if _, err := add(5, 7); err != nil {
		t.Errorf("when there is one less: %v", err)
	}
}

// TestCertificates: swapped while a connection lives, kept over a restart.
func TestCertificates(t *testing.T) {
	l := open(t)
	l.app(wire.KindHTTP, echoSocket, "/app")
	manager := l.ruler()
	shown := func() string {
		c, err := tls.Dial("tcp", l.https, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.ConnectionState().PeerCertificates[0].Raw}))
	}
	own := ask[wire.Certificate](t, manager, wire.GetCertificate{Head: wire.Head{MT: "GetCertificate"}})
	if !own.SelfSigned || own.PEM != shown() {
		t.Fatalf("at first: %+v; shown is %s", own, shown())
	}
	block, _ := pem.Decode([]byte(own.PEM))
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	for _, name := range []string{"localhost", "127.0.0.1"} {
		if _, err := parsed.Verify(x509.VerifyOptions{DNSName: name, Roots: pool, CurrentTime: time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)}); err != nil {
			t.Errorf("the self-signed certificate for %s: %v", name, err)
		}
	}
	c, br, _ := l.dialSocket("/app", true)
	given, err := makeSelfSigned()
	if err != nil {
		t.Fatal(err)
	}
	if got := ask[wire.Result](t, manager, wire.SetCertificate{Head: wire.Head{MT: "SetCertificate"}, PEM: string(given)}); got.Error != "" {
		t.Fatal(got.Error)
	}
	now := ask[wire.Certificate](t, manager, wire.GetCertificate{Head: wire.Head{MT: "GetCertificate"}})
	if now.SelfSigned || now.PEM != shown() || !strings.HasPrefix(string(given), now.PEM) || strings.Contains(now.PEM, "PRIVATE") {
		t.Errorf("after SetCertificate: %+v; shown is %s", now, shown())
	}
	echoes(t, c, br, "still connected")
	for _, broken := range []string{"nonsense", own.PEM, strings.Replace(string(given), "PRIVATE", "PUBLIC", 2)} {
		if got := ask[wire.Result](t, manager, wire.SetCertificate{Head: wire.Head{MT: "SetCertificate"}, PEM: broken}); got.Error == "" {
			t.Errorf("took the certificate %q", broken)
		}
	}
	if now.PEM != shown() {
		t.Error("a certificate that was refused is shown")
	}
	for _, name := range []string{givenFile, selfSignedFile} {
		if info, err := os.Stat(filepath.Join(l.State, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want -rw-------", name, info, err)
		}
	}
	again, err := openCertificates(l.State)
	if err != nil {
		t.Fatal(err)
	}
	if text, selfSigned := again.chain(); selfSigned || text != now.PEM {
		t.Error("after a restart another certificate is shown")
	}
	if got := ask[wire.Result](t, manager, wire.SetCertificate{Head: wire.Head{MT: "SetCertificate"}}); got.Error != "" {
		t.Fatal(got.Error)
	}
	if own.PEM != shown() {
		t.Error("the self-signed certificate is not back")
	}
	if again, err = openCertificates(l.State); err != nil {
		t.Fatal(err)
	}
	if text, selfSigned := again.chain(); !selfSigned || text != own.PEM {
		t.Error("after a restart the self-signed certificate is another one")
	}
	// A file that is broken or no file keeps nobody away.
	file := filepath.Join(l.State, givenFile)
	for name, spoil := range map[string]func() error{
		"garbage":  func() error { return os.WriteFile(file, []byte("garbage"), 0o600) },
		"a folder": func() error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) },
	} {
		_ = os.Remove(file)
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		again, err := openCertificates(l.State)
		if err != nil || again.broken == nil || again.inUse.Load() != again.own {
			t.Errorf("%s: %v, %+v", name, err, again)
		}
	}
}

func TestStatus(t *testing.T) {
	l := open(t)
	l.app(wire.KindHTTP, echoSocket, "/app")
	c, br, _ := l.dialSocket("/app", true)
	echoes(t, c, br, "it is counted by now")
	got := ask[wire.WebserverStatus](t, l.ruler(), wire.GetStatus{Head: wire.Head{MT: "GetStatus", ID: 9}})
	if got.ID != 9 || got.MT != "WebserverStatus" || got.Connections != 1 || got.WebSockets != 1 || got.Requests != 1 || len(got.Registrations) != 1 {
		t.Fatalf("%+v", got)
	}
	if r := got.Registrations[0]; r.Path != "/app" || r.Kind != wire.KindHTTP || int(r.UID) != os.Getuid() || int(r.PID) != os.Getpid() {
		t.Errorf("%+v", r)
	}
	if got := ask[wire.Result](t, l.ruler(), wire.Status{Head: wire.Head{MT: "Dance"}}); got.Error == "" {
		t.Error("it can dance")
	}
}

func TestFiles(t *testing.T) {
	l := open(t)
	www := filepath.Join(l.dir, "www")
	put := func(name, text string) {
		t.Helper()
		name = filepath.Join(www, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("index.html", "<p>start")
	put("app.js", "0123456789")
	put("app.js.br", "brotli")
	put("app.js.gz", "gzip")
	put("sub/index.html", "<p>sub")
	put("bare/file.unknown", "?")
	put(".secret", "x")
	put(".git/config", "x")
	put("../outside", "x")
	if err := os.Symlink("../outside", filepath.Join(www, "leak")); err != nil {
		t.Fatal(err)
	}
	l.register(wire.KindFiles, www, "/f")
	for _, http2 := range []bool{false, true} {
		c := client(t, http2)
		for _, test := range []struct {
			path, accept string
			status       int
			kind, text   string
		}{
			{"/f/", "", 200, "text/html; charset=utf-8", "<p>start"},
			{"/f/index.html", "", 200, "text/html; charset=utf-8", "<p>start"},
			{"/f/app.js", "", 200, "text/javascript; charset=utf-8", "0123456789"},
			{"/f/app.js", "gzip, br", 200, "text/javascript; charset=utf-8", "brotli"},
			{"/f/app.js", "gzip, br;q=0", 200, "text/javascript; charset=utf-8", "gzip"},
			{"/f/app.js", "br;q=0.000,gzip;q=0", 200, "text/javascript; charset=utf-8", "0123456789"},
			{"/f/sub/", "", 200, "text/html; charset=utf-8", "<p>sub"},
			{"/f/bare/file.unknown", "", 200, "application/octet-stream", "?"},
			{"/f/sub", "", 301, "", ""},
			{"/f/bare/", "", 404, "", ""},
			{"/f/app.js/", "", 404, "", ""},
			{"/f/none", "", 404, "", ""},
			{"/f/.secret", "", 404, "", ""},
			{"/f/.git/config", "", 404, "", ""},
			{"/f/%2e%2e/outside", "", 404, "", ""},
			{"/f/sub/..%2f..%2foutside", "", 404, "", ""},
			{"/f/leak", "", 404, "", ""},
			{"/f//app.js", "", 200, "text/javascript; charset=utf-8", "0123456789"},
			{"/f/x%00y", "", 404, "", ""},
		} {
			header := []string{}
			if test.accept != "" {
				header = []string{"Accept-Encoding", test.accept}
			}
			answer, text := get(t, c, "https://"+l.https+test.path, header...)
			if answer.StatusCode != test.status || test.status == 200 && (text != test.text || answer.Header.Get("Content-Type") != test.kind || answer.Header.Get("Vary") != "Accept-Encoding") {
				t.Errorf("GET %s (%s) = %s %q %v; want %d %q", test.path, test.accept, answer.Status, text, answer.Header, test.status, test.text)
			}
		}
		answer, _ := get(t, c, "https://"+l.https+"/f/app.js")
		tag := answer.Header.Get("ETag")
		if again, _ := get(t, c, "https://"+l.https+"/f/app.js", "If-None-Match", tag); again.StatusCode != 304 || strings.HasPrefix(tag, "W/") {
			t.Errorf("with the ETag %s: %s", tag, again.Status)
		}
		if again, text := get(t, c, "https://"+l.https+"/f/app.js", "Range", "bytes=3-5", "If-Range", tag); again.StatusCode != 206 || text != "345" {
			t.Errorf("a range: %s %q", again.Status, text)
		}
		if packed, _ := get(t, c, "https://"+l.https+"/f/app.js", "Accept-Encoding", "br"); packed.Header.Get("ETag") == tag || packed.Header.Get("Content-Encoding") != "br" {
			t.Errorf("the packed file has the ETag %s of the other, or encoding %q", tag, packed.Header.Get("Content-Encoding"))
		}
		r, _ := http.NewRequest("DELETE", "https://"+l.https+"/f/app.js", nil)
		if answer, _ := do(t, c, r); answer.StatusCode != 405 {
			t.Errorf("DELETE: %s", answer.Status)
		}
		if answer, _ := get(t, c, "https://"+l.https+"/f/sub?x=1"); answer.Header.Get("Location") != "./sub/?x=1" {
			t.Errorf("a folder redirects to %q", answer.Header.Get("Location"))
		}
	}
}
