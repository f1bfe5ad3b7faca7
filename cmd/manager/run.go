package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"appplatform/manager"
)

const usage = `usage: manager VERB [ARGUMENTS]

  status               tell whether the manager answers, and what is to be known
  apps                 list the apps that are installed
  instances            list their instances
  store                list what the store offers
  install APP BUILD    install an app of the store, or another build of it
  start|stop|restart APP
  logs [-f] [NAME]     list the logs, or print one; -f: and what comes
  jobs                 list what is under way, and what has ended
  password             set the manager's password, which is read from standard input
  request METHOD PATH  any request of the REST API; a body is read from standard input

  launch               start the manager, and again when it has ended (S92manager)
  run                  be the manager
  end                  end a manager that has no guardian
  --version

Not on a device: --root FOLDER of the machine, --run FOLDER of the sockets,
--postgresql FOLDER of the server's socket, --http and --https ADDRESS to listen at

EXIT STATUS
  0  done
  1  not done, the reason is on standard error
  2  wrong arguments
  3  run: a manager is to be started again
`

// A command is one call.
type command struct {
	client    *manager.Client
	o         manager.Options
	in        io.Reader
	out, errs io.Writer
	signals   chan os.Signal
	ctx       context.Context
}

// errUsage is a call with wrong arguments.
var errUsage = errors.New("wrong arguments")

// run is the program.
func run(args []string, version string, signals chan os.Signal, in io.Reader, out, errs io.Writer) int {
	f := flag.NewFlagSet("manager", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	o := manager.Options{Version: version}
	f.StringVar(&o.Root, "root", "", "")
	f.StringVar(&o.Run, "run", "", "")
	f.StringVar(&o.PostgreSQL, "postgresql", "", "")
	f.StringVar(&o.HTTP, "http", "", "")
	f.StringVar(&o.HTTPS, "https", "", "")
	show := f.Bool("version", false, "")
	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp), err == nil && f.Arg(0) == "help":
		fmt.Fprint(out, usage)
		return 0
	case err == nil && *show:
		fmt.Fprintln(out, "manager", version)
		return 0
	case err != nil || f.NArg() == 0:
		fmt.Fprint(errs, usage)
		return 2
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := command{manager.NewClient(o), o, in, out, errs, signals, ctx}
	verb, rest := f.Arg(0), f.Args()[1:]
	if slices.Contains(rest, "--help") {
		fmt.Fprint(out, usage)
		return 0
	}
	switch verb {
	case "run":
		status, err := manager.Main(o, signals)
		if err != nil {
			fmt.Fprintln(errs, "manager:", err)
		}
		return status
	case "launch":
		err = manager.Launch(ctx, o, signals)
	default:
		go func() {
			<-signals
			cancel()
		}()
		err = c.do(verb, rest)
	}
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprintf(errs, "manager: wrong arguments for %s\nhint: manager --help\n", verb)
		return 2
	case err != nil && ctx.Err() == nil:
		fmt.Fprintln(errs, "manager:", err)
		return 1
	}
	return 0
}

func (c command) do(verb string, args []string) error {
	verbs := map[string]struct {
		most int
		do   func([]string) error
	}{
		"status": {0, c.status}, "apps": {0, c.apps}, "instances": {0, c.instances}, "store": {0, c.store}, "install": {2, c.install},
		"start": {1, c.service("start")}, "stop": {1, c.service("stop")}, "restart": {1, c.service("restart")},
		"logs": {2, c.logs}, "jobs": {0, c.jobs}, "password": {0, c.password}, "request": {2, c.request}, "end": {0, c.end},
	}
	v, ok := verbs[verb]
	if !ok || len(args) > v.most {
		return errUsage
	}
	return v.do(args)
}

// table prints lines of columns.
func (c command) table(print func(w io.Writer)) error {
	w := tabwriter.NewWriter(c.out, 0, 8, 2, ' ', 0)
	print(w)
	return w.Flush()
}

type notice struct{ Severity, Text, Hint string }

func (c command) status([]string) error {
	var s struct{ Image, Manager, Webserver, PostgreSQL string }
	var notices []notice
	if err := c.client.Get(c.ctx, "/notices", &notices); err != nil {
		return err
	}
	if err := c.client.Get(c.ctx, "/system", &s); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "manager %s, webserver %s, PostgreSQL %s, image %s\n", known(s.Manager), known(s.Webserver), known(s.PostgreSQL), known(s.Image))
	for _, n := range notices {
		fmt.Fprintf(c.out, "%s: %s\n", n.Severity, n.Text)
		if n.Hint != "" {
			fmt.Fprintf(c.out, "hint: %s\n", n.Hint)
		}
	}
	return nil
}

func known(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

type service struct {
	ID, Build, State, Problem string
	Memory                    int64
	Instances                 []instance
}

type instance struct {
	ID                        int64
	Name, Domain, Path, State string
	Problem, DBName           string
	DatabaseSize              int64
}

func (c command) apps([]string) error {
	var list []service
	if err := c.client.Get(c.ctx, "/services", &list); err != nil {
		return err
	}
	return c.table(func(w io.Writer) {
		fmt.Fprintln(w, "APP\tBUILD\tSTATE\tMEMORY\tINSTANCES\tPROBLEM")
		for _, s := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%d MB\t%d\t%s\n", s.ID, s.Build, s.State, s.Memory/1e6, len(s.Instances), firstLine(s.Problem))
		}
	})
}

