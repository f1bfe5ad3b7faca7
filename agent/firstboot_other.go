//go:build !amd64

package agent

import "appplatform/agent/internal/firstboot"

// vmChannels are none on a gateway, which has no hypervisor.
func (m Machine) vmChannels([]medium) []firstboot.Channel { return nil }
