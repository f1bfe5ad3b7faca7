package webserver

import (
	"bytes"
	"crypto/tls"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"appplatform/internal/wire"
)

// frames is a client of HTTP/2 that sends what no library would.
type frames struct {
	*http2.Framer
	t    *testing.T
	conn *tls.Conn
	next uint32
}

func (l *lab) frames(settings ...http2.Setting) *frames {
	l.t.Helper()
	c, err := tls.Dial("tcp", l.https, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	f := &frames{Framer: http2.NewFramer(c, c), t: l.t, conn: c, next: 1}
	f.AllowIllegalWrites = true
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
		l.t.Fatal(err)
	}
	if err := f.WriteSettings(settings...); err != nil {
		l.t.Fatal(err)
	}
	return f
}

// ask sends the fields, names and values in turn, and the body, if there is one.
func (f *frames) ask(body string, fields ...string) (stream uint32) {
	f.t.Helper()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for i := 0; i+1 < len(fields); i += 2 {
		if err := encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			f.t.Fatal(err)
		}
	}
	stream = f.next
	f.next += 2
	err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndStream: body == "", EndHeaders: true})
	if err == nil && body != "" {
		err = f.WriteData(stream, true, []byte(body))
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return stream
}

// first is whichever stream comes first.
const first = 0

// answer is the status and the body of a stream's answer, or "reset".
func (f *frames) answer(stream uint32) (status, body string) {
	f.t.Helper()
	for {
		frame, err := f.ReadFrame()
		var broken http2.StreamError
		if err != nil && !errors.As(err, &broken) {
			return "closed", body
		}
		switch frame := frame.(type) {
		case *http2.GoAwayFrame:
			if frame.ErrCode != http2.ErrCodeNo {
				return "closed", body
			}
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = f.WriteSettingsAck()
			}
		case *http2.RSTStreamFrame:
			if frame.StreamID == stream || stream == first {
				return "reset", body
			}
		case *http2.MetaHeadersFrame:
			if frame.StreamID == stream || stream == first {
				status += frame.PseudoValue("status")
				for _, field := range frame.RegularFields() {
					switch field.Name {
					case "connection", "upgrade", "transfer-encoding", "keep-alive":
						f.t.Errorf("an answer in HTTP/2 has the field %s: %s", field.Name, field.Value)
					}
				}
				if frame.StreamEnded() {
					return status, body
				}
			}
		case *http2.DataFrame:
			if frame.StreamID == stream || stream == first {
				body += string(frame.Data())
				if frame.StreamEnded() {
					return status, body
				}
			}
		}
	}
}

// TestHTTP2Smuggling: nothing that would be another line, or another request, in
// HTTP/1 comes to the app.
func TestHTTP2Smuggling(t *testing.T) {
	l := open(t)
	w := l.witness(wire.KindHTTP, "/app")
	base := func(path, authority string, more ...string) []string {
		return append([]string{":method", "POST", ":scheme", "https", ":path", path, ":authority", authority}, more...)
	}
	for _, test := range []struct {
		name   string
		body   string
		fields []string
	}{
		{"a space in the query", "", base("/app?x HTTP/1.1", "x")},
		{"a space in the path", "", base("/app HTTP/1.1", "x")},
		{"lines in the address", "", base("/app HTTP/1.1\r\nHost: x\r\n\r\nGET /app/hidden", "x")},
		{"lines in the query", "", base("/app?\r\nhidden: x", "x")},
		{"a fragment", "", base("/app#hidden", "x")},
		{"a fragment behind the query", "", base("/app?x#hidden", "x")},
		{"no slash", "", base("app", "x")},
		{"an empty path", "", base("", "x")},
		{"two paths", "", base("/app", "x", ":path", "/app/hidden")},
		{"a host with a path", "", base("/app", "x/hidden")},
		{"a host with lines", "", base("/app", "x\r\nhidden: y")},
		{"no host", "", []string{":method", "GET", ":scheme", "https", ":path", "/app"}},
		{"lines in a value", "", base("/app", "x", "a", "b\r\nhidden: y")},
		{"a line in a value", "", base("/app", "x", "a", "b\nhidden: y")},
		{"NUL in a value", "", base("/app", "x", "a", "b\x00hidden")},
		{"lines in a name", "", base("/app", "x", "a: b\r\nhidden", "y")},
		{"a space in a name", "", base("/app", "x", "hidden ", "y")},
		{"a colon in a name", "", base("/app", "x", "hidden:", "y")},
		{"capitals in a name", "", base("/app", "x", "Hidden", "y")},
		{"connection", "", base("/app", "x", "connection", "hidden")},
		{"transfer-encoding", "0\r\n\r\n" + hidden, base("/app", "x", "transfer-encoding", "chunked")},
		{"upgrade", "", base("/app", "x", "upgrade", "hidden")},
		{"a method with lines", "", []string{":method", "GET /app/hidden HTTP/1.1\r\nHost: x\r\n\r\nGET", ":scheme", "https", ":path", "/app", ":authority", "x"}},
		{"more body than its length", hidden, base("/app", "x", "content-length", "1")},
		{"less body than its length", "x", base("/app", "x", "content-length", "100")},
	} {
		f := l.frames()
		if status, body := f.answer(f.ask(test.body, test.fields...)); status != "400" && status != "501" && status != "reset" && status != "closed" {
			t.Errorf("%s: answered %s %q", test.name, status, body)
		}
		f.conn.Close()
	}
	if got := w.all(); strings.Contains(got, "hidden") || strings.Contains(got, "HTTP/1.1 HTTP/1.1") {
		t.Errorf("the app got %q", got)
	}
	// What is right comes through, of two hosts the one that counts.
	f := l.frames()
	if status, body := f.answer(f.ask("abc", base("/app/ok?a%20b", "x", "host", "y", "content-length", "3", "cookie", "a=b", "cookie", "c=d")...)); status != "200" || body != "ok" {
		t.Errorf("answered %s %q", status, body)
	}
	got := w.all()
	got = got[strings.LastIndex(got, "|")+1:]
	for _, want := range []string{"POST /app/ok?a%20b HTTP/1.1\r\n", "\r\nHost: x\r\n", "\r\nContent-Length: 3\r\n", "\r\nCookie: a=b; c=d\r\n", "\r\n\r\nabc"} {
		if strings.Count(got, want) != 1 {
			t.Errorf("the app got %q; want %q in it, once", got, want)
		}
	}
	if strings.Contains(got, "Host: y") {
		t.Errorf("the app got two hosts: %q", got)
	}
}

