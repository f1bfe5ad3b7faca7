package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"appplatform/agent/internal/netconf"
	"appplatform/partitions"
)

// A Terminal is what somebody sits at.
type Terminal struct {
	In         io.Reader
	Out        io.Writer
	Interrupts <-chan os.Signal // Ctrl-C
	Shell      func() error
}

// RescueMenu lets people choose what to do, by number, until they leave. Plain
// lines, because it must work on a serial console and on a screen alike.
func RescueMenu(ctx context.Context, m Machine, t Terminal) error {
	if !m.Ramdisk {
		return errNotHere("show the menu")
	}
	u := &menu{m, t, make(chan answer, 1), false, bufio.NewReader(t.In)}
	u.show(ctx)
	for {
		number, err := u.choose(ctx)
		switch {
		case errors.Is(err, io.EOF) || ctx.Err() != nil:
			fmt.Fprintln(t.Out)
			return nil
		case err != nil:
			return err
		case number == "":
			u.show(ctx)
			continue
		}
		if left := u.act(ctx, number); left {
			return nil
		}
	}
}

type menu struct {
	m Machine
	Terminal
	answers chan answer
	asking  bool // a line is being read
	in      *bufio.Reader
}

type answer struct {
	line string
	err  error
}

// A choice is a line of the menu. What it does returns whether that was the end
// of the menu.
type choice struct {
	what string
	do   func(u *menu, ctx context.Context, m Machine) (left bool, err error)
}

var choices = []choice{
	{"shell, for the commands of a manual; exit comes back here", (*menu).shell},
	{"check the file systems and repair them", (*menu).check},
	{"let the data partition take all of a disk that was enlarged", (*menu).resize},
	{"set the address of this machine", (*menu).setAddress},
	{"re-install the root file system, and keep the data", (*menu).reinstall},
	{"go back to the previous image", (*menu).previous},
	{"start the installed system", leaveBy(StartSystem)},
	{"restart the rescue system", leaveBy(StartRescue)},
	{"switch the machine off", leaveBy(SwitchOff)},
}

// show tells how the machine is, and what can be done.
func (u *menu) show(ctx context.Context) {
	s := GetStatus(ctx, u.m)
	var b strings.Builder
	line := func(what, format string, args ...any) {
		fmt.Fprintf(&b, "  %-9s %s\n", what, strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "\n            "))
	}
	fmt.Fprintf(&b, "\nApp Platform %s, rescue system of %s\n", s.Label, s.Board)
	if s.Disk != "" {
		line("disk", "%s, %s", s.Disk, partitions.Size(s.DiskSize).Short())
	}
	for _, set := range s.Sets {
		mark := ""
		if set.Current {
			mark = ", the current one"
		}
		line("image "+set.Name, "%s%s", set.Label, mark)
	}
	if s.BootDefault != "" {
		line("default", "the %s starts", map[string]string{"system": "installed system", "rescue": "rescue system"}[s.BootDefault])
	}
	for _, r := range s.Repairs[max(0, len(s.Repairs)-3):] {
		line("healed", "%s %s", r.Time.Format("2006-01-02 15:04"), r.What)
	}
	for _, p := range s.Problems {
		line("problem", "%s", p)
	}
	b.WriteByte('\n')
	for i, c := range choices {
		fmt.Fprintf(&b, "  %d  %s\n", i+1, c.what)
	}
	fmt.Fprint(u.Out, b.String())
}

// choose asks for a number. Ctrl-C asks again.
func (u *menu) choose(ctx context.Context) (string, error) {
	for {
		var number string
		err := u.interruptible(ctx, func(ctx context.Context) (err error) {
			number, err = u.ask(ctx, "\nNumber, or Enter for the menu: ")
			return err
		})
		if !errors.Is(err, context.Canceled) || ctx.Err() != nil {
			return number, err
		}
	}
}

// act does what was chosen and says how it went.
func (u *menu) act(ctx context.Context, number string) (left bool) {
	for i, c := range choices {
		if number != fmt.Sprint(i+1) {
			continue
		}
		m := u.m
		m.Log, m.Patience = NewLog(u.Out), 0 // The start has waited for the disk.
		err := u.interruptible(ctx, func(ctx context.Context) (err error) {
			left, err = c.do(u, ctx, m)
			return err
		})
		if errors.Is(err, context.Canceled) {
			err = hinted{errors.New("interrupted"), wayOut(err)}
		}
		if err != nil && !errors.Is(err, io.EOF) { // The next question meets the end again.
			fmt.Fprintf(u.Out, "%s\n", Explain(err))
		}
		return left
	}
	fmt.Fprintf(u.Out, "%q is none of 1 to %d\n", number, len(choices))
	return false
}

// wayOut is the hint of an error that was an interrupt.
func wayOut(err error) string {
	var h hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return "it can be done again"
}

// interruptible does something that Ctrl-C ends.
func (u *menu) interruptible(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	select {
	case <-u.Interrupts: // An earlier one, in the shell.
	default:
	}
	go func() {
		select {
		case <-u.Interrupts:
			cancel()
		case <-ctx.Done():
		}
	}()
	return do(ctx)
}

