// Package api lets programs do what pages do: by REST with tokens, over a
// WebSocket with the manager's password, and from the machine's own command line.
// docs/manager-api.md describes it.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"appplatform/internal/hint"
	"appplatform/internal/wire"
	"appplatform/manager/internal/model"
)

// Base is the path of the REST API.
const Base = "/manager/api/v1"

// maxBody bounds what a request may say, uploads of programs aside, in bytes.
const maxBody = 1 << 20

// A SignIn checks a digest that somebody has made with the manager's password.
type SignIn interface {
	SignInDigest(ctx context.Context, digest string, make func(password string) string, by model.Actor) error
}

// An API is the handler of everything below [Base].
type API struct {
	p       model.Platform
	signIn  SignIn
	folder  string
	mux     *http.ServeMux
	console bool          // root on this machine asks: no token
	epoch   *atomic.Int64 // of the password that WebSockets signed in with
}

// EndSessions ends what was signed in with a password that is no longer one.
func (a *API) EndSessions() { a.epoch.Add(1) }

// New returns the API of a platform. What is uploaded waits in the folder.
func New(p model.Platform, s SignIn, folder string) *API {
	a := &API{p: p, signIn: s, folder: folder, mux: http.NewServeMux(), epoch: &atomic.Int64{}}
	for _, r := range routes {
		a.mux.HandleFunc(r.method+" "+Base+r.path, func(w http.ResponseWriter, req *http.Request) { a.serve(w, req, r.do) })
	}
	a.mux.HandleFunc(Base+"/", func(w http.ResponseWriter, _ *http.Request) {
		fail(w, http.StatusNotFound, "there is no such request", "docs/manager-api.md lists them")
	})
	return a
}

// Console returns the same API for root on this machine.
func (a *API) Console() http.Handler {
	c := *a
	c.console = true
	c.mux = http.NewServeMux()
	for _, r := range routes {
		c.mux.HandleFunc(r.method+" "+Base+r.path, func(w http.ResponseWriter, req *http.Request) { c.serve(w, req, r.do) })
	}
	return &c
}

func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.mux.ServeHTTP(w, r) }

// A request that is allowed.
type request struct {
	*http.Request
	w      http.ResponseWriter
	p      model.Platform
	by     model.Actor
	folder string
}

// An action does what is asked, and returns what is to be answered: nil if that was
// done already, or there is nothing.
type action func(r *request) (any, error)

// done is the answer of what has nothing to say.
type done struct{}

func (a *API) serve(w http.ResponseWriter, r *http.Request, do action) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	by := model.Actor{Who: "console", From: "console"}
	if !a.console {
		if r.Header.Get("X-Forwarded-Proto") == "http" {
			fail(w, http.StatusForbidden, "tokens and passwords are not sent without encryption", "use https://")
			return
		}
		token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok {
			w.Header().Set("WWW-Authenticate", "Bearer")
			fail(w, http.StatusUnauthorized, "a token is missing", "make one under Settings, Security, and send it as Authorization: Bearer TOKEN")
			return
		}
		t, err := a.p.Token(r.Context(), strings.TrimSpace(token))
		if err != nil {
			answerError(w, err)
			return
		}
		by = model.Actor{Who: "token " + t.Name, From: from(r)}
	}
	req := &request{Request: r, w: w, p: a.p, by: by, folder: a.folder}
	result, err := do(req)
	switch {
	case err != nil:
		answerError(w, err)
	case result == done{}:
		w.WriteHeader(http.StatusNoContent)
	case result != nil:
		answer(w, http.StatusOK, result)
	}
}

// from is the address of who asks, which the webserver tells.
func from(r *http.Request) string {
	list := r.Header.Values("X-Forwarded-For")
	if len(list) == 0 {
		return ""
	}
	all := strings.Split(list[len(list)-1], ",")
	return strings.TrimSpace(all[len(all)-1])
}

