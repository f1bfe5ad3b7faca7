package cluster

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"appplatform/internal/hint"
)

// iterations are the server's default (scram_iterations).
const iterations = 4096

// passwordVerifier is what the server keeps of a password (RFC 5803, as
// PostgreSQL writes it). It takes one in place of the password, which therefore
// never gets into its log, its statistics or a core dump.
func passwordVerifier(password string) (string, error) {
	switch {
	case password == "":
		return "", errors.New("the database password is empty")
	case strings.ContainsFunc(password, func(r rune) bool { return r < ' ' || r > '~' }):
		// Others would have to be normalised, which not all clients do alike.
		return "", hint.Errorf("take letters without accents, digits and signs", "the database password has characters beyond ASCII")
	}
	var salt [16]byte
	_, _ = rand.Read(salt[:]) // It never fails.
	return verifier(password, salt[:])
}

func verifier(password string, salt []byte) (string, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, iterations, sha256.Size)
	if err != nil {
		return "", err
	}
	mac := func(key []byte, text string) []byte {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac(salted, "Server Key"))), nil
}
