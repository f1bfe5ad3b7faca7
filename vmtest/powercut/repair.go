package powercut

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"appplatform/bundle"
	"appplatform/partitions"
	"appplatform/tooltree"
)

// Whether a file system can be mended, and what it holds then, is left to the
// programs that the device runs. That takes some hundredths of a second, so
// they judge each content of a partition once, and of many contents a sample.

// A volumeState is a partition in a state.
type volumeState struct {
	part  partitions.Partition
	state State
}

// contents collects the different contents of a partition.
type contents struct {
	part   partitions.Partition
	group  *group
	states map[digest]State
	order  []digest // as they were met, so that a seed chooses the same ones
}

func (c *Checker) newContents(number int) *contents {
	p, _ := c.layout.Part(number)
	spans := []span{{int64(p.Start), int64(p.End())}}
	if number == partitions.Data { // The table says where it ends.
		spans = append([]span{{0, int64(partitions.HeadSize)}}, spans...)
	}
	return &contents{part: p, group: c.memo.group("partition", spans, c.plan.Log), states: map[digest]State{}}
}

// partition is one as the table of a state has it, if it does.
func (c *Checker) partition(s volumeState) partitions.Partition {
	if table, err := c.table(c.view(s.state)); err == nil {
		if p, ok := table.Part(s.part.Number); ok {
			return p
		}
	}
	return s.part
}

// add notes a state. Of those with the same content the latest is the
// strictest: most was promised.
func (c *contents) add(l *Log, s State) {
	d := c.group.digest(l, s)
	old, known := c.states[d]
	if !known {
		c.order = append(c.order, d)
	}
	if !known || s.Cut > old.Cut {
		c.states[d] = s
	}
}

// sample are so many of the contents, or all of them.
func (c *contents) sample(most int, random *rand.Rand) []volumeState {
	all := make([]State, len(c.order))
	for i, d := range c.order {
		all[i] = c.states[d]
	}
	var states []volumeState
	for _, s := range spread(all, most, random) {
		states = append(states, volumeState{c.part, s})
	}
	return states
}

// batch is how many partitions one shell looks at.
const batch = 32

// A repaired is what became of partitions.
type repaired struct {
	forced   int // that e2fsck -p has refused
	failures []Failure
}

// repair mends partitions as the device does before it mounts them, and looks
// for what was promised.
func (c *Checker) repair(ctx context.Context, tools *tooltree.Tree, states []volumeState) (repaired, error) {
	var r repaired
	for some := range slices.Chunk(states, batch) {
		// e2fsck waits for the disk, which memory is fast at.
		dir, err := os.MkdirTemp("/dev/shm", "repair")
		if err != nil {
			dir, err = os.MkdirTemp("", "repair")
		}
		if err != nil {
			return r, err
		}
		err = c.repairIn(ctx, tools, dir, some, &r)
		os.RemoveAll(dir)
		if err != nil {
			return r, fmt.Errorf("cannot repair file systems: %w", err)
		}
	}
	return r, nil
}

// repairScript runs in a folder of partitions. Each ext file system has orders
// for debugfs, which copies files out. What e2fsck does not dare to repair the
// device repairs by force: a superblock torn between its two sectors is that.
const repairScript = `
for part in *.ext; do
	[ -e "$part" ] || continue
	e2fsck -p "$part" > "$part.said" 2>&1
	status=$?
	if [ $status -ge 4 ]; then
		touch "$part.forced"
		for again in 1 2; do
			e2fsck -f -y "$part" > "$part.said" 2>&1
			status=$?
			[ $status -ge 4 ] || break
		done
	fi
	echo $status > "$part.status"
	debugfs -f "$part.orders" "$part" > /dev/null 2>&1
done
for part in *.fat; do
	[ -e "$part" ] || continue
	fsck.fat -a "$part" > "$part.said" 2>&1
	echo $? > "$part.status"
done
`

