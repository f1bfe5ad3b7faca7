// Package secret keeps passwords: as hashes or sealed.
package secret

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"

	"golang.org/x/crypto/argon2"
)

// parameters of argon2id (RFC 9106).
type parameters struct {
	Memory  uint32 // KiB
	Time    uint32
	Threads uint8
}

// current are what OWASP names for little memory: a machine may have 256 MB.
var current = parameters{Memory: 19456, Time: 2, Threads: 1}

// most are the largest that a stored hash may ask for, so that no row of the
// database takes all memory.
var most = parameters{Memory: 65536, Time: 16, Threads: 4}

const (
	saltSize = 16
	keySize  = 32
)

// one lets a single hash be computed at a time: each takes the memory of
// current.
var one sync.Mutex

func (p parameters) key(password string, salt []byte) []byte {
	one.Lock()
	defer one.Unlock()
	return argon2.IDKey([]byte(password), salt, p.Time, p.Memory, p.Threads, keySize)
}

// Hash makes what is stored of a password, in the text form of the argon2
// command: $argon2id$v=19$m=...,t=...,p=...$SALT$KEY.
func Hash(password string) string {
	var salt [saltSize]byte
	_, _ = rand.Read(salt[:]) // It never fails.
	return current.format(salt[:], current.key(password, salt[:]))
}

func (p parameters) format(salt, key []byte) string {
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, p.Memory, p.Time, p.Threads, b64(salt), b64(key))
}

// Verify reports whether a password is that of a hash. If the hash was made with
// other parameters than today's, better is a new one to be stored.
func Verify(hash, password string) (ok bool, better string, err error) {
	p, salt, key, err := parse(hash)
	if err != nil {
		return false, "", fmt.Errorf("cannot read the hash of a password: %w", err)
	}
	if subtle.ConstantTimeCompare(p.key(password, salt), key) == 0 {
		return false, "", nil
	}
	if p != current {
		better = Hash(password)
	}
	return true, better, nil
}

func parse(hash string) (p parameters, salt, key []byte, err error) {
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return p, nil, nil, errors.New("it is no argon2id of version 19")
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &p.Memory, &p.Time, &p.Threads); err != nil || p.settings() != parts[3] {
		return p, nil, nil, errors.New("its parameters are damaged")
	}
	if p.Memory < 8 || p.Time < 1 || p.Threads < 1 || p.Memory > most.Memory || p.Time > most.Time || p.Threads > most.Threads {
		return p, nil, nil, fmt.Errorf("its parameters %s are out of bounds", parts[3])
	}
	if salt, err = base64.RawStdEncoding.Strict().DecodeString(parts[4]); err != nil || len(salt) < 8 {
		return p, nil, nil, errors.New("its salt is damaged")
	}
	if key, err = base64.RawStdEncoding.Strict().DecodeString(parts[5]); err != nil || len(key) != keySize {
		return p, nil, nil, errors.New("its key is damaged")
	}
	return p, salt, key, nil
}

func (p parameters) settings() string {
	return fmt.Sprintf("m=%d,t=%d,p=%d", p.Memory, p.Time, p.Threads)
}

// letters of random passwords: none that look alike, and none that a shell, a
// URL or a connection string reads as something else.
const letters = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"

// randomLength gives more than 128 bits: 24 * log2(56) = 139.
const randomLength = 24

// Random makes a password.
func Random() string {
	text := make([]byte, randomLength)
	for i := range text {
		n, err := rand.Int(rand.Reader, big.NewInt(int64(len(letters))))
		if err != nil {
			panic(err) // rand.Reader never fails.
		}
		text[i] = letters[n.Int64()]
	}
	return string(text)
}
