package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// An authority's or a server's certificate and key, as PEM.
type party struct {
	cert *x509.Certificate
	key  crypto.Signer
	pem  string
}

func newParty(t *testing.T, name string, issuer *party, key crypto.Signer, change func(*x509.Certificate)) *party {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.AddDate(0, -1, 0), NotAfter: now.AddDate(1, 0, 0),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	if strings.Contains(name, ".") {
		c.IsCA, c.KeyUsage, c.DNSNames = false, x509.KeyUsageDigitalSignature, []string{name}
	}
	if change != nil {
		change(c)
	}
	if key == nil {
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	p := &party{key: key}
	parent, signer := c, key
	if issuer != nil {
		parent, signer = issuer.cert, issuer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	if p.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	p.pem = block("CERTIFICATE", der)
	return p
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func pkcs8(t *testing.T, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return block("PRIVATE KEY", der)
}

// rsaKey is made once: it takes a while.
var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

// B1: what is accepted and what is said about the rest.
func TestParse(t *testing.T) {
	big, err := rsaKey()
	if err != nil {
		t.Fatal(err)
	}
	root := newParty(t, "Root", nil, nil, nil)
	middle := newParty(t, "Middle", root, nil, nil)
	low := newParty(t, "Low", middle, nil, nil)
	server := newParty(t, "ap.example.com", low, nil, nil)
	direct := newParty(t, "direct.example.com", root, big, nil)
	alone := newParty(t, "alone.example.com", nil, nil, nil)
	expired := newParty(t, "old.example.com", root, nil, func(c *x509.Certificate) { c.NotAfter = now.AddDate(0, 0, -1) })
	fresh := newParty(t, "fresh.example.com", root, nil, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) })
	early := newParty(t, "early.example.com", root, nil, func(c *x509.Certificate) { c.NotBefore = now.AddDate(0, 0, 1) })
	oldMiddle := newParty(t, "Old Middle", root, nil, func(c *x509.Certificate) { c.NotAfter = now.AddDate(0, 0, -1) })
	ofOld := newParty(t, "of-old.example.com", oldMiddle, nil, nil)
	// Another authority of the same name, whose key did not sign anything here.
	impostor := newParty(t, "Low", middle, nil, nil)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed := newParty(t, "ed.example.com", nil, edKey, nil)
	ecDER, err := x509.MarshalECPrivateKey(server.key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	key := pkcs8(t, server.key)
	chain := server.pem + low.pem + middle.pem
	for _, test := range []struct{ name, text, want string }{
		{"without root", chain + key, ""},
		{"with root", chain + root.pem + key, ""},
		{"EC key", chain + block("EC PRIVATE KEY", ecDER), ""},
		{"with the curve in front of the key", chain + block("EC PARAMETERS", []byte{6, 0}) + block("EC PRIVATE KEY", ecDER), ""},
		{"RSA, PKCS #1", direct.pem + root.pem + block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(big)), ""},
		{"RSA, PKCS #8", direct.pem + root.pem + pkcs8(t, big), ""},
		{"Ed25519", ed.pem + pkcs8(t, edKey), ""},
		{"self-signed", alone.pem + pkcs8(t, alone.key), ""},
		{"line ends of Windows and text between", "Bag Attributes\r\n" + strings.ReplaceAll(chain+"subject=x\n"+key, "\n", "\r\n"), ""},

		{"key first", key + chain, "the private key stands before the certificates"},
		{"intermediates swapped", server.pem + middle.pem + low.pem + key, "put them in this order: ap.example.com, then Low, then Middle, then private key"},
		{"root first", root.pem + middle.pem + low.pem + server.pem + key, "ap.example.com, then Low, then Middle, then Root, then private key"},
		{"key in the middle", server.pem + key + low.pem + middle.pem, "the private key stands before"},

		{"the server's only", server.pem + key, "an intermediate certificate is missing: ap.example.com was issued by Low"},
		{"a gap", server.pem + middle.pem + key, "ap.example.com was issued by Low, which is not in the file"},
		{"a gap further up", server.pem + low.pem + root.pem + key, "Low was issued by Middle, which is not in the file"},
		{"an impostor", server.pem + impostor.pem + middle.pem + key, "ap.example.com was issued by Low, which is not in the file"},
		{"a stranger's certificate", chain + root.pem + alone.pem + key, "alone.example.com does not belong to the chain of ap.example.com"},
		{"twice", server.pem + server.pem + low.pem + middle.pem + key, "is in the file twice"},

		{"no key", chain, "no private key"},
		{"key only", key, "no certificate"},
		{"another key", chain + pkcs8(t, alone.key), "the private key belongs to another certificate, not to ap.example.com"},
		{"the authority's key", chain + pkcs8(t, low.key), "belongs to Low, which is an authority's certificate"},
		{"two keys", chain + key + pkcs8(t, alone.key), "two private keys"},
		{"encrypted, PKCS #8", chain + block("ENCRYPTED PRIVATE KEY", []byte("x")), "encrypted with a password"},
		{"encrypted, of old", chain + "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n", "encrypted with a password"},
		{"broken key", chain + block("PRIVATE KEY", []byte("x")), "cannot be read"},

		{"expired", expired.pem + root.pem + pkcs8(t, expired.key), "old.example.com has expired on 2026-11-21"},
		{"a clock that is slow", fresh.pem + root.pem + pkcs8(t, fresh.key), ""},
		{"not yet valid", early.pem + root.pem + pkcs8(t, early.key), "early.example.com is valid from 2026-11-23"},
		{"expired intermediate", ofOld.pem + oldMiddle.pem + pkcs8(t, ofOld.key), "Old Middle has expired"},

		{"nothing", "", "no certificate"},
		{"text", "hello", "no certificate"},
		{"binary", "0\x82\x01\x02" + strings.Repeat("x", 100), "binary"},
		{"cut", chain + key[:len(key)-40], "part 4 of the file is damaged"},
		{"garbage inside", block("CERTIFICATE", []byte("x")) + key, "part 1 of the file is not a certificate"},
		{"a request", block("CERTIFICATE REQUEST", []byte("x")) + key, "a request for a certificate"},
		{"something else", chain + block("OPENSSH PRIVATE KEY", []byte("x")), "does not belong there"},
		{"a long one", strings.Repeat("x", maxText+1), "more than"},
	} {
		b, err := Parse(test.text, now)
		if test.want == "" {
			if err != nil {
				t.Errorf("%s: Parse() = %v; want it accepted", test.name, err)
			} else if _, err := tls.X509KeyPair([]byte(b.PEM), []byte(b.PEM)); err != nil {
				t.Errorf("%s: crypto/tls refuses what Parse accepts: %v", test.name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "\nhint: ") {
			t.Errorf("%s: Parse() = %v; want %q and a hint", test.name, err, test.want)
			continue
		}
		var order *OrderError
		if errors.As(err, &order) {
			if b, err := Parse(order.Sorted(), now); err != nil || b.Chain[0].DNSNames[0] != "ap.example.com" {
				t.Errorf("%s: the sorted text is refused: %v", test.name, err)
			}
		}
	}
}

func TestDescribe(t *testing.T) {
	root := newParty(t, "Root", nil, nil, nil)
	server := newParty(t, "ap.example.com", root, nil, func(c *x509.Certificate) { c.NotAfter = now.AddDate(0, 0, 10) })
	bare := newParty(t, "bare", nil, nil, nil)
	list := Describe([]*x509.Certificate{server.cert, root.cert}, now)
	if len(list) != 2 || list[0].Subject != "ap.example.com" || list[0].Issuer != "Root" || list[0].Self || !list[1].Self || list[0].Key != "ECDSA P-256" || len(list[0].SHA256) != 64 {
		t.Errorf("Describe() = %+v", list)
	}
	for _, test := range []struct {
		chain []*x509.Certificate
		at    time.Time
		want  string
	}{
		{[]*x509.Certificate{server.cert}, now, "it expires within 30 days"},
		{[]*x509.Certificate{server.cert}, now.AddDate(1, 0, 0), "it has expired"},
		{[]*x509.Certificate{server.cert}, now.AddDate(-1, 0, 0), "it is not valid yet"},
		{[]*x509.Certificate{bare.cert}, now, "browsers refuse it"},
		{[]*x509.Certificate{root.cert}, now, "browsers refuse it"},
	} {
		if got := strings.Join(Describe(test.chain, test.at)[0].Problems, ", "); !strings.Contains(got, test.want) {
			t.Errorf("%s at %v: problems %q; want %q", test.chain[0].Subject, test.at, got, test.want)
		}
	}
	if _, err := DescribePEM("nothing", now); err == nil {
		t.Error("DescribePEM accepts text without a certificate")
	}
	if got := Public(server.pem + pkcs8(t, server.key)); got != server.pem {
		t.Errorf("Public() = %q; want the certificate only", got)
	}
}

// openssl makes what administrators have, and reads what comes out.
func TestOpenSSL(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Fatal("openssl is missing\nhint: make tools, and put bin/tools on the PATH")
	}
	dir := t.TempDir()
	openssl := func(args ...string) {
		t.Helper()
		cmd := exec.Command("openssl", args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %q: %v\n%s", args, err, out)
		}
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	read := func(names ...string) (text string) {
		t.Helper()
		for _, name := range names {
			b, err := os.ReadFile(path(name))
			if err != nil {
				t.Fatal(err)
			}
			text += string(b)
		}
		return text
	}
	if err := os.WriteFile(path("ca.ext"), []byte("basicConstraints=critical,CA:true\nkeyUsage=keyCertSign\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path("server.ext"), []byte("subjectAltName=DNS:ap.example.com,IP:192.0.2.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-nodes", "-keyout", path("root.key"), "-out", path("root.crt"), "-subj", "/CN=OpenSSL Root", "-days", "3650")
	for _, p := range []struct{ name, subject, issuer, ext string }{{"middle", "/O=Us/CN=OpenSSL Middle", "root", "ca.ext"}, {"server", "/CN=ap.example.com", "middle", "server.ext"}} {
		openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", path(p.name+".key"), "-out", path(p.name+".csr"), "-subj", p.subject)
		openssl("x509", "-req", "-in", path(p.name+".csr"), "-CA", path(p.issuer+".crt"), "-CAkey", path(p.issuer+".key"), "-CAcreateserial", "-extfile", path(p.ext), "-days", "300", "-out", path(p.name+".crt"))
	}
	openssl("rsa", "-traditional", "-in", path("server.key"), "-out", path("pkcs1.key"))
	openssl("rsa", "-traditional", "-aes256", "-passout", "pass:x", "-in", path("server.key"), "-out", path("old.key"))
	openssl("pkcs8", "-topk8", "-passout", "pass:x", "-in", path("server.key"), "-out", path("secret.key"))
	today := time.Now()
	for _, test := range []struct {
		name  string
		files []string
		want  string
	}{
		{"PKCS #8", []string{"server.crt", "middle.crt", "server.key"}, ""},
		{"PKCS #1, with root", []string{"server.crt", "middle.crt", "root.crt", "pkcs1.key"}, ""},
		{"swapped", []string{"middle.crt", "server.crt", "pkcs1.key"}, "wrong order"},
		{"encrypted, of old", []string{"server.crt", "middle.crt", "old.key"}, "encrypted"},
		{"encrypted", []string{"server.crt", "middle.crt", "secret.key"}, "encrypted"},
		{"request", []string{"server.csr", "server.key"}, "request"},
		{"incomplete", []string{"server.crt", "server.key"}, "issued by OpenSSL Middle"},
		{"another's key", []string{"server.crt", "middle.crt", "root.key"}, "belongs to another certificate"},
	} {
		b, err := Parse(read(test.files...), today)
		if test.want != "" {
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: Parse() = %v; want %q", test.name, err, test.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		if err := os.WriteFile(path("out.pem"), []byte(b.PEM), 0o600); err != nil {
			t.Fatal(err)
		}
		openssl("verify", "-CAfile", path("root.crt"), "-untrusted", path("out.pem"), path("out.pem"))
		openssl("pkey", "-in", path("out.pem"), "-noout", "-check")
	}
}
