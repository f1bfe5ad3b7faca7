package agent

import (
	"encoding/json"
	"io"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// Whatever a broken disk makes of the two files of an update, what is read of a
// transition leads from one image of sda1 to the other, is kept as it is, ends
// after few attempts, and can be shown.
func FuzzTransition(f *testing.F) {
	m := Machine{Root: f.TempDir(), Log: NewLog(io.Discard)}
	for _, stage := range []string{"apply", "trial", "commit", "restore"} {
		f.Add([]byte(`{"format": 1, "from": {"set": "a", "label": "160001", "rootfs": "00"}, "to": {"set": "b", "label": "160002", "rootfs": "11"}, "stage": "`+stage+`", "tries": 1, "network": true, "reason": "x"}`),
			[]byte(`{"time": "2026-01-02T03:04:05Z", "from": "160001", "to": "160002", "result": "committed"}`))
	}
	f.Add([]byte(`{"format": 1, "from": {"set": "../a"}, "to": {"set": "b"}, "stage": "apply"}`), []byte("null"))
	f.Add([]byte(`{"format": 1, "from": {"set": "b"}, "to": {"set": "a"}, "stage": "trial", "tries": 9223372036854775807}`), []byte(`{"time": "9999-12-31T23:59:59-23:59"}`))
	f.Fuzz(func(t *testing.T, text, last []byte) {
		writeFiles(t, m.Root, map[string]string{transitionFile: string(text), outcomeFile: string(last)})
		s := GetUpdateStatus(m)
		s.Print(io.Discard)
		if _, err := json.Marshal(s); err != nil {
			t.Errorf("the status %+v cannot be shown: %v", s, err)
		}
		got, err := m.readTransition()
		if (err == nil) != (got != nil) || (err == nil) != (s.UnderWay != nil) || err != nil && s.Problem == "" {
			t.Fatalf("readTransition() = %+v, %v; the status is %+v", got, err, s)
		}
		if err != nil {
			return
		}
		for _, id := range []imageID{got.From, got.To} {
			if id.Set != "a" && id.Set != "b" || !filepath.IsLocal(id.Set) {
				t.Fatalf("the image lies in %q", id.Set)
			}
		}
		if otherSet(got.From.Set) != got.To.Set {
			t.Errorf("it leads from %s to %s", got.From.Set, got.To.Set)
		}
		for _, next := range []transition{*got, got.next(stageTrial), got.failed("it does not work")} {
			if next.Tries < 0 {
				t.Errorf("there were %d attempts", next.Tries)
			}
			if err := m.writeState(transitionFile, next); err != nil {
				t.Fatal(err)
			}
			if again, err := m.readTransition(); err != nil || !reflect.DeepEqual(*again, next) {
				t.Errorf("kept and read again: %+v, %v; want %+v", again, err, next)
			}
		}
		if s := (UpdateStatus{UnderWay: got}).String(); strings.TrimSpace(s) == "" {
			t.Errorf("the status is %q", s)
		}
	})
}
