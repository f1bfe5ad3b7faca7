package webserver

import (
	"bufio"
	"bytes"
	"net/http"
	"testing"
)

// FuzzHead: net/http reads each head that is accepted in the same way.
func FuzzHead(f *testing.F) {
	f.Add([]byte("GET /app?x HTTP/1.1\r\nHost: x\r\nX: y\r\n\r\n"))
	f.Add([]byte("POST /app HTTP/1.1\r\nHost: [::1]:80\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"))
	f.Add([]byte("PUT http://x/ HTTP/1.0\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := readHead(bufio.NewReader(bytes.NewReader(data)))
		if err != nil {
			return
		}
		if !bytes.Contains(data, h.raw) {
			t.Fatalf("the head %q is not in what was sent", h.raw)
		}
		u, err := h.url()
		if err != nil || u.Path == "*" {
			return
		}
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(h.raw)))
		if err != nil {
			t.Fatalf("net/http does not take %q: %v", h.raw, err)
		}
		if r.Method != h.method || r.ContentLength != h.length || r.Host != h.host && h.host != "" || u.Path != r.URL.Path && r.URL.Host == "" {
			t.Fatalf("%q: %s %d %q %q; net/http reads %s %d %q %q", h.raw, h.method, h.length, h.host, u.Path, r.Method, r.ContentLength, r.Host, r.URL.Path)
		}
	})
}
