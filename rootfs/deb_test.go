package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"appplatform/archive"
)

// content is what a fabricated package holds, in the order of its archive.
type content []tar.Header

func regular(name string, mode int64, text string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: "./" + name, Mode: mode, Size: int64(len(text)), Linkname: text}
}

// makeDeb writes a package. The text of a regular file is in Linkname.
func makeDeb(t *testing.T, name string, files content) Deb {
	t.Helper()
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	for _, h := range files {
		text := ""
		if h.Typeflag == tar.TypeReg {
			text, h.Linkname = h.Linkname, ""
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var ar bytes.Buffer
	ar.WriteString("!<arch>\n")
	for _, m := range []struct{ name, body string }{{"debian-binary", "2.0\n"}, {"control.tar", ""}, {"data.tar", data.String()}} {
		fmt.Fprintf(&ar, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", m.name, 0, 0, 0, "100644", len(m.body), m.body)
	}
	path := filepath.Join(t.TempDir(), name+".deb")
	if err := os.WriteFile(path, ar.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return Deb{Package: archive.Package{Name: name, Size: int64(ar.Len())}, Path: path}
}

func parseRules(t *testing.T, text string) *rules {
	t.Helper()
	r, err := readRules(repoWith("rootfs/rules/system", text), "rootfs/rules/system")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestUnpack(t *testing.T) {
	shell := makeDeb(t, "shell", content{
		{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755},
		{Typeflag: tar.TypeDir, Name: "./bin/", Mode: 0o700},
		regular("bin/sh", 0o4755, "shell"),
		{Typeflag: tar.TypeLink, Name: "./bin/ash", Linkname: "./bin/sh"},
		{Typeflag: tar.TypeSymlink, Name: "./sbin/init", Linkname: "../bin/sh"},
		regular("usr/share/doc/shell/README", 0o644, "read me"),
		regular("usr/share/doc/shell/copyright", 0o644, "free"),
	})
	gone := Deb{Package: archive.Package{Name: "perl"}, Path: "/nowhere/perl.deb"}
	r := parseRules(t, "skip perl # never opened\nkeep **/copyright # licence\ndrop usr/share/doc/** # documentation")

	tree, err := unpack(context.Background(), []Deb{gone, shell}, r, memo{})
	if err != nil {
		t.Fatal(err)
	}
	want := "usr usr/bin usr/bin/ash usr/bin/sh usr/sbin usr/sbin/init usr/share usr/share/doc usr/share/doc/shell usr/share/doc/shell/copyright"
	if got := strings.Join(tree.Paths(), " "); got != want {
		t.Errorf("Paths() = %s; want %s", got, want)
	}
	sh, _ := tree.Get("usr/bin/sh")
	if sh.Mode != fs.ModeSetuid|0o755 || string(sh.Content) != "shell" {
		t.Errorf("usr/bin/sh = %v %q; want setuid 0755 and its content", sh.Mode, sh.Content)
	}
	if bin, _ := tree.Get("usr/bin"); bin.Mode != fs.ModeDir|0o755 {
		t.Errorf("usr/bin = %v; want 0755, whatever the package says", bin.Mode)
	}
	if ash, _ := tree.Get("usr/bin/ash"); ash.HardLink != "usr/bin/sh" {
		t.Errorf("usr/bin/ash is another name of %q; want usr/bin/sh", ash.HardLink)
	}
}

func TestUnpackRefuses(t *testing.T) {
	one := makeDeb(t, "one", content{regular("bin/tool", 0o755, "1")})
	two := makeDeb(t, "two", content{regular("usr/bin/tool", 0o755, "2")})
	linked := makeDeb(t, "linked", content{
		regular("usr/bin/a", 0o755, "a"),
		{Typeflag: tar.TypeLink, Name: "./usr/bin/b", Linkname: "./usr/bin/a"},
	})
	broken := makeDeb(t, "broken", nil)
	if err := os.WriteFile(broken.Path, []byte("404 not found"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		debs  []Deb
		rules string
		want  string
	}{
		{"same file twice", []Deb{two, one}, "", "/usr/bin/tool is in one and in two"},
		{"other name of a dropped file", []Deb{linked}, "drop usr/bin/a # not needed", "rules keep /usr/bin/b and drop /usr/bin/a"},
		{"not a package", []Deb{broken}, "", "broken.deb"},
		{"package missing", []Deb{{Package: archive.Package{Name: "x"}, Path: "/nowhere/x.deb"}}, "", "/nowhere/x.deb"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := unpack(context.Background(), c.debs, parseRules(t, c.rules), memo{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("unpack() = %v; want an error with %q", err, c.want)
			}
		})
	}
}

func TestUnpackStops(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	deb := makeDeb(t, "one", content{regular("bin/tool", 0o755, "1")})
	if _, err := unpack(ctx, []Deb{deb}, &rules{}, memo{}); err == nil {
		t.Error("unpack() with a cancelled context succeeds; want its error")
	}
}

func TestCopyrights(t *testing.T) {
	const licences = "keep usr/share/doc/*/copyright # licence\nkeep usr/share/doc/* # shared\ndrop usr/share/doc/** # documentation\n"
	tool := func(doc ...tar.Header) Deb {
		return makeDeb(t, "tool", append(content{regular("usr/bin/tool", 0o755, "tool")}, doc...))
	}
	shared := tar.Header{Typeflag: tar.TypeSymlink, Name: "./usr/share/doc/tool", Linkname: "base"}
	base := makeDeb(t, "base", content{regular("usr/share/doc/base/copyright", 0o644, "free"), regular("usr/share/doc/base/README", 0o644, "read me")})
	for _, c := range []struct {
		name  string
		debs  []Deb
		rules string
		want  string // in the error
	}{
		{"own", []Deb{tool(regular("usr/share/doc/tool/copyright", 0o644, "free"))}, licences, ""},
		{"shared", []Deb{tool(shared), base}, licences, ""},
		{"package with the text skipped", []Deb{tool(shared), base}, "skip base # documentation\n" + licences, "/usr/share/doc/tool/copyright"},
		{"link dropped", []Deb{tool(shared), base}, "drop usr/share/doc/tool # documentation\n" + licences, "/usr/share/doc/tool/copyright"},
		{"file dropped", []Deb{tool(regular("usr/share/doc/tool/copyright", 0o644, "free"))}, "drop usr/share/doc/** # documentation\n", "/usr/share/doc/tool/copyright"},
		{"nothing of the package kept", []Deb{tool()}, "drop usr/bin/tool # not needed\n", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree, err := unpack(context.Background(), c.debs, parseRules(t, c.rules), memo{})
			if err != nil {
				t.Fatal(err)
			}
			if err := checkCopyrights(tree); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("checkCopyrights() = %v; want %q", err, c.want)
			}
		})
	}
}
