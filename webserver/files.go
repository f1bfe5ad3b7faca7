package webserver

import (
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path"
	"strings"
	"syscall"
)

// contentTypes are those of the files that apps bring along. The system's table,
// if there is one, would make the answer differ from machine to machine.
var contentTypes = map[string]string{
	".html": "text/html; charset=utf-8", ".htm": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8",
	".js": "text/javascript; charset=utf-8", ".mjs": "text/javascript; charset=utf-8", ".json": "application/json",
	".map": "application/json", ".webmanifest": "application/manifest+json", ".txt": "text/plain; charset=utf-8",
	".xml": "text/xml; charset=utf-8", ".csv": "text/csv; charset=utf-8", ".md": "text/markdown; charset=utf-8",
	".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".svg": "image/svg+xml",
	".webp": "image/webp", ".avif": "image/avif", ".ico": "image/x-icon", ".bmp": "image/bmp",
	".woff": "font/woff", ".woff2": "font/woff2", ".ttf": "font/ttf", ".otf": "font/otf",
	".mp3": "audio/mpeg", ".ogg": "audio/ogg", ".wav": "audio/wav", ".mp4": "video/mp4", ".webm": "video/webm",
	".pdf": "application/pdf", ".zip": "application/zip", ".gz": "application/gzip", ".wasm": "application/wasm",
}

// encodings are the packed forms of a file that may lie beside it, best first.
var encodings = []struct{ name, suffix string }{{"br", ".br"}, {"gzip", ".gz"}}

// file answers with a file of the registration's folder.
func (s *Server) file(w http.ResponseWriter, r *http.Request, reg *registration) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		page(w, http.StatusMethodNotAllowed, "there are only files here")
		return
	}
	name, ok := fileName(strings.TrimPrefix(r.URL.Path, reg.Path))
	if !ok {
		page(w, http.StatusNotFound, "there is no such file")
		return
	}
	f, info, err := openFile(reg.root, name)
	if err == nil && info.IsDir() {
		f.Close()
		if !strings.HasSuffix(r.URL.Path, "/") {
			redirect(w, r)
			return
		}
		name = path.Join(name, "index.html")
		f, info, err = openFile(reg.root, name)
	} else if err == nil && strings.HasSuffix(r.URL.Path, "/") {
		f.Close()
		err = fs.ErrNotExist
	}
	if err == nil && !info.Mode().IsRegular() {
		f.Close()
		err = fs.ErrNotExist
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("cannot serve a file", "path", r.URL.Path, "error", err)
		}
		page(w, http.StatusNotFound, "there is no such file")
		return
	}
	h := w.Header()
	h.Set("Content-Type", contentType(name))
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-cache") // ask each time, by ETag: an app may be updated at any moment
	h.Set("Vary", "Accept-Encoding")
	tag := etag(info)
	for _, e := range encodings {
		if !accepts(r.Header, e.name) {
			continue
		}
		packed, packedInfo, err := openFile(reg.root, name+e.suffix)
		if err != nil {
			continue
		}
		// One that is older was made of another file.
		if !packedInfo.Mode().IsRegular() || packedInfo.ModTime().Before(info.ModTime()) {
			packed.Close()
			continue
		}
		f.Close()
		f, info, tag = packed, packedInfo, etag(packedInfo)
		h.Set("Content-Encoding", e.name)
		break
	}
	defer f.Close()
	h.Set("ETag", tag)
	http.ServeContent(w, r, "", info.ModTime(), f)
}

// fileName is a path below the folder; no part of it is hidden or leads up.
func fileName(below string) (string, bool) {
	name := strings.Trim(below, "/")
	if name == "" {
		return ".", true
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || strings.HasPrefix(part, ".") || strings.ContainsAny(part, "\\\x00") {
			return "", false
		}
	}
	return name, true
}

// openFile does not wait for anybody who might write into a pipe.
func openFile(root *os.Root, name string) (*os.File, fs.FileInfo, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// redirect goes to the same address with a slash, wherever that is seen from.
func redirect(w http.ResponseWriter, r *http.Request) {
	u := *r.URL
	to := "./" + path.Base(u.EscapedPath()) + "/"
	if u.RawQuery != "" {
		to += "?" + u.RawQuery
	}
	w.Header().Set("Location", to)
	page(w, http.StatusMovedPermanently, "this is a folder")
}

func contentType(name string) string {
	if t := contentTypes[strings.ToLower(path.Ext(name))]; t != "" {
		return t
	}
	return "application/octet-stream"
}

// etag differs whenever the file was written or replaced.
func etag(info fs.FileInfo) string {
	inode := uint64(0)
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		inode = uint64(s.Ino)
	}
	return fmt.Sprintf(`"%x-%x-%x"`, inode, info.ModTime().UnixNano(), info.Size())
}

// accepts reports whether the client takes an encoding; q=0 says that it does not.
func accepts(header http.Header, encoding string) bool {
	for _, value := range header["Accept-Encoding"] {
		for part := range strings.SplitSeq(value, ",") {
			name, q, _ := strings.Cut(part, ";")
			if !strings.EqualFold(strings.TrimSpace(name), encoding) {
				continue
			}
			q = strings.ReplaceAll(strings.ToLower(q), " ", "")
			return strings.TrimRight(strings.TrimPrefix(q, "q="), "0.") != "" || q == ""
		}
	}
	return false
}
