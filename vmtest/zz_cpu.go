package vmtest

import "os"

func cmpCPU() string {
	if c := os.Getenv("VMCPU"); c != "" {
		return c
	}
	return "qemu64"
}
