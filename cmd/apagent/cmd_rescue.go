package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"appplatform/agent"
)

const rescueHelp = `usage: apagent rescue
       apagent rescue check
       apagent rescue reinstall [--dry-run] [a|b]

For the rescue system. Without a word it shows the menu that root gets on a
console there: shell, check, resize, address, re-install, previous image,
restart. Ctrl-C ends what was chosen, Ctrl-D the menu.

check      checks the file systems of the disk from end to end and repairs what
           it can; the report is at the end of /apps/install_step1.log as well
reinstall  writes the root file system again from the current image, or from
           the one in a or b, checked by its signature, and restarts into it;
           the data partition stays as it is. It may be interrupted: the next
           start goes on

  --dry-run  print the steps and change nothing

What was repaired at a start, without anybody, is in apagent status and in
/apps/install_step1.log.

EXIT STATUS
  0  done
  1  not done or not everything whole, the reason is on standard error
  2  wrong arguments
`

func (c command) rescue(args []string) error {
	f := flag.NewFlagSet("apagent rescue", flag.ContinueOnError)
	word := ""
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		word, args = args[0], args[1:]
	}
	dry := false
	if word == "reinstall" {
		f.BoolVar(&dry, "dry-run", false, "")
	}
	max := map[string]int{"reinstall": 1}[word]
	if err := c.parse(f, args, rescueHelp, max); err != nil {
		return err
	}
	set := f.Arg(0)
	switch {
	case word != "" && word != "check" && word != "reinstall", set != "" && set != "a" && set != "b":
		fmt.Fprint(c.errs, rescueHelp)
		return errUsage
	}
	m, err := agent.This(agent.NewLog(c.out))
	if err != nil {
		return err
	}
	switch {
	case word == "check":
		return agent.CheckDisk(c.ctx, m)
	case dry:
		steps, err := agent.PlanReinstall(c.ctx, m, set)
		c.printSteps(steps)
		return err
	case word == "reinstall":
		return agent.Reinstall(c.ctx, m, set)
	}
	return c.rescueMenu(m)
}

// rescueMenu has Ctrl-C end what was chosen and not the menu; Ctrl-Z, which
// would leave people in the shell that has started it, does nothing.
func (c command) rescueMenu(m agent.Machine) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("cannot show the menu: %w", fs.ErrPermission)
	}
	ctx, stop := signal.NotifyContext(context.WithoutCancel(c.ctx), syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt)
	defer signal.Stop(interrupts)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGTSTP)
	return agent.RescueMenu(ctx, m, agent.Terminal{In: os.Stdin, Out: c.out, Interrupts: interrupts, Shell: menuShell})
}

// menuVariable tells /etc/profile that this shell is the menu's.
const menuVariable = "APAGENT_RESCUE"

// menuShell lets people work in a login shell and takes the terminal back.
func menuShell() error {
	shell := exec.Command("sh", "-l")
	shell.Env = append(os.Environ(), menuVariable+"=1")
	shell.Stdin, shell.Stdout, shell.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := shell.Run()
	// A shell that was killed did not do so itself.
	signal.Ignore(syscall.SIGTTOU)
	_ = unix.IoctlSetPointerInt(int(os.Stdin.Fd()), unix.TIOCSPGRP, unix.Getpgrp()) // No terminal, no matter.
	signal.Reset(syscall.SIGTTOU)
	if errors.As(err, new(*exec.ExitError)) {
		return nil // The status of its last command.
	}
	return err
}
