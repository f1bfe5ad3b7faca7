// Command manager is the App Platform Manager, its guardian, and its command line
// for the console.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "development"

func main() {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	os.Exit(run(os.Args[1:], version, signals, os.Stdin, os.Stdout, os.Stderr))
}
