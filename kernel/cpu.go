package kernel

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"msh/kernel/cgroup"
	"msh/kernel/ledger"
)

// CPU limits a machine's processor time, and which CPUs it runs on.
type CPU struct {
	Quota     float64 `json:",omitempty"` // percent of one CPU, 0.1 and up
	Weight    int     `json:",omitempty"` // 1 to 10000
	Set       []int   `json:",omitempty"`
	Exclusive bool    `json:",omitempty"` // needs Set
}

// Kind is "cpu".
func (*CPU) Kind() string { return "cpu" }

// Mode is exclusive where the CPUs are the machine's alone.
func (c *CPU) Mode() Mode {
	if c.Exclusive {
		return Exclusive
	}
	return Shared
}

// Validate checks the numbers; whether the CPUs are there, Prepare sees.
func (c *CPU) Validate() error {
	switch {
	case c.Quota == 0 && c.Weight == 0 && c.Set == nil && !c.Exclusive:
		return bad("cpu", "", nil, "want at least one of quota, weight and set")
	case c.Quota != 0 && !(c.Quota >= 0.1 && c.Quota <= 1e6): // NaN is neither
		return bad("cpu", "quota", c.Quota, "percent of one CPU, 0.1 to 1000000")
	case c.Weight != 0 && (c.Weight < 1 || c.Weight > 10000):
		return bad("cpu", "weight", c.Weight, "1 to 10000")
	case c.Set != nil && len(c.Set) == 0:
		return &ParamError{Kind: "cpu", Param: "set", Got: "no CPU", Want: "at least one"}
	case c.Exclusive && c.Set == nil:
		return &ParamError{Kind: "cpu", Param: "exclusive", Got: "True without set", Want: "the CPUs to have alone", Mend: `cpu(set="1", exclusive=True)`}
	}
	return nil
}

// Plan puts the limits into the control group and claims exclusive CPUs.
func (c *CPU) Plan(p *Plan) error {
	l := &p.Limits
	l.CPUQuota, l.CPUWeight, l.CPUs, l.Exclusive = c.Quota, uint64(c.Weight), cgroup.FormatCPUs(c.Set), c.Exclusive
	if c.Exclusive {
		for _, n := range c.Set {
			name := strconv.Itoa(n)
			if p.Under.Name != "" { // the one it comes from has the plain name
				name += "." + p.Under.Lab + "." + p.Spec.Name
			}
			p.Claims = append(p.Claims, ledger.Claim{Kind: "cpu", Name: name})
		}
	}
	return nil
}

// Prepare checks that the parent has those CPUs to give, under the book's lock.
func (c *CPU) Prepare(t *Txn) error {
	if c.Set == nil {
		return nil
	}
	if over, _ := t.parent.Spec().find("cpu").(*CPU); c.Exclusive && !t.parent.isHost() && (over == nil || !over.Exclusive) {
		return &ParamError{Kind: "cpu", Param: "exclusive", Got: "True", Want: "a parent that has those CPUs exclusively itself", Mend: fmt.Sprintf("make %s with cpu(set=…, exclusive=True)", t.parent.Name())}
	}
	return t.parent.hasCPUs(t.host, c.Set, c.Exclusive, t.owner())
}

// set changes the limits of a running machine. Exclusive CPUs are for life.
func (c *CPU) set(m *Machine) error {
	if had, _ := m.Spec().find("cpu").(*CPU); c.Exclusive || had != nil && had.Exclusive && c.Set != nil {
		return bad("cpu", "exclusive", nil, "exclusive CPUs are given when the machine is made, and for its life")
	}
	if c.Set != nil {
		// Until the limit is set: a CPU that is free now must not be given away meanwhile.
		unlock, err := m.host.book.Lock()
		if err != nil {
			return err
		}
		defer unlock()
		if err := m.parent.hasCPUs(m.host, c.Set, false, m.ID()); err != nil {
			return err
		}
	}
	return m.limit(cgroup.Limits{CPUQuota: c.Quota, CPUWeight: uint64(c.Weight), CPUs: cgroup.FormatCPUs(c.Set)})
}

// cpuOf is the number in a claim on a CPU.
func cpuOf(c ledger.Claim) string {
	n, _, _ := strings.Cut(c.Name, ".")
	return n
}

// hasCPUs tells whether machines of m may run on those CPUs.
func (m *Machine) hasCPUs(h *Host, set []int, alone bool, owner string) error {
	have, err := m.cpus()
	if err != nil {
		return err
	}
	for _, n := range set {
		if !slices.Contains(have, n) {
			return &ParamError{Kind: "cpu", Param: "set", Got: "CPU " + strconv.Itoa(n), Want: fmt.Sprintf("CPUs that %s has: %s", m.Name(), cgroup.FormatCPUs(have))}
		}
	}
	claims, err := h.book.Claims("cpu")
	if err != nil {
		return err
	}
	for _, c := range claims {
		n, _ := strconv.Atoi(cpuOf(c))
		if slices.Contains(set, n) && c.Owner != owner && !m.within(c.Owner) {
			return &ParamError{Kind: "cpu", Param: "set", Got: "CPU " + cpuOf(c), Want: "one that is free: machine " + c.Owner + " has it exclusively"}
		}
	}
	if alone && len(set) == len(have) {
		return &ParamError{Kind: "cpu", Param: "set", Got: "every CPU that " + m.Name() + " has", Want: "at least one left for the others"}
	}
	return nil
}
