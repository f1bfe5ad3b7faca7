// Package ext4 makes ext2 and ext4 file systems from a tar stream, without
// root and always the same bytes for the same stream.
package ext4

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"appplatform/partitions"
	"appplatform/tooltree"
)

// A Type is a kind of file system.
type Type string

// The two kinds this project uses.
const (
	// Ext2 is what GRUB and old rescue disks read: no journal, no extents, no
	// checksums.
	Ext2 Type = "ext2"
	// Ext4 is the root file system: extents and checksums of the metadata.
	Ext4 Type = "ext4"
)

// BlockSize is the block size of every file system made here: the page size of
// all boards, so that the kernel maps files without copying.
const BlockSize = 4 * partitions.KiB

// features are listed in full and start from none, so that the defaults of
// another mke2fs version change nothing.
var features = map[Type]string{
	Ext2: "none,ext_attr,filetype,sparse_super,large_file",
	// 64bit is for full-length checksums. flex_bg puts the metadata of all
	// groups side by side, so that a small change of a file touches few pieces
	// of the image. There is no resize_inode: nothing grows these images.
	Ext4: "none,ext_attr,dir_index,filetype,sparse_super,large_file,huge_file,dir_nlink,extra_isize,extent,flex_bg,64bit,metadata_csum",
}

// Options describe one file system.
type Options struct {
	Type  Type
	Label string // at most 16 bytes
	UUID  string // also seeds the hashes of directories and checksums
	Size  partitions.Size
	// Inodes is how many files fit. It decides where the data begins, so keep
	// it the same from image to image.
	Inodes int
	// Journal is for file systems that will be written to.
	Journal bool
	// Time stands in the superblock; times in the tar that are later are
	// reduced to it.
	Time time.Time
	// Offset is where in the output the file system begins.
	Offset partitions.Size
}

// Write makes the file system in the file out, which it creates or, with an
// Offset, expects to hold zeros there. The tar must list every directory
// before what is in it, and a hard link with the mode and owner of its file:
// mke2fs believes the last one it reads.
func Write(ctx context.Context, tools *tooltree.Tree, o Options, tar io.Reader, out string) error {
	if err := o.check(); err != nil {
		return fmt.Errorf("cannot make file system %q: %v", o.Label, err)
	}
	out, err := filepath.Abs(out)
	if err != nil {
		return fmt.Errorf("cannot make file system %q: %v", o.Label, err)
	}
	now := strconv.FormatInt(o.Time.Unix(), 10)
	err = tools.Run(ctx, tooltree.Cmd{
		Args: o.args(out),
		Env: []string{
			"E2FSPROGS_FAKE_TIME=" + now,
			"SOURCE_DATE_EPOCH=" + now,
			"LC_ALL=C.UTF-8", // else names outside ASCII are refused
			"TZ=UTC",
		},
		Stdin:    tar,
		Writable: []string{filepath.Dir(out)},
	})
	if err != nil {
		return fmt.Errorf("cannot make file system %q: %w", o.Label, err)
	}
	return nil
}

func (o Options) check() error {
	switch {
	case features[o.Type] == "":
		return fmt.Errorf("internal error: unknown type %q", o.Type)
	case len(o.Label) > 16:
		return fmt.Errorf("internal error: the label is longer than 16 bytes")
	case o.Size <= 0 || o.Size%BlockSize != 0:
		return fmt.Errorf("internal error: the size %v is no multiple of %v", o.Size, BlockSize)
	case o.Inodes <= 0:
		return fmt.Errorf("internal error: no number of inodes")
	case o.Time.Unix() <= 0:
		return fmt.Errorf("internal error: no time")
	}
	return nil
}

func (o Options) args(out string) []string {
	feat := features[o.Type]
	if o.Journal {
		feat += ",has_journal"
	}
	extended := []string{
		"hash_seed=" + o.UUID,
		"lazy_itable_init=0", // nothing is left for the device to initialize
		"root_owner=0:0",
		"nodiscard",
	}
	if o.Offset > 0 {
		extended = append(extended, fmt.Sprintf("offset=%d", o.Offset))
	}
	return []string{
		"mke2fs", "-q", "-F",
		"-t", string(o.Type),
		"-b", strconv.Itoa(int(BlockSize)),
		"-I", "256", // times beyond 2038
		"-N", strconv.Itoa(o.Inodes),
		"-m", "0", // no blocks reserved for root: all writers are root
		"-L", o.Label,
		"-U", o.UUID,
		"-O", feat,
		"-E", strings.Join(extended, ","),
		"-d", "-",
		out,
		strconv.FormatInt(int64(o.Size/partitions.KiB), 10) + "k",
	}
}
