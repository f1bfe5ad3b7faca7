package webserver

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"appplatform/internal/atomicfile"
)

// Certificates are files of the state folder, so that the right one is there from
// the first connection on.
const (
	givenFile      = "certificate.pem" // the manager's
	selfSignedFile = "self-signed.pem" // made here
)

// certificates are what the webserver can show to its clients.
type certificates struct {
	state  string
	own    *tls.Certificate
	broken error // why the given one is not in use
	inUse  atomic.Pointer[tls.Certificate]
}

func openCertificates(state string) (*certificates, error) {
	c := &certificates{state: state}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the state folder: %w", err)
	}
	var err error
	if c.own, err = c.selfSigned(); err != nil {
		return nil, err
	}
	c.inUse.Store(c.own)
	text, err := os.ReadFile(filepath.Join(state, givenFile))
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	// A broken one must not keep the pages away where it can be replaced.
	if err != nil {
		c.broken = fmt.Errorf("cannot read the certificate: %w", err)
	} else if given, err := parse(text); err != nil {
		c.broken = err
	} else {
		c.inUse.Store(given)
	}
	return c, nil
}

func parse(text []byte) (*tls.Certificate, error) {
	c, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, fmt.Errorf("cannot use the certificate: %w", err)
	}
	return &c, nil
}

// set takes the manager's certificate; an empty one returns to the self-signed.
// Connections stay as they are.
func (c *certificates) set(text string) error {
	file := filepath.Join(c.state, givenFile)
	if text == "" {
		c.inUse.Store(c.own)
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("cannot forget the certificate: %w", err)
		}
		return nil
	}
	given, err := parse([]byte(text))
	if err != nil {
		return err
	}
	c.inUse.Store(given)
	return atomicfile.Write(file, []byte(text), 0o600)
}

// chain is the certificate in use, in PEM and without its key.
func (c *certificates) chain() (text string, selfSigned bool) {
	inUse := c.inUse.Load()
	var out []byte
	for _, der := range inUse.Certificate {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return string(out), inUse == c.own
}

// selfSigned reads the certificate that was made at the first start, or makes it.
func (c *certificates) selfSigned() (*tls.Certificate, error) {
	file := filepath.Join(c.state, selfSignedFile)
	if text, err := os.ReadFile(file); err == nil {
		if own, err := parse(text); err == nil {
			return own, nil
		}
	}
	text, err := makeSelfSigned()
	if err != nil {
		return nil, fmt.Errorf("cannot make a certificate: %w", err)
	}
	if err := atomicfile.Write(file, text, 0o600); err != nil {
		return nil, err
	}
	return parse(text)
}

// A device may not know the time when it makes its certificate, so that these
// are constants; 2049 is the last year that every reader of X.509 takes.
var (
	validFrom  = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	validUntil = time.Date(2049, 12, 31, 0, 0, 0, 0, time.UTC)
)

func makeSelfSigned() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: host}, NotBefore: validFrom, NotAfter: validUntil,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true, DNSNames: []string{"localhost"},
	}
	if host != "localhost" && isHost(host) {
		template.DNSNames = append(template.DNSNames, host)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			template.IPAddresses = append(template.IPAddresses, n.IP)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})...), nil
}
