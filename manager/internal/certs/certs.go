// Package certs reads what an administrator uploads as the webserver's
// certificate and says what is wrong with it.
package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"appplatform/internal/hint"
	"appplatform/manager/internal/model"
)

// maxText is more than any chain has, in bytes, and maxCerts in certificates.
const (
	maxText  = 512 << 10
	maxCerts = 16
)

// An OrderError is a file with all that is needed, in a wrong order. Sorted is
// the same in the right one.
type OrderError struct {
	text   string
	sorted string
}

func (e *OrderError) Error() string { return e.text }

// Sorted is the text that would be accepted.
func (e *OrderError) Sorted() string { return e.sorted }

// A Bundle is a certificate with its chain and its key, all of them PEM.
type Bundle struct {
	Chain []*x509.Certificate // the server's, intermediates, perhaps the root
	PEM   string              // certificates, then the key
}

// Parse reads PEM text: the server's certificate, the intermediate ones, the
// root's or not, and the key, and nothing else that matters (B1).
func Parse(text string, now time.Time) (Bundle, error) {
	found, err := read(text)
	if err != nil {
		return Bundle{}, err
	}
	leaf, err := found.leaf()
	if err != nil {
		return Bundle{}, err
	}
	chain, err := found.chain(leaf)
	if err != nil {
		return Bundle{}, err
	}
	if err := checkTime(chain, now); err != nil {
		return Bundle{}, err
	}
	b := Bundle{Chain: chain, PEM: encode(chain, found.key)}
	if !found.inOrder(chain) {
		return Bundle{}, &OrderError{found.explainOrder(chain), b.PEM}
	}
	return b, nil
}

// found is what is in a file, and where: parts are numbered as people count.
type found struct {
	certs    []*x509.Certificate
	at       []int // place of each in the file
	key      *pem.Block
	public   samePublic
	keyPlace int
}

func read(text string) (*found, error) {
	const way = "paste a text file in PEM form: the server's certificate, then the intermediate ones, then the private key"
	if len(text) > maxText {
		return nil, hint.Errorf(way, "the file has more than %d bytes", maxText)
	}
	f := &found{}
	rest := []byte(strings.ReplaceAll(text, "\r\n", "\n"))
	for n := 1; ; n++ {
		var block *pem.Block
		before := rest
		block, rest = pem.Decode(rest)
		if block == nil {
			if bytes.Contains(before, []byte("-----BEGIN")) {
				return nil, hint.Errorf("copy all of it again", "part %d of the file is damaged", n)
			}
			break
		}
		if err := f.add(block, n); err != nil {
			return nil, err
		}
	}
	if len(f.certs) == 0 && f.key == nil {
		if bytes.HasPrefix(rest, []byte{0x30, 0x82}) || bytes.HasPrefix(rest, []byte{0x30, 0x80}) {
			return nil, hint.Errorf("make PEM of it: openssl pkcs12 -in FILE -nodes, or openssl x509 -inform der", "the file is not text, but binary (DER or PKCS #12)")
		}
		return nil, hint.Errorf(way, "there is no certificate in the file")
	}
	if len(f.certs) == 0 {
		return nil, hint.Errorf(way, "there is a private key in the file, but no certificate")
	}
	if f.key == nil {
		return nil, hint.Errorf("put the private key behind the certificates; it begins with -----BEGIN PRIVATE KEY----- or -----BEGIN RSA PRIVATE KEY-----",
			"there is no private key in the file")
	}
	return f, nil
}

