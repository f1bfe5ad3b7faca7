package main

import (
	"flag"
	"fmt"

	"appplatform/agent"
)

const setipHelp = `usage: setip --addr=ADDRESS --mask=MASK [--gateway=ADDRESS] [--dns1=ADDRESS] [--dns2=ADDRESS]
       setip --dhcp [--dns1=ADDRESS] [--dns2=ADDRESS]
       setip --addr6=ADDRESS/LENGTH [--gateway6=ADDRESS]
       setip

Sets the address of the first network card, at once and for every later start.
Image updates and the rescue system keep it. Without arguments it shows the
settings.

  --addr=192.168.1.20      IPv4 address; 192.168.1.20/24 needs no --mask
  --mask=255.255.255.0     network mask, or the prefix length: --mask=24
  --gateway=192.168.1.1    router
  --dns1=, --dns2=         DNS servers, IPv4 or IPv6
  --dhcp                   let a DHCP server choose (the default)
  --addr6=2001:db8::20/64  IPv6 address with prefix length
  --addr6=auto             let the routers of the network choose (the default)
  --gateway6=fe80::1       IPv6 router

EXIT STATUS
  0  done
  1  refused or not effective, the reason is on standard error
  2  wrong arguments
`

func (c command) setip(args []string) error {
	f := flag.NewFlagSet("setip", flag.ContinueOnError)
	var a agent.NetworkArguments
	f.StringVar(&a.Addr, "addr", "", "")
	f.StringVar(&a.Mask, "mask", "", "")
	f.StringVar(&a.Gateway, "gateway", "", "")
	f.StringVar(&a.DNS1, "dns1", "", "")
	f.StringVar(&a.DNS2, "dns2", "", "")
	f.StringVar(&a.Addr6, "addr6", "", "")
	f.StringVar(&a.Gateway6, "gateway6", "", "")
	f.BoolVar(&a.DHCP, "dhcp", false, "")
	if err := c.parse(f, args, setipHelp, 0); err != nil {
		return err
	}
	if a == (agent.NetworkArguments{}) {
		report, err := agent.NetworkReport("/")
		fmt.Fprint(c.out, report)
		return err
	}
	m, err := agent.This(agent.NewLog(c.out))
	if err != nil {
		return err
	}
	return agent.SetNetwork(c.ctx, m, a)
}
