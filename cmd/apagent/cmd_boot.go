package main

import (
	"errors"
	"flag"
	"fmt"

	"appplatform/agent"
)

const bootHelp = `usage: apagent boot
       apagent boot rescue|normal
       apagent boot loaded

boot rescue and boot normal say what the next start and all that follow lead
to: the rescue system, or the installed one. boot loaded is the last thing that
the installed system's init runs: it starts the kernel that an update has
loaded, if any, without the firmware.

Without a word it is started by init in the ramdisk, after the network and before the login prompts:

  ::sysinit:/etc/init.d/rcS
  ::wait:/usr/bin/apagent boot
  tty1::respawn:/sbin/getty 38400 tty1
  ttyS0::respawn:/sbin/getty 115200 ttyS0

Installs the image if it is not installed, finishes an installation that was
interrupted, and reboots. Otherwise this is the rescue system: it starts the
installed system after 60 seconds, unless a key is pressed on a console or
somebody logs in over SSH; root then gets the menu of apagent rescue on a
console. When something is wrong it says so on every console and returns, so that
a login is possible; the log is in /run/install_step1.log and, if there is a data
partition, in /apps/install_step1.log.
`

func (c command) boot(args []string) error {
	f := flag.NewFlagSet("apagent boot", flag.ContinueOnError)
	if err := c.parse(f, args, bootHelp, 1); err != nil {
		return err
	}
	switch f.Arg(0) {
	case "":
		return c.bootRamdisk()
	case "loaded":
		return agent.StartLoaded()
	case "rescue", "normal":
		m, err := agent.This(agent.NewLog(c.out))
		if err != nil {
			return err
		}
		return agent.SetBoot(c.ctx, m, f.Arg(0) == "rescue")
	}
	fmt.Fprint(c.errs, bootHelp)
	return errUsage
}

// bootRamdisk is the ramdisk's work.
func (c command) bootRamdisk() error {
	consoles := agent.OpenConsoles()
	defer consoles.Close()
	log := agent.NewLog(consoles)
	m, err := agent.This(log)
	if err == nil && !m.Ramdisk {
		return errors.New("cannot do this here: apagent boot is for the ramdisk")
	}
	if err == nil {
		err = agent.Start(c.ctx, m, consoles)
	}
	if err != nil {
		log.Printf("apagent: %s", agent.Explain(err))
		if m.Log != nil {
			agent.KeepLog(c.ctx, m)
		}
		if m.Log != nil {
			if e := agent.Retry(c.ctx, m, consoles, err); e != nil {
				log.Printf("apagent: %s", agent.Explain(e))
			}
		}
		log.Printf("Log in as root to look into it; reboot starts again.")
		return errReported
	}
	return nil
}
