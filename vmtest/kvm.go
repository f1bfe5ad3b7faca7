package vmtest

import (
	"context"
	"fmt"
	"os"
	"time"

	"appplatform/partitions"
)

// CanKVM tells whether the processor's virtualization works here, by starting
// a kernel: on some hosts /dev/kvm opens and then no guest gets far. The error
// says why not. Options give the tools and a folder.
func CanKVM(ctx context.Context, o Options, kernel string) error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("cannot use KVM: %w", err)
	}
	f.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	m, err := Start(ctx, Options{
		Tools:    o.Tools,
		Dir:      o.Dir,
		Memory:   256 * partitions.MiB,
		KVM:      true,
		Kernel:   kernel,
		Append:   "console=ttyS0 panic=-1",
		NoReboot: true,
	})
	if err != nil {
		return fmt.Errorf("cannot use KVM: %w", err)
	}
	defer m.Kill()
	// Without a root file system this is as far as a kernel gets.
	if _, err := m.Serial.Expect("Unable to mount root fs", 20*time.Second); err != nil {
		return fmt.Errorf("cannot use KVM: %w", err)
	}
	return nil
}
