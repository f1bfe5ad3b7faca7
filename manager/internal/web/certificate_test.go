package web

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"mime/multipart"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// pieces are a chain and its key in PEM.
func pieces(t *testing.T) (server, intermediate, root, key string) {
	t.Helper()
	var parent *x509.Certificate
	var parentKey *ecdsa.PrivateKey
	var out []string
	for i, name := range []string{"root", "intermediate", "server"} {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(int64(i)), Subject: pkix.Name{CommonName: name}, NotBefore: born, NotAfter: born.AddDate(1, 0, 0),
			IsCA: name != "server", BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
		if parent == nil {
			parent, parentKey = template, k
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &k.PublicKey, parentKey)
		if err != nil {
			t.Fatal(err)
		}
		if parent, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		parentKey = k
		out = append(out, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	}
	der, err := x509.MarshalECPrivateKey(parentKey)
	if err != nil {
		t.Fatal(err)
	}
	return out[2], out[1], out[0], string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

func TestSortChain(t *testing.T) {
	server, intermediate, root, key := pieces(t)
	_, stranger, _, _ := pieces(t)
	want := server + intermediate + root + key
	for name, test := range map[string]struct {
		text string
		ok   bool
	}{
		"sorted":          {want, true},
		"key first":       {key + server + intermediate + root, true},
		"backwards":       {key + root + intermediate + server, true},
		"text between":    {"a\n" + root + "b\n" + server + key + intermediate, true},
		"no key":          {server + intermediate + root, false},
		"foreign key":     {strings.Replace(want, server, "", 1), false},
		"foreign issuer":  {server + stranger + root + key, false},
		"missing between": {server + root + key, false},
		"two keys":        {want + key, false},
		"nothing":         {"", false},
		"garbage":         {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" + key, false},
	} {
		got, ok := sortChain(test.text)
		if ok != test.ok || ok && got != want {
			names, _ := subjects(got)
			t.Errorf("%s: %v %v; want %v", name, names, ok, test.ok)
		}
	}
}

// TestCertificateUpload: a wrong order is explained and the right one offered; nothing
// is used that was not confirmed, and no key goes back to the browser.
func TestCertificateUpload(t *testing.T) {
	server, intermediate, root, key := pieces(t)
	p := newPlatform()
	c := signedIn(t, p)
	upload := func(field, text string) string {
		var b bytes.Buffer
		m := multipart.NewWriter(&b)
		m.WriteField("token", c.token())
		if field == "file" {
			w, _ := m.CreateFormFile("file", "chain.pem")
			w.Write([]byte(text))
			m.WriteField("pem", "")
		} else {
			m.WriteField("pem", text)
		}
		m.Close()
		r := httptest.NewRequest("POST", "/manager/settings/certificate", &b)
		r.Header.Set("Content-Type", m.FormDataContentType())
		answer := c.send(r)
		var page bytes.Buffer
		page.ReadFrom(answer.Body)
		if strings.Contains(page.String(), "PRIVATE KEY") {
			t.Error("the key is sent back")
		}
		return page.String()
	}
	page := upload("file", root+key+server+intermediate)
	if !strings.Contains(page, "wrong order") || !strings.Contains(page, "Use the sorted chain") || p.pem != "" {
		t.Fatalf("a wrong order: %s", words(page))
	}
	c.submit("/manager/settings/certificate/use")
	if names, _ := subjects(p.pem); !slices.Equal(names, []string{"server", "intermediate", "root", "key"}) {
		t.Errorf("in use are %v", names)
	}
	p.pem = ""
	if _, page := c.submit("/manager/settings/certificate/use"); !strings.Contains(page, "upload it again") || p.pem != "" {
		t.Errorf("a second time: %s", words(page))
	}
	if page := upload("pem", server+intermediate+root+key); !strings.Contains(page, "Use this certificate") || p.pem != "" {
		t.Errorf("a right order: %s", words(page))
	}
	if page := upload("pem", server+key); !strings.Contains(page, "wrong order") || strings.Contains(page, "Use the sorted") {
		t.Errorf("a chain with a gap: %s", words(page))
	}
	if _, page := c.submit("/manager/settings/certificate/use"); page == "" || p.pem == server+key {
		t.Error("what was refused is used")
	}

	p.pem = server + key + intermediate
	if _, text := c.get("/manager/settings/certificate.pem"); text != server+intermediate {
		t.Errorf("the download has %d bytes, with a key: %v", len(text), strings.Contains(text, "KEY"))
	}
	c.submit("/manager/settings/certificate/reset")
	if p.pem != "" {
		t.Error("the certificate is still there")
	}
}

// subjects names what is in a PEM file, in its order.
func subjects(text string) (names []string, err error) {
	for rest := []byte(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return names, nil
		}
		if strings.HasSuffix(b.Type, "PRIVATE KEY") {
			names = append(names, "key")
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, err
		}
		names = append(names, c.Subject.CommonName)
	}
}
