package kernel

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"msh/kernel/cgroup"
	"msh/kernel/ledger"
)

// cpus are those the machine may run on: its own set, or its parent's.
func (m *Machine) cpus() ([]int, error) {
	for ; !m.isHost(); m = m.parent {
		if c, ok := m.spec.find("cpu").(*CPU); ok && c.Set != nil {
			return c.Set, nil
		}
	}
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, err
	}
	return cgroup.ParseCPUs(string(b))
}

// On cgroup v2 an exclusive set is a partition: the kernel itself takes its CPUs
// from everybody else. On v1 cpu_exclusive only keeps siblings from naming them,
// so msh keeps its other machines off: each gets a cpuset of the rest.

// confine does that for every machine on the host; with the last claim gone they
// get all CPUs again. The caller holds the book's lock.
func (h *Host) confine() error {
	if h.Cgroup.Unified {
		return nil
	}
	claims, err := h.book.Claims("cpu")
	if err != nil {
		return err
	}
	machines, err := h.Machines()
	if err != nil {
		return err
	}
	for _, m := range machines {
		defer m.close()
		if err := m.confine(claims); err != nil {
			return err
		}
	}
	return nil
}

// confineNew does it for a machine just made: one that has no CPUs of its own
// while others have some exclusively.
func (h *Host) confineNew(m *Machine) error {
	if h.Cgroup.Unified {
		return nil
	}
	if claims, err := h.book.Claims("cpu"); err != nil || len(claims) == 0 {
		return err
	}
	unlock, err := h.book.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	claims, err := h.book.Claims("cpu")
	if err != nil {
		return err
	}
	return m.confine(claims)
}

func (m *Machine) confine(claims []ledger.Claim) error {
	if c, ok := m.spec.find("cpu").(*CPU); ok && c.Set != nil || m.State() == "dead" {
		return nil
	}
	all, err := m.cpus()
	if err != nil {
		return err
	}
	rest := slices.DeleteFunc(slices.Clone(all), func(cpu int) bool {
		return slices.ContainsFunc(claims, func(c ledger.Claim) bool { return c.Name == strconv.Itoa(cpu) && !m.within(c.Owner) })
	})
	in := slices.Contains(m.group.V1, "cpuset")
	want := cgroup.Limits{CPUs: cgroup.FormatCPUs(rest)}
	if !in && len(rest) == len(all) || in && m.group.Limits.CPUs == want.CPUs {
		return nil
	}
	if m.ledger == nil {
		l, err := ledger.Open(filepath.Join(m.Dir(), "ledger"))
		if os.IsNotExist(err) {
			return nil // being destroyed
		}
		if err != nil {
			return err
		}
		m.ledger = l
	}
	if err := m.limit(want); err != nil {
		return err
	}
	return m.save()
}
