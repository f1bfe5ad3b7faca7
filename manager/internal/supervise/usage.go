package supervise

import "time"

// Usage is what the processes of a service use.
type Usage struct {
	Memory    int64         // bytes
	CPU       time.Duration // since the service was first started
	Percent   float64       // of one processor, lately
	Processes int
}

// Usage measures the service.
func (s *Service) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{Percent: s.usage.Percent}
	if pid := s.status.PID; pid != 0 {
		// Controllers that are not there are answered by the process alone.
		stat, err := readStat(pid)
		if err == nil {
			u.Memory, u.CPU, u.Processes = stat.rss, stat.cpu, 1
		}
	}
	if n, ok := s.cgroup.number("memory.current", ""); ok {
		u.Memory = n
	}
	if n, ok := s.cgroup.number("cpu.stat", "usage_usec"); ok {
		u.CPU = time.Duration(n) * time.Microsecond
	}
	if n, ok := s.cgroup.number("pids.current", ""); ok {
		u.Processes = int(n)
	} else if s.cgroup != "" {
		u.Processes = len(s.cgroup.pids())
	}
	// Two askers at nearly the same time would else divide by nearly nothing.
	if now := time.Now(); now.Sub(s.sampled) >= time.Second {
		u.Percent = 0
		if !s.sampled.IsZero() && u.CPU > s.usage.CPU {
			u.Percent = 100 * float64(u.CPU-s.usage.CPU) / float64(now.Sub(s.sampled))
		}
		s.sampled, s.usage = now, u
	}
	return u
}
