package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// OS-E1: plain text for programs, a page for people, and every address leads
// there, also over HTTP.
func TestProgressPage(t *testing.T) {
	m := newMachine(t, "sda", 4<<30)
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.start()
	m.Ramdisk = true
	addresses := map[string]string{}
	m.listen = func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, "127.0.0.1:0")
		addresses[address] = l.Addr().String()
		return l, err
	}
	d, err := m.findDisk(t.Context())
	must(t, err)
	must(t, d.Announce(m, d.table.Parts...))
	stop := m.showProgress(t.Context(), d)
	m.Log.Printf("step 3 of 8: write <b>")
	m.Log.Progress("written", 4<<20, 500<<20)
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	get := func(url, accept string) (string, *http.Response) {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, url, nil)
		must(t, err)
		req.Header.Set("Accept", accept)
		r, err := client.Do(req)
		must(t, err)
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		must(t, err)
		return string(b), r
	}
	if text, r := get("https://"+addresses[":443"]+ProgressPath, "*/*"); !strings.Contains(text, "step 3 of 8: write <b>\n  written: 4 of 500 MiB\n") || !strings.HasPrefix(r.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("for programs: %s %q", r.Header.Get("Content-Type"), text)
	}
	if text, r := get("https://"+addresses[":443"]+"/manager/", "text/html"); !strings.Contains(text, "write &lt;b&gt;") || !strings.Contains(text, `http-equiv="refresh"`) || r.Request.URL.Path != ProgressPath {
		t.Errorf("for people, at %s: %q", r.Request.URL, text)
	}
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if _, r := get("http://"+addresses[":80"]+"/", "*/*"); r.Header.Get("Location") != "https://127.0.0.1"+ProgressPath {
		t.Errorf("over HTTP one is sent to %q", r.Header.Get("Location"))
	}
	stop()
	if _, err := client.Get("https://" + addresses[":443"]); err == nil {
		t.Error("the page is served after the end")
	}

	// The ports are taken: the update goes on.
	m.listen = func(string, string) (net.Listener, error) { return nil, errors.New("taken") }
	m.showProgress(t.Context(), d)()
	if !strings.Contains(m.out.String(), "no progress page: taken") {
		t.Errorf("the log does not say that there is no page:\n%s", m.out.String())
	}
}

// Who opens hundreds of connections and says nothing, or holds them after a
// request, keeps nobody from reading the log, takes little memory and leaves
// nothing on the console.
func TestProgressCrowd(t *testing.T) {
	m := newMachine(t, "sda", 4<<30)
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.start()
	m.Ramdisk = true
	addresses := map[string]string{}
	m.listen = func(network, address string) (net.Listener, error) {
		l, err := net.Listen(network, "127.0.0.1:0")
		addresses[address] = l.Addr().String()
		return l, err
	}
	d, err := m.findDisk(t.Context())
	must(t, err)
	must(t, d.Announce(m, d.table.Parts...))
	defer m.showProgress(t.Context(), d)()
	for range 20000 {
		m.Log.Printf("a line of the log")
	}
	m.Log.Printf("the last line")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	insecure := &tls.Config{InsecureSkipVerify: true}
	var first net.Conn
	for i := range 200 {
		c, err := net.Dial("tcp", addresses[[]string{":80", ":443"}[i%2]])
		must(t, err)
		defer c.Close()
		if i == 1 {
			first = c
		}
		if i%4 == 1 {
			must(t, tls.Client(c, insecure).Handshake())
		}
	}
	client := http.Client{Transport: &http.Transport{TLSClientConfig: insecure}, Timeout: pageWithin / 2}
	res, err := client.Get("https://" + addresses[":443"] + ProgressPath)
	must(t, err)
	text, err := io.ReadAll(res.Body)
	must(t, errors.Join(err, res.Body.Close()))
	if !strings.HasSuffix(string(text), "the last line\n") || len(text) < shown/2 || len(text) > 2*shown {
		t.Errorf("the page has %d bytes and ends with %.50q", len(text), text[max(0, len(text)-50):])
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("200 connections take %d bytes", grown)
	}
	must(t, first.SetReadDeadline(time.Now().Add(pageWithin/2)))
	if _, err := io.Copy(io.Discard, first); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the oldest connection is still open")
	}
}

// The certificate of the machine is taken if it is good.
func TestProgressCertificate(t *testing.T) {
	m := newMachine(t, "sda", 4<<30)
	must(t, Start(t.Context(), m.Machine, nobody{}))
	m.start()
	d, err := m.findDisk(t.Context())
	must(t, err)
	must(t, d.Announce(m, d.table.Parts...))
	own, err := os.ReadFile("testdata/https.pem")
	must(t, err)
	for text, self := range map[string]bool{string(own): false, "damaged": true} {
		writeFiles(t, m.path("content/mnt/sda2"), map[string]string{certificateFile: text})
		c, err := m.certificate(t.Context(), d)
		must(t, err)
		if c.Leaf == nil {
			c.Leaf, err = parseLeaf(c)
			must(t, err)
		}
		if got := c.Leaf.Subject.CommonName == "gateway.example"; got == self {
			t.Errorf("with a file that begins with %.20q, the certificate is for %q", text, c.Leaf.Subject.CommonName)
		}
	}
}

func parseLeaf(c tls.Certificate) (*x509.Certificate, error) {
	return x509.ParseCertificate(c.Certificate[0])
}
