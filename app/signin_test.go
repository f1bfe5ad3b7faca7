package app

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// The first is the SDK's published vector. The others were computed by sha256sum
// (coreutils) from the text that the SDK's documentation tells to hash.
func TestDigest(t *testing.T) {
	const info = `{"appobj":"notes","appurl":"https://a.example/?a=1&b=<2>","unlicensed":true,"apps":[]}`
	for _, c := range []struct {
		name                string
		login               Login
		challenge, password string
		want                string
	}{
		{"the SDK's", Login{App: "pbxadminapi"}, "0123456789abcdef", "pwd",
			"a205299ed2ef2786c311e0be1b14db343f2cadd906a6ae7b564eee34bda5e9a1"},
		{"a user's", Login{App: "notes", Domain: "example.com", SIP: "ann", GUID: "0011", DN: "Ann Ä"}, "abc", "päss",
			"350820bb2c7f88cae5675e4cd04580589cf5fc1e7abe96be115e7ab07bf801c7"},
		{"with info", Login{App: "notes", Domain: "example.com", Info: json.RawMessage(info)}, "abc", "pwd",
			"903714850b87278e7e56b95a88b4be697e5318a969ccb61906bf2c40a2ca87f0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.login.Digest(c.challenge, c.password); got != c.want {
				t.Errorf("Digest(%+v) = %s; want %s", c.login, got, c.want)
			}
		})
	}
}

func TestSignIn(t *testing.T) {
	type end struct {
		login Login
		err   error
	}
	ends := make(chan end, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		l, err := SignIn(r.Context(), c, r.URL.Query().Get("password"))
		ends <- end{l, err}
		if err == nil {
			c.Write(r.Context(), websocket.MessageText, []byte("welcome"))
			c.Close(websocket.StatusNormalClosure, "")
		}
	}))
	defer server.Close()
	dial := func(t *testing.T, password string) (context.Context, *websocket.Conn) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		t.Cleanup(cancel)
		c, _, err := websocket.Dial(ctx, server.URL+"?password="+password, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.CloseNow() })
		return ctx, c
	}
	login := Login{App: "notes", Domain: "example.com", DN: "Ann", Info: json.RawMessage(`{ "appurl": "https://x/?a&b" }`)}

	t.Run("right", func(t *testing.T) {
		ctx, c := dial(t, "secret")
		if err := SignInTo(ctx, c, login, "secret"); err != nil {
			t.Fatal(err)
		}
		if got := <-ends; got.err != nil || got.login.DN != "Ann" || string(got.login.Info) != `{"appurl":"https://x/?a&b"}` {
			t.Errorf("SignIn = %+v", got)
		}
		if _, text, err := c.Read(ctx); err != nil || string(text) != "welcome" {
			t.Errorf("the connection goes on with %q, %v", text, err)
		}
	})
	t.Run("wrong", func(t *testing.T) {
		ctx, c := dial(t, "secret")
		if err := SignInTo(ctx, c, login, "secret2"); !errors.Is(err, ErrSignIn) {
			t.Errorf("SignInTo = %v; want %v", err, ErrSignIn)
		}
		if got := <-ends; !errors.Is(got.err, ErrSignIn) {
			t.Errorf("SignIn = %v; want %v", got.err, ErrSignIn)
		}
	})
	t.Run("no password set", func(t *testing.T) {
		ctx, c := dial(t, "")
		if err := SignInTo(ctx, c, login, ""); !errors.Is(err, ErrSignIn) {
			t.Errorf("SignInTo = %v; want %v", err, ErrSignIn)
		}
		<-ends
	})
	// A client that was written otherwise: src comes back, the challenge is short,
	// and the digest is not for another connection.
	t.Run("replayed", func(t *testing.T) {
		challenge := func(ctx context.Context, c *websocket.Conn) string {
			if err := c.Write(ctx, websocket.MessageText, []byte(`{"mt":"AppChallenge","src":"a1"}`)); err != nil {
				t.Fatal(err)
			}
			_, text, err := c.Read(ctx)
			if err != nil {
				t.Fatal(err)
			}
			var m map[string]string
			if err := json.Unmarshal(text, &m); err != nil || m["mt"] != "AppChallengeResult" || m["src"] != "a1" {
				t.Fatalf("AppChallenge is answered by %s", text)
			}
			if n := len(m["challenge"]); n < 12 || n > 16 {
				t.Errorf("the challenge %q has %d characters", m["challenge"], n)
			}
			return m["challenge"]
		}
		ctx, first := dial(t, "secret")
		old := challenge(ctx, first)
		first.CloseNow()
		<-ends
		ctx, c := dial(t, "secret")
		challenge(ctx, c)
		text, _ := json.Marshal(appLogin{appMessage{MT: "AppLogin"}, Login{App: "x"}, Login{App: "x"}.Digest(old, "secret")})
		if err := c.Write(ctx, websocket.MessageText, text); err != nil {
			t.Fatal(err)
		}
		if got := <-ends; !errors.Is(got.err, ErrSignIn) {
			t.Errorf("SignIn = %v; want %v", got.err, ErrSignIn)
		}
	})
	t.Run("garbage", func(t *testing.T) {
		for _, text := range []string{"x", "[]", `{"mt":"Notes"}`} {
			ctx, c := dial(t, "secret")
			if err := c.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
				t.Fatal(err)
			}
			if got := <-ends; got.err == nil {
				t.Errorf("SignIn accepts %s", text)
			}
		}
	})
}