func (c *Checker) repairIn(ctx context.Context, tools *tooltree.Tree, dir string, states []volumeState, r *repaired) error {
	if err := c.findBaseData(); err != nil {
		return err
	}
	paths := make([]string, len(states))
	for i, s := range states {
		kind := "ext"
		if s.part.Type == partitions.TypeMBRFAT32 {
			kind = "fat"
		}
		paths[i] = filepath.Join(dir, fmt.Sprintf("%d.%s", i, kind))
		part := c.partition(s)
		// No repair looks at what the files of an image set hold.
		if err := c.copyTo(paths[i], s.state, span{int64(part.Start), int64(part.End())}, c.metadata); err != nil {
			return err
		}
		var orders strings.Builder
		for j, p := range c.promised(s) {
			fmt.Fprintf(&orders, "dump %s %s.file%d\n", p.Path, paths[i], j)
		}
		for j, name := range marks {
			fmt.Fprintf(&orders, "dump %s %s.mark%d\n", name, paths[i], j)
		}
		if err := os.WriteFile(paths[i]+".orders", []byte(orders.String()), 0o600); err != nil {
			return err
		}
	}
	if err := tools.Run(ctx, tooltree.Cmd{Args: []string{"sh", "-c", repairScript}, Dir: dir, Writable: []string{dir}}); err != nil {
		return err
	}
	for i, s := range states {
		if err := c.judge(paths[i], s); err != nil {
			r.failures = append(r.failures, Failure{s.state, err})
		}
		if _, err := os.Stat(paths[i] + ".forced"); err == nil {
			r.forced++
		}
	}
	return nil
}

// promised is what must be on a partition after a power cut.
func (c *Checker) promised(s volumeState) []Promise {
	var held []Promise
	for _, p := range c.plan.Promises {
		if s.part.Number == partitions.Data && p.HoldsAt(s.state) {
			held = append(held, p)
		}
	}
	return held
}

// judge reads what the programs left beside a partition.
func (c *Checker) judge(path string, s volumeState) error {
	status, err := os.ReadFile(path + ".status")
	if err != nil {
		return err
	}
	// 1 and, of e2fsck, 2: repaired.
	if code := strings.TrimSpace(string(status)); code != "0" && code != "1" && (code != "2" || s.part.Type == partitions.TypeMBRFAT32) {
		said, _ := os.ReadFile(path + ".said")
		return fmt.Errorf("sda%d cannot be repaired, exit status %s: %s", s.part.Number, code, bytes.TrimSpace(said))
	}
	if s.part.Number == partitions.Boot {
		return c.stillBoots(path, s)
	}
	for i, p := range c.promised(s) {
		text, err := os.ReadFile(fmt.Sprintf("%s.file%d", path, i))
		if err != nil {
			return fmt.Errorf("sda2 has lost %s", p.Path)
		}
		if !bytes.Contains(text, []byte(p.Text)) {
			return fmt.Errorf("%s on sda2 has lost %q", p.Path, p.Text)
		}
	}
	return c.goesOn(path, s)
}

// What tells a ramdisk that sda3 is to be written: one of the first two, or that
// the third does not name what it would write.
var marks = []string{"/update/transition.json", "/.installing", "/.installed"}

// goesOn wants a ramdisk that starts beside a half written sda3 to learn of that
// from sda2.
func (c *Checker) goesOn(path string, s volumeState) error {
	v := c.view(s.state)
	table, err := c.table(v)
	if err != nil || !c.installed(table) {
		return nil // It installs.
	}
	boot, _ := table.Part(partitions.Boot)
	choice, err := c.chooses(v, boot, true)
	if err != nil || choice.System {
		return err
	}
	vol, err := c.volume(v, boot)
	if err != nil {
		return err
	}
	set, err := c.set(v, vol, choice.Set)
	if err != nil {
		return err
	}
	rootfs, _ := table.Part(partitions.Rootfs)
	altered := holds(v, rootfs, set)
	if altered == nil {
		return nil
	}
	for i := range marks[:2] {
		if _, err := os.Stat(fmt.Sprintf("%s.mark%d", path, i)); err == nil {
			return nil
		}
	}
	text, _ := os.ReadFile(path + ".mark2")
	if bytes.Contains(text, []byte(set.Rootfs.RawSHA256)) {
		return fmt.Errorf("%v starts and is told by sda2 that sda3 is whole: %w", choice, altered)
	}
	return nil
}

// stillBoots wants a mended sda1 to start the same as before, from files that lie
// where they did. (What they hold is not in the copy.)
func (c *Checker) stillBoots(path string, s volumeState) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	choice, before, err := c.bootFiles(c.view(s.state), s.part)
	if err != nil {
		return err
	}
	mended := &view{disk: &Disk{base: moved{f, int64(s.part.Start)}, size: int64(s.part.End()), log: &Log{}}}
	now, after, err := c.bootFiles(mended, s.part)
	if err != nil {
		return fmt.Errorf("after sda1 was mended: %w", err)
	}
	if now != choice || !reflect.DeepEqual(before, after) {
		return fmt.Errorf("after sda1 was mended %v starts, and %v before, or its files are others", now, choice)
	}
	return nil
}

