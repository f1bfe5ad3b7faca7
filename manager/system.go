package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"time"

	"appplatform/internal/run"
	"appplatform/manager/internal/model"
	"appplatform/manager/internal/monitor"
)

// agentStatus is what is read of `apagent status --json`.
type agentStatus struct {
	Label string // of the image that runs
	Trial string
	Sets  []struct {
		Label   string
		Current bool
	}
	Partitions []struct {
		Number      int
		Start, Size int64
		Mount       string
	}
	DiskSize int64 `json:"disk_size"`
	Problems []string
}

// statusFresh is how long that is good for: the agent reads the disk for it.
const statusFresh = time.Minute

// agentStatusNow asks apagent, or remembers what it said.
func (m *Manager) agentStatusNow(ctx context.Context) agentStatus {
	m.signin.mu.Lock()
	s, at := m.signin.status, m.signin.statusAt
	m.signin.mu.Unlock()
	if time.Since(at) < statusFresh || !exists(m.o.Agent) {
		return s
	}
	// One asks, and others take what was known: strangers see the page where one
	// signs in, and must not start a program each.
	if !m.signin.asking.TryLock() {
		return s
	}
	defer m.signin.asking.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	text, err := run.Output(ctx, m.o.Agent, "status", "--json")
	if err == nil {
		s = agentStatus{}
		err = json.Unmarshal(text, &s)
	}
	if err != nil {
		m.o.Log.Warn("cannot tell how the machine is", "error", err)
	}
	m.signin.mu.Lock()
	m.signin.status, m.signin.statusAt = s, time.Now()
	m.signin.mu.Unlock()
	return s
}

// committed is what apagent says when no update is under way.
const committed = "committed"

// checkMachine notes what apagent finds wrong: an update that is not decided yet,
// damage, and what it has put right.
func (m *Manager) checkMachine(ctx context.Context) {
	s := m.agentStatusNow(ctx)
	if s.Trial != "" && s.Trial != committed {
		m.notices.say("image-trial", model.Info, "", "the image is on trial: %s", s.Trial)
	} else {
		m.notices.clear("image-trial")
	}
	if len(s.Problems) > 0 {
		m.notices.say("machine", model.Warning, "apagent status, on the console", "%s", errors.New(s.Problems[0]))
	} else {
		m.notices.clear("machine")
	}
}

// previous is the label of the image that does not run. While an image is on trial,
// the current one is still the one before.
func (s agentStatus) previous() string {
	other := ""
	for _, set := range s.Sets {
		if set.Label != s.Label {
			return set.Label
		}
		if !set.Current {
			other = set.Label // of the same number
		}
	}
	return other
}

// canGrow reports whether there is room behind the last partition: more than the
// table itself needs.
func (s agentStatus) canGrow() bool {
	end := int64(0)
	for _, p := range s.Partitions {
		end = max(end, p.Start+p.Size)
	}
	return end > 0 && s.DiskSize-end > 64<<20
}

// System is described at model.Platform.
func (m *Manager) System(ctx context.Context) (model.System, error) {
	status := m.agentStatusNow(ctx)
	source := monitor.Source{Root: m.o.Root}
	s := model.System{
		Image: m.platform.Label, Previous: status.previous(), Board: m.platform.Board, Arch: m.platform.Arch, Manager: m.o.Version,
		Webserver: m.control.peer().Version, Processors: runtime.NumCPU(), Memory: source.Memory(), Started: source.Started(),
		Addresses: addresses(), CanResize: status.canGrow(),
	}
	m.mu.Lock()
	s.PostgreSQL = m.pgNumber
	m.mu.Unlock()
	s.Disk, s.DiskFree, _ = monitor.Space(m.o.path(dataDir))
	return s, nil
}

// addresses are those that others can reach the machine at.
func addresses() []string {
	list := []string{}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return list
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			list = append(list, n.IP.String())
		}
	}
	slices.Sort(list)
	return list
}

// Samples are described at model.Platform.
func (m *Manager) Samples(_ context.Context, n int) ([]model.Sample, error) {
	return m.monitor.Samples(n), nil
}

// DiskUsage is described at model.Platform: folders, then databases of instances.
func (m *Manager) DiskUsage(context.Context) ([]model.Usage, error) {
	usage := m.walker.Usage(time.Now())
	if usage == nil {
		usage = []model.Usage{}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.services {
		for _, i := range s.v.Instances {
			if size, ok := m.sizes[i.DBName]; ok {
				usage = append(usage, model.Usage{What: fmt.Sprintf("database %s", i.DBName), Bytes: size})
			}
		}
	}
	slices.SortFunc(usage, func(a, b model.Usage) int {
		if a.Bytes != b.Bytes {
			return int(max(-1, min(1, b.Bytes-a.Bytes)))
		}
		return compare(a.What, b.What)
	})
	return usage, nil
}
