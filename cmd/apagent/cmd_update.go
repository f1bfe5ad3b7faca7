package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"

	"appplatform/agent"
)

const updateHelp = `usage: apagent update [--force] [--limit-rate=RATE] FILE|URL
       apagent update --status [--json]

Installs an image from an update file (.update), a file of this machine or one
on a web server. The file is fetched to the data partition (run it again and it
goes on where it stopped), checked from end to end and written beside the
running image; then the machine restarts into it. An image that is not for this
machine, not signed with a known key, damaged, or not newer is refused before
anything has changed.

The new image is on trial first: when PostgreSQL answers, everything that
starts at boot runs and the network is there, it stays. Otherwise, or when it
does not start at all, the former image is put back, without anybody's help.

  --force            also the same image again, or an older one
  --limit-rate=RATE  download at most this many bytes a second: 500K, 2M
  --status           tell what is under way and how the last update ended
  --json             for programs
`

const rollbackHelp = `usage: apagent rollback

Restarts into the image that ran before the last update, from the rescue system,
too. It is on trial first, like an update; what is on the data partition stays as
it is.
`

const confirmHelp = `usage: apagent confirm

Started by the installed system when everything else has been started. Ends the
trial of a new image and goes on with an update that was interrupted; without
one it does nothing.
`

func (c command) update(args []string) error {
	f := flag.NewFlagSet("apagent update", flag.ContinueOnError)
	var o agent.UpdateOptions
	f.BoolVar(&o.Force, "force", false, "")
	rate := f.String("limit-rate", "", "")
	status := f.Bool("status", false, "")
	asJSON := f.Bool("json", false, "")
	if err := c.parse(f, args, updateHelp, 1); err != nil {
		return err
	}
	if o.Source = f.Arg(0); *status == (o.Source != "") {
		fmt.Fprint(c.errs, updateHelp)
		return errUsage
	}
	var err error
	if o.Limit, err = parseRate(*rate); err != nil {
		fmt.Fprintf(c.errs, "apagent update: --limit-rate: %v\nhint: apagent update --help\n", err)
		return errUsage
	}
	m, err := agent.This(agent.NewLog(c.out))
	if err != nil {
		return err
	}
	if !*status {
		return agent.Update(c.ctx, m, o)
	}
	u := agent.GetUpdateStatus(m)
	if *asJSON {
		enc := json.NewEncoder(c.out)
		enc.SetIndent("", "  ")
		return enc.Encode(u)
	}
	u.Print(c.out)
	return nil
}

// parseRate reads 500K or 2M, in bytes a second; "" is no limit.
func parseRate(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	unit := int64(1)
	number := text
	for suffix, n := range map[string]int64{"K": 1 << 10, "M": 1 << 20} {
		if rest, ok := strings.CutSuffix(strings.ToUpper(text), suffix); ok {
			number, unit = rest, n
		}
	}
	n, err := strconv.ParseInt(number, 10, 40)
	if err != nil || n <= 0 {
		return 0, fmt.Errorf("%q is not a rate such as 500K or 2M", text)
	}
	return n * unit, nil
}

func (c command) rollback(args []string) error {
	f := flag.NewFlagSet("apagent rollback", flag.ContinueOnError)
	if err := c.parse(f, args, rollbackHelp, 0); err != nil {
		return err
	}
	m, err := agent.This(agent.NewLog(c.out))
	if err != nil {
		return err
	}
	return agent.Rollback(c.ctx, m)
}

func (c command) confirm(args []string) error {
	f := flag.NewFlagSet("apagent confirm", flag.ContinueOnError)
	if err := c.parse(f, args, confirmHelp, 0); err != nil {
		return err
	}
	consoles := agent.OpenConsoles()
	defer consoles.Close()
	log := agent.NewLog(consoles)
	m, err := agent.This(log)
	if err == nil {
		err = agent.Confirm(c.ctx, m)
	}
	if err != nil && !errors.Is(err, c.ctx.Err()) {
		log.Printf("apagent: %s", agent.Explain(err))
		return errReported
	}
	return err
}
