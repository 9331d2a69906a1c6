package kernel

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"msh/kernel/cgroup"
	"msh/kernel/ledger"
)

// Memory limits a machine's physical memory; all in bytes.
type Memory struct {
	Max     *int64 `json:",omitempty"`
	High    *int64 `json:",omitempty"` // throttled above; cgroup v2
	Reserve *int64 `json:",omitempty"` // kept for it alone
	Swap    *int64 `json:",omitempty"`
}

const (
	// minMemory is the least with which a process can start at all.
	minMemory = 256 << 10
	// maxMemory is 1 EiB: above all there is, and v1's sum of memory and swap is
	// still a number of 63 bits.
	maxMemory = 1 << 60
)

// Kind is "memory".
func (*Memory) Kind() string { return "memory" }

// Mode is exclusive where memory is reserved.
func (m *Memory) Mode() Mode {
	if m.Reserve != nil {
		return Exclusive
	}
	return Shared
}

// Validate checks each size and their order.
func (m *Memory) Validate() error {
	if m.Max == nil && m.High == nil && m.Reserve == nil && m.Swap == nil {
		return bad("memory", "", nil, "want at least one of max, high, reserve and swap")
	}
	for _, f := range []struct {
		name string
		v    *int64
		min  int64
	}{{"max", m.Max, minMemory}, {"high", m.High, minMemory}, {"reserve", m.Reserve, 1}, {"swap", m.Swap, 0}} {
		if f.v != nil && *f.v < f.min {
			return bad("memory", f.name, *f.v, fmt.Sprintf("at least %d bytes", f.min))
		}
		if f.v != nil && *f.v > maxMemory {
			return bad("memory", f.name, *f.v, fmt.Sprintf("at most %d bytes (1 EiB)", int64(maxMemory)))
		}
	}
	for _, f := range []struct {
		name string
		v    *int64
	}{{"high", m.High}, {"reserve", m.Reserve}} {
		if m.Max != nil && f.v != nil && *f.v > *m.Max {
			return bad("memory", f.name, *f.v, fmt.Sprintf("at most max, %d", *m.Max))
		}
	}
	return nil
}

// Plan puts the limits into the control group and claims what is reserved.
func (m *Memory) Plan(p *Plan) error {
	l := &p.Limits
	l.MemoryMax, l.MemoryHigh, l.MemoryReserve, l.Swap = m.Max, m.High, m.Reserve, m.Swap
	if m.Reserve != nil {
		p.Claims = append(p.Claims, ledger.Claim{Kind: "memory", Name: p.Under.Lab + "." + p.Spec.Name, Amount: *m.Reserve})
	}
	return nil
}

// Prepare refuses to promise more memory than there is. memory.min protects from
// reclaim but promises nothing, so msh counts for itself.
func (m *Memory) Prepare(t *Txn) error {
	if err := m.summed(t.host, nil); err != nil {
		return err
	}
	if m.Reserve == nil {
		return nil
	}
	free, err := t.host.unreserved(t.parent)
	if err != nil {
		return err
	}
	if *m.Reserve > free {
		return bad("memory", "reserve", fmt.Sprintf("%d bytes", *m.Reserve), fmt.Sprintf("at most %d, what %s has not yet promised", free, t.parent.Name()))
	}
	return nil
}

func (m *Memory) set(to *Machine) error {
	if m.Reserve != nil {
		return bad("memory", "reserve", nil, "memory is reserved when the machine is made, and for its life")
	}
	had, _ := to.Spec().find("memory").(*Memory)
	if err := m.summed(to.host, had); err != nil {
		return err
	}
	return to.limit(cgroup.Limits{MemoryMax: m.Max, MemoryHigh: m.High, Swap: m.Swap})
}

// summed refuses swap without max on cgroup v1, which limits the sum of both and
// nothing else. had is what the machine has so far, nil for nothing.
func (m *Memory) summed(h *Host, had *Memory) error {
	if h.Cgroup.Unified || m.Swap == nil || m.Max != nil || had != nil && had.Max != nil {
		return nil
	}
	return &ParamError{Kind: "memory", Param: "swap", Got: fmt.Sprint(*m.Swap), Want: "max beside it: cgroup v1 limits only the sum of memory and swap", Mend: "memory(max=…, swap=…)"}
}

// purse is the machine whose memory a machine of parent's reserves from: the
// nearest ancestor that has reserved some itself, or the host.
func purse(parent *Machine) *Machine {
	for m := parent; ; m = m.parent {
		if m.isHost() {
			return m
		}
		if r, ok := m.Spec().find("memory").(*Memory); ok && r.Reserve != nil {
			return m
		}
	}
}

// unreserved is how much memory a machine of parent's can still reserve.
func (h *Host) unreserved(parent *Machine) (int64, error) {
	from := purse(parent)
	var free int64
	if r, ok := from.Spec().find("memory").(*Memory); ok {
		free = *r.Reserve
	} else {
		var err error
		if free, err = memTotal(); err != nil {
			return 0, err
		}
	}
	claims, err := h.book.Claims("memory")
	if err != nil {
		return 0, err
	}
	for _, c := range claims {
		if c.From == from.claimant() {
			free -= c.Amount
		}
	}
	// Nor can the machines inside one be promised more than it may use.
	for m := parent; !m.isHost(); m = m.parent {
		l, ok := m.Spec().find("memory").(*Memory)
		if !ok || l.Max == nil {
			continue
		}
		left := *l.Max
		for _, c := range claims {
			if m.holds(c.Owner) {
				left -= c.Amount
			}
		}
		free = min(free, left)
	}
	return max(free, 0), nil
}

// memTotal is the host's memory in bytes.
func memTotal() (int64, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "MemTotal:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo: no MemTotal")
}
