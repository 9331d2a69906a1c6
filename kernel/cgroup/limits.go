package cgroup

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Limits are what a group may use. The zero value, field by field, is no limit.
type Limits struct {
	CPUQuota  float64 `json:",omitempty"` // percent of one CPU
	CPUWeight uint64  `json:",omitempty"` // 1 to 10000; 100 is everybody's
	CPUs      string  `json:",omitempty"` // "0-1,3"
	Exclusive bool    `json:",omitempty"` // nobody else on those CPUs

	MemoryMax     *int64 `json:",omitempty"` // bytes
	MemoryHigh    *int64 `json:",omitempty"`
	MemoryReserve *int64 `json:",omitempty"`
	Swap          *int64 `json:",omitempty"`

	Pids int64 `json:",omitempty"`
	IO   []IO  `json:",omitempty"`
}

// IO limits one block device.
type IO struct {
	Device       string // as the user named it
	Major, Minor int64
	ReadBPS      uint64 `json:",omitempty"` // bytes per second
	WriteBPS     uint64 `json:",omitempty"`
	ReadIOPS     uint64 `json:",omitempty"`
	WriteIOPS    uint64 `json:",omitempty"`
	Weight       uint64 `json:",omitempty"` // 1 to 10000
}

// controllers are the v1 names of the controllers that the limits need.
func (l Limits) controllers() []string {
	var c []string
	if len(l.IO) > 0 {
		c = append(c, "blkio")
	}
	if l.CPUQuota != 0 || l.CPUWeight != 0 {
		c = append(c, "cpu")
	}
	if l.CPUs != "" {
		c = append(c, "cpuset")
	}
	if l.MemoryMax != nil || l.MemoryHigh != nil || l.MemoryReserve != nil || l.Swap != nil {
		c = append(c, "memory")
	}
	if l.Pids != 0 {
		c = append(c, "pids")
	}
	return c
}

// quota turns percent of one CPU into microseconds of a period. The kernel takes
// no quota under 1 ms and no period over 1 s, so small quotas get a long period.
func (l Limits) quota() (quota int64, period uint64) {
	period = 100_000
	for float64(period)*l.CPUQuota/100 < 1000 && period < 1_000_000 {
		period *= 10
	}
	return int64(float64(period)*l.CPUQuota/100 + 0.5), period
}

// Words tells the limits as `msh -n` prints them, one a line.
func (l Limits) Words() []string {
	var w []string
	add := func(format string, args ...any) { w = append(w, fmt.Sprintf(format, args...)) }
	if l.CPUQuota != 0 {
		q, p := l.quota()
		add("cpu: %d us in every %d us", q, p)
	}
	if l.CPUWeight != 0 {
		add("cpu: weight %d", l.CPUWeight)
	}
	if l.CPUs != "" {
		if l.Exclusive {
			add("cpuset: CPUs %s, nobody else on them", l.CPUs)
		} else {
			add("cpuset: CPUs %s", l.CPUs)
		}
	}
	for _, m := range []struct {
		name string
		v    *int64
	}{{"max", l.MemoryMax}, {"high", l.MemoryHigh}, {"reserve", l.MemoryReserve}, {"swap", l.Swap}} {
		if m.v != nil {
			add("memory: %s %d bytes", m.name, *m.v)
		}
	}
	if l.Pids != 0 {
		add("pids: at most %d", l.Pids)
	}
	for _, io := range l.IO {
		add("io: %s%s", io.Device, io.words())
	}
	return w
}

func (io IO) words() string {
	var b strings.Builder
	for _, f := range []struct {
		name string
		v    uint64
	}{{"read_bps", io.ReadBPS}, {"write_bps", io.WriteBPS}, {"read_iops", io.ReadIOPS}, {"write_iops", io.WriteIOPS}, {"weight", io.Weight}} {
		if f.v != 0 {
			fmt.Fprintf(&b, " %s=%d", f.name, f.v)
		}
	}
	return b.String()
}

// ParseCPUs reads a list of CPUs as the kernel writes it: "0-1,3".
func ParseCPUs(s string) ([]int, error) {
	var cpus []int
	for _, part := range strings.Split(strings.TrimSpace(s), ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		a, err1 := strconv.ParseUint(lo, 10, 16)
		b, err2 := strconv.ParseUint(hi, 10, 16)
		if err1 != nil || err2 != nil || a > b {
			return nil, fmt.Errorf("got %q, want CPU numbers as in \"0-1,3\"", s)
		}
		for ; a <= b; a++ {
			cpus = append(cpus, int(a))
		}
	}
	slices.Sort(cpus)
	return slices.Compact(cpus), nil
}

// FormatCPUs writes a list of CPUs as the kernel does, shortest.
func FormatCPUs(cpus []int) string {
	cpus = slices.Clone(cpus)
	slices.Sort(cpus)
	cpus = slices.Compact(cpus)
	var b strings.Builder
	for i := 0; i < len(cpus); {
		j := i
		for j+1 < len(cpus) && cpus[j+1] == cpus[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(cpus[i]))
		if j > i {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(cpus[j]))
		}
		i = j + 1
	}
	return b.String()
}
