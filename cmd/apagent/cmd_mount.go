package main

import (
	"flag"

	"appplatform/agent"
)

const mountHelp = `usage: apagent mount

Started by rcS of both systems, after /proc, /sys, /dev and /run are mounted
and before anything that writes. Checks and repairs the boot and the data
partition and mounts them at /mnt/sda1 and /mnt/sda2.

In the installed system, /etc and /var/lib become writable (changes are kept on
the data partition), /home, /apps and /var/log come from the data partition,
and swap space is used. If the data partition cannot be mounted, these folders
live in memory, /run/app-platform/no-data says why, and people can log in on a
console.

In the ramdisk, passwords, host name, keymap and network settings of the
installed system are taken over; the data partition is not left mounted.

Only when the passwords that count are in /etc/shadow it makes the file
/run/app-platform/passwords, without which no SSH server starts.
`

func (c command) mount(args []string) error {
	f := flag.NewFlagSet("apagent mount", flag.ContinueOnError)
	if err := c.parse(f, args, mountHelp, 0); err != nil {
		return err
	}
	consoles := agent.OpenConsoles()
	defer consoles.Close()
	m, err := agent.This(agent.NewLog(consoles))
	if err != nil {
		return err
	}
	return agent.Mount(c.ctx, m)
}
