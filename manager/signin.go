package manager

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"appplatform/internal/atomicfile"
	"appplatform/internal/hint"
	"appplatform/internal/throttle"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/secret"
	"appplatform/manager/internal/state"
	"appplatform/manager/internal/users"
)

// defaultPassword is that of a new platform (A6).
const defaultPassword = "pwd"

// console is root on this machine.
var console = model.Actor{Who: "console", From: "console"}

// shortest is the length of a password that somebody may choose.
const shortest = 8

// signIn keeps the manager's password: in the database, and in a file for the time
// when that does not answer.
type signIn struct {
	m        *Manager
	key      *secret.Key
	throttle *throttle.Throttle

	changing sync.Mutex // one at a time writes the password
	asking   sync.Mutex // one at a time asks apagent

	mu       sync.Mutex
	kept     kept
	stale    bool          // the file has another one
	pending  []model.Audit // that wait for the database
	status   agentStatus
	statusAt time.Time
}

// kept is what the file has. Sealed is the password itself, which logins of
// programs are checked with (P5).
type kept struct {
	Hash   string `json:"hash"`
	Sealed string `json:"sealed"`
}

func openSignIn(m *Manager) (*signIn, error) {
	s := &signIn{m: m, throttle: &throttle.Throttle{Now: time.Now}}
	var err error
	if s.key, err = secret.OpenKey(m.o.path(stateDir, "key")); err != nil {
		// On a full disk of a new platform there is only the default password.
		m.notices.set("key", model.Error, hintNoSpace(err))
	}
	if text, err := os.ReadFile(s.file()); err == nil && json.Unmarshal(text, &s.kept) != nil {
		m.o.Log.Warn("cannot read the copy of the manager's password")
	}
	s.remind()
	return s, nil
}

func (s *signIn) file() string { return s.m.o.path(stateDir, "password.json") }

// remind asks for another password than the default one.
func (s *signIn) remind() {
	if s.clear() == defaultPassword {
		s.m.notices.say("default-password", model.Warning, "Settings, Security, AP Manager password", "the manager has the password that everybody knows: change it")
		return
	}
	s.m.notices.clear("default-password")
}

// clear is the password, "" if it cannot be told.
func (s *signIn) clear() string {
	s.mu.Lock()
	k := s.kept
	s.mu.Unlock()
	if k.Hash == "" {
		return defaultPassword
	}
	if s.key == nil {
		return ""
	}
	text, err := s.key.Open(state.ManagerPasswordClear, k.Sealed)
	if err != nil {
		return ""
	}
	return text
}

// load takes over what the database has. A database that was made anew gets what
// the file has, so that nobody signs in with the default password again.
func (s *signIn) load(ctx context.Context) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	hash, err := s.m.store.Config(ctx, state.ManagerPassword)
	if err != nil {
		return err
	}
	sealed, err := s.m.store.Config(ctx, state.ManagerPasswordClear)
	if err != nil {
		return err
	}
	s.mu.Lock()
	before, stale := s.kept, s.stale
	s.mu.Unlock()
	if hash == "" {
		if before.Hash == "" {
			return nil
		}
		return s.m.store.SetConfigs(ctx, map[string]string{state.ManagerPassword: before.Hash, state.ManagerPasswordClear: before.Sealed})
	}
	if now := (kept{hash, sealed}); now != before || stale {
		s.keep(now)
	}
	return nil
}

// keep takes over a password that the database has. On a full disk the copy is
// written later; a password that was changed counts all the same.
func (s *signIn) keep(k kept) {
	s.mu.Lock()
	s.kept = k
	s.mu.Unlock()
	s.remind()
	text, err := json.Marshal(k)
	if err == nil {
		err = atomicfile.Write(s.file(), text, 0o600)
	}
	s.mu.Lock()
	s.stale = err != nil
	s.mu.Unlock()
	if err != nil {
		s.m.notices.say("password-copy", model.Warning, "", "the manager's password is not known without the database: %s", hintNoSpace(err))
		return
	}
	s.m.notices.clear("password-copy")
}

