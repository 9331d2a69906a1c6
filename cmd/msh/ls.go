package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"msh/kernel"
	"msh/kernel/cgroup"
)

func (a *app) lsCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "ls [LAB]",
		Short: "list the machines that run",
		Args:  takes(0, 1, "a lab, or none for all"),
		RunE: func(c *cobra.Command, args []string) error {
			rows, err := a.ls(c, args)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(a.stdout, rows)
			}
			if err := tabulate(a.stdout, lsTable(rows)); err != nil {
				return err
			}
			for _, r := range rows {
				if r.Left {
					fmt.Fprintf(a.stderr, "msh: %s/%s: the script that made it is gone; `msh gc` removes it\n", r.Lab, r.Machine)
				}
				if r.InDoubt != "" {
					fmt.Fprintf(a.stderr, "msh: %s/%s stands still: it may run on %s already; `msh migrate` it there once more, which finds out\n", r.Lab, r.Machine, r.InDoubt)
				}
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	return c
}

// listed is a machine in `msh ls`.
type listed struct {
	Lab       string   `json:"lab"`
	Machine   string   `json:"machine"`
	State     string   `json:"state"`
	Pid       int      `json:"pid"` // of its init, seen from the host
	Parent    string   `json:"parent"`
	Address   string   `json:"address"`   // its first, "" for none
	Addresses []string `json:"addresses"` // all that msh has given it
	Processes uint64   `json:"processes"` // threads included
	Memory    *uint64  `json:"memory"`    // bytes; null where it is not counted
	Keep      bool     `json:"keep"`
	Left      bool     `json:"left"`     // its script was killed: the next msh, or `msh gc`, removes it
	InDoubt   string   `json:"in_doubt"` // the host on which it may run already; "" where that is known
}

func (a *app) ls(c *cobra.Command, args []string) ([]listed, error) {
	h, err := a.rootHost(c)
	if err != nil {
		return nil, err
	}
	machines, err := h.Machines()
	if err != nil {
		return nil, err
	}
	rows := []listed{}
	for _, m := range machines {
		if len(args) == 0 || m.LabName() == args[0] {
			l := list(m)
			l.Left = !l.Keep && !h.Owned(l.Lab)
			rows = append(rows, l)
		}
		m.Close()
	}
	if len(rows) == 0 && len(args) > 0 {
		return nil, fmt.Errorf("no lab %q", args[0])
	}
	return rows, nil
}

func list(m *kernel.Machine) listed {
	l := listed{Lab: m.LabName(), Machine: m.Name(), State: m.State(), Pid: m.Pid(), Parent: m.Parent().Name(), Address: m.Address(), Addresses: addresses(m), Keep: m.Spec().Keep, InDoubt: m.InDoubt()}
	if s := counters(m); s != nil {
		l.Processes, l.Memory = s.Pids, s.Memory
	}
	return l
}

// addresses are those of its interfaces, or of its netaddr.
func addresses(m *kernel.Machine) []string {
	all := []string{}
	for _, r := range m.Spec().Resources {
		switch r := r.(type) {
		case *kernel.Netif:
			for _, a := range r.Addresses {
				all = append(all, a.Addr().String())
			}
		case *kernel.Netaddr:
			for _, a := range r.Addresses {
				all = append(all, a.String())
			}
		}
	}
	return all
}

// counters are nil for a machine that has ended, perhaps just now.
func counters(m *kernel.Machine) *cgroup.Stats {
	s, err := m.Stats()
	if err != nil {
		return nil
	}
	return s
}

func lsTable(rows []listed) [][]string {
	table := [][]string{{"LAB", "MACHINE", "STATE", "PID", "PARENT", "ADDRESS", "PROCESSES", "MEMORY"}}
	for _, r := range rows {
		pid, processes := strconv.Itoa(r.Pid), strconv.FormatUint(r.Processes, 10)
		if r.State == "dead" {
			pid, processes = "", ""
		}
		table = append(table, []string{r.Lab, r.Machine, r.State, pid, r.Parent, strings.Join(r.Addresses, ","), processes, size(r.Memory)})
	}
	return table
}

// size writes bytes as scripts do, in the largest unit that leaves a digit before the point.
func size(n *uint64) string {
	if n == nil {
		return ""
	}
	v := float64(*n)
	for _, unit := range []string{"", "K", "M", "G", "T"} {
		if v < 1024 || unit == "T" {
			if unit == "" {
				return strconv.FormatUint(*n, 10)
			}
			return strconv.FormatFloat(v, 'f', 1, 64) + unit
		}
		v /= 1024
	}
	return ""
}
