package main

import (
	"flag"
	"fmt"

	"appplatform/agent"
)

const diskfreeHelp = `usage: apagent diskfree [--need=SIZE] [--dry-run]

Makes room on a full data partition, in the order of the manual, and stops as
soon as there is enough:

  1. empties /mnt/sda2/empty_if_no_space, which is there for this
  2. deletes the logs of apps, /var/log/apps
  3. deletes core dumps, /var/log/core_dumps
  4. deletes old logs of the system and the logs of the database

Databases and what people have stored are never touched, and no service is
stopped or started; at the end it tells how to go on.

  --need=SIZE  how much is to be free, such as "500 MiB"; 256 MiB if not given
  --dry-run    print the steps and change nothing

EXIT STATUS
  0  so much is free
  1  not enough could be freed, the reason is on standard error
  2  wrong arguments
`

func (c command) diskfree(args []string) error {
	f := flag.NewFlagSet("apagent diskfree", flag.ContinueOnError)
	need := agent.NearlyFull
	f.TextVar(&need, "need", agent.NearlyFull, "")
	dry := f.Bool("dry-run", false, "")
	if err := c.parse(f, args, diskfreeHelp, 0); err != nil {
		return err
	}
	m, err := agent.This(agent.NewLog(c.out))
	if err != nil {
		return err
	}
	if !*dry {
		return agent.Diskfree(c.ctx, m, need)
	}
	steps, err := agent.PlanDiskfree(m, need)
	if err != nil {
		return err
	}
	c.printSteps(steps)
	if len(steps) == 0 {
		fmt.Fprintln(c.out, "nothing would be deleted")
	} else {
		fmt.Fprintf(c.out, "it stops as soon as %v are free\n", need)
	}
	return nil
}
