package app

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/coder/websocket"
)

// A Login is who has signed in to a WebSocket: a PBX, or a user whom a PBX vouches
// for. Info is what it has told besides, as it was sent.
type Login struct {
	App    string          `json:"app"`
	Domain string          `json:"domain"`
	SIP    string          `json:"sip,omitempty"`
	GUID   string          `json:"guid,omitempty"`
	DN     string          `json:"dn,omitempty"`
	Info   json.RawMessage `json:"info,omitempty"`
}

// ErrSignIn is what SignIn returns when the password was wrong.
var ErrSignIn = errors.New("cannot sign in: the password is wrong")

// appMessage is any message of the login.
type appMessage struct {
	MT  string `json:"mt"`
	API string `json:"api,omitempty"`
	Src string `json:"src,omitempty"`
}

type appLogin struct {
	appMessage
	Login
	Digest string `json:"digest"`
}

type challengeResult struct {
	appMessage
	Challenge string `json:"challenge"`
}

type loginResult struct {
	appMessage
	App    string `json:"app,omitempty"`
	Domain string `json:"domain,omitempty"`
	OK     bool   `json:"ok"`
}

// Digest is what proves that somebody knows the password.
func (l Login) Digest(challenge, password string) string {
	parts := []string{l.App, l.Domain, l.SIP, l.GUID, l.DN}
	if len(l.Info) > 0 {
		parts = append(parts, string(l.Info))
	}
	sum := sha256.Sum256([]byte(strings.Join(append(parts, challenge, password), ":")))
	return hex.EncodeToString(sum[:])
}

// SignIn lets the other side of a WebSocket, which was just accepted, sign in with
// the password: the login that a PBX, its users' apps and the SDK's JavaScript use.
// The caller closes the connection when there is an error, and bounds the time by
// ctx. Whoever connects again and again may guess: Instance.SignIn slows that down.
func SignIn(ctx context.Context, c *websocket.Conn, password string) (Login, error) {
	return signIn(ctx, c, password, func(check func() bool) error {
		if !check() {
			return ErrSignIn
		}
		return nil
	})
}

// SignIn is the function SignIn with the password of the instance, as Try allows it. r
// is the request of which the WebSocket came.
func (i *Instance) SignIn(ctx context.Context, c *websocket.Conn, r *http.Request) (Login, error) {
	return signIn(ctx, c, i.Password(), func(check func() bool) error { return i.Try(r, check) })
}

func signIn(ctx context.Context, c *websocket.Conn, password string, try func(check func() bool) error) (Login, error) {
	// At most 16 characters: longer ones are cut by others.
	challenge := rand.Text()[:16]
	for {
		_, text, err := c.Read(ctx)
		if err != nil {
			return Login{}, fmt.Errorf("cannot sign in: %w", err)
		}
		var m appLogin
		if err := json.Unmarshal(text, &m); err != nil {
			return Login{}, fmt.Errorf("cannot sign in: %w", err)
		}
		switch m.MT {
		case "AppChallenge":
			err = send(ctx, c, challengeResult{appMessage{"AppChallengeResult", m.API, m.Src}, challenge})
			if err != nil {
				return Login{}, err
			}
		case "AppLogin":
			tried := try(func() bool {
				return password != "" && subtle.ConstantTimeCompare([]byte(m.Digest), []byte(m.Login.Digest(challenge, password))) == 1
			})
			err = send(ctx, c, loginResult{appMessage{"AppLoginResult", m.API, m.Src}, m.App, m.Domain, tried == nil})
			return m.Login, cmp.Or(tried, err)
		default:
			return Login{}, fmt.Errorf("cannot sign in: %q came before it", m.MT)
		}
	}
}

// SignInTo is the other side of SignIn.
func SignInTo(ctx context.Context, c *websocket.Conn, l Login, password string) error {
	if len(l.Info) > 0 {
		// As it will be sent: the digest is about these very bytes.
		var compact bytes.Buffer
		if err := json.Compact(&compact, l.Info); err != nil {
			return fmt.Errorf("cannot sign in: info: %w", err)
		}
		l.Info = compact.Bytes()
	}
	if err := send(ctx, c, appMessage{MT: "AppChallenge"}); err != nil {
		return err
	}
	var challenge challengeResult
	if err := receive(ctx, c, "AppChallengeResult", &challenge); err != nil {
		return err
	}
	if err := send(ctx, c, appLogin{appMessage{MT: "AppLogin"}, l, l.Digest(challenge.Challenge, password)}); err != nil {
		return err
	}
	var result loginResult
	if err := receive(ctx, c, "AppLoginResult", &result); err != nil {
		return err
	}
	if !result.OK {
		return ErrSignIn
	}
	return nil
}

func send(ctx context.Context, c *websocket.Conn, message any) error {
	var text bytes.Buffer
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false) // info would not be what the digest is about
	if err := e.Encode(message); err != nil {
		return fmt.Errorf("internal error: %w", err)
	}
	if err := c.Write(ctx, websocket.MessageText, text.Bytes()); err != nil {
		return fmt.Errorf("cannot sign in: %w", err)
	}
	return nil
}

func receive(ctx context.Context, c *websocket.Conn, mt string, into any) error {
	_, text, err := c.Read(ctx)
	if err != nil {
		return fmt.Errorf("cannot sign in: %w", err)
	}
	var m appMessage
	if err := json.Unmarshal(text, &m); err != nil || m.MT != mt {
		return fmt.Errorf("cannot sign in: it was answered by %q", text)
	}
	return json.Unmarshal(text, into)
}
