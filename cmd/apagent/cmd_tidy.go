package main

import (
	"flag"

	"appplatform/agent"
)

const tidyHelp = `usage: apagent tidy [--dry-run]

Started by rcS of the installed system and by cron every ten minutes. Makes
/mnt/sda2/empty_if_no_space, 500 MiB for the day the disk is full, if it is
missing and there is room; one that was emptied stays so until it is removed.
Deletes old logs of apps when all of them take more than 512 MiB, or a tenth of
a small disk.

  --dry-run  print the steps and change nothing
`

func (c command) tidy(args []string) error {
	f := flag.NewFlagSet("apagent tidy", flag.ContinueOnError)
	dry := f.Bool("dry-run", false, "")
	if err := c.parse(f, args, tidyHelp, 0); err != nil {
		return err
	}
	m, err := agent.This(agent.NewLog(c.out))
	if err != nil {
		return err
	}
	steps, err := agent.PlanTidy(m)
	if err != nil {
		return err
	}
	if *dry {
		c.printSteps(steps)
		return nil
	}
	return agent.Apply(c.ctx, m, steps)
}