// moved is a file that begins at another place.
type moved struct {
	f     *os.File
	start int64
}

func (m moved) ReadAt(b []byte, at int64) (int, error) { return m.f.ReadAt(b, at-m.start) }

// bootFiles are what sda1 starts, and where the files of its set are.
func (c *Checker) bootFiles(v *view, boot partitions.Partition) (Choice, []file, error) {
	choice, err := c.chooses(v, boot, false) // The copy has nothing to look at.
	if err != nil {
		return choice, nil, err
	}
	vol, err := c.volume(v, boot)
	if err != nil {
		return choice, nil, err
	}
	var files []file
	names := []string{bundle.ManifestName, bundle.SignatureName, bundle.KernelName, bundle.RamdiskName, bundle.RootfsName}
	if c.plan.Platform.Boot == "grub" {
		names = append(names, bundle.File{Name: bundle.KernelName}.SumName(), bundle.File{Name: bundle.RamdiskName}.SumName())
	}
	for _, name := range names {
		f, err := find(v, vol, choice.Set+"/"+name)
		if err != nil {
			return choice, nil, err
		}
		files = append(files, f)
	}
	return choice, files, nil
}

// copyTo makes a file of a part of a state, with holes where it is empty. Of the
// disk before the plan, data is what counts.
func (c *Checker) copyTo(to string, s State, part span, data []span) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(part.to - part.from); err != nil {
		return err
	}
	spans := c.disk.written(s, part)
	for _, d := range data {
		spans = append(spans, d.cut(part))
	}
	buf := make([]byte, 1<<20)
	for _, some := range merge(spans) {
		for at := some.from; at < some.to; at += int64(len(buf)) {
			b := buf[:min(int64(len(buf)), some.to-at)]
			if _, err := c.disk.read(s, b, at); err != nil {
				return err
			}
			if isZero(b) {
				continue
			}
			if _, err := f.WriteAt(b, at-part.from); err != nil {
				return err
			}
		}
	}
	return f.Close()
}

func isZero(b []byte) bool { return len(b) == 0 || b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:]) }

// findBaseData looks where the disk before the plan is not empty; metadata is
// that without the files of image sets. It is done once, when a copy is needed.
func (c *Checker) findBaseData() error {
	if c.baseData != nil {
		return nil
	}
	inSet, err := c.setBlocks()
	if err != nil {
		return err
	}
	b := make([]byte, block)
	for at := int64(0); at < int64(c.plan.Size); at += block {
		if at, err = nextData(c.plan.Base, at); err == io.EOF {
			break
		}
		n := 0
		if err == nil {
			n, err = c.plan.Base.ReadAt(b, at)
		}
		if err != nil && err != io.EOF {
			return err
		}
		if isZero(b[:n]) {
			continue
		}
		c.baseData = append(c.baseData, span{at, at + int64(n)})
		if !inSet[at/block] {
			c.metadata = append(c.metadata, span{at, at + int64(n)})
		}
	}
	c.baseData, c.metadata = merge(c.baseData), merge(c.metadata)
	return nil
}

// nextData is the first block from a place on that is not in a hole: reading
// holes takes long.
func nextData(f *os.File, at int64) (int64, error) {
	next, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, io.EOF
	}
	return next / block * block, err
}

// block is the unit in which copies leave out what is empty.
const block = 4096

// setBlocks are the blocks that belong to files of image sets, before the plan.
func (c *Checker) setBlocks() (map[int64]bool, error) {
	boot, _ := c.layout.Part(partitions.Boot)
	v := c.view(State{})
	vol, err := c.volume(v, boot)
	if err != nil {
		return nil, err
	}
	blocks := map[int64]bool{}
	for _, set := range []string{"a/", "b/"} {
		for _, name := range []string{bundle.KernelName, bundle.RamdiskName, bundle.RootfsName} {
			f, err := find(v, vol, set+name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			for _, p := range f.pieces { // Rounded inwards: the neighbours are kept.
				for n := (p.at + block - 1) / block; n < (p.at+p.size)/block; n++ {
					blocks[n] = true
				}
			}
		}
	}
	return blocks, nil
}

// WriteTo makes a state a disk that a machine can start from.
func (c *Checker) WriteTo(to string, s State) error {
	err := c.findBaseData()
	if err == nil {
		err = c.copyTo(to, s, span{0, int64(c.plan.Size)}, c.baseData)
	}
	if err != nil {
		return fmt.Errorf("cannot write the state %v: %w", s, err)
	}
	return nil
}
