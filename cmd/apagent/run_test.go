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
		{"apagent diskfree --help", 0, "--need=SIZE", ""},
		{"apagent diskfree --need=much", 2, "", `"much" is not a size`},
		{"apagent firstboot --help", 0, "--dry-run", ""},
		{"apagent firstboot now", 2, "", "too many arguments: now"},
		{"apagent gcore --help", 0, "gdb --pid PID -ex gcore --batch", ""},
		{"apagent gcore", 2, "", "usage: apagent gcore"},
		{"apagent gcore init", 2, "", "usage: apagent gcore"},
		{"apagent gcore 1 2", 2, "", "too many arguments: 2"},
		{"apagent gcore -o /no/such/core 0", 2, "", "hint: ps aux"},
		{"apagent gcore -o /no/such/core 2147483647", 1, "", "there is no process 2147483647\nhint: ps aux"},
		{"apagent install --help", 0, "--dry-run", ""},
		{"apagent mount --help", 0, "/run/app-platform/no-data", ""},
		{"apagent network --help", 0, "start|stop|restart|status", ""},
		{"apagent rescue --help", 0, "[--dry-run] [a|b]", ""},
		{"apagent rescue reinstall --help", 0, "[--dry-run] [a|b]", ""},
		{"apagent rescue mend", 2, "", "usage: apagent rescue"},
		{"apagent rescue reinstall c", 2, "", "usage: apagent rescue"},
		{"apagent rescue reinstall a b", 2, "", "too many arguments: b"},
		{"apagent rescue check a", 2, "", "too many arguments: a"},
		{"apagent rescue --dry-run", 2, "", "-dry-run\nhint: apagent rescue --help"},
		{"apagent resize --help", 0, "--dry-run", ""},
		{"apagent resize 64G", 2, "", "too many arguments: 64G"},
		{"apagent resize --dry-run --log /no/such/folder/log", 1, "", "cannot keep the log"},
		{"apagent setip --help", 0, "--mask=255.255.255.0", ""},
		{"/usr/bin/setip --help", 0, "--mask=255.255.255.0", ""},
		{"apagent status --help", 0, "--json", ""},
		{"apagent update --help", 0, "--limit-rate=RATE", ""},
		{"apagent rollback --help", 0, "before the last update", ""},
		{"apagent confirm --help", 0, "Ends the\ntrial", ""},
		{"apagent update", 2, "", "usage: apagent update"},
		{"apagent update --status x.update", 2, "", "usage: apagent update"},
		{"apagent update --limit-rate=fast x.update", 2, "", `"fast" is not a rate such as 500K`},
		{"apagent boot sideways", 2, "", "usage: apagent boot"},
		{"apagent tidy --help", 0, "empty_if_no_space", ""},
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

func TestParseRate(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "700": 700, "500K": 500 << 10, "2m": 2 << 20} {
		if got, err := parseRate(text); got != want || err != nil {
			t.Errorf("parseRate(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"0", "-1", "K", "1G", "1.5M"} {
		if got, err := parseRate(text); err == nil {
			t.Errorf("parseRate(%q) = %d; want an error", text, got)
		}
	}
}
