package main

import (
	"encoding/json"
	"flag"

	"appplatform/agent"
)

const statusHelp = `usage: apagent status [--json] [--verify]

Tells board, image, sets, boot default, trial state, disk, the last line of the
install log, and what the machine has put right by itself.

  --json    for programs
  --verify  also read the images on the boot partition and the installed system
            from end to end, and tell what is damaged
`

func (c command) status(args []string) error {
	f := flag.NewFlagSet("apagent status", flag.ContinueOnError)
	asJSON := f.Bool("json", false, "")
	verify := f.Bool("verify", false, "")
	if err := c.parse(f, args, statusHelp, 0); err != nil {
		return err
	}
	m, err := agent.This(agent.NewLog(c.errs))
	if err != nil {
		return err
	}
	s := agent.GetStatus(c.ctx, m)
	if *verify {
		s.Verify(c.ctx, m)
	}
	if *asJSON {
		enc := json.NewEncoder(c.out)
		enc.SetIndent("", "  ")
		return enc.Encode(s)
	}
	s.Print(c.out)
	return nil
}
