package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup1"
	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	"github.com/containerd/cgroups/v3/cgroup2"
)

// Stats are a group's counters. A nil pointer is a counter that this host does
// not keep for this group: on v1 only what is limited is counted.
type Stats struct {
	CPUSeconds       float64
	ThrottledSeconds float64
	Memory           *uint64 // bytes now
	MemoryPeak       *uint64
	Pids             uint64 // tasks now
	ReadBytes        *uint64
	WriteBytes       *uint64
}

// Stats reads them.
func (g *Group) Stats() (*Stats, error) {
	if g.Tracker == "" {
		return g.Init.stats()
	}
	if err := g.ready(); err != nil {
		return nil, err
	}
	if g.Unified {
		return g.statsV2()
	}
	return g.statsV1()
}

func (g *Group) statsV2() (*Stats, error) {
	m, err := g.v2()
	if err != nil {
		return nil, err
	}
	s, err := m.StatFiltered(cgroup2.StatPids | cgroup2.StatCPU | cgroup2.StatMemory | cgroup2.StatIO)
	if err != nil {
		return nil, err
	}
	out := &Stats{
		CPUSeconds:       float64(s.GetCPU().GetUsageUsec()) / 1e6,
		ThrottledSeconds: float64(s.GetCPU().GetThrottledUsec()) / 1e6,
		Pids:             s.GetPids().GetCurrent(),
	}
	if mem := s.GetMemory(); mem != nil {
		out.Memory = &mem.Usage
		if peak := mem.MaxUsage; peak > 0 { // memory.peak: since 5.19
			out.MemoryPeak = &peak
		}
	}
	if io := s.GetIo(); io != nil {
		var r, w uint64
		for _, e := range io.Usage {
			r, w = r+e.Rbytes, w+e.Wbytes
		}
		out.ReadBytes, out.WriteBytes = &r, &w
	}
	return out, nil
}

func (g *Group) statsV1() (*Stats, error) {
	m := &v1.Metrics{CPU: &v1.CPUStat{Usage: &v1.CPUUsage{}, Throttling: &v1.Throttle{}}}
	out := &Stats{}
	uses := func(c string) bool { return slices.Contains(g.V1, c) }
	// cpu.stat of v2 counts time without any controller.
	b, err := os.ReadFile(filepath.Join(g.dir(g.Tracker), "cpu.stat"))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "usage_usec" {
			n, _ := strconv.ParseUint(f[1], 10, 64)
			out.CPUSeconds = float64(n) / 1e6
		}
	}
	if uses("cpu") {
		if err := cgroup1.NewCpu(Root).Stat(g.Path, m); err != nil {
			return nil, err
		}
		out.ThrottledSeconds = float64(m.CPU.Throttling.ThrottledTime) / 1e9
	}
	if uses("memory") {
		if err := cgroup1.NewMemory(Root, cgroup1.OptionalSwap()).Stat(g.Path, m); err != nil {
			return nil, err
		}
		out.Memory, out.MemoryPeak = &m.Memory.Usage.Usage, &m.Memory.Usage.Max
	}
	if uses("blkio") {
		if err := cgroup1.NewBlkio(Root).Stat(g.Path, m); err != nil {
			return nil, err
		}
		var r, w uint64
		for _, e := range m.GetBlkio().GetIoServiceBytesRecursive() {
			switch e.Op {
			case "Read":
				r += e.Value
			case "Write":
				w += e.Value
			}
		}
		out.ReadBytes, out.WriteBytes = &r, &w
	}
	pids, err := g.Pids()
	if err != nil {
		return nil, err
	}
	var rss uint64
	for _, pid := range pids {
		n, pages := tasksAndPages(pid)
		out.Pids += n
		rss += pages * uint64(os.Getpagesize())
	}
	if out.Memory == nil {
		out.Memory = &rss
	}
	return out, nil
}

// tasksAndPages reads a process's threads and resident pages; zeros when it is gone.
func tasksAndPages(pid int) (tasks, pages uint64) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, 0
	}
	// The name, in parentheses, may hold anything: fields are counted from its end.
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 22 {
		return 0, 0
	}
	tasks, _ = strconv.ParseUint(f[17], 10, 64)
	pages, _ = strconv.ParseUint(f[21], 10, 64)
	return tasks, pages
}