// set changes the password.
func (s *signIn) set(ctx context.Context, password string) error {
	if s.key == nil {
		return errors.New("the password cannot be kept: there is no key for it")
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	k := kept{secret.Hash(password), s.key.Seal(state.ManagerPasswordClear, password)}
	if err := s.m.store.SetConfigs(ctx, map[string]string{state.ManagerPassword: k.Hash, state.ManagerPasswordClear: k.Sealed}); err != nil {
		return err
	}
	s.keep(k)
	return nil
}

// verify compares a password.
func (s *signIn) verify(password string) bool {
	s.mu.Lock()
	k := s.kept
	s.mu.Unlock()
	if k.Hash == "" {
		return subtle.ConstantTimeCompare([]byte(password), []byte(defaultPassword)) == 1
	}
	ok, _, err := secret.Verify(k.Hash, password)
	if err != nil {
		s.m.o.Log.Warn("cannot check a password", "error", err)
	}
	return ok
}

// try lets somebody try once, after a while if there were many tries.
func (s *signIn) try(ctx context.Context, by model.Actor, check func() bool) error {
	from, _ := netip.ParseAddr(by.From)
	wait, ok := s.throttle.Try(from)
	if !ok {
		seconds := int(wait/time.Second) + 1
		return hint.Errorf(fmt.Sprintf("wait %d s", seconds), "somebody has tried too many wrong passwords: %w", model.ErrPassword)
	}
	select {
	case <-time.After(wait):
	case <-ctx.Done():
		return ctx.Err()
	}
	if !check() {
		s.m.o.Log.Warn("a wrong password", "from", by.From)
		return model.ErrPassword
	}
	s.throttle.Succeeded(from)
	return nil
}

// SignIn is described at model.Platform.
func (m *Manager) SignIn(ctx context.Context, password string, by model.Actor) error {
	if err := m.signin.try(ctx, by, func() bool { return m.signin.verify(password) }); err != nil {
		return err
	}
	return m.audit(ctx, by, "sign in", "")
}

// SignInDigest is SignIn for programs, which send a digest made with the password
// and not the password itself (P5).
func (m *Manager) SignInDigest(ctx context.Context, digest string, make func(password string) string, by model.Actor) error {
	password := m.signin.clear()
	ok := func() bool {
		return password != "" && subtle.ConstantTimeCompare([]byte(digest), []byte(make(password))) == 1
	}
	if err := m.signin.try(ctx, by, ok); err != nil {
		return err
	}
	return m.audit(ctx, by, "sign in", "program")
}

// SetManagerPassword is described at model.Platform.
func (m *Manager) SetManagerPassword(ctx context.Context, old, new string, by model.Actor) error {
	// Root on the console may have forgotten the old one.
	if by != console {
		if err := m.signin.try(ctx, by, func() bool { return m.signin.verify(old) }); err != nil {
			return err
		}
	}
	if len([]rune(new)) < shortest || strings.ContainsAny(new, "\n\r\x00") {
		return hint.Errorf(fmt.Sprintf("at least %d characters", shortest), "the new password is too short")
	}
	if err := m.signin.set(ctx, new); err != nil {
		return err
	}
	m.endSessions()
	return m.audit(ctx, by, "change password", "manager")
}

func (m *Manager) endSessions() {
	if m.sessions != nil {
		m.sessions()
	}
}

// SetLinuxPassword is described at model.Platform.
func (m *Manager) SetLinuxPassword(ctx context.Context, user, password string, by model.Actor) error {
	if len([]rune(password)) < shortest {
		return hint.Errorf(fmt.Sprintf("at least %d characters", shortest), "the new password is too short")
	}
	if err := users.SetPassword(ctx, user, password); err != nil {
		return hintNoSpace(err)
	}
	// Apps' users may log in with admin's.
	m.ensureUsers(ctx)
	return m.audit(ctx, by, "change password", user)
}

// Token is described at model.Platform.
func (m *Manager) Token(ctx context.Context, text string) (model.Token, error) {
	return m.store.Token(ctx, text, time.Now())
}

// Tokens are described at model.Platform.
func (m *Manager) Tokens(ctx context.Context) ([]model.Token, error) { return m.store.Tokens(ctx) }

// CreateToken is described at model.Platform.
func (m *Manager) CreateToken(ctx context.Context, name string, by model.Actor) (model.Token, string, error) {
	text := "ap_" + secret.Random()
	t, err := m.store.AddToken(ctx, name, text, time.Now())
	if err != nil {
		return model.Token{}, "", err
	}
	return t, text, m.audit(ctx, by, "create token", name)
}

// DeleteToken is described at model.Platform.
func (m *Manager) DeleteToken(ctx context.Context, id string, by model.Actor) error {
	if err := m.store.DeleteToken(ctx, id); err != nil {
		return err
	}
	return m.audit(ctx, by, "delete token", id)
}
