package web

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"strings"

	"appplatform/internal/hint"
)

func (v *visit) downloadCertificate() error {
	_, text, err := v.p.Certificates(v.r.Context())
	if err != nil {
		return err
	}
	v.w.Header().Set("Content-Type", "application/x-pem-file")
	v.w.Header().Set("Content-Disposition", `attachment; filename="certificate.pem"`)
	// Whatever the platform keeps beside the chain, a key is not handed out.
	_, err = io.WriteString(v.w, withoutKeys(text))
	return err
}

func withoutKeys(text string) string {
	var out bytes.Buffer
	for rest := []byte(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			return out.String()
		}
		if b.Type == "CERTIFICATE" {
			_ = pem.Encode(&out, b)
		}
	}
}

// checkCertificate shows what was uploaded before it is used. A chain in a wrong
// order is offered in the right one.
func (v *visit) checkCertificate() error {
	text := v.r.PostFormValue("pem")
	if f, _, err := v.r.FormFile("file"); err == nil {
		defer f.Close()
		b, err := io.ReadAll(f)
		if err != nil {
			return err
		}
		if len(b) > 0 {
			text = string(b)
		}
	}
	if strings.TrimSpace(text) == "" {
		return v.done(hint.Errorf(v.t("choose a PEM file or paste its text"), "%s", v.t("there is no certificate in the form")), "", securityPath)
	}
	chain, err := v.p.CheckCertificate(text)
	sorted := false
	if err != nil {
		if better, ok := sortChain(text); ok && better != text {
			if chain, _ = v.p.CheckCertificate(better); chain != nil {
				sorted, text = true, better
			}
		}
		if !sorted {
			return v.showSecurity(http.StatusUnprocessableEntity, newMessage(err), "")
		}
	}
	v.sessions.keep(v.session, text)
	data := map[string]any{"Chain": chain, "Sorted": sorted}
	if err != nil {
		data["Trouble"] = newMessage(err)
	}
	p := v.newPage(v.t("Use this certificate?"), "certificate", data)
	p.Section, p.Live = "settings/security", livePath
	return v.showPage(p)
}

func (v *visit) useCertificate() error {
	text := v.sessions.takePending(v.session)
	if text == "" {
		return v.done(errors.New(v.t("the certificate is not here any more: upload it again")), "", securityPath)
	}
	return v.done(v.p.SetCertificate(v.r.Context(), text, v.by), v.t("The certificate is in use. The browser may ask you to trust it."), securityPath)
}

func (v *visit) confirmResetCertificate() error {
	return v.confirm(v.t("Go back to a self-signed certificate?"), confirmation{
		Text:    v.t("The present certificate and its key are deleted, and a new self-signed certificate is made."),
		Warning: v.t("Browsers and phones will not trust it by themselves."),
		Button:  v.t("Make a self-signed certificate"), Danger: true,
		Back: securityPath,
	})
}

func (v *visit) resetCertificate() error {
	return v.done(v.p.ResetCertificate(v.r.Context(), v.by), v.t("A self-signed certificate is in use. The browser may ask you to trust it."), securityPath)
}

// sortChain puts a PEM file into the order of B1: the certificate of the key, then
// the issuer of each, then the key. It reports whether all that it found has a place.
func sortChain(text string) (string, bool) {
	var key *pem.Block
	var certs []*x509.Certificate
	for rest := []byte(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		switch {
		case b.Type == "CERTIFICATE":
			c, err := x509.ParseCertificate(b.Bytes)
			if err != nil {
				return "", false
			}
			certs = append(certs, c)
		case strings.HasSuffix(b.Type, "PRIVATE KEY") && key == nil:
			key = b
		default:
			return "", false
		}
	}
	if key == nil {
		return "", false
	}
	var out bytes.Buffer
	take := func(fits func(*x509.Certificate) bool) *x509.Certificate {
		for i, c := range certs {
			if fits(c) {
				certs = append(certs[:i:i], certs[i+1:]...)
				_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
				return c
			}
		}
		return nil
	}
	keyPEM := pem.EncodeToMemory(key)
	last := take(func(c *x509.Certificate) bool {
		_, err := tls.X509KeyPair(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), keyPEM)
		return err == nil
	})
	for last != nil && len(certs) > 0 {
		last = take(func(c *x509.Certificate) bool { return last.CheckSignatureFrom(c) == nil })
	}
	out.Write(keyPEM)
	return out.String(), last != nil
}