func (c command) instances([]string) error {
	var list []service
	if err := c.client.Get(c.ctx, "/services", &list); err != nil {
		return err
	}
	return c.table(func(w io.Writer) {
		fmt.Fprintln(w, "ID\tAPP\tINSTANCE\tPATH\tDATABASE\tSTATE\tPROBLEM")
		for _, s := range list {
			for _, i := range s.Instances {
				fmt.Fprintf(w, "%d\t%s\t%s@%s\t%s\t%s\t%s\t%s\n", i.ID, s.ID, i.Name, i.Domain, i.Path, i.DBName, i.State, firstLine(i.Problem))
			}
		}
	})
}

func (c command) store([]string) error {
	var list []struct {
		ID, Title, Installed string
		Versions             []struct{ Build, Label, Problem string }
	}
	if err := c.client.Get(c.ctx, "/store?refresh=1", &list); err != nil {
		return err
	}
	return c.table(func(w io.Writer) {
		fmt.Fprintln(w, "APP\tBUILD\tLABEL\tINSTALLED\tPROBLEM")
		for _, a := range list {
			for _, v := range a.Versions {
				mark := ""
				if v.Build == a.Installed {
					mark = "yes"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", a.ID, v.Build, v.Label, mark, firstLine(v.Problem))
			}
		}
	})
}

type job struct {
	ID, Kind, About, Step, Error string
	Started, Ended               time.Time
	Done, Total                  int64
}

// install waits for the end of the job.
func (c command) install(args []string) error {
	if len(args) != 2 {
		return errUsage
	}
	r, err := c.client.Ask(c.ctx, http.MethodPost, "/install", map[string]string{"app": args[0], "build": args[1]})
	if err != nil {
		return err
	}
	var started job
	err = json.NewDecoder(r).Decode(&started)
	r.Close()
	if err != nil {
		return err
	}
	step := ""
	for {
		var list []job
		if err := c.client.Get(c.ctx, "/jobs", &list); err != nil {
			return err
		}
		i := slices.IndexFunc(list, func(j job) bool { return j.ID == started.ID })
		if i < 0 {
			return errors.New("the job is not known any more: the manager was restarted")
		}
		if list[i].Step != step {
			step = list[i].Step
			fmt.Fprintln(c.out, step)
		}
		if list[i].Error != "" {
			return errors.New(list[i].Error)
		}
		if !list[i].Ended.IsZero() {
			return nil
		}
		select {
		case <-c.ctx.Done():
			return c.ctx.Err()
		case <-time.After(300 * time.Millisecond):
		}
	}
}

func (c command) service(verb string) func([]string) error {
	return func(args []string) error {
		if len(args) != 1 {
			return errUsage
		}
		r, err := c.client.Ask(c.ctx, http.MethodPost, "/services/"+url.PathEscape(args[0])+"/"+verb, nil)
		if err != nil {
			return err
		}
		return r.Close()
	}
}

func (c command) logs(args []string) error {
	follow := ""
	if len(args) > 0 && args[0] == "-f" {
		follow, args = "?follow=1", args[1:]
	}
	if len(args) == 0 {
		var names []string
		if err := c.client.Get(c.ctx, "/logs", &names); err != nil {
			return err
		}
		for _, name := range names {
			fmt.Fprintln(c.out, name)
		}
		return nil
	}
	return c.print(http.MethodGet, "/logs/"+url.PathEscape(args[0])+follow, nil)
}

func (c command) print(method, path string, body io.Reader) error {
	var sent any
	if body != nil {
		sent = body
	}
	r, err := c.client.Ask(c.ctx, method, path, sent)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(c.out, r)
	return err
}

func (c command) jobs([]string) error {
	var list []job
	if err := c.client.Get(c.ctx, "/jobs", &list); err != nil {
		return err
	}
	return c.table(func(w io.Writer) {
		fmt.Fprintln(w, "JOB\tKIND\tABOUT\tSTEP\tERROR")
		for _, j := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", j.ID, j.Kind, j.About, j.Step, firstLine(j.Error))
		}
	})
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

func (c command) password([]string) error {
	lines := bufio.NewScanner(c.in)
	lines.Scan()
	r, err := c.client.Ask(c.ctx, http.MethodPut, "/passwords/manager", map[string]string{"new": lines.Text()})
	if err != nil {
		return err
	}
	return r.Close()
}

func (c command) request(args []string) error {
	if len(args) != 2 || !strings.HasPrefix(args[1], "/") {
		return errUsage
	}
	var body io.Reader
	if args[0] == http.MethodPost || args[0] == http.MethodPut {
		body = c.in
	}
	return c.print(args[0], args[1], body)
}

func (c command) end([]string) error { return manager.End(c.o, syscall.SIGTERM, time.Minute) }
