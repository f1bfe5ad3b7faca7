package web

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// languages of the pages; the first one is that of the templates.
var languages = []string{"en", "de"}

// texts.json is the catalogue: English texts, as templates and code have them, and
// what they are in German. Behind a bar an English text says which of several
// meanings it has.
//
//go:embed texts.json
var textsFile []byte

var german = func() map[string]string {
	texts := map[string]string{}
	if err := json.Unmarshal(textsFile, &texts); err != nil {
		panic("internal error: texts.json: " + err.Error())
	}
	return texts
}()

// translate returns a text in a language. What is not in the catalogue comes from
// elsewhere, and stays as it is.
func translate(lang, text string, args ...any) string {
	english, _, _ := strings.Cut(text, "|")
	if lang == "de" {
		if t, ok := german[text]; ok {
			english = t
		}
	}
	if len(args) == 0 {
		return english
	}
	return fmt.Sprintf(english, args...)
}

// made is what the manager has said: translated, if it says how it was made.
func made(lang, format string, args []any, text string) string {
	if format == "" {
		return text
	}
	return translate(lang, format, args...)
}

func (v *visit) t(text string, args ...any) string { return translate(v.lang, text, args...) }

// language is what somebody has chosen, or else his browser asks for.
func language(r *http.Request) string {
	if c, err := r.Cookie("ap-lang"); err == nil && slices.Contains(languages, c.Value) {
		return c.Value
	}
	// Browsers name the best one first.
	for part := range strings.SplitSeq(r.Header.Get("Accept-Language"), ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(part), ";")
		name, _, _ = strings.Cut(strings.ToLower(name), "-")
		if slices.Contains(languages, name) {
			return name
		}
	}
	return languages[0]
}

var themes = []string{"auto", "light", "dark"}

func theme(r *http.Request) string {
	if c, err := r.Cookie("ap-theme"); err == nil && slices.Contains(themes, c.Value) {
		return c.Value
	}
	return themes[0]
}

// prefer keeps a choice of language or theme in the browser.
func (v *visit) prefer() error {
	q := v.r.URL.Query()
	for name, choices := range map[string][]string{"lang": languages, "theme": themes} {
		if choice := q.Get(name); slices.Contains(choices, choice) {
			http.SetCookie(v.w, &http.Cookie{Name: "ap-" + name, Value: choice, Path: Base, MaxAge: 365 * 24 * 3600,
				Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
		}
	}
	return v.goTo(local(q.Get("back")))
}
