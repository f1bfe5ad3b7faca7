package main

import (
	"flag"
	"fmt"
	"strconv"

	"appplatform/agent"
)

const gcoreHelp = `usage: apagent gcore [-o FILE] PID

Writes memory and registers of a running process to a core file, for debuggers.
The process stands still meanwhile and then goes on. Only its owner and root may
do that. On gateways the command gdb does it, too:

  gdb --pid PID -ex gcore --batch

  -o FILE  write to FILE; it must not exist. core.PID in this folder if not given

The file holds all that the process knows, passwords included. On a workstation
with Debian's gdb-multiarch, and the very program that ran:

  gdb-multiarch PROGRAM core.PID

EXIT STATUS
  0  the file is complete
  1  there is no file, the reason is on standard error
  2  wrong arguments
`

func (c command) gcore(args []string) error {
	f := flag.NewFlagSet("apagent gcore", flag.ContinueOnError)
	file := f.String("o", "", "")
	if err := c.parse(f, args, gcoreHelp, 1); err != nil {
		return err
	}
	pid, err := strconv.Atoi(f.Arg(0))
	if err != nil || pid <= 0 {
		fmt.Fprint(c.errs, "usage: apagent gcore [-o FILE] PID\nhint: ps aux lists the processes\n")
		return errUsage
	}
	if *file == "" {
		*file = fmt.Sprintf("core.%d", pid)
	}
	if err := agent.Gcore(c.ctx, pid, *file); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "Saved corefile %s\n", *file)
	return nil
}
