package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"msh/kernel"
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "tell what this host has for machines, what it lacks, and the mend",
		Long:  "Tries what machines need, one line each. It ends with 1 if no machine can be made here.",
		Args:  takes(0, 0, ""),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := a.host()
			if err != nil {
				return err
			}
			findings := h.Doctor(c.Context())
			if a.outside != nil {
				findings = append([]kernel.Finding{outside(a.outside)}, findings...)
			}
			if err := tabulate(a.stdout, diagnosis(findings)); err != nil {
				return err
			}
			for _, f := range findings {
				if f.Vital && !f.OK {
					return fmt.Errorf("no machine can be made here: %s", f.Name)
				}
			}
			return nil
		},
	}
}

func diagnosis(findings []kernel.Finding) [][]string {
	var table [][]string
	for _, f := range findings {
		word, detail := "ok", f.Detail
		if !f.OK {
			word = "no"
			if f.Mend != "" {
				detail += "; mend: " + f.Mend
			}
		}
		table = append(table, []string{word, f.Name, strings.ReplaceAll(detail, "\n", "; ")})
	}
	return table
}

// outside is why an ordinary user has no machines.
func outside(err error) kernel.Finding {
	f := kernel.Finding{Name: "space", Vital: true, Detail: err.Error()}
	if hint := (interface{ Hint() string })(nil); errors.As(err, &hint) {
		f.Mend = hint.Hint()
	}
	return f
}
