package main

import (
	"bytes"
	"strings"
	"testing"
)

// What can be told without a device: the verbs, their help, and wrong calls.
func TestRun(t *testing.T) {
	tests := []struct {
		args      string
		want      int
		out, errs string // parts of what is printed
	}{
		{"apagent", 2, "", "usage: apagent VERB"},
		{"apagent --help", 0, "EXIT STATUS", ""},
		{"apagent boot --help", 0, "::wait:/usr/bin/apagent boot", ""},
		{"apagent install --help", 0, "--dry-run", ""},
		{"apagent mount --help", 0, "/run/app-platform/no-data", ""},
		{"apagent network --help", 0, "start|stop|restart|status", ""},
		{"apagent setip --help", 0, "--mask=255.255.255.0", ""},
		{"/usr/bin/setip --help", 0, "--mask=255.255.255.0", ""},
		{"apagent status --help", 0, "--json", ""},
		{"apagent format", 2, "", `unknown verb "format"` + "\nhint: apagent --help"},
		{"apagent network", 2, "", "usage: apagent network"},
		{"apagent network begin", 2, "", "usage: apagent network"},
		{"apagent status --xml", 2, "", "-xml\nhint: apagent status --help"},
		{"apagent mount sda2", 2, "", "too many arguments: sda2"},
		{"setip --adr=1.2.3.4", 2, "", "-adr\nhint: setip --help"},
	}
	for _, test := range tests {
		var out, errs bytes.Buffer
		got := run(strings.Fields(test.args), func(string) string { return "" }, &out, &errs)
		if got != test.want || !strings.Contains(out.String(), test.out) || !strings.Contains(errs.String(), test.errs) {
			t.Errorf("%s: exit status %d, prints %q and %q; want %d, %q and %q",
				test.args, got, out.String(), errs.String(), test.want, test.out, test.errs)
		}
	}
}
