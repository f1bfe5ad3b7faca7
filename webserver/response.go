package webserver

import (
	"bufio"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A response writes an answer in HTTP/1. Nothing of it is kept back: the head
// goes out together with the first bytes of the body.
type response struct {
	v      *visit
	br     *bufio.Reader
	head   *head
	body   *body // of the request
	minor  int
	method string
	header http.Header

	mu      sync.Mutex // the body says 100 (Continue) from another goroutine
	status  int
	begun   []byte // the head, until it is sent
	chunked bool
	left    int64 // of the length that was promised; -1 if none was
	close   bool
	taken   bool   // the connection is not ours any more
	then    func() // what to do with it then
	err     error
}

var buffers = sync.Pool{New: func() any { b := make([]byte, progressBytes+64); return &b }}

func (w *response) Header() http.Header { return w.header }

func (w *response) WriteHeader(status int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeader(status)
}

func (w *response) writeHeader(status int) {
	if w.status != 0 || w.taken {
		return
	}
	if status >= 100 && status < 200 {
		return // of an app's, only 101 is for the client, and takes another way
	}
	w.status, w.left = status, -1
	if lengths := w.header["Content-Length"]; len(lengths) > 0 {
		if n, ok := parseLength(lengths[0]); ok && len(lengths) == 1 {
			w.left = n
		} else {
			w.header.Del("Content-Length")
		}
	}
	if !w.hasBody() {
		w.left = 0
		if status == http.StatusNoContent {
			w.header.Del("Content-Length")
		}
	} else if w.left < 0 {
		if w.minor > 0 {
			w.chunked = true
		} else {
			w.close = true
		}
	}
	// What is left of the request's body cannot be told from the next request.
	if w.body != nil && !w.body.whole() || w.v.srv.draining() {
		w.close = true
	}
	w.begun = w.appendHead(make([]byte, 0, 512))
}

func (w *response) hasBody() bool {
	return w.method != http.MethodHead && w.status != http.StatusNoContent && w.status != http.StatusNotModified
}

func (w *response) appendHead(b []byte) []byte {
	b = fmt.Appendf(b, "HTTP/1.1 %d %s\r\n", w.status, http.StatusText(w.status))
	for name, values := range w.header {
		if strings.HasPrefix(name, http.TrailerPrefix) || name == "Connection" || name == "Transfer-Encoding" || !isToken(name) {
			continue // Go takes "Transfer-Encoding : chunked" for a field of that name, with the space
		}
		if w.isTrailer(name) {
			continue
		}
		for _, value := range values {
			b = append(append(append(append(b, name...), ": "...), clean(value)...), "\r\n"...)
		}
	}
	if w.header["Date"] == nil {
		b = append(append(append(b, "Date: "...), time.Now().UTC().Format(http.TimeFormat)...), "\r\n"...)
	}
	if w.chunked {
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	}
	if w.close {
		b = append(b, "Connection: close\r\n"...)
	} else if w.minor == 0 {
		b = append(b, "Connection: keep-alive\r\n"...)
	}
	return append(b, "\r\n"...)
}

// clean keeps a value of an app's from becoming two lines.
func clean(value string) string {
	if strings.ContainsAny(value, "\r\n\x00") {
		return strings.NewReplacer("\r", " ", "\n", " ", "\x00", " ").Replace(value)
	}
	return value
}

// isTrailer reports whether the answer announces the field as one of its trailer.
func (w *response) isTrailer(name string) bool {
	return w.header["Trailer"] != nil && w.chunked && hasToken(w.header, "Trailer", name)
}

func (w *response) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeader(http.StatusOK)
	if w.err != nil || w.taken {
		return 0, errorOr(w.err, http.ErrHijacked)
	}
	if !w.hasBody() {
		return len(p), nil
	}
	if w.left >= 0 && int64(len(p)) > w.left {
		return 0, http.ErrContentLength
	}
	for done := 0; done < len(p); {
		part := p[done:min(len(p), done+progressBytes)]
		if err := w.send(part); err != nil {
			return done, err
		}
		done += len(part)
	}
	return len(p), nil
}

func errorOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// send writes the head, if it is still here, and a part of the body at once.
func (w *response) send(part []byte) error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	out := append((*buf)[:0], w.begun...)
	w.begun = nil
	if w.chunked && len(part) > 0 {
		out = append(strconv.AppendInt(out, int64(len(part)), 16), "\r\n"...)
	}
	out = append(out, part...)
	if w.chunked && len(part) > 0 {
		out = append(out, "\r\n"...)
	}
	if w.left > 0 {
		w.left -= int64(len(part))
	}
	return w.put(out)
}

func (w *response) put(out []byte) error {
	if w.err == nil && len(out) > 0 {
		_ = w.v.c.SetWriteDeadline(time.Now().Add(w.v.srv.progress))
		_, w.err = w.v.rw.Write(out)
	}
	return w.err
}

// Flush sends the head, for answers whose body comes later.
func (w *response) Flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writeHeader(http.StatusOK)
	if len(w.begun) > 0 {
		_ = w.send(nil)
	}
}

// proceed asks for the body of a client that waits to be asked.
func (w *response) proceed() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 && !w.taken {
		_ = w.put([]byte("HTTP/1.1 100 Continue\r\n\r\n"))
	}
}

// abort makes the client see that the answer has no proper end.
func (w *response) abort() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.close, w.chunked, w.left = true, false, 0
	if w.err == nil {
		w.err = errAborted
	}
}

var errAborted = fmt.Errorf("the app broke off its answer")

// finish sends what is missing at the end.
func (w *response) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.status == 0 && w.header["Content-Length"] == nil {
		w.header.Set("Content-Length", "0")
	}
	w.writeHeader(http.StatusOK)
	if w.err != nil {
		return
	}
	if w.left > 0 {
		w.close, w.err = true, errAborted // less than was promised
	}
	if w.chunked && w.hasBody() {
		w.begun = append(w.begun, "0\r\n"...)
		for name, values := range w.header {
			key, late := strings.CutPrefix(name, http.TrailerPrefix)
			if !late && !w.isTrailer(name) || !isToken(key) {
				continue
			}
			for _, value := range values {
				w.begun = append(w.begun, key+": "+clean(value)+"\r\n"...)
			}
		}
		w.begun = append(w.begun, "\r\n"...)
	}
	out := w.begun
	w.begun = nil
	if err := w.err; err != nil {
		w.err = nil
		_ = w.put(out)
		w.err = err
		return
	}
	_ = w.put(out)
}

// page answers with a line of text.
func page(w http.ResponseWriter, status int, text string) {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	text = fmt.Sprintf("%d %s: %s\n", status, http.StatusText(status), text)
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text))
}
