package main

import (
	"flag"
	"fmt"

	"appplatform/agent"
)

const firstbootHelp = `usage: apagent firstboot [--dry-run]

Started by rcS of both systems, behind apagent mount and before the network.
Looks for a configuration of this machine: platform.json on a USB stick or on
/mnt/sda1, and on a virtual machine what its hypervisor says. The first that is
there decides. It is checked as a whole, stored, and not applied again until it
says something else, so that what people change later stays. A bad one is
refused as a whole.

  --dry-run  print the channel and the steps, without secrets, and change nothing
`

func (c command) firstboot(args []string) error {
	f := flag.NewFlagSet("apagent firstboot", flag.ContinueOnError)
	dry := f.Bool("dry-run", false, "")
	if err := c.parse(f, args, firstbootHelp, 0); err != nil {
		return err
	}
	if *dry {
		return c.dryFirstboot()
	}
	consoles := agent.OpenConsoles()
	defer consoles.Close()
	m, err := agent.This(agent.NewLog(consoles))
	if err != nil {
		return err
	}
	if agent.FirstBoot(c.ctx, m) != nil {
		return errReported
	}
	return nil
}

func (c command) dryFirstboot() error {
	m, err := agent.This(agent.NewLog(c.out))
	if err != nil {
		return err
	}
	plan, err := agent.PlanFirstBoot(c.ctx, m)
	if err != nil {
		return err
	}
	if plan.Channel == "" {
		fmt.Fprintln(c.out, "there is no first-boot configuration")
		return nil
	}
	fmt.Fprintln(c.out, plan.Title())
	if plan.Applied {
		fmt.Fprintln(c.out, "it was applied before, and nothing in it has changed since")
	}
	c.printSteps(plan.Steps)
	return nil
}
