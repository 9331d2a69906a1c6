package main

import (
	"strings"

	"github.com/spf13/cobra"

	"msh/kernel"
)

func (a *app) resourcesCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "resources [KIND]",
		Short: "list what this host can give to machines, and who has it",
		Args:  takes(0, 1, "a kind of resource, or none for all"),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := a.host()
			if err != nil {
				return err
			}
			lab, err := h.NewLab("msh", false)
			if err != nil {
				return err
			}
			list, err := lab.Host().Resources(strings.Join(args, ""))
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(a.stdout, resourcesJSON(list))
			}
			return tabulate(a.stdout, resourcesTable(list))
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "for programs")
	return c
}

type resource struct {
	Kind      string        `json:"kind"`
	Name      string        `json:"name"`
	Modes     []kernel.Mode `json:"modes"`
	Available bool          `json:"available"`
	Owner     string        `json:"owner"` // LAB/MACHINE, "" where free
	Detail    string        `json:"detail"`
}

func resourcesJSON(list []kernel.Available) []resource {
	all := []resource{}
	for _, r := range list {
		all = append(all, resource{r.Kind, r.Name, append([]kernel.Mode{}, r.Modes...), r.Available, r.Owner, r.Detail})
	}
	return all
}

func resourcesTable(list []kernel.Available) [][]string {
	table := [][]string{{"KIND", "NAME", "MODES", "AVAILABLE", "OWNER", "DETAIL"}}
	for _, r := range list {
		var modes []string
		for _, m := range r.Modes {
			modes = append(modes, string(m))
		}
		available := "no"
		if r.Available {
			available = "yes"
		}
		table = append(table, []string{r.Kind, r.Name, strings.Join(modes, ","), available, r.Owner, r.Detail})
	}
	return table
}
