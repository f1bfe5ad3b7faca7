package web

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"appplatform/internal/hint"
	"appplatform/manager/internal/model"
)

// sessionCookie is sent to the manager only: with the path / (and the name __Host-)
// every app of the platform would be handed it.
const sessionCookie = "__Secure-ap"

const (
	idle         = 8 * time.Hour   // ends a session
	mostSessions = 64              // the one that was idle longest ends for another
	noted        = 5 * time.Minute // how exactly the file knows when a session was used
	mostForm     = 2 << 20         // bytes: a certificate chain is the longest
)

// A session is known by the hash of its secret only, here and in the file.
type session struct {
	Hash string    `json:"hash"`
	Seen time.Time `json:"seen"`

	message *message // for the next page
	pending string   // a certificate that was uploaded, to be confirmed
}

type sessions struct {
	file string
	log  *slog.Logger
	now  func() time.Time

	mu   sync.Mutex
	open map[string]*session
}

// openSessions takes up what an earlier manager has left. A file that cannot be
// read signs people out, no more.
func openSessions(folder string, log *slog.Logger) *sessions {
	s := &sessions{log: log, now: time.Now, open: map[string]*session{}}
	if folder == "" {
		return s
	}
	s.file = filepath.Join(folder, "sessions.json")
	text, err := os.ReadFile(s.file)
	var kept []*session
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		log.Warn("cannot read the sessions", "error", err)
	}
	for _, k := range kept[:min(len(kept), mostSessions)] {
		if k != nil && len(k.Hash) == 2*sha256.Size {
			s.open[k.Hash] = k
		}
	}
	return s
}

// save keeps sessions over a restart; when the disk is full they live in memory.
func (s *sessions) save() {
	if s.file == "" {
		return
	}
	list := make([]*session, 0, len(s.open))
	for _, o := range s.open {
		list = append(list, o)
	}
	text, err := json.Marshal(list)
	if err == nil {
		err = writeFile(s.file, text)
	}
	if err != nil {
		s.log.Warn("cannot save the sessions", "error", err)
	}
}

// writeFile replaces a file at once, for nobody else to read.
func writeFile(name string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".sessions-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func hash(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// begin starts a session and returns its secret.
func (s *sessions) begin() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.open) >= mostSessions {
		var oldest *session
		for _, o := range s.open {
			if oldest == nil || o.Seen.Before(oldest.Seen) {
				oldest = o
			}
		}
		delete(s.open, oldest.Hash)
	}
	random := make([]byte, 32)
	rand.Read(random)
	secret := base64.RawURLEncoding.EncodeToString(random)
	s.open[hash(secret)] = &session{Hash: hash(secret), Seen: s.now()}
	s.save()
	return secret
}

// find returns the session of a secret and the token for its forms, or "". The
// token is made from the secret, which the file does not have.
func (s *sessions) find(secret string, used bool) (session, token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.valid(hash(secret))
	if o == nil {
		return "", ""
	}
	if now := s.now(); used {
		save := now.Sub(o.Seen) > noted
		o.Seen = now
		if save {
			s.save()
		}
	}
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte("form"))
	return o.Hash, base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

func (s *sessions) valid(hash string) *session {
	o := s.open[hash]
	if o == nil || s.now().Sub(o.Seen) > idle {
		return nil
	}
	return o
}

func (s *sessions) isOpen(hash string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.valid(hash) != nil
}

func (s *sessions) end(hash string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, hash)
	s.save()
}

func (s *sessions) endAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.open)
	s.save()
}

// leave keeps a message for the session's next page.
func (s *sessions) leave(hash string, m *message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.open[hash]; o != nil {
		o.message = m
	}
}

func (s *sessions) takeMessage(hash string) *message {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[hash]
	if o == nil {
		return nil
	}
	m := o.message
	o.message = nil
	return m
}

// keep holds a certificate with its key here until it is confirmed, so that it is
// not sent back and forth.
func (s *sessions) keep(hash, pem string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.open[hash]; o != nil {
		o.pending = pem
	}
}

func (s *sessions) takePending(hash string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[hash]
	if o == nil {
		return ""
	}
	pem := o.pending
	o.pending = ""
	return pem
}

var errForm = errors.New("this form is not one of your session")

// checkForm reads a form and compares its token. Uploads of apps are read as they
// arrive, and checked there.
func (v *visit) checkForm() error {
	kind, _, _ := mime.ParseMediaType(v.r.Header.Get("Content-Type"))
	if kind == "multipart/form-data" && v.r.URL.Path == Base+"/upload" {
		return nil
	}
	v.r.Body = http.MaxBytesReader(v.w, v.r.Body, mostForm)
	var err error
	if kind == "multipart/form-data" {
		err = v.r.ParseMultipartForm(mostForm)
	} else {
		err = v.r.ParseForm()
	}
	if err != nil {
		return hint.Errorf("a form may have 2 MiB", "cannot read the form: %w", err)
	}
	return v.checkToken(v.r.PostForm.Get("token"))
}

func (v *visit) checkToken(given string) error {
	if subtle.ConstantTimeCompare([]byte(given), []byte(v.token)) != 1 {
		return hint.Errorf("load the page again and try once more", "%w", errForm)
	}
	return nil
}

func (v *visit) setSession(secret string) {
	c := &http.Cookie{Name: sessionCookie, Value: secret, Path: Base, Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode}
	if secret == "" {
		c.MaxAge = -1
	}
	http.SetCookie(v.w, c)
}

func (v *visit) signInPage() error {
	to := local(v.r.URL.Query().Get("to"))
	if v.session != "" {
		return v.goTo(to)
	}
	return v.showSignIn(http.StatusOK, to, nil)
}

func (v *visit) showSignIn(status int, to string, m *message) error {
	p := &page{visit: v, Lang: v.lang, Theme: v.theme, Title: v.t("Sign in"), Self: Base + "/signin?to=" + url.QueryEscape(to), Data: map[string]any{"To": to}, Message: m}
	if system, err := v.p.System(v.r.Context()); err == nil {
		p.System = system
	}
	return v.render(status, "signin", p)
}

func (v *visit) signIn() error {
	v.r.Body = http.MaxBytesReader(v.w, v.r.Body, 64<<10)
	to := local(v.r.PostFormValue("to"))
	switch err := v.p.SignIn(v.r.Context(), v.r.PostFormValue("password"), v.by); {
	case err == model.ErrPassword:
		return v.showSignIn(http.StatusUnauthorized, to, &message{Text: v.t("The password is wrong.")})
	case errors.Is(err, model.ErrUnavailable):
		return v.showSignIn(http.StatusServiceUnavailable, to, newMessage(err))
	case err != nil:
		return v.showSignIn(http.StatusTooManyRequests, to, newMessage(err))
	}
	v.setSession(v.sessions.begin())
	return v.goTo(to)
}

func (v *visit) signOut() error {
	v.sessions.end(v.session)
	v.setSession("")
	return v.goTo(Base + "/signin")
}
