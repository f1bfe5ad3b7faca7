// Command webserver serves the ports of an App Platform for its apps.
package main

import "os"

// version is set by the builder, with -ldflags -X.
var version = "development"

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }
