package main

import (
	"errors"
	"flag"
	"fmt"

	"appplatform/agent"
)

const networkHelp = `usage: apagent network start|stop|restart|status|dns
       apagent network lease EVENT

Makes the settings of /etc/network.json effective on the first network card,
takes the addresses away, or shows them. Without settings, DHCP is used. dns takes
over the servers of /etc/network-dns.conf, which the manager's settings are in. lease
is called by the DHCP client through its script.
`

func (c command) network(args []string) error {
	f := flag.NewFlagSet("apagent network", flag.ContinueOnError)
	if err := c.parse(f, args, networkHelp, 2); err != nil {
		return err
	}
	const root = "/"
	switch f.Arg(0) {
	case "start":
		return agent.StartNetwork(root)
	case "stop":
		return agent.StopNetwork(root)
	case "restart":
		return errors.Join(agent.StopNetwork(root), agent.StartNetwork(root))
	case "status":
		report, err := agent.NetworkReport(root)
		fmt.Fprint(c.out, report)
		return err
	case "dns":
		return agent.UpdateDNS(root)
	case "lease":
		return agent.NetworkLease(root, f.Arg(1), c.getenv)
	}
	fmt.Fprint(c.errs, networkHelp)
	return errUsage
}
