package webserver

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// A refusal is an answer that the webserver gives by itself.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, format string, args ...any) error {
	return &refusal{status, fmt.Sprintf(format, args...)}
}

func bad(format string, args ...any) error {
	return refuse(http.StatusBadRequest, format, args...)
}

// A head is a request up to its empty line.
type head struct {
	raw     []byte // as it came
	method  string
	target  string
	minor   int // of HTTP/1
	header  http.Header
	host    string
	length  int64 // of the body; -1: chunked
	expects bool  // 100 (Continue)
	closes  bool  // the connection, after this
}

// readLine reads a line with its end. What is there for two readers to see
// differently is refused: lines end in CR LF and nothing else has either.
func readLine(r *bufio.Reader, line []byte, limit int) ([]byte, error) {
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > limit {
			return line, errLineTooLong
		}
		if err == nil {
			break
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
	return line, nil
}

var errLineTooLong = errors.New("line too long")

// readHead reads and judges a request's head. An error that is no refusal means
// that the connection broke off, io.EOF that it ended between requests. A head
// that is not small is read on if large allows it.
func readHead(r *bufio.Reader, large func() bool) (*head, error) {
	// A few clients send an empty line behind a body.
	for range 2 {
		next, err := r.Peek(2)
		if len(next) == 2 && next[0] == '\r' && next[1] == '\n' {
			_, _ = r.Discard(2)
		} else if len(next) == 0 {
			return nil, err
		} else {
			break
		}
	}
	h := &head{header: http.Header{}}
	line, err := readLine(r, nil, maxPath+len(" HTTP/1.1\r\n")+maxMethod+1)
	if errors.Is(err, errLineTooLong) {
		return nil, refuse(http.StatusRequestURITooLong, "the address is longer than %d bytes", maxPath)
	}
	if err != nil {
		return nil, broken(err)
	}
	h.raw = line
	if err := h.parseFirst(line); err != nil {
		return nil, err
	}
	limit := smallHead
	for fields := 0; ; fields++ {
		start := len(h.raw)
		h.raw, err = readLine(r, h.raw, limit)
		if errors.Is(err, errLineTooLong) && limit == smallHead {
			if !large() {
				return nil, refuse(http.StatusServiceUnavailable, "there are too many requests with long headers")
			}
			limit, err = maxHead, nil
			if !bytes.HasSuffix(h.raw, []byte("\n")) {
				h.raw, err = readLine(r, h.raw, limit)
			}
		}
		if errors.Is(err, errLineTooLong) || fields > maxFields {
			return nil, refuse(http.StatusRequestHeaderFieldsTooLarge, "the header is longer than %d bytes or has more than %d fields", maxHead, maxFields)
		}
		if err != nil {
			return nil, broken(err)
		}
		name, value, err := parseField(h.raw[start:])
		if err != nil {
			return nil, err
		}
		if name == "" {
			return h, h.judge()
		}
		h.header[name] = append(h.header[name], value)
	}
}

// broken is what a request ended by before its own end.
func broken(err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, io.EOF):
		return bad("the request has no end")
	case errors.As(err, &timeout) && timeout.Timeout():
		return refuse(http.StatusRequestTimeout, "the request came too slowly")
	}
	return err
}

// text cuts the line's end off and makes sure that it has no other.
func text(line []byte) (string, error) {
	s, ok := strings.CutSuffix(string(line), "\r\n")
	if !ok {
		return "", bad("a line of the request does not end in CR LF")
	}
	for i := range len(s) {
		if c := s[i]; c < ' ' && c != '\t' || c == 0x7f {
			return "", bad("the request has a control character")
		}
	}
	return s, nil
}

func (h *head) parseFirst(line []byte) error {
	s, err := text(line)
	if err != nil {
		return err
	}
	method, rest, ok1 := strings.Cut(s, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	if !ok1 || !ok2 || !isToken(method) || target == "" || strings.Contains(s, "\t") || strings.Contains(version, " ") {
		return bad("the first line is not METHOD ADDRESS HTTP/1.1")
	}
	switch version {
	case "HTTP/1.1":
		h.minor = 1
	case "HTTP/1.0":
	default:
		if strings.HasPrefix(version, "HTTP/") && len(version) <= len("HTTP/1.1") {
			return refuse(http.StatusHTTPVersionNotSupported, "%s is not spoken here, but HTTP/1.1 is", version)
		}
		return bad("the first line does not end in HTTP/1.1")
	}
	if len(method) > maxMethod {
		return refuse(http.StatusNotImplemented, "there is no such method")
	}
	if len(target) > maxPath {
		return refuse(http.StatusRequestURITooLong, "the address is longer than %d bytes", maxPath)
	}
	h.method, h.target = method, target
	return nil
}

// parseField returns an empty name for the empty line.
func parseField(line []byte) (name, value string, err error) {
	s, err := text(line)
	if err != nil || s == "" {
		return "", "", err
	}
	name, value, ok := strings.Cut(s, ":")
	if !ok || !isToken(name) { // so no folded lines and no space before the colon
		return "", "", bad("a line of the header is not NAME: VALUE")
	}
	return http.CanonicalHeaderKey(name), strings.Trim(value, " \t"), nil
}

func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0) {
			return false
		}
	}
	return s != ""
}

