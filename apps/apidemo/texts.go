package main

import "strings"

// texts are what pages say in a language. The script finds those that it needs in
// the page.
type texts struct {
	Lang, Title, Password, SignIn, SignOut, Wrong, TooMany, New, Add, Delete, Empty, Online, Offline string
}

var english = texts{
	Lang: "en", Title: "Notes", Password: "Password of the instance", SignIn: "Sign in", SignOut: "Sign out",
	Wrong: "The password is wrong.", TooMany: "Too many wrong passwords were tried. Try again in half a minute.",
	New: "New note", Add: "Add", Delete: "Delete", Empty: "There are no notes yet.",
	Online: "Changes of others are shown at once.", Offline: "No connection; trying again ...",
}

var german = texts{
	Lang: "de", Title: "Notizen", Password: "Passwort der Instanz", SignIn: "Anmelden", SignOut: "Abmelden",
	Wrong: "Das Passwort ist falsch.", TooMany: "Es wurden zu viele falsche Passwörter versucht. Versuchen Sie es in einer halben Minute wieder.",
	New: "Neue Notiz", Add: "Hinzufügen", Delete: "Löschen", Empty: "Es gibt noch keine Notizen.",
	Online: "Änderungen anderer erscheinen sofort.", Offline: "Keine Verbindung; es wird weiter versucht ...",
}

// textsFor takes the first language of a browser's list that there is.
func textsFor(languages string) texts {
	for language := range strings.SplitSeq(strings.ToLower(languages), ",") {
		switch language = strings.TrimSpace(language); {
		case strings.HasPrefix(language, "de"):
			return german
		case strings.HasPrefix(language, "en"):
			return english
		}
	}
	return english
}
