package main

import (
	"strconv"

	"github.com/spf13/cobra"

	"msh/kernel"
	"msh/kernel/cgroup"
)

func (a *app) statsCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "stats [MACHINE]",
		Short: "tell what machines have used so far",
		Long:  "Prints the counters of a machine, or of all. A dash stands for what this host does not count.",
		Args:  takes(0, 1, "a machine, or none for all"),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := a.rootHost(c)
			if err != nil {
				return err
			}
			machines, err := some(h, args)
			if err != nil {
				return err
			}
			table := [][]string{{"LAB", "MACHINE", "CPU", "THROTTLED", "MEMORY", "PEAK", "PIDS", "READ", "WRITTEN"}}
			list := []map[string]any{}
			for _, m := range machines {
				s := counters(m)
				if s == nil {
					m.Close()
					continue // it has ended
				}
				named, err := statistics(m, s)
				m.Close()
				if err != nil {
					return err
				}
				table = append(table, []string{m.LabName(), m.Name(), seconds(s.CPUSeconds), seconds(s.ThrottledSeconds), size(s.Memory),
					size(s.MemoryPeak), strconv.FormatUint(s.Pids, 10), size(s.ReadBytes), size(s.WriteBytes)})
				named["lab"], named["machine"] = m.LabName(), m.Name()
				list = append(list, named)
			}
			if asJSON {
				return writeJSON(a.stdout, list)
			}
			return tabulate(a.stdout, table)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	return c
}

// statistics are a machine's counters under the names they have in scripts, those of its interfaces among them.
func statistics(m *kernel.Machine, s *cgroup.Stats) (map[string]any, error) {
	named, err := parameters(s)
	if err != nil {
		return nil, err
	}
	netifs := map[string]any{}
	for _, n := range m.Netifs() {
		c, err := m.NetifStats(n.Name)
		if err != nil {
			continue // it, or all of the machine, has just gone
		}
		if netifs[n.Name], err = parameters(c); err != nil {
			return nil, err
		}
	}
	named["netifs"] = netifs
	return named, nil
}

func seconds(s float64) string { return strconv.FormatFloat(s, 'f', 3, 64) + "s" }

// some are the machines named, all for none. The caller closes them.
func some(h *kernel.Host, names []string) ([]*kernel.Machine, error) {
	if len(names) == 0 {
		return h.Machines()
	}
	m, err := h.Find(names[0])
	if err != nil {
		return nil, err
	}
	return []*kernel.Machine{m}, nil
}
