package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"appplatform/agent"
)

const resizeHelp = `usage: apagent resize [--dry-run] [--log FILE] [--reboot]

Lets the data partition and its file system take all of a disk that was
enlarged, or finishes a resize that was interrupted. All data are kept; there is
no way back to a smaller disk. It works while the installed system runs, which
uses the room at once, and in the rescue system.

  --dry-run   print the steps and change nothing
  --log FILE  write everything that is printed to FILE as well
  --reboot    in the rescue system: start the installed system afterwards, if
              there was anything to do
`

func (c command) resize(args []string) error {
	f := flag.NewFlagSet("apagent resize", flag.ContinueOnError)
	dry, name, reboot := f.Bool("dry-run", false, ""), f.String("log", "", ""), f.Bool("reboot", false, "")
	if err := c.parse(f, args, resizeHelp, 0); err != nil {
		return err
	}
	out := c.out
	if *name != "" {
		file, err := os.Create(*name)
		if err != nil {
			return fmt.Errorf("cannot keep the log: %w", err)
		}
		defer file.Close()
		out = io.MultiWriter(c.out, file)
	}
	log := agent.NewLog(out)
	m, err := agent.This(log)
	switch {
	case err != nil:
	case *dry:
		err = printResize(c, m, out, *reboot)
	default:
		err = agent.Resize(c.ctx, m, *reboot)
	}
	stopped := m.Ramdisk && errors.Is(err, agent.ErrResizeStopped)
	if err == nil || *name == "" && !stopped {
		return err
	}
	log.Printf("apagent: %s", agent.Explain(err))
	if stopped {
		agent.KeepLog(c.ctx, m)
	}
	return errReported
}

func printResize(c command, m agent.Machine, out io.Writer, reboot bool) error {
	steps, err := agent.PlanResize(c.ctx, m, reboot)
	if err != nil {
		return err
	}
	for i, s := range steps {
		fmt.Fprintf(out, "step %d of %d: %v\n", i+1, len(steps), s)
	}
	return nil
}
