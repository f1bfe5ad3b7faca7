package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"appplatform/bundle"
	"appplatform/image"
	"appplatform/internal/cache"
)

var signCommand = command{
	name: "sign", args: "FILE...", summary: "sign update files with a release key",
	help: `
Replaces the signature of update files (.update) that another machine has built
and signed with its development key. Everything in a file is compared with its
manifest before; that it is what you meant to release is for you to know.`,
	flags: func(flags *flag.FlagSet) func(context.Context, *app, []string) error {
		key := flags.String("key", "", "minisign private key `file`; its password is taken from APIMAGE_KEY_PASSWORD")
		return func(_ context.Context, a *app, files []string) error {
			if *key == "" || len(files) == 0 {
				return usagef("name the key and update files")
			}
			for _, file := range files {
				m, err := image.SignUpdate(file, *key, os.Getenv("APIMAGE_KEY_PASSWORD"))
				if err != nil {
					return err
				}
				fmt.Fprintf(a.stdout, "%s: image %s for %s, signed\n", file, m.Label, m.Board)
			}
			return nil
		}
	},
}

var verifyCommand = command{
	name: "verify", args: "FILE|FOLDER...", summary: "check update files, disk images, builds and releases",
	help: `
Reads files from end to end. An update file (.update) is checked as a device does:
signature, sizes, hashes, and that there is nothing else in it. Of a disk image
(.img, .qcow2, .vmdk, .vhdx, .vhd, .ova) the structure is checked, and the first
part of its content's hash is printed, which is the same for all formats of a disk.
Of a folder that a build or a release has made everything is checked: signatures,
hashes, that all formats hold the same disk, the lists of what is in the image, and
the licences. Without --pub, signatures must be by this machine's development key.`,
	flags: func(flags *flag.FlagSet) func(context.Context, *app, []string) error {
		var pubs []string
		flags.Func("pub", "minisign public key `file` to accept; may be given more than once", func(name string) error {
			pubs = append(pubs, name)
			return nil
		})
		return func(ctx context.Context, a *app, files []string) error {
			if len(files) == 0 {
				return usagef("name files or folders")
			}
			for _, file := range files {
				if err := a.verify(ctx, file, pubs); err != nil {
					return err
				}
			}
			return nil
		}
	},
}

func (a *app) verify(ctx context.Context, file string, pubs []string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if !info.IsDir() && filepath.Ext(file) != ".update" {
		c, err := image.VerifyDisk(file)
		if err != nil {
			return err
		}
		fmt.Fprintf(a.stdout, "%s: disk %.12s of %d bytes, good\n", file, c.ID, c.Size)
		return nil
	}
	keys, err := a.publicKeys(pubs)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return image.VerifyFolder(ctx, file, keys, func(f image.Finding) {
			fmt.Fprintf(a.stdout, "%s: %s\n", f.File, f.What)
		})
	}
	m, err := image.VerifyUpdate(ctx, file, keys)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.stdout, "%s: image %s for %s, good\n", file, m.Label, m.Board)
	return nil
}

// publicKeys reads the keys that were named, or that of this cache.
func (a *app) publicKeys(files []string) ([]string, error) {
	if len(files) == 0 {
		c, err := cache.Default()
		if err != nil {
			return nil, err
		}
		return image.DevelopmentKeys(c)
	}
	var keys []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		key, err := bundle.PublicKey(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}
