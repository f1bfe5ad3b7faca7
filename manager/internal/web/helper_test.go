package web

import (
	"crypto/x509"
	"encoding/pem"
	"strings"

	"appplatform/manager/internal/model"
)

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

func (c *client) by() model.Actor { return model.Actor{Who: "test"} }
