package manager

import "net/http"

// pages are the manager's pages.
func (m *Manager) pages() http.Handler {
	return http.NotFoundHandler()
}
