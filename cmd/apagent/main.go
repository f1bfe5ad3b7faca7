// Command apagent is the one-shot tool of the device: it installs the image,
// mounts the disks, sets the network and tells how things are.
package main

import "os"

func main() { os.Exit(run(os.Args, os.Getenv, os.Stdout, os.Stderr)) }
