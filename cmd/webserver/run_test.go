package main

import (
	"bytes"
	"strings"
	"testing"
)

// What can be told without serving: help, and wrong command lines.
func TestRun(t *testing.T) {
	for _, test := range []struct {
		args      string
		want      int
		out, errs string // parts of what is printed
	}{
		{"--help", 0, "EXIT STATUS", ""},
		{"--version", 0, version + "\n", ""},
		{"", 2, "", "nowhere to listen: give --http, --https or inherited descriptors\nhint: webserver --help"},
		{"--http :80", 2, "", "--state is needed"},
		{"--http :80 --http-fd 3 --state /s", 2, "", "either inherited or made"},
		{"--state /s extra --http :80", 2, "", "too many arguments: extra"},
		{"--frob", 2, "", "frob"},
		{"--http 127.0.0.1:0 --state /dev/null/x", 1, "", "cannot make the state folder"},
		{"--https-fd 999 --state " + t.TempDir(), 1, "", "cannot take over the listener of https"},
	} {
		var out, errs bytes.Buffer
		code := run(strings.Fields(test.args), &out, &errs)
		if code != test.want || !strings.Contains(out.String(), test.out) || !strings.Contains(errs.String(), test.errs) {
			t.Errorf("webserver %s = %d, %q, %q; want %d, %q, %q", test.args, code, out.String(), errs.String(), test.want, test.out, test.errs)
		}
	}
}
