package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"appplatform/boards"
	"appplatform/image"
	"appplatform/internal/atomicfile"
	"appplatform/partitions"
	"appplatform/tooltree"
	"appplatform/vmtest"
)

// runFlags say how to start a machine.
type runFlags struct {
	repo, image, controller, size string
	fresh, uefi                   bool
	memory, cpus                  int
	ssh, https                    int
}

var runCommand = command{
	name: "run", args: "BOARD", summary: "start a built image in QEMU",
	help: `
The machine's disk is a copy of the image and is kept from one run to the next,
until the image is built anew or --fresh is given. The terminal is the serial
console: log in as root/iplinux, or over SSH as admin/ipapps. Ctrl-A X ends the
machine like a power cut, poweroff shuts it down.`,
	flags: func(flags *flag.FlagSet) func(context.Context, *app, []string) error {
		var f runFlags
		flags.StringVar(&f.repo, "repo", ".", "`folder` inside the checkout")
		flags.StringVar(&f.image, "image", "", "`file` to start instead of out/BOARD/app-platform-BOARD.img")
		flags.StringVar(&f.controller, "controller", "", "disk `controller`, by default what the board has: "+controllers())
		flags.StringVar(&f.size, "disk", "", "`size` of the disk, such as \"64 GiB\"; by default the board's")
		flags.BoolVar(&f.fresh, "fresh", false, "start from a new copy of the image")
		flags.BoolVar(&f.uefi, "uefi", false, "start from UEFI firmware instead of BIOS")
		flags.IntVar(&f.memory, "memory", 0, "memory in `MiB`, by default the board's")
		flags.IntVar(&f.cpus, "cpus", 1, "`number` of processors")
		flags.IntVar(&f.ssh, "ssh", 2222, "`port` of 127.0.0.1 that leads to SSH; 0 takes a free one")
		flags.IntVar(&f.https, "https", 8443, "`port` of 127.0.0.1 that leads to HTTPS; 0 takes a free one")
		return func(ctx context.Context, a *app, args []string) error {
			board, err := oneBoard(args)
			if err != nil {
				return err
			}
			return f.run(ctx, a, board)
		}
	},
}

func controllers() string {
	var names []string
	for _, c := range vmtest.Controllers {
		names = append(names, string(c))
	}
	return strings.Join(names, ", ")
}

// played is how QEMU plays the boards of an architecture.
var played = map[string]struct {
	arch       vmtest.Arch
	tools      tooltree.Kind
	controller vmtest.Controller
}{
	"amd64": {vmtest.X86, tooltree.VM, vmtest.VirtioSCSI},
	"armel": {vmtest.ARM, tooltree.Gateway, vmtest.AHCI},
	"arm64": {vmtest.ARM64, tooltree.Gateway, vmtest.NVMe},
}

func (f *runFlags) run(ctx context.Context, a *app, name string) error {
	dir, err := image.FindRepository(f.repo)
	if err != nil {
		return err
	}
	board, err := boards.Load(os.DirFS(dir), name)
	if err != nil {
		return err
	}
	o := vmtest.Options{
		Arch: played[board.Arch].arch, Dir: filepath.Join(dir, "out", name, "run"), Terminal: true,
		Memory: board.Memory, CPUs: f.cpus, Watchdog: true, Stderr: a.stderr,
		Forward: map[int]int{22: f.ssh, 443: f.https},
	}
	if f.uefi && o.Arch != vmtest.X86 {
		return usagef("%s starts from U-Boot, not from UEFI", name)
	}
	if f.uefi {
		o.Firmware = vmtest.UEFI
	}
	if f.memory > 0 {
		o.Memory = partitions.Size(f.memory) * partitions.MiB
	}
	disk, err := f.disk(a, board, dir, o.Dir)
	if err != nil {
		return err
	}
	controller := vmtest.Controller(f.controller)
	if controller == "" {
		controller = played[board.Arch].controller
	}
	o.Disks = []vmtest.Disk{{Path: disk, Controller: controller}}
	archive, err := a.archive(ctx)
	if err != nil {
		return err
	}
	archive.Log = func(text string) { fmt.Fprintln(a.stderr, text) }
	if o.Tools, err = image.OpenTools(ctx, archive, played[board.Arch].tools, nil); err != nil {
		return err
	}
	probe := f.probe(ctx, &o, filepath.Join(dir, "out", name))
	m, err := vmtest.Start(ctx, o)
	if err != nil {
		return err
	}
	if probe != nil {
		fmt.Fprintf(a.stderr, "without KVM, so slower (%v)\r\n", probe)
	}
	fmt.Fprintf(a.stderr, "ssh -p %d admin@127.0.0.1    https://127.0.0.1:%d/    Ctrl-A X ends the machine\r\n", m.Port(22), m.Port(443))
	return m.Wait()
}

// probe turns KVM on if a machine starts with it; otherwise it says why not.
func (f *runFlags) probe(ctx context.Context, o *vmtest.Options, out string) error {
	if o.Arch != vmtest.X86 {
		return errors.New("another processor than this machine's")
	}
	kernel, err := image.BuiltKernel(out)
	if err == nil {
		err = vmtest.CanKVM(ctx, *o, kernel)
	}
	o.KVM = err == nil
	return err
}

// disk returns the machine's disk, copied from the image if there is none yet
// or if the image is newer.
func (f *runFlags) disk(a *app, board boards.Board, dir, state string) (string, error) {
	img, err := filepath.Abs(f.image)
	if err != nil {
		return "", err
	}
	if f.image == "" {
		img = filepath.Join(dir, "out", board.Name, "app-platform-"+board.Name+".img")
	}
	source, err := os.Stat(img)
	if err != nil {
		return "", fmt.Errorf("cannot start %s: %w\nhint: apimage build %s makes the image", board.Name, err, board.Name)
	}
	size := max(partitions.Size(source.Size()), board.Disk) // A gateway's image is cut off.
	if f.size != "" {
		if size, err = partitions.ParseSize(f.size); err != nil {
			return "", usageError{err}
		}
	}
	if err := os.MkdirAll(state, 0o755); err != nil {
		return "", err
	}
	disk := filepath.Join(state, "disk.img")
	// The disk is gone on with if it was copied from this very image.
	copied := fmt.Sprintf("%s %d %d %d\n", img, source.Size(), source.ModTime().UnixNano(), size)
	if before, err := os.ReadFile(disk + ".from"); err == nil && string(before) == copied && !f.fresh {
		if _, err := os.Stat(disk); err == nil {
			fmt.Fprintf(a.stderr, "going on with %s (--fresh starts from the image)\n", disk)
			return disk, nil
		}
	}
	// A machine that still runs keeps the disk it has open.
	if err := vmtest.CopyDisk(disk+".part", img, size); err != nil {
		return "", err
	}
	if err := os.Rename(disk+".part", disk); err != nil {
		return "", err
	}
	return disk, atomicfile.Write(disk+".from", []byte(copied), 0o644)
}
