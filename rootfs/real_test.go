package rootfs

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTry(t *testing.T) {
	for _, sys := range []string{"system", "ramdisk"} {
		t.Run(sys, func(t *testing.T) {
			b := testBoard(t)
			f, _ := os.Open("/tmp/userland-debs/uris." + sys)
			var debs []Deb
			in := bufio.NewScanner(f)
			for in.Scan() {
				w := strings.Fields(in.Text())
				if len(w) < 3 {
					continue
				}
				p := filepath.Join("/tmp/userland-debs/apt/amd64/var/cache/apt/archives", w[1])
				st, err := os.Stat(p)
				if err != nil {
					t.Fatal(err)
				}
				var d Deb
				d.Name, _, _ = strings.Cut(w[1], "_")
				d.Path = p
				d.Size = st.Size()
				debs = append(debs, d)
			}
			start := time.Now()
			input := Input{Repo: os.DirFS(".."), Board: b, Debs: debs, Log: func(s string) { t.Log(s) },
				Files: []File{{"usr/bin/apagent", 0o755, []byte("#!/bin/sh\n")}}}
			build := System
			if sys == "ramdisk" {
				build = Ramdisk
			}
			tree, err := build(context.Background(), input)
			t.Log(time.Since(start))
			if tree != nil {
				o, _ := os.Create("/tmp/userland-debs/" + sys + ".tar")
				if err := tree.WriteTar(o); err != nil {
					t.Error(err)
				}
				o.Close()
			}
			t.Log(time.Since(start))
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}
