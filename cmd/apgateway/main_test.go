package main

import (
	"bytes"
	"strings"
	"testing"
)

// What can be told without a gateway: help, and wrong command lines.
func TestRun(t *testing.T) {
	for _, test := range []struct {
		args      string
		want      int
		out, errs string // parts of what is printed
	}{
		{"--help", 0, "APGATEWAY_PASSWORD", ""},
		{"--model IPx12", 2, "", "there are IPx11, IPx10, IPx13\nhint: apgateway --help"},
		{"--listen 0.0.0.0:80", 2, "", "lets others in: set APGATEWAY_PASSWORD"},
		{"--listen 80", 2, "", "--listen 80:"},
		{"extra", 2, "", "too many arguments: extra"},
		{"--frob", 2, "", "frob"},
	} {
		t.Setenv("APGATEWAY_PASSWORD", "")
		var out, errs bytes.Buffer
		code := run(strings.Fields(test.args), &out, &errs)
		if code != test.want || !strings.Contains(out.String(), test.out) || !strings.Contains(errs.String(), test.errs) {
			t.Errorf("apgateway %s = %d, %q, %q; want %d, %q, %q", test.args, code, out.String(), errs.String(), test.want, test.out, test.errs)
		}
	}
	for address, password := range map[string]string{"localhost:80": "", "127.0.0.1:0": "", "[::1]:80": "", "0.0.0.0:80": "x", ":80": "x"} {
		if err := checkListen(address, password); err != nil {
			t.Errorf("checkListen(%q, %q) = %v", address, password, err)
		}
	}
}
