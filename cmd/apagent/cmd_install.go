package main

import (
	"flag"
	"fmt"

	"appplatform/agent"
)

const installHelp = `usage: apagent install [--dry-run]

Installs the image that this ramdisk belongs to on the disk it was started
from, then reboots into it. What is on the data partition is kept.

  --dry-run  print the steps and change nothing
`

func (c command) install(args []string) error {
	f := flag.NewFlagSet("apagent install", flag.ContinueOnError)
	dry := f.Bool("dry-run", false, "")
	if err := c.parse(f, args, installHelp, 0); err != nil {
		return err
	}
	m, err := agent.This(agent.NewLog(c.out))
	if err != nil {
		return err
	}
	if !*dry {
		return agent.Install(c.ctx, m)
	}
	steps, err := agent.PlanInstall(c.ctx, m)
	if err != nil {
		return err
	}
	c.printSteps(steps)
	return nil
}

// printSteps is what --dry-run does.
func (c command) printSteps(steps []agent.Step) {
	for i, s := range steps {
		fmt.Fprintf(c.out, "step %d of %d: %v\n", i+1, len(steps), s)
	}
}