func answer(w http.ResponseWriter, status int, v any) {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		status, text = http.StatusInternalServerError, []byte(`{"error": "internal error"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(text, '\n'))
}

// A Problem is what is answered instead of a result.
type Problem struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}

func fail(w http.ResponseWriter, status int, text, way string) { answer(w, status, Problem{text, way}) }

func problemOf(err error) Problem {
	text, way, _ := strings.Cut(err.Error(), "\nhint: ")
	return Problem{text, way}
}

func answerError(w http.ResponseWriter, err error) {
	status := http.StatusUnprocessableEntity
	switch {
	case errors.Is(err, model.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, model.ErrPassword):
		status = http.StatusUnauthorized
	case errors.Is(err, model.ErrUnavailable):
		status = http.StatusServiceUnavailable
	case errors.Is(err, errBody):
		status = http.StatusBadRequest
	}
	answer(w, status, problemOf(err))
}

var errBody = errors.New("the request cannot be read")

// body reads what was sent. A misspelled name is an error.
func (r *request) body(into any) error {
	d := json.NewDecoder(http.MaxBytesReader(r.w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return hint.Errorf("docs/manager-api.md shows what is to be sent", "%w: %w", errBody, err)
	}
	return nil
}

func (r *request) id() (int64, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		return 0, model.ErrNotFound
	}
	return id, nil
}

// number is a value of the query.
func (r *request) number(name string, otherwise, most int) int {
	n, err := strconv.Atoi(r.URL.Query().Get(name))
	if err != nil || n <= 0 {
		return otherwise
	}
	return min(n, most)
}

func (r *request) flag(name string) bool { return r.URL.Query().Get(name) == "1" }

// read makes an action of something that is asked without more.
func read[T any](get func(model.Platform, context.Context) (T, error)) action {
	return func(r *request) (any, error) { return get(r.p, r.Context()) }
}

// change makes an action of a change of the thing that the path names.
func change(do func(model.Platform, context.Context, string, model.Actor) error) action {
	return func(r *request) (any, error) { return done{}, do(r.p, r.Context(), r.PathValue("id"), r.by) }
}

// changeInstance is change for an instance.
func changeInstance(do func(model.Platform, context.Context, int64, model.Actor) error) action {
	return func(r *request) (any, error) {
		id, err := r.id()
		if err != nil {
			return nil, err
		}
		return done{}, do(r.p, r.Context(), id, r.by)
	}
}

// power is change for the machine.
func power(do func(model.Platform, context.Context, model.Actor) error) action {
	return func(r *request) (any, error) { return done{}, do(r.p, r.Context(), r.by) }
}

// stream answers with text that may take its time.
func (r *request) stream(in io.ReadCloser, contentType string) error {
	defer in.Close()
	r.w.Header().Set("Content-Type", contentType)
	r.w.WriteHeader(http.StatusOK)
	flush := http.NewResponseController(r.w)
	_ = flush.Flush()
	buffer := make([]byte, 32<<10)
	for {
		n, err := in.Read(buffer)
		if n > 0 {
			if _, err := r.w.Write(buffer[:n]); err != nil {
				return nil // Whoever asked is gone.
			}
			_ = flush.Flush()
		}
		if err != nil {
			return nil
		}
	}
}

// Shapes of requests that are no value of the model.
type (
	installRequest struct {
		App   string `json:"app"`
		Build string `json:"build"`
	}
	renameRequest struct {
		Instances []int64 `json:"instances"`
		From      string  `json:"from"`
		To        string  `json:"to"`
		Dry       bool    `json:"dry"`
	}
	flagsRequest struct {
		LogFlags wire.Flags `json:"logFlags"`
	}
	serviceRequest struct {
		Limits   model.Limits `json:"limits"`
		LogSize  int64        `json:"logSize"`
		LogFlags wire.Flags   `json:"logFlags"`
	}
	passwordRequest struct {
		Old string `json:"old,omitempty"`
		New string `json:"new"`
	}
	pemRequest struct {
		PEM string `json:"pem"`
	}
	urlRequest struct {
		URL string `json:"url"`
	}
	nameRequest struct {
		Name string `json:"name"`
	}
	certificateAnswer struct {
		Chain []model.Certificate `json:"chain"`
		PEM   string              `json:"pem"`
	}
	tokenAnswer struct {
		model.Token
		Secret string `json:"secret"`
	}
	textAnswer struct {
		Text string `json:"text"`
	}
)

// events tells that something has changed, for as long as somebody listens.
func events(r *request) (any, error) {
	r.w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(r.w)
	for {
		_, changed := r.p.Changed()
		if _, err := io.WriteString(r.w, "data: changed\n\n"); err != nil {
			return nil, nil
		}
		if flush.Flush() != nil {
			return nil, nil
		}
		select {
		case <-changed:
		case <-time.After(30 * time.Second):
		case <-r.Context().Done():
			return nil, nil
		}
		// What changes often is told a few times a second.
		select {
		case <-time.After(250 * time.Millisecond):
		case <-r.Context().Done():
			return nil, nil
		}
	}
}
