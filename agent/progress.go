package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"html"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"appplatform/internal/smallfile"
)

// ProgressPath is where the log of an update is to be read while the ramdisk
// works (OS-E1).
const ProgressPath = "/manager/ramdisk.log"

// certificateFile is the certificate of the device with its key and chain, in
// PEM, below the changed /etc on sda2. Without one a new one is made.
const certificateFile = etcUpper + "/app-platform/https.pem"

// pageWithin is how long one request may take: nobody holds up memory for long.
const pageWithin = 10 * time.Second

// showProgress serves the log over HTTPS until the function it returns is
// called. Without a network the update goes on all the same.
func (m Machine) showProgress(ctx context.Context, d disk) (stop func()) {
	if !m.Ramdisk || m.listen == nil {
		return func() {}
	}
	certificate, err := m.certificate(ctx, d)
	if err != nil {
		m.Log.Printf("no progress page: %v", err)
		return func() {}
	}
	secure, plain := pageServer(progressPage(m.Log)), pageServer(http.HandlerFunc(toHTTPS))
	secure.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
	for server, port := range map[*http.Server]string{secure: ":443", plain: ":80"} {
		l, err := m.listen("tcp", port)
		if err != nil {
			m.Log.Printf("no progress page: %v", err)
			continue
		}
		l = &crowd{Listener: l}
		go func() {
			if server == secure {
				_ = server.ServeTLS(l, "", "")
			} else {
				_ = server.Serve(l)
			}
		}()
	}
	return func() {
		secure.Close()
		plain.Close()
	}
}

// pageServer bounds what one connection may take, in time and memory. Whoever
// breaks one off is not worth a line on the console.
func pageServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadTimeout: pageWithin, WriteTimeout: pageWithin, IdleTimeout: pageWithin,
		MaxHeaderBytes: 16 << 10, ErrorLog: log.New(io.Discard, "", 0)}
}

// mostConnections are open at a time at each port. The smallest gateway has
// 256 MB, which writing the system needs.
const mostConnections = 32

// A crowd is a listener of that many connections. Instead of letting a new one
// wait it closes the oldest: who holds all of them and says nothing keeps nobody
// from reading the log.
type crowd struct {
	net.Listener
	mu   sync.Mutex
	open []*crowdConn // the oldest first
}

type crowdConn struct {
	net.Conn
	of *crowd
}

func (c *crowd) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	in := &crowdConn{conn, c}
	c.mu.Lock()
	c.open = append(c.open, in)
	var oldest *crowdConn
	if len(c.open) > mostConnections {
		oldest = c.open[0]
	}
	c.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	return in, nil
}

func (c *crowdConn) Close() error {
	c.of.mu.Lock()
	c.of.open = slices.DeleteFunc(c.of.open, func(o *crowdConn) bool { return o == c })
	c.of.mu.Unlock()
	return c.Conn.Close()
}

func toHTTPS(w http.ResponseWriter, r *http.Request) {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	http.Redirect(w, r, "https://"+host+ProgressPath, http.StatusFound)
}

// progressPage is plain text for programs, and for people a page that renews
// itself. Every other path leads there: what was at it comes back later.
func progressPage(l *Log) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != ProgressPath {
			http.Redirect(w, r, ProgressPath, http.StatusFound)
			return
		}
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if !strings.Contains(r.Header.Get("Accept"), "text/html") {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			fmt.Fprint(w, l.Text())
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
		fmt.Fprintf(w, `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="3">
<title>App Platform - update</title>
<style>
:root { color-scheme: light dark }
body { margin: 2rem auto; max-width: 50rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: 13px/1.5 ui-monospace, monospace }
</style>
</head>
<body>
<h1>App Platform is being updated</h1>
<p>This page renews itself. When it does no longer, the machine has restarted: the
App Platform is back in a minute. A power failure does no harm.</p>
<pre>%s</pre>
</body>
</html>
`, html.EscapeString(l.Text()))
	})
}

// certificate is the device's own one, or one that is made for this start.
func (m Machine) certificate(ctx context.Context, d disk) (c tls.Certificate, err error) {
	var text []byte
	err = m.withData(ctx, d, func() error {
		text, _ = smallfile.Read(m.path(filepath.Join(dataDir, certificateFile)), smallfile.Most)
		return nil
	})
	if err == nil && len(text) > 0 {
		if c, err = tls.X509KeyPair(text, text); err == nil {
			return c, nil
		}
		m.Log.Printf("cannot use the certificate of this machine: %v", err)
	}
	return selfSigned(m.hostname())
}

func (m Machine) hostname() string {
	text, _ := smallfile.Read(m.path("etc/hostname"), smallfile.Most)
	return strings.TrimSpace(string(text))
}

// selfSigned makes a certificate that is valid whatever the clock says, because
// a machine without a network has a wrong one.
func selfSigned(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return tls.Certificate{}, err
	}
	template := x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore:   time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:    time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if name != "" {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
