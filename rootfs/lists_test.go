package rootfs

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"appplatform/boards"
)

// repoWith is a repository of the given files: name, content, name, content...
func repoWith(files ...string) fstest.MapFS {
	repo := fstest.MapFS{}
	for i := 0; i < len(files); i += 2 {
		repo[files[i]] = &fstest.MapFile{Data: []byte(files[i+1])}
	}
	return repo
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"usr/bin/perl", "usr/bin/perl", true},
		{"usr/bin/perl", "usr/bin", false},
		{"usr/bin/perl", "usr/bin/perl/x", false},
		{"usr/bin/perl*", "usr/bin/perl5.40", true},
		{"usr/*/perl", "usr/bin/perl", true},
		{"usr/*/perl", "usr/lib/x/perl", false},
		{"usr/share/man/**", "usr/share/man/man1/ls.1", true},
		{"usr/share/man/**", "usr/share/man", false},
		{"usr/share/man/**", "usr/share/manual", false},
		{"usr/lib/**/*.a", "usr/lib/libc.a", true},
		{"usr/lib/**/*.a", "usr/lib/x86_64-linux-gnu/libc.a", true},
		{"usr/lib/**/*.a", "usr/lib/libc.so", false},
		{"**", "anything/at/all", true},
		{"lib*", "lib64", true},
		{"lib*", "lib/x", false},
	} {
		g, err := newGlob(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.match(c.name); got != c.want {
			t.Errorf("%q matches %q = %v; want %v", c.pattern, c.name, got, c.want)
		}
	}
}

func TestSystemPackages(t *testing.T) {
	repo := repoWith(
		"rootfs/packages/system", "# common\nbusybox # shell\n\npostgresql-17\n",
		"boards/gw/packages", "uboot-tools\n")
	got, err := SystemPackages(repo, boards.Board{Name: "gw"})
	if want := []string{"busybox", "postgresql-17", "uboot-tools"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("SystemPackages() = %v, %v; want %v", got, err, want)
	}
}

func TestListsRefuse(t *testing.T) {
	for _, c := range []struct {
		name, text string
		read       func(text string) error
		want       string
	}{
		{"two packages in a line", "busybox wget", packagesError, "rootfs/packages/ramdisk:1: want one package name"},
		{"package twice", "busybox\nbusybox", packagesError, "rootfs/packages/ramdisk:2: busybox is listed twice"},
		{"rule without reason", "drop usr/share/man/**", rulesError, "rootfs/rules/system:1: a rule needs its reason"},
		{"rule without pattern", "# x\ndrop # because", rulesError, "rootfs/rules/system:2: want a verb and a pattern"},
		{"unknown verb", "remove x # because", rulesError, `unknown verb "remove"`},
		{"broken pattern", "drop [x # because", rulesError, "syntax error in pattern"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.read(c.text); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want %q", err, c.want)
			}
		})
	}
}

func packagesError(text string) error {
	_, err := RamdiskPackages(repoWith("rootfs/packages/ramdisk", text), boards.Board{})
	return err
}

func rulesError(text string) error {
	_, err := readRules(repoWith("rootfs/rules/system", text), "rootfs/rules/system")
	return err
}