// ask returns a line. A line that Ctrl-C kept from being read to its end is the
// answer to the next question: a read cannot be taken back.
func (u *menu) ask(ctx context.Context, question string) (string, error) {
	fmt.Fprint(u.Out, question)
	if !u.asking {
		u.asking = true
		go func() {
			line, err := u.in.ReadString('\n')
			u.answers <- answer{strings.TrimSpace(line), err}
		}()
	}
	select {
	case <-ctx.Done():
		fmt.Fprintln(u.Out)
		return "", ctx.Err()
	case a := <-u.answers:
		u.asking = false
		return a.line, a.err
	}
}

// yes asks before something that changes much.
func (u *menu) yes(ctx context.Context, format string, args ...any) (bool, error) {
	fmt.Fprintf(u.Out, format+"\n", args...)
	for {
		text, err := u.ask(ctx, "Do it? [y/n] ")
		if err != nil {
			return false, err
		}
		switch strings.ToLower(text) {
		case "y", "yes":
			return true, nil
		case "n", "no", "":
			fmt.Fprintln(u.Out, "nothing was changed")
			return false, nil
		}
	}
}

func (u *menu) shell(context.Context, Machine) (bool, error) {
	fmt.Fprintln(u.Out, "exit returns to the menu")
	return false, u.Shell()
}

func (u *menu) check(ctx context.Context, m Machine) (bool, error) { return false, CheckDisk(ctx, m) }

func (u *menu) resize(ctx context.Context, m Machine) (bool, error) {
	return false, Resize(ctx, m, false)
}

// setAddress asks for one thing after the other, each until it can be used.
func (u *menu) setAddress(ctx context.Context, m Machine) (bool, error) {
	report, err := NetworkReport(m.Root)
	fmt.Fprint(u.Out, report)
	if err != nil {
		fmt.Fprintln(u.Out, Explain(err))
	}
	var a NetworkArguments
	for _, q := range networkQuestions {
		if a.DHCP {
			break // The server knows the rest.
		}
		for {
			text, err := u.ask(ctx, q.question)
			if err != nil {
				return false, err
			}
			if text == "" && q.field == askAddress {
				fmt.Fprintln(u.Out, "nothing was changed")
				return false, nil
			}
			next, err := answerNetwork(a, q.field, text)
			if err == nil {
				a = next
				break
			}
			fmt.Fprintln(u.Out, err)
		}
	}
	if err := SetNetwork(ctx, m, a); err != nil {
		return false, err
	}
	fmt.Fprintln(u.Out, "The address is set, for the installed system as well.")
	return false, nil
}

// What setAddress asks for.
const (
	askAddress = iota
	askGateway
	askDNS
)

var networkQuestions = []struct {
	field    int
	question string
}{
	{askAddress, "Address such as 192.168.1.20/24, or dhcp (Enter: back): "},
	{askGateway, "Gateway (Enter: none): "},
	{askDNS, "One or two DNS servers (Enter: as they are): "},
}

// answerNetwork adds an answer to what setip is to be called with, and says why
// that would not do.
func answerNetwork(a NetworkArguments, field int, text string) (NetworkArguments, error) {
	switch field {
	case askAddress:
		if a.DHCP = strings.EqualFold(text, "dhcp"); a.DHCP {
			return a, nil
		}
		addr, _, slash := strings.Cut(text, "/")
		if p, err := netip.ParseAddr(addr); err != nil || !p.Is4() || !slash {
			return a, fmt.Errorf("%q is not an IPv4 address with its prefix length, such as 192.168.1.20/24", text)
		}
		a.Addr = text
	case askGateway:
		if p, err := netip.ParseAddr(text); text != "" && (err != nil || !p.Is4()) {
			return a, fmt.Errorf("%q is not an IPv4 address", text)
		}
		a.Gateway = text
	case askDNS:
		servers := strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == ',' })
		if len(servers) > 2 {
			return a, errors.New("two DNS servers at most")
		}
		servers = append(servers, "", "")
		a.DNS1, a.DNS2 = servers[0], servers[1]
	}
	_, err := netconf.Change(netconf.Settings{}, a)
	return a, err
}

func (u *menu) reinstall(ctx context.Context, m Machine) (bool, error) {
	ok, err := u.yes(ctx, "This writes the root file system again, from the current image, and starts it.\nThe data partition with all settings stays as it is.")
	if !ok || err != nil {
		return false, err
	}
	err = Reinstall(ctx, m, "")
	var damaged *DamagedImage
	if errors.As(err, &damaged) && damaged.Other != "" {
		ok, askErr := u.yes(ctx, "%v.\nImage %s (%s) is whole and can be installed in its place.", err, damaged.Other, damaged.OtherLabel)
		if !ok || askErr != nil {
			return false, askErr
		}
		err = Reinstall(ctx, m, damaged.Other)
	}
	return err == nil, err
}

func (u *menu) previous(ctx context.Context, m Machine) (bool, error) {
	label, err := PreviousImage(ctx, m)
	if err != nil {
		return false, err
	}
	ok, err := u.yes(ctx, "This goes back to App Platform %s, which is on trial first: unless it works,\nthe present image comes back. The data partition stays as it is.", label)
	if !ok || err != nil {
		return false, err
	}
	err = Rollback(ctx, m)
	return err == nil, err
}

// leaveBy is a choice that ends the menu.
func leaveBy(how func(context.Context, Machine) error) func(*menu, context.Context, Machine) (bool, error) {
	return func(_ *menu, ctx context.Context, m Machine) (bool, error) {
		err := how(ctx, m)
		return err == nil, err
	}
}