// TestHTTP2Streams: each request counts for its address like a connection.
func TestHTTP2Streams(t *testing.T) {
	l := open(t)
	away := l.listen("away.sock") // accepts and never answers
	l.register(wire.KindHTTP, away.Addr().String(), "/app")
	l.door.mu.Lock()
	l.door.ofAddress = 10
	l.door.mu.Unlock()
	f := l.frames()
	get := []string{":method", "GET", ":scheme", "https", ":path", "/app", ":authority", "x"}
	var streams []uint32
	for range 9 {
		streams = append(streams, f.ask("", get...))
	}
	streams = append(streams, f.ask("", get...))
	if status, body := f.answer(first); status != "429" || !strings.Contains(body, "too many requests") {
		t.Errorf("ten requests of an address that may have ten connections: %s %q", status, body)
	}
	for _, stream := range streams {
		if err := f.WriteRSTStream(stream, http2.ErrCodeCancel); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the requests are over", func() bool { return l.counted() == 1 })
	f.conn.Close()
	eventually(t, "the connection is over", func() bool { return l.counted() == 0 })
}

// counted is how many connections and requests count at the moment.
func (l *lab) counted() int {
	l.door.mu.Lock()
	defer l.door.mu.Unlock()
	all := 0
	for _, n := range l.door.of {
		all += n
	}
	if all != l.door.in {
		l.t.Errorf("%d are in, %d of all addresses", l.door.in, all)
	}
	return all
}

// TestHTTP2EndlessHead: a head that does not end is not collected.
func TestHTTP2EndlessHead(t *testing.T) {
	l := open(t)
	f := l.frames()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
	for n := 0; n < 10000 && err == nil; n++ {
		block.Reset()
		if err := encoder.WriteField(hpack.HeaderField{Name: "x-" + strconv.Itoa(n), Value: strings.Repeat("x", 8000)}); err != nil {
			t.Fatal(err)
		}
		err = f.WriteContinuation(1, false, block.Bytes())
	}
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("there was no end to it: %v", err)
	}
}

// What clients send to apps that do not read fills no memory: the windows that the
// webserver gives are all that may come.
func TestHTTP2Buffers(t *testing.T) {
	l := open(t)
	f := l.frames()
	// The windows at first, by RFC 9113, 6.9.2.
	connection, stream := int64(65535), int64(65535)
	for settled := false; !settled || connection == 65535; {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if size, ok := frame.Value(http2.SettingInitialWindowSize); ok {
				stream, settled = int64(size), true
			}
		case *http2.WindowUpdateFrame:
			if frame.StreamID == 0 {
				connection += int64(frame.Increment)
			}
		}
	}
	if stream > 64<<10 || connection > 256<<10 {
		t.Errorf("%d bytes of a stream and %d of a connection may come; want at most 64 and 256 KiB", stream, connection)
	}
}