func (f *found) add(block *pem.Block, n int) error {
	switch block.Type {
	case "CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE":
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return hint.Errorf("copy all of it again", "part %d of the file is not a certificate that can be read: %w", n, err)
		}
		if slices.ContainsFunc(f.certs, c.Equal) {
			return hint.Errorf("remove one of the two", "the certificate %s is in the file twice", title(c))
		}
		if len(f.certs) == maxCerts {
			return hint.Errorf("only what is between the server's certificate and a root belongs there", "the file has more than %d certificates", maxCerts)
		}
		f.certs, f.at = append(f.certs, c), append(f.at, n)
	case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY":
		if f.key != nil {
			return hint.Errorf("leave the one that belongs to the server's certificate", "there are two private keys in the file")
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			return hint.Errorf("remove its password: openssl pkey -in FILE -out NEWFILE", "the private key is encrypted with a password")
		}
		public, err := parseKey(block)
		if err != nil {
			return hint.Errorf("keys are RSA (PKCS #1 or PKCS #8), or ECDSA", "the private key cannot be read: %w", err)
		}
		f.key, f.public, f.keyPlace = &pem.Block{Type: block.Type, Bytes: block.Bytes}, public, n
	case "EC PARAMETERS", "DH PARAMETERS":
		// openssl puts them in front of a key; the key names its curve itself.
	case "CERTIFICATE REQUEST", "NEW CERTIFICATE REQUEST":
		return hint.Errorf("send it to the authority and upload what comes back", "part %d of the file is a request for a certificate, not one", n)
	default:
		return hint.Errorf("remove it", "part %d of the file is a %.60q, which does not belong there", n, block.Type)
	}
	return nil
}

func parseKey(block *pem.Block) (samePublic, error) {
	var key any
	var err error
	switch block.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return samePublic{}, err
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		return samePublic{&k.PublicKey}, nil
	case *ecdsa.PrivateKey:
		return samePublic{&k.PublicKey}, nil
	case ed25519.PrivateKey:
		return samePublic{k.Public()}, nil
	}
	return samePublic{}, fmt.Errorf("%T is not used by web browsers", key)
}

// samePublic compares a key's public half with a certificate's.
type samePublic struct{ crypto.PublicKey }

func (p samePublic) Equal(x any) bool {
	k, ok := p.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(x)
}

// leaf is the certificate that the key belongs to.
func (f *found) leaf() (*x509.Certificate, error) {
	for _, c := range f.certs {
		if f.public.Equal(c.PublicKey) {
			if c.IsCA && len(f.certs) > 1 {
				return nil, hint.Errorf("take the key of the server's certificate", "the private key belongs to %s, which is an authority's certificate and not the server's", title(c))
			}
			return c, nil
		}
	}
	return nil, hint.Errorf("upload the key that the certificate was requested with", "the private key belongs to another certificate, not to %s", title(f.certs[0]))
}

// chain leads from the server's certificate as far up as the file does.
func (f *found) chain(leaf *x509.Certificate) ([]*x509.Certificate, error) {
	chain := []*x509.Certificate{leaf}
	for top := leaf; !selfSigned(top); {
		i := slices.IndexFunc(f.certs, func(c *x509.Certificate) bool {
			return !slices.Contains(chain, c) && bytes.Equal(c.RawSubject, top.RawIssuer) && top.CheckSignatureFrom(c) == nil
		})
		if i < 0 {
			break
		}
		top = f.certs[i]
		chain = append(chain, top)
	}
	for _, c := range f.certs {
		if !slices.Contains(chain, c) {
			top := chain[len(chain)-1]
			if !selfSigned(top) {
				return nil, hint.Errorf("add the certificate of "+name(top.Issuer.CommonName, top.Issuer.String()),
					"an intermediate certificate is missing: %s was issued by %s, which is not in the file", title(top), name(top.Issuer.CommonName, top.Issuer.String()))
			}
			return nil, hint.Errorf("remove it", "the certificate %s does not belong to the chain of %s", title(c), title(leaf))
		}
	}
	// A single certificate of an authority has no chain that anybody could check.
	if len(chain) == 1 && !selfSigned(leaf) {
		return nil, hint.Errorf("add the certificate of "+name(leaf.Issuer.CommonName, leaf.Issuer.String())+" behind it; authorities hand it out as intermediate certificate or bundle",
			"an intermediate certificate is missing: %s was issued by %s, which is not in the file", title(leaf), name(leaf.Issuer.CommonName, leaf.Issuer.String()))
	}
	return chain, nil
}