// judge looks at the fields that say where the request ends and whom it is for.
func (h *head) judge() error {
	lengths, encodings := h.header["Content-Length"], h.header["Transfer-Encoding"]
	switch {
	case len(lengths) > 1 || len(encodings) > 1 || len(lengths)+len(encodings) > 1:
		return bad("the request gives more than one length")
	case len(encodings) == 1 && (h.minor == 0 || !strings.EqualFold(encodings[0], "chunked")):
		return bad("the only Transfer-Encoding known here is chunked, in HTTP/1.1")
	case len(encodings) == 1:
		h.length = -1
	case len(lengths) == 1:
		n, ok := parseLength(lengths[0])
		if !ok {
			return bad("Content-Length is not a number")
		}
		h.length = n
	}
	hosts := h.header["Host"]
	if len(hosts) > 1 || len(hosts) == 0 && h.minor == 1 {
		return bad("the request must have one Host")
	}
	if len(hosts) == 1 {
		h.host = hosts[0]
		if !isHost(h.host) {
			return bad("Host is not a host's name")
		}
	}
	for _, e := range h.header["Expect"] {
		if !strings.EqualFold(e, "100-continue") {
			return refuse(http.StatusExpectationFailed, "nothing but 100-continue may be expected")
		}
		h.expects = h.minor == 1
	}
	h.closes = hasToken(h.header, "Connection", "close") || h.minor == 0 && !hasToken(h.header, "Connection", "keep-alive")
	return nil
}

// parseLength takes digits only: no sign, which others might skip.
func parseLength(s string) (n int64, ok bool) {
	if len(s) == 0 || len(s) > 18 {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, true
}

// isHost wants a name or an address, with or without a port.
func isHost(s string) bool {
	if s == "" {
		return false
	}
	name, port := s, ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 && !strings.HasSuffix(s, "]") {
		name, port = s[:i], s[i+1:]
	}
	for i := range len(port) {
		if port[i] < '0' || port[i] > '9' {
			return false
		}
	}
	if inner, ok := strings.CutPrefix(name, "["); ok {
		inner, ok = strings.CutSuffix(inner, "]")
		address, err := netip.ParseAddr(inner)
		return ok && err == nil && address.Is6()
	}
	for i := range len(name) {
		c := name[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_') {
			return false
		}
	}
	return name != ""
}

// url is what is asked for. A whole URL, as sent to proxies, must name the host
// that Host names.
func (h *head) url() (*url.URL, error) {
	target := h.target
	if target == "*" {
		if h.method != http.MethodOptions {
			return nil, bad("the address * is for OPTIONS only")
		}
		return &url.URL{Path: "*"}, nil
	}
	if !strings.HasPrefix(target, "/") {
		scheme, rest, ok := strings.Cut(target, "://")
		if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
			return nil, bad("the address does not begin with a slash")
		}
		end := strings.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		if !strings.EqualFold(rest[:end], h.host) {
			return nil, bad("the address names another host than Host")
		}
		target = rest[end:]
		if !strings.HasPrefix(target, "/") {
			target = "/" + target
		}
	}
	if strings.Contains(target, "#") {
		return nil, bad("the address has a fragment")
	}
	path, query, asks := strings.Cut(target, "?")
	decoded, err := url.PathUnescape(path)
	if err != nil {
		return nil, bad("the address is not encoded rightly")
	}
	return &url.URL{Path: decoded, RawPath: encoded(path), RawQuery: query, ForceQuery: asks && query == ""}, nil
}

// encoded encodes what is no part of a path without that, and leaves all else as
// it is. Package url would decode the whole path and encode it anew: %2F became
// a slash.
func encoded(path string) string {
	var b []byte
	for i := range len(path) {
		c := path[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~!$&'()*+,;=:@/%[]", c) >= 0 {
			if b != nil {
				b = append(b, c)
			}
			continue
		}
		if b == nil {
			b = append(make([]byte, 0, len(path)+16), path[:i]...)
		}
		b = fmt.Appendf(b, "%%%02X", c)
	}
	if b == nil {
		return path
	}
	return string(b)
}

func hasToken(header http.Header, name, token string) bool {
	for _, value := range header[name] {
		for part := range strings.SplitSeq(value, ",") {
			if strings.EqualFold(strings.Trim(part, " \t"), token) {
				return true
			}
		}
	}
	return false
}

// readTrailer reads the fields behind a chunked body.
func readTrailer(r *bufio.Reader) (http.Header, error) {
	var trailer http.Header
	var all []byte
	for fields := 0; ; fields++ {
		start := len(all)
		var err error
		if all, err = readLine(r, all, maxTrailer); err != nil {
			if errors.Is(err, errLineTooLong) {
				err = refuse(http.StatusRequestHeaderFieldsTooLarge, "the trailer is longer than %d bytes", maxTrailer)
			}
			return nil, broken(err)
		}
		name, value, err := parseField(all[start:])
		if err != nil || name == "" {
			return trailer, err
		}
		switch name {
		case "Content-Length", "Transfer-Encoding", "Host", "Trailer", "Connection", "Upgrade":
			return nil, bad("%s may not be in a trailer", name)
		}
		if trailer == nil {
			trailer = http.Header{}
		}
		trailer[name] = append(trailer[name], value)
	}
}
