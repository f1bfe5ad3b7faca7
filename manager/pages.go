package manager

import (
	"net/http"

	"appplatform/manager/internal/web"
)

// pages are the manager's pages. Whoever changes its password ends all sessions.
func (m *Manager) pages() http.Handler {
	site := web.New(m, web.Options{Folder: m.o.path(stateDir), Log: m.o.Log})
	m.sessions = site.EndSessions
	return site
}