// clockError is how much the machine's clock may be behind that of an authority which
// has just signed a certificate.
const clockError = time.Hour

func checkTime(chain []*x509.Certificate, now time.Time) error {
	const day = "2006-01-02 15:04 MST"
	for _, c := range chain {
		if now.After(c.NotAfter) {
			return hint.Errorf("request a new one, or set the machine's clock", "the certificate %s has expired on %s", title(c), c.NotAfter.UTC().Format(day))
		}
		if now.Before(c.NotBefore.Add(-clockError)) {
			return hint.Errorf("wait, or set the machine's clock, which shows "+now.UTC().Format(day), "the certificate %s is valid from %s only", title(c), c.NotBefore.UTC().Format(day))
		}
	}
	return nil
}

func (f *found) inOrder(chain []*x509.Certificate) bool {
	return slices.Equal(f.certs, chain) && f.keyPlace > f.at[len(f.at)-1]
}

func (f *found) explainOrder(chain []*x509.Certificate) string {
	var right []string
	for _, c := range chain {
		right = append(right, title(c))
	}
	what := "the certificates are in a wrong order"
	if slices.Equal(f.certs, chain) {
		what = "the private key stands before the certificates"
	}
	return hint.Errorf("put them in this order: "+strings.Join(append(right, "private key"), ", then "), "%s", what).Error()
}

func encode(chain []*x509.Certificate, key *pem.Block) string {
	var b bytes.Buffer
	for _, c := range chain {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	_ = pem.Encode(&b, key)
	return b.String()
}

func selfSigned(c *x509.Certificate) bool {
	return bytes.Equal(c.RawSubject, c.RawIssuer) && c.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

func title(c *x509.Certificate) string {
	if len(c.DNSNames) > 0 && c.Subject.CommonName == "" {
		return c.DNSNames[0]
	}
	return name(c.Subject.CommonName, c.Subject.String())
}

func name(common, all string) string {
	if common != "" {
		return common
	}
	return all
}

// Public is the text without its private key.
func Public(text string) string {
	var b bytes.Buffer
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			_ = pem.Encode(&b, block)
		}
	}
	return b.String()
}

// Describe is a chain for people, with what is to be said against it.
func Describe(chain []*x509.Certificate, now time.Time) []model.Certificate {
	list := []model.Certificate{}
	for i, c := range chain {
		hash := sha256.Sum256(c.Raw)
		m := model.Certificate{Subject: title(c), Issuer: name(c.Issuer.CommonName, c.Issuer.String()), From: c.NotBefore, Until: c.NotAfter,
			Key: keyName(c), SHA256: hex.EncodeToString(hash[:]), Self: selfSigned(c), Names: slices.Clone(c.DNSNames)}
		for _, ip := range c.IPAddresses {
			m.Names = append(m.Names, ip.String())
		}
		switch {
		case now.After(c.NotAfter):
			m.Problems = append(m.Problems, "it has expired")
		case now.Before(c.NotBefore):
			m.Problems = append(m.Problems, "it is not valid yet")
		case c.NotAfter.Sub(now) < 30*24*time.Hour:
			m.Problems = append(m.Problems, "it expires within 30 days")
		}
		if i == 0 && len(m.Names) == 0 {
			m.Problems = append(m.Problems, "browsers refuse it: it names no host (subjectAltName)")
		}
		list = append(list, m)
	}
	return list
}

// DescribePEM is Describe of text that is in use already.
func DescribePEM(text string, now time.Time) ([]model.Certificate, error) {
	var chain []*x509.Certificate
	for block, rest := pem.Decode([]byte(text)); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("cannot read the certificate in use: %w", err)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, errors.New("cannot read the certificate in use: there is none")
	}
	return Describe(chain, now), nil
}

func keyName(c *x509.Certificate) string {
	switch k := c.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	}
	return c.PublicKeyAlgorithm.String()
}
