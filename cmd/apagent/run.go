package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"appplatform/agent"
)

const usage = `usage: apagent VERB [FLAGS]

  boot      choose what boots; what the ramdisk does: install the image, go on
            with what was interrupted, or wait as a rescue system
  confirm   end the trial of a new image (at the end of every start)
  diskfree  make room on a full data partition
  firstboot apply what a stick, the disk or the hypervisor tells a new machine
  gcore     write memory and registers of a running process to a core file
  install   install the image again and keep the data (in the rescue system)
  mount     mount boot and data partition and the writable folders
  network   start, stop or show the network
  rescue    the menu of the rescue system; check and re-install there
  resize    let the data partition take all of a disk that was enlarged
  rollback  restart into the image that ran before the last update
  setip     set the address of this machine (also as the command setip)
  status    tell board, image, boot default and disk
  tidy      keep logs short and room for a full disk (cron does it)
  update    install an image from an update file, or tell how the last one went

apagent VERB --help tells more.

EXIT STATUS
  0  done
  1  not done, the reason is on standard error
  2  wrong arguments
`

// A command is what a verb does; out and errs are where it prints.
type command struct {
	ctx       context.Context
	getenv    func(string) string
	out, errs io.Writer
}

// errReported is a failure that the consoles have shown.
var errReported = errors.New("reported")

// errUsage is a wrong call whose reason was printed.
var errUsage = errors.New("wrong arguments")

// run is the program. Called as setip it is the verb setip.
func run(args []string, getenv func(string) string, out, errs io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	c := command{ctx, getenv, out, errs}
	verbs := map[string]func(command, []string) error{
		"boot": command.boot, "confirm": command.confirm, "diskfree": command.diskfree, "firstboot": command.firstboot, "gcore": command.gcore, "install": command.install,
		"mount": command.mount, "network": command.network, "rescue": command.rescue, "resize": command.resize, "rollback": command.rollback,
		"setip": command.setip, "status": command.status, "tidy": command.tidy, "update": command.update,
	}
	if filepath.Base(args[0]) == "setip" {
		args = append([]string{"apagent", "setip"}, args[1:]...)
	}
	if len(args) < 2 {
		fmt.Fprint(errs, usage)
		return 2
	}
	if args[1] == "--help" || args[1] == "-h" || args[1] == "help" {
		fmt.Fprint(out, usage)
		return 0
	}
	verb, ok := verbs[args[1]]
	if !ok {
		fmt.Fprintf(errs, "apagent: unknown verb %q\nhint: apagent --help lists the verbs\n", args[1])
		return 2
	}
	err := verb(c, args[2:])
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		return 2
	}
	if !errors.Is(err, errReported) {
		text := agent.Explain(err)
		if errors.Is(err, fs.ErrPermission) && !strings.Contains(text, "\nhint: ") {
			text += "\nhint: run it as root (su root)"
		}
		fmt.Fprintf(errs, "apagent: %s\n", text)
	}
	return 1
}

// parse reads the flags of a verb and at most max words behind them. --help
// prints help, which says everything there is to say.
func (c command) parse(f *flag.FlagSet, args []string, help string, max int) error {
	f.SetOutput(io.Discard)
	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(c.out, help)
		return err
	case err != nil:
		fmt.Fprintf(c.errs, "%s: %v\nhint: %s --help\n", f.Name(), err, f.Name())
		return errUsage
	case f.NArg() > max:
		fmt.Fprintf(c.errs, "%s: too many arguments: %s\nhint: %s --help\n", f.Name(), strings.Join(f.Args()[max:], " "), f.Name())
		return errUsage
	}
	return nil
}
