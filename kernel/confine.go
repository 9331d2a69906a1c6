package kernel

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"msh/kernel/cgroup"
	"msh/kernel/ledger"
)

// cpus are those the machine may run on: its own set, or its parent's.
func (m *Machine) cpus() ([]int, error) {
	for ; !m.isHost(); m = m.parent {
		if c, ok := m.Spec().find("cpu").(*CPU); ok && c.Set != nil {
			return c.Set, nil
		}
	}
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return nil, err
	}
	return cgroup.ParseCPUs(string(b))
}

// freeCPUs are they without those that another machine has exclusively.
func (m *Machine) freeCPUs() ([]int, error) {
	all, err := m.cpus()
	if err != nil {
		return nil, err
	}
	claims, err := m.host.book.Claims("cpu")
	return m.unclaimed(all, claims), err
}

func (m *Machine) unclaimed(cpus []int, claims []ledger.Claim) []int {
	return slices.DeleteFunc(slices.Clone(cpus), func(cpu int) bool {
		return slices.ContainsFunc(claims, func(c ledger.Claim) bool { return cpuOf(c) == strconv.Itoa(cpu) && !m.within(c.Owner) })
	})
}

// On cgroup v2 an exclusive set is a partition: the kernel itself takes its CPUs
// from everybody else. On v1 cpu_exclusive only keeps siblings from naming them,
// so msh keeps its other machines off: each gets a cpuset of the rest.

// confine does that for every machine on the host; with the last claim gone they
// get all CPUs again. What view() tells follows. The caller holds the book's lock.
func (h *Host) confine() error {
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
	}
	if !h.Cgroup.Unified {
		if err := confineAll(machines, claims); err != nil {
			return err
		}
	}
	var errs []error
	for _, m := range machines {
		errs = append(errs, m.relay())
	}
	return errors.Join(errs...)
}

func confineAll(machines []*Machine, claims []ledger.Claim) error {
	// A machine never has a CPU that the one around it has not: what is taken is
	// taken from the inner ones first, what is given is given to the outer first.
	slices.SortStableFunc(machines, func(a, b *Machine) int { return strings.Count(a.group.Path, "/") - strings.Count(b.group.Path, "/") })
	for _, m := range slices.Backward(machines) {
		if slices.Contains(m.group.V1, "cpuset") {
			if err := m.confine(claims, true); err != nil {
				return err
			}
		}
	}
	for _, m := range machines {
		if err := m.confine(claims, false); err != nil {
			return err
		}
	}
	return nil
}

// confineNew does it for a machine just made: one that has no CPUs of its own
// while others have some exclusively.
func (h *Host) confineNew(m *Machine) error {
	if h.Cgroup.Unified && !m.Spec().Has("view") {
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
	if h.Cgroup.Unified {
		return m.relay()
	}
	claims, err := h.book.Claims("cpu")
	if err != nil {
		return err
	}
	// Another msh may have confined it since it was written down.
	if err := m.refresh(); err != nil {
		return err
	}
	if err := m.confine(claims, false); err != nil {
		return err
	}
	return m.relay()
}

// confine gives a machine that names no CPUs those that nobody else has; with
// less it only takes.
func (m *Machine) confine(claims []ledger.Claim, less bool) error {
	if c, ok := m.Spec().find("cpu").(*CPU); ok && c.Set != nil || m.State() == "dead" {
		return nil
	}
	all, err := m.cpus()
	if err != nil {
		return err
	}
	rest := m.unclaimed(all, claims)
	// The kernel's word, not the record's: an msh may have died between the two.
	had, err := m.group.CPUs()
	confined := err == nil && len(had) > 0
	if !confined {
		had = all
	}
	in := slices.Contains(m.group.V1, "cpuset")
	if less && len(rest) >= len(had) || !confined && len(rest) == len(all) || confined && in && slices.Equal(had, rest) {
		return nil
	}
	want := cgroup.Limits{CPUs: cgroup.FormatCPUs(rest)}
	err = m.limit(want)
	if err == nil {
		err = m.save()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // being destroyed
	}
	if errors.Is(err, unix.EINVAL) && len(rest) > len(had) {
		// Another's cpuset, not of this state directory, has one of those CPUs
		// exclusively: the machine stays where it is.
		return nil
	}
	return err
}
