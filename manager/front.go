package manager

import (
	"net/http"

	"appplatform/manager/internal/api"
)

// ownPaths are those that the manager registers for itself.
var ownPaths = []string{"", "/manager"}

// handler answers what the webserver hands on: the root leads to the pages, and
// nothing else is there.
func (m *Manager) handler() http.Handler {
	programs := api.New(m, m, m.o.path(stateDir))
	pages := m.pages()
	endPages := m.sessions
	m.sessions = func() {
		endPages()
		programs.EndSessions()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "/manager", http.StatusFound)
	})
	mux.Handle(api.Base+"/", programs)
	mux.HandleFunc("/manager", func(w http.ResponseWriter, r *http.Request) {
		if api.IsWebSocket(r) {
			programs.WebSocket(w, r)
			return
		}
		pages.ServeHTTP(w, r)
	})
	mux.Handle("/manager/", pages)
	return mux
}
