// badapp misbehaves, for tests of what looks after apps. What it does is said by the
// name that it is called by, so that it can be installed as an app of that name.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"appplatform/internal/wire"
)

func main() {
	flags := flag.NewFlagSet("badapp", flag.ExitOnError)
	service := flags.String("service", "", "")
	manager := flags.String("manager", "", "")
	flags.String("run", "", "")
	flags.Parse(os.Args[1:])
	name := filepath.Base(os.Args[0])
	fmt.Println("this is", name)

	switch name {
	case "crash": // at once
		os.Exit(3)
	case "panic":
		debug.SetTraceback("crash")
		panic("on purpose")
	case "deaf": // connects to nobody, hears no signal
		ignore()
		sleep()
	case "child": // of fork and orphan
		sleep()
	case "orphan": // leaves a child behind, which has left its session
		cmd := again("child")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		cmd.Start()
		fmt.Println("child", cmd.Process.Pid)
		os.Exit(0)
	case "slow": // becomes ready late
		time.Sleep(2 * time.Second)
	}

	if *manager != "" {
		hello(*manager, *service, name == "garbage")
	}
	switch name {
	case "flood": // the log
		line := strings.Repeat("x", 80)
		for n := 0; ; n++ {
			fmt.Println(n, line)
		}
	case "count": // logs a number now and then
		for n := 0; ; n++ {
			fmt.Println("number", n)
			time.Sleep(time.Millisecond)
		}
	case "memory": // all there is
		var all [][]byte
		for {
			part := make([]byte, 1<<20)
			for n := 0; n < len(part); n += 4096 {
				part[n] = 1
			}
			all = append(all, part)
		}
	case "fork": // without end
		for {
			if err := again("child").Start(); err != nil {
				time.Sleep(10 * time.Millisecond)
			}
		}
	case "hang": // says hello, answers nothing more, hears no signal
		ignore()
		sleep()
	}
	sleep()
}

// sleep is for ever. (Go ends a program in which nothing can happen any more.)
func sleep() {
	for {
		time.Sleep(time.Hour)
	}
}

func ignore() { signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGABRT) }

func again(name string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = name
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}

// hello lets the manager believe that all is well: each instance starts.
func hello(socket, service string, garbage bool) {
	c, err := wire.Dial(socket)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if garbage {
		for _, line := range []string{"{", "[]", "null", `{"mt":1}`, strings.Repeat("x", 2*wire.MaxLine), "\x00\xff"} {
			c.Write([]byte(line + "\n"))
		}
	}
	c.Send(wire.Hello{Head: wire.Head{MT: "Hello"}, Protocol: wire.Version, Service: service, Instances: []string{}})
	go func() {
		for {
			m, err := c.Receive()
			if err != nil {
				return
			}
			var start wire.StartInstance
			if m.MT == "StartInstance" && m.Decode(&start) == nil {
				c.Send(wire.StartInstanceResult{Head: wire.Head{MT: "StartInstanceResult", ID: m.ID}, Instance: start.Instance})
			}
		}
	}()
}
