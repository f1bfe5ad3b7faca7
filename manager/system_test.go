package manager

import (
	"encoding/json"
	"testing"
)

// F8: which image can be gone back to, by what `apagent status --json` says.
func TestPreviousImage(t *testing.T) {
	for _, test := range []struct{ name, status, want string }{
		{"first", `{"label": "160001", "sets": [{"label": "160001", "current": true}]}`, ""},
		{"updated", `{"label": "160002", "sets": [{"label": "160001"}, {"label": "160002", "current": true}]}`, "160001"},
		{"on trial", `{"label": "160002", "sets": [{"label": "160001", "current": true}, {"label": "160002"}]}`, "160001"},
		{"the same number twice", `{"label": "160001", "sets": [{"label": "160001", "current": true}, {"label": "160001"}]}`, "160001"},
		{"unknown", `{}`, ""},
	} {
		var s agentStatus
		if err := json.Unmarshal([]byte(test.status), &s); err != nil {
			t.Fatal(err)
		}
		if got := s.previous(); got != test.want {
			t.Errorf("%s: previous() = %q; want %q", test.name, got, test.want)
		}
	}
}
