package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"appplatform/agent/internal/netconf"
)

// NetworkArguments are what setip is called with, as typed.
type NetworkArguments = netconf.Arguments

// StartNetwork makes the stored settings effective. With settings that cannot
// be read it falls back to DHCP, so that the machine stays reachable, and
// still returns why.
func StartNetwork(root string) error {
	s, err := netconf.Load(root)
	if startErr := netconf.Start(root, s); startErr != nil {
		return startErr
	}
	return err
}

// StopNetwork takes the addresses away again.
func StopNetwork(root string) error { return netconf.Stop(root) }

// NetworkLease does what the DHCP client asks its script to.
func NetworkLease(root, event string, getenv func(string) string) error {
	return netconf.OnLease(root, event, getenv)
}

// UpdateDNS takes over the DNS servers that the manager's settings add.
func UpdateDNS(root string) error { return netconf.UpdateDNS(root) }

// NetworkReport tells the stored settings and those in effect.
func NetworkReport(root string) (string, error) {
	s, err := netconf.Load(root)
	if err != nil {
		return "", err
	}
	now, err := netconf.Report(root)
	return "settings " + s.String() + "\n" + now, err
}

// SetNetwork checks and stores new settings and makes them effective at once.
// In the ramdisk they are also stored for the installed system. Without a data
// partition that can be used they are effective all the same: people copy from
// such a machine what they can.
func SetNetwork(ctx context.Context, m Machine, a NetworkArguments) error {
	s, err := changedSettings(m.Root, a)
	if err != nil {
		return err
	}
	var storeErr error
	if m.Ramdisk {
		storeErr = m.storeForSystem(ctx, s)
	}
	if err := s.Save(m.path(netconf.File)); err != nil {
		return err
	}
	return errors.Join(storeErr, netconf.Start(m.Root, s))
}

// changedSettings forgives an unreadable file: setting the address anew is how
// people mend it.
func changedSettings(root string, a NetworkArguments) (netconf.Settings, error) {
	before, err := netconf.Load(root)
	if err != nil {
		before = netconf.Settings{}
	}
	return netconf.Change(before, a)
}

func (m Machine) storeForSystem(ctx context.Context, s netconf.Settings) error {
	d, err := m.findDisk(ctx)
	if err != nil {
		return fmt.Errorf("the settings last until the next start: %w", err)
	}
	if !installedTable(d.table) {
		return withHint("wait until the image is installed and set the address then",
			"the settings last until the next start: there is no data partition yet")
	}
	unlock, err := m.lockRescue()
	if err != nil {
		return fmt.Errorf("the settings last until the next start: %w", err)
	}
	defer unlock()
	err = m.withData(ctx, d, func() error {
		if err := makeSkeleton(m.path(dataDir)); err != nil {
			return err
		}
		// Otherwise the next start would apply it, over what is set now.
		if offer, found := m.pendingFirstBoot(); found {
			if err := (storeFirstBoot{offer}).Do(ctx, m); err != nil {
				return err
			}
		}
		return s.Save(m.path(filepath.Join(dataDir, etcUpper, filepath.Base(netconf.File))))
	})
	if err != nil {
		return fmt.Errorf("the settings last until the next start: %w", err)
	}
	return nil
}
