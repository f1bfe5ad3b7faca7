package api

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"appplatform/app"
	"appplatform/manager/internal/model"
)

// How long a client may take to sign in, and to say something again.
const (
	signInTime = 20 * time.Second
	idleTime   = 10 * time.Minute
)

// IsWebSocket reports whether a request wants to become one.
func IsWebSocket(r *http.Request) bool {
	return strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
}

// A message begins like this; src is the client's own, and sent back.
type message struct {
	MT  string          `json:"mt"`
	API string          `json:"api,omitempty"`
	Src json.RawMessage `json:"src,omitempty"`
}

// WebSocket is the API of clients that know the manager's password (P5):
// AppWebsocket's login, then requests.
func (a *API) WebSocket(w http.ResponseWriter, r *http.Request) {
	// The login is no cookie: pages of others cannot use it.
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer func() { _ = c.CloseNow() }()
	c.SetReadLimit(256 << 10)
	s := &session{api: a, c: c, challenge: rand.Text()[:16], by: model.Actor{Who: "program", From: from(r)}}
	// A cancelled read ends the connection, so that this bounds each of them.
	signIn := time.AfterFunc(signInTime, func() { _ = c.CloseNow() })
	for {
		ctx, cancel := context.WithTimeout(r.Context(), idleTime)
		_, text, err := c.Read(ctx)
		cancel()
		if err != nil {
			return
		}
		if err := s.handle(r.Context(), text); err != nil {
			_ = c.Close(websocket.StatusPolicyViolation, "")
			return
		}
		if s.signedIn {
			signIn.Stop()
		}
	}
}

// A session is one connection.
type session struct {
	api       *API
	c         *websocket.Conn
	challenge string
	signedIn  bool
	epoch     int64
	by        model.Actor
}

var errSession = errors.New("the session ends")

// login is AppLogin.
type login struct {
	message
	app.Login
	Digest string `json:"digest"`
}

func (s *session) handle(ctx context.Context, text []byte) error {
	var m login
	if err := json.Unmarshal(text, &m); err != nil || m.MT == "" {
		return errSession
	}
	switch {
	case m.MT == "AppChallenge":
		return s.send(ctx, m.message, "AppChallengeResult", map[string]any{"challenge": s.challenge})
	case m.MT == "AppLogin":
		return s.login(ctx, m)
	case !s.signedIn || s.epoch != s.api.epoch.Load():
		return errSession
	}
	do, ok := requests[m.MT]
	if !ok {
		return s.send(ctx, m.message, m.MT+"Result", map[string]any{"error": "there is no such request"})
	}
	result, err := do(ctx, s.api.p, text, s.by)
	if err != nil {
		p := problemOf(err)
		result = map[string]any{"error": p.Error, "hint": p.Hint}
	}
	return s.send(ctx, m.message, strings.TrimSuffix(m.MT, "Request")+"Result", result)
}

func (s *session) login(ctx context.Context, m login) error {
	s.epoch = s.api.epoch.Load()
	err := s.api.signIn.SignInDigest(ctx, m.Digest, func(password string) string { return m.Login.Digest(s.challenge, password) }, s.by)
	// Each challenge is good for one answer.
	s.challenge = rand.Text()[:16]
	s.signedIn = err == nil
	result := map[string]any{"ok": s.signedIn, "app": m.App, "domain": m.Domain}
	if sendErr := s.send(ctx, m.message, "AppLoginResult", result); sendErr != nil || err == nil {
		return sendErr
	}
	return errSession
}

// send answers a message with the fields of result.
func (s *session) send(ctx context.Context, to message, mt string, result map[string]any) error {
	fields := map[string]any{"mt": mt}
	if to.API != "" {
		fields["api"] = to.API
	}
	if len(to.Src) > 0 {
		fields["src"] = to.Src
	}
	for name, value := range result {
		fields[name] = value
	}
	text, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return s.c.Write(ctx, websocket.MessageText, text)
}

// requests are those of the WebSocket behind the login, by mt.
var requests = map[string]func(ctx context.Context, p model.Platform, text []byte, by model.Actor) (map[string]any, error){
	"AppPlatformInfoRequest": func(ctx context.Context, p model.Platform, _ []byte, _ model.Actor) (map[string]any, error) {
		s, err := p.System(ctx)
		return map[string]any{"version": s.Manager, "image": s.Image, "board": s.Board, "arch": s.Arch}, err
	},
	"GetServicesRequest": func(ctx context.Context, p model.Platform, _ []byte, _ model.Actor) (map[string]any, error) {
		list, err := p.Services(ctx)
		return map[string]any{"services": list}, err
	},
	"GetNoticesRequest": func(ctx context.Context, p model.Platform, _ []byte, _ model.Actor) (map[string]any, error) {
		return map[string]any{"notices": p.Notices(ctx)}, nil
	},
	"StartServiceRequest": serviceRequestOf(model.Platform.StartService),
	"StopServiceRequest":  serviceRequestOf(model.Platform.StopService),
}

func serviceRequestOf(do func(model.Platform, context.Context, string, model.Actor) error) func(context.Context, model.Platform, []byte, model.Actor) (map[string]any, error) {
	return func(ctx context.Context, p model.Platform, text []byte, by model.Actor) (map[string]any, error) {
		var in struct {
			Service string `json:"service"`
		}
		if err := json.Unmarshal(text, &in); err != nil {
			return nil, err
		}
		return map[string]any{"service": in.Service}, do(p, ctx, in.Service, by)
	}
}
